"""What a config may say about where candidates come from."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from data.pipeline.config import Settings


class ScenesSettings(Settings):
    """The synthetic captioned world: `samples` scenes of `side` pixels, each with `captions_per_image` captions."""

    samples: int = Field(ge=1)
    side: int = Field(default=64, ge=8, le=1024)
    captions_per_image: int = Field(default=2, ge=1, le=20)
    two_object_share: float = Field(default=0.25, ge=0, le=1)


class FolderSettings(Settings):
    """Images under `path` and a CSV with the columns `file,caption`, one row a caption."""

    path: str
    captions: str = "captions.csv"


class TableSettings(Settings):
    """URL lists: Parquet, CSV, TSV or JSON lines, also `.gz`; `path` is one file, a folder, or a pattern such as `part-*.parquet`.

    `preset` names the columns of a known list; a column named here wins over the preset's. `hash` is a column of hex digests
    (MD5, SHA-1 or SHA-256, told by their length) of the original bytes. `extra` columns are carried into plan and samples.
    """

    path: str
    preset: Literal["laion", "cc3m", "cc12m", "coyo", "datacomp"] | None = None
    url: str | None = None
    caption: str | None = None
    license: str | None = None
    source_page: str | None = None
    attribution: str | None = None
    hash: str | None = None
    nsfw: str | None = None
    watermark: str | None = None
    extra: tuple[str, ...] = ()


class CocoSettings(Settings):
    """MS-COCO caption annotations, one JSON file per official split: `annotations = { train = "captions_train2017.json", ... }`.

    Images come from `images` (a folder holding them, also in sub-folders) or, without it, from each image's `coco_url`.
    """

    annotations: Mapping[Literal["train", "val", "test"], str]
    images: str | None = None


class WebdatasetSettings(Settings):
    """Existing tars: `path` is one tar, a folder of them, or a pattern. Captions come from `.txt` and from `.json`."""

    path: str


class ExcludeSettings(Settings):
    """Files of what must never be stored, one entry a line (`#` starts a comment).

    `urls` and `domains` (with their sub-domains) are left out before anything is asked for; `sha256` (of the original bytes) and
    `phash` (64-bit, 16 hex digits, within `phash_distance` bits) are left out once the image is here.
    """

    urls: str | None = None
    domains: str | None = None
    sha256: str | None = None
    phash: str | None = None
    phash_distance: int = Field(default=3, ge=0, le=7)


SOURCES = ("scenes", "folder", "table", "coco", "webdataset")


class SourceChoice(Settings):
    """One source, and the lists of what must never be stored."""

    scenes: ScenesSettings | None = None
    folder: FolderSettings | None = None
    table: TableSettings | None = None
    coco: CocoSettings | None = None
    webdataset: WebdatasetSettings | None = None
    exclude: ExcludeSettings = ExcludeSettings()

    @model_validator(mode="after")
    def _one_source(self) -> "SourceChoice":
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            tables = ", ".join(f"[dataset.{name}]" for name in SOURCES)
            raise ValueError(f"exactly one source is needed, one of {tables}; got {given or 'none'}")
        return self


class SplitSettings(Settings):
    """Shares of images set apart, drawn by hashing (seed, image identity); the rest is `train`."""

    val: float = Field(default=0.01, ge=0, lt=1)
    test: float = Field(default=0.01, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training_data(self) -> "SplitSettings":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must stay below 1, got {self.val} + {self.test}")
        return self
