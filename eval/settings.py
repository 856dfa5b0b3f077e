"""What a config may say about evaluation, and whether the rest of the config can give what it asks for."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, model_validator

from data.pipeline.config import Config, Section, Settings


class PromptSetSettings(Settings):
    """Held-out captions and how many images each system makes for one. Where the dataset knows its attributes, captions of
    one object must name all of `must_name`, and `two_object` of the captions are of two objects (no such rule elsewhere)."""

    captions: int = Field(ge=1)
    images: int = Field(ge=1, le=99)
    two_object: int = Field(default=0, ge=0)
    must_name: tuple[str, ...] = ("colour", "background")

    @model_validator(mode="after")
    def _two_object_within(self) -> "PromptSetSettings":
        if self.two_object > self.captions:
            raise ValueError(f"two_object must not exceed captions = {self.captions}, got {self.two_object}")
        return self


class AttributeSettings(Settings):
    """The attribute classifier: real training scenes, AdamW steps, and held-out scenes for its own accuracy."""

    scenes: int = Field(default=10_000, ge=1)
    held_out: int = Field(default=500, ge=1)
    steps: int = Field(default=600, ge=1)
    batch: int = Field(default=128, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    width: int = Field(default=24, ge=4, multiple_of=4)


class InceptionSettings(Settings):
    """StyleGAN2-ADA's TorchScript Inception and its sha256. clean-fid's wrapper, which runs it, asks for the file's own name."""

    path: str = Field(pattern=r"(^|/)inception-2015-12-05\.pt$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class EvalSettings(Section):
    """Prompt sets, guidance scales and statistics. `captions` is measured at every scale of `guidance`; `grids` is drawn at
    `grid_guidance`. `steps` are the decoder's, `prior_steps` the prior's, which is drawn `prior_candidates` times and kept
    by its dot product with the caption (paper, section 2.2). `reference_images` real images, none of them a prompt's own,
    are the reference of the Frechet distances. `label` is a sentence at the head of the report, e.g. that numbers mean
    nothing."""

    section: ClassVar[str] = "eval"
    owns: ClassVar[tuple[str, ...]] = ("prompts", "generations", "eval")
    volatile: ClassVar[tuple[str, ...]] = ("label",)
    captions: PromptSetSettings = PromptSetSettings(captions=340, images=2, two_object=20)
    grids: PromptSetSettings = PromptSetSettings(captions=20, images=16, two_object=4)
    guidance: tuple[float, ...] = (1.0, 2.0, 4.0)
    grid_guidance: float = Field(default=2.0, ge=0)
    prior_guidance: float = Field(default=1.0, ge=0)
    prior_candidates: int = Field(default=2, ge=1)
    prior_steps: int = Field(default=25, ge=1)
    steps: int = Field(default=25, ge=1)
    batch: int = Field(default=64, ge=1)
    reference_images: int = Field(default=2000, ge=2)
    bootstrap_draws: int = Field(default=1000, ge=100)
    attributes: AttributeSettings = AttributeSettings()
    inception: InceptionSettings | None = None
    label: str | None = None

    @property
    def prompt_sets(self) -> dict[str, PromptSetSettings]:
        """By name, as their folders in `prompts/` are called."""
        return {"captions": self.captions, "grids": self.grids}

    def scales(self, prompt_set: str) -> tuple[float, ...]:
        """The decoder's guidance scales at which a prompt set is drawn."""
        scales = getattr(self, self.scales_key(prompt_set))
        return scales if isinstance(scales, tuple) else (scales,)

    def scales_key(self, prompt_set: str) -> str:
        """The setting that says so."""
        return "guidance" if prompt_set == "captions" else "grid_guidance"

    @property
    def is_asked_for(self) -> bool:
        """Whether the config says anything of evaluation. A resolved config says everything of everything, where its user may have been
        silent: of one that says all there is, only what differs from the defaults counts."""
        said = self.model_fields_set - set(self.volatile)
        silent = {name for name, field in type(self).model_fields.items() if field.default is not None} - said
        return bool(said) and (bool(silent) or self != EvalSettings(label=self.label))

    @model_validator(mode="after")
    def _scales_are_usable(self) -> "EvalSettings":
        if not self.guidance or list(self.guidance) != sorted(set(self.guidance)) or self.guidance[0] < 0:
            raise ValueError(
                f"guidance must be a rising list of scales >= 0, e.g. [1.0, 2.0, 4.0], got {list(self.guidance)}"
            )
        return self


def problem_between_sections(config: Config) -> str | None:
    """Why the dataset cannot give the captions that `[eval]` asks for, in one line; None when it can, or when only making it tells.

    Each caption of a prompt set is of another held-out image, so where every sample is a scene their number bounds the prompt sets
    before anything is drawn. A config that says nothing of evaluation is not judged: it may be about the data alone."""
    return next(_problems(config), None)


def _problems(config: Config) -> Iterator[str]:
    scenes, split = config.at("dataset.scenes"), config.at("dataset.split")
    if scenes is None or not config[EvalSettings].is_asked_for:
        return
    share = split.val + split.test
    most = _held_out_at_most(scenes.samples, share)
    for name, prompt_set in config[EvalSettings].prompt_sets.items():
        if prompt_set.captions > most:
            yield (
                f"eval.{name}.captions = {prompt_set.captions}, each of another held-out image, but of dataset.scenes.samples = "
                f"{scenes.samples} at dataset.split.val + test = {share:g} at most {most} are held out: "
                "lower the first or raise one of the others"
            )


def _held_out_at_most(samples: int, share: float) -> int:
    """Which split a scene falls into is drawn for each by itself: six standard deviations above the mean are never exceeded."""
    spread = (samples * share * (1 - share)) ** 0.5
    return min(samples, int(samples * share + 6 * spread))
