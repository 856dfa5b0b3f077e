"""Columns of well-known URL lists, and how the configured columns are found in a file.

As found in the releases, without regard to case:
- laion: LAION-400M has SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE NSFW similarity; laion2B-en URL TEXT WIDTH HEIGHT similarity hash
  punsafe pwatermark, the aesthetic subsets also AESTHETIC_SCORE or aesthetic (dataset cards on huggingface.co, among them
  linyq/laion_text_debiased_100M, loggerJK/laion2B-en-aesthetic-9plus). Its `hash` is of URL and text, not of the image.
- cc3m, cc12m: tab-separated without a header and without quoting, caption first and URL first (img2dataset's dataset_examples
  adds the header with sed; a file that was given one is read too).
- coyo: the card of kakaobrain/coyo-700m. - datacomp: the viewer of mlfoundations/datacomp_small; `sha256` is of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.pipeline.errors import UserError
from data.sources.settings import TableSettings

FIELDS = ("url", "caption", "license", "source_page", "attribution", "hash", "nsfw", "watermark")
NEEDED = ("url", "caption")


@dataclass(frozen=True)
class Preset:
    """Per field the column names to look for, best first, in lower case; `header`: the columns of a text file without a header."""

    url: tuple[str, ...] = ("url",)
    caption: tuple[str, ...] = ("text", "caption")
    license: tuple[str, ...] = ()
    source_page: tuple[str, ...] = ()
    attribution: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    nsfw: tuple[str, ...] = ()
    watermark: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()  # those of `extra` that hold numbers, also where a CSV has them as text
    header: tuple[str, ...] = ()


PRESETS = {
    "laion": Preset(
        license=("license",),
        nsfw=("nsfw", "punsafe"),
        watermark=("pwatermark",),
        extra=("sample_id", "width", "height", "similarity", "punsafe", "language", "aesthetic", "aesthetic_score"),
        numbers=("sample_id", "width", "height", "similarity", "punsafe", "aesthetic", "aesthetic_score"),
    ),
    "cc3m": Preset(url=("url", "image_url"), caption=("caption",), header=("caption", "url")),
    "cc12m": Preset(url=("url", "image_url"), caption=("caption",), header=("url", "caption")),
    "coyo": Preset(
        nsfw=("nsfw_score_opennsfw2", "nsfw_score_gantman"),
        watermark=("watermark_score",),
        extra=(
            "id", "width", "height", "image_phash", "num_faces", "clip_similarity_vitb32", "clip_similarity_vitl14",
            "nsfw_score_opennsfw2", "nsfw_score_gantman", "aesthetic_score_laion_v2",
        ),
        numbers=(
            "id", "width", "height", "num_faces", "clip_similarity_vitb32", "clip_similarity_vitl14", "nsfw_score_opennsfw2",
            "nsfw_score_gantman", "aesthetic_score_laion_v2",
        ),
    ),
    "datacomp": Preset(
        hash=("sha256",),
        extra=(
            "uid", "original_width", "original_height", "clip_b32_similarity_score", "clip_l14_similarity_score", "face_bboxes",
        ),
        numbers=("original_width", "original_height", "clip_b32_similarity_score", "clip_l14_similarity_score"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The column of one file for each field it has, those carried along, and which of these are known to hold numbers."""

    of_field: dict[str, str]
    extra: tuple[str, ...]
    numbers: frozenset[str]

    @property
    def names(self) -> list[str]:
        """Every column to read, once."""
        return list(dict.fromkeys([*self.of_field.values(), *self.extra]))


def find_columns(present: Sequence[str], settings: TableSettings, path: Path) -> Columns:
    """Where a file holds what. Columns named in the config must exist exactly so; a preset's others may be missing.

    Raises UserError naming what is missing and what is there.
    """
    preset = PRESETS[settings.preset] if settings.preset else Preset(caption=("caption",))
    by_case = (
        {name.lower(): name for name in reversed(present)} if settings.preset else {name: name for name in present}
    )
    found, lacking = {}, []
    for field in FIELDS:
        given = getattr(settings, field)
        wanted = (given,) if given else getattr(preset, field)
        name = (
            given if given in present else None if given else next((by_case[w] for w in wanted if w in by_case), None)
        )
        if name is not None:
            found[field] = name
        elif given or field in NEEDED:
            lacking.append(" or ".join(wanted))
    lacking += [name for name in settings.extra if name not in present]
    if lacking:
        raise UserError(
            f"{path} has no column {', '.join(lacking)}; it has {', '.join(map(str, present))}: "
            "name yours with dataset.table.url and dataset.table.caption"
        )
    carried = [by_case[name] for name in preset.extra if name in by_case]
    numbers = frozenset(by_case[name] for name in preset.numbers if name in by_case)
    return Columns(found, tuple(dict.fromkeys([*settings.extra, *carried])), numbers)
