"""What a config may say about views."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from data.pipeline.config import Section, Settings
from data.scores.settings import BASE_SCORES, DuplicatesSettings


class ScoreRule(Settings):
    """Keep a pair when its `column` of `scores/<scores>` meets every bound given: `min <= value <= max`, `above < value < below`,
    `value is_in [..]`, `value not_in [..]`, value `absent` (null: no copy of an evaluation image), value among the top `top_fraction` of
    all scored pairs (see data.views.rules.top_threshold for ties), or value `unique`: of the images of one group (`url_group`,
    `bytes_group`, `near_group`) the first that all other rules leave a pair of (see data.views.copies).

    A pair without that score, or whose score is not a number, is dropped as `no_score`. `name` is the reason in funnel and view.
    """

    scores: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    column: str
    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_]*$")
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    is_in: tuple[str | bool | int, ...] | None = None
    not_in: tuple[str | bool | int, ...] | None = None
    absent: Literal[True] | None = None
    unique: Literal[True] | None = None
    top_fraction: float | None = Field(default=None, gt=0, lt=1)

    @property
    def is_bound(self) -> bool:
        return any(bound is not None for bound in (self.min, self.max, self.above, self.below))

    @property
    def is_list(self) -> bool:
        return self.is_in is not None or self.not_in is not None

    @property
    def reason(self) -> str:
        """The rule's name, or what its column did."""
        if self.name is not None:
            return self.name
        return f"{self.column}_{'out_of_range' if self.is_bound or self.top_fraction else 'not_allowed'}"

    @model_validator(mode="after")
    def _compares_in_one_way(self) -> "ScoreRule":
        others = (self.top_fraction, self.absent, self.unique)
        ways = self.is_bound + self.is_list + sum(way is not None for way in others)
        if ways != 1:
            raise ValueError(
                "a rule needs bounds (min, max, above, below), or lists (is_in, not_in), or one of top_fraction, absent and unique; "
                f"this one on {self.column!r} has {'none' if ways == 0 else 'several'} of these"
            )
        if self.unique and self.scores != "duplicates":
            raise ValueError(
                f"unique = true is for groups of copies, in scores/duplicates; this rule is on scores/{self.scores}"
            )
        return self


class BaseViewSettings(Settings):
    """Decisions that need no CLIP, and before which no CLIP is trained. Sides are of the original image, in pixels; caption limits
    in words and characters.

    `drop_duplicates`: copies by URL or bytes, and captions repeated within an image. `near_duplicates` drops near copies as well. Of
    copies, the first that all other rules leave a pair of stays. `drop_leaks`: training images that are copies or near copies of
    stored evaluation images, whether or not a view keeps those. `max_caption_copies`: a caption that more
    images than this carry says nothing about any of them. `drop_boilerplate`: file names, "click to enlarge", URLs, markup ...
    """

    min_side: int = Field(default=1, ge=1)
    max_aspect: float = Field(default=100.0, ge=1)
    min_pixel_std: float = Field(default=0.0, ge=0)
    min_caption_words: int = Field(default=1, ge=0)
    max_caption_chars: int = Field(default=1000, ge=1)
    max_caption_copies: int | None = Field(default=None, ge=1)
    drop_boilerplate: bool = False
    drop_duplicates: bool = True
    near_duplicates: bool = False
    drop_leaks: bool = True
    recipe: Literal["datacomp-basic"] | None = None
    rules: tuple[ScoreRule, ...] = ()

    @field_validator("rules")
    @classmethod
    def _needs_no_clip(cls, rules: tuple[ScoreRule, ...]) -> tuple[ScoreRule, ...]:
        for rule in rules:
            if rule.scores not in BASE_SCORES:
                raise ValueError(
                    f"the view base is made before any CLIP and compares {' and '.join(BASE_SCORES)}; "
                    f"a rule on scores/{rule.scores} belongs in [[views.train.rules]]"
                )
        return rules


class TrainViewSettings(Settings):
    """The view that trainers read: the view `base`, narrowed by a published recipe and by rules on scores."""

    recipe: Literal["datacomp-basic", "datacomp-clip-top30", "laion2b"] | None = None
    rules: tuple[ScoreRule, ...] = ()


class ViewsSettings(Section):
    section: ClassVar[str] = "views"
    owns: ClassVar[tuple[str, ...]] = ("views",)
    duplicates: DuplicatesSettings = DuplicatesSettings()
    base: BaseViewSettings = BaseViewSettings()
    train: TrainViewSettings = TrainViewSettings()
