"""What a config may say about the dataset."""

from typing import ClassVar

from pydantic import Field

from data.fetch.settings import HOW_TO_ASK, FetchSettings
from data.images.settings import ImageSettings
from data.pipeline.config import Section
from data.sources.settings import SourceChoice, SplitSettings


class DatasetSettings(SourceChoice, Section):
    """One source, and how its images are fetched, resized, stored and split."""

    section: ClassVar[str] = "dataset"
    owns: ClassVar[tuple[str, ...]] = ("dataset",)
    volatile: ClassVar[tuple[str, ...]] = tuple(f"fetch.{name}" for name in HOW_TO_ASK)
    samples_per_shard: int = Field(default=1000, ge=1)
    image: ImageSettings = ImageSettings()
    fetch: FetchSettings = FetchSettings()
    split: SplitSettings = SplitSettings()
