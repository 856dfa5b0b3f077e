"""What a config may say about scores that need no CLIP, and about views."""

from typing import ClassVar

from pydantic import Field, model_validator

from data.config import Section, Settings


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
