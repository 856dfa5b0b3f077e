"""Drawing a study from two systems' generated images: which captions, which images, under which opaque names.

Everything is a pure function of the generated images and the seed. Names are keyed hashes, so neither a name nor an order derived
from names says which system an image is from.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.generations import read_generations
from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.errors import Code, UserError
from humaneval.settings import GRID_CELLS
from humaneval.study.wording import CAPTION_SHOWN


@dataclass(frozen=True)
class Source:
    """One system's generated images for one prompt set: rows of `index.parquet` by prompt, then by `image_index` (the number of
    the image among those of its prompt). `arm` is "a" or "b"."""

    arm: str
    artifact: Artifact
    prompts: Mapping[str, Mapping[int, Mapping[str, Any]]]

    @classmethod
    def read(cls, arm: str, artifact: Artifact) -> "Source":
        prompts: dict[str, dict[int, Mapping[str, Any]]] = {}
        for row in read_generations(artifact).to_pylist():
            prompts.setdefault(row["prompt_id"], {})[row["image_index"]] = row
        return cls(arm, artifact, prompts)

    def path(self, row: Mapping[str, Any]) -> Path:
        return self.artifact.folder / row["file"]


@dataclass(frozen=True)
class DraftImage:
    """An image to make: one file to copy, or 16 files to compose."""

    token: str
    arm: str
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class DraftQuestion:
    id: str
    kind: str
    prompt_id: str
    caption: str | None  # None where raters do not see it
    images: tuple[DraftImage, DraftImage]  # ordered by token


class Naming:
    """Opaque names: HMAC-SHA256 under a key that only the run knows."""

    def __init__(self, seed: int, sources: Iterable[Source]) -> None:
        self._key = bytes.fromhex(fingerprint([seed, [s.artifact.digest() for s in sources]]))

    def __call__(self, *what: str) -> str:
        return hmac.new(self._key, "\0".join(what).encode(), hashlib.sha256).hexdigest()[:32]


def draw_questions(kind: str, count: int | None, a: Source, b: Source, name: Naming) -> list[DraftQuestion]:
    """`count` questions of a kind (None: one for every caption), drawn by hash, ordered by their opaque id.

    Raises UserError when the systems answered different prompts or there are fewer than `count`.
    """
    prompts = _common_prompts(a, b)
    wanted = len(prompts) if count is None else count
    if wanted > len(prompts):
        raise UserError(
            f"humaneval.questions.{kind} = {count}, but {a.artifact.folder} has images for {len(prompts)} captions; "
            "ask for at most that many"
        )
    chosen = sorted(prompts, key=lambda prompt: name("draw", kind, prompt))[:wanted]
    questions = [_question(kind, prompt, a, b, name) for prompt in chosen]
    return sorted(questions, key=lambda question: question.id)


def _common_prompts(a: Source, b: Source) -> list[str]:
    captions_a, captions_b = _captions(a), _captions(b)
    if captions_a != captions_b:
        odd = sorted(p for p in captions_a.keys() | captions_b.keys() if captions_a.get(p) != captions_b.get(p))
        raise UserError(
            f"{a.artifact.folder} and {b.artifact.folder} answer different prompts ({len(odd)} differ, e.g. {odd[0]!r}); "
            "generate both systems' images from one prompt set",
            Code.FOREIGN,
        )
    return sorted(captions_a)


def _captions(source: Source) -> dict[str, str]:
    return {prompt: _caption(source, prompt) for prompt in source.prompts}


def _caption(source: Source, prompt: str) -> str:
    caption: str = next(iter(source.prompts[prompt].values()))["caption"]
    return caption


def _question(kind: str, prompt: str, a: Source, b: Source, name: Naming) -> DraftQuestion:
    indices = _image_indices(kind, prompt, a, b, name)
    pair = [_image(kind, source, [source.prompts[prompt][i] for i in indices], name) for source in (a, b)]
    first, second = sorted(pair, key=lambda image: image.token)
    caption = _caption(a, prompt) if kind in CAPTION_SHOWN else None
    return DraftQuestion(name("question", kind, prompt), kind, prompt, caption, (first, second))


def _image_indices(kind: str, prompt: str, a: Source, b: Source, name: Naming) -> list[int]:
    """The same indices of images for both systems: one drawn for a pair, the first 16 for a grid."""
    common = sorted(a.prompts[prompt].keys() & b.prompts[prompt].keys())
    if kind == "diversity":
        if len(common) < GRID_CELLS:
            where = f"{a.artifact.folder} and {b.artifact.folder}"
            raise UserError(
                f"a diversity grid needs {GRID_CELLS} images of each caption; {where} share {len(common)} for prompt {prompt!r}"
            )
        return common[:GRID_CELLS]
    if not common:
        raise UserError(
            f"{a.artifact.folder} and {b.artifact.folder} share no image index for prompt {prompt!r}; generate both alike"
        )
    # The word is part of what is hashed: another one would draw other images.
    return [min(common, key=lambda i: name("sample", kind, prompt, str(i)))]


def _image(kind: str, source: Source, rows: list[Mapping[str, Any]], name: Naming) -> DraftImage:
    ids = tuple(row["image_id"] for row in rows)
    return DraftImage(
        token=name("image", kind, source.arm, source.artifact.digest(), *ids), arm=source.arm, image_ids=ids,
        paths=tuple(source.path(row) for row in rows), sha256=tuple(row["sha256"] for row in rows),
    )  # fmt: skip
