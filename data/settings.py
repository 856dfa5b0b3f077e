"""What a config may say about the run, the cluster, the dataset and the views."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from data.config import Section, Settings


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
    """A Parquet, CSV, TSV or JSON-lines file with one row a pair; `url` and `caption` name its columns."""

    path: str
    url: str = "url"
    caption: str = "caption"


class ImageSettings(Settings):
    """How an image is stored. `center_crop`: shorter side scaled to `size`, then cropped; `keep_ratio`: shorter side at most
    `size`; `no`: original size. Images whose shorter side is below `min_side` or whose header promises more than `max_pixels`
    are dropped with a reason."""

    mode: Literal["center_crop", "keep_ratio", "no"] = "center_crop"
    size: int = Field(default=256, ge=8, le=8192)
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(default=95, ge=1, le=100)
    min_side: int = Field(default=1, ge=1)
    max_pixels: int = Field(default=89_478_485, ge=1)
    background: tuple[int, int, int] = (255, 255, 255)


class FetchSettings(Settings):
    """Limits of one download; seconds and bytes. Private addresses are refused unless allowed."""

    threads: int = Field(default=16, ge=1, le=256)
    deadline: float = Field(default=20.0, gt=0)
    max_bytes: int = Field(default=50_000_000, ge=1)
    max_redirects: int = Field(default=5, ge=0)
    attempts: int = Field(default=2, ge=1)
    allow_private_hosts: bool = False
    user_agent: str = Field(default="unclip-toolkit (research crawler)", pattern=r"^\S[ -~]*$")
    respect_robots_tag: bool = True


# How servers are asked; the other fetch settings decide what is stored.
HOW_TO_ASK = ("threads", "deadline", "attempts", "user_agent")


class SplitSettings(Settings):
    """Shares of images set apart, drawn by hashing (seed, image identity); the rest is `train`."""

    val: float = Field(default=0.01, ge=0, lt=1)
    test: float = Field(default=0.01, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training_data(self) -> "SplitSettings":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must stay below 1, got {self.val} + {self.test}")
        return self


class DatasetSettings(Section):
    """One source, and how its images are fetched, resized, stored and split."""

    section: ClassVar[str] = "dataset"
    owns: ClassVar[tuple[str, ...]] = ("dataset",)
    volatile: ClassVar[tuple[str, ...]] = tuple(f"fetch.{name}" for name in HOW_TO_ASK)
    scenes: ScenesSettings | None = None
    folder: FolderSettings | None = None
    table: TableSettings | None = None
    samples_per_shard: int = Field(default=1000, ge=1)
    image: ImageSettings = ImageSettings()
    fetch: FetchSettings = FetchSettings()
    split: SplitSettings = SplitSettings()

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetSettings":
        sources = ("scenes", "folder", "table")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            tables = ", ".join(f"[dataset.{name}]" for name in sources)
            raise ValueError(f"exactly one source is needed, one of {tables}; got {given or 'none'}")
        return self


class BaseViewSettings(Settings):
    """Decisions that need no CLIP. Sides are of the original image, in pixels; caption limits in words and characters."""

    min_side: int = Field(default=1, ge=1)
    max_aspect: float = Field(default=100.0, ge=1)
    min_caption_words: int = Field(default=1, ge=0)
    max_caption_chars: int = Field(default=1000, ge=1)
    drop_duplicates: bool = True


class ScoreRule(Settings):
    """Keep a pair when `min <= column <= max` in `scores/<scores>`; a pair without that score is dropped as `no_score`."""

    scores: str
    column: str
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "ScoreRule":
        if self.min is None and self.max is None:
            raise ValueError("a rule needs min or max")
        return self


class TrainViewSettings(Settings):
    """The view that trainers read: the view `base`, narrowed by scores."""

    rules: tuple[ScoreRule, ...] = ()


class ViewsSettings(Section):
    section: ClassVar[str] = "views"
    owns: ClassVar[tuple[str, ...]] = ("views",)
    base: BaseViewSettings = BaseViewSettings()
    train: TrainViewSettings = TrainViewSettings()
