"""What a config may say about the run, the cluster, the dataset and the views."""

from typing import ClassVar

from pydantic import Field, model_validator

from data.config import Section
from data.fetch.settings import HOW_TO_ASK, FetchSettings, ImageSettings
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


class RunSettings(Section):
    """`folder/name` is the run folder; `seed` is the one number from which every stage derives its randomness."""

    section: ClassVar[str] = "run"
    volatile: ClassVar[tuple[str, ...]] = ("name", "folder")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    folder: str = "runs"
    seed: int = Field(default=0, ge=0)


class ClusterSettings(Section):
    """Where parts are made: `workers` local single-threaded processes (0: in this process), or a running Dask scheduler."""

    section: ClassVar[str] = "cluster"
    volatile: ClassVar[tuple[str, ...]] = ("workers", "address", "memory_limit")
    workers: int = Field(default=2, ge=0)
    address: str | None = None
    memory_limit: str = "4GiB"


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
