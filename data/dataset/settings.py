"""What a config may say about the dataset."""

from typing import ClassVar

from pydantic import Field, model_validator

from data.fetch.settings import HOW_TO_ASK, FetchSettings
from data.images.settings import ImageSettings
from data.pipeline.config import Section
from data.sources.settings import (
    CocoSettings,
    ExcludeSettings,
    FolderSettings,
    ScenesSettings,
    SplitSettings,
    TableSettings,
    WebdatasetSettings,
)

SOURCES = ("scenes", "folder", "table", "coco", "webdataset")


class DatasetSettings(Section):
    """One source, and how its images are fetched, resized, stored and split."""

    section: ClassVar[str] = "dataset"
    owns: ClassVar[tuple[str, ...]] = ("dataset",)
    volatile: ClassVar[tuple[str, ...]] = tuple(f"fetch.{name}" for name in HOW_TO_ASK)
    scenes: ScenesSettings | None = None
    folder: FolderSettings | None = None
    table: TableSettings | None = None
    coco: CocoSettings | None = None
    webdataset: WebdatasetSettings | None = None
    samples_per_shard: int = Field(default=1000, ge=1)
    image: ImageSettings = ImageSettings()
    fetch: FetchSettings = FetchSettings()
    split: SplitSettings = SplitSettings()
    exclude: ExcludeSettings = ExcludeSettings()

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetSettings":
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            tables = ", ".join(f"[dataset.{name}]" for name in SOURCES)
            raise ValueError(f"exactly one source is needed, one of {tables}; got {given or 'none'}")
        return self
