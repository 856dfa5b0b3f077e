"""What a config may say about training: CLIP, the prior, the decoder and the GLIDE baseline, and which models make up a system.

`preset` names a row of numbers (`paper` is Table 3 of arXiv 2204.06125); every key may still be set by itself.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from data.dataset.settings import DatasetSettings
from data.pipeline.config import Config, Section, Settings
from embed.settings import ClipSettings
from training.presets import CLIP_DEFAULTS, DECODER_PRESETS, PRIOR_PRESETS, merged, over_preset
from training.tables import (
    ClipArchitecture,
    DecoderArchitecture,
    DiffusionSettings,
    OptimiserSettings,
    PriorArchitecture,
)

ENLARGING_MODES = ("center_crop", "border")  # of dataset.image.mode


class TrainingSection(Section):
    """What the sections of trainings share. `checkpoint_seconds` is the time that a kill can cost; `serves_as` is the key of a row of
    `[systems]` under which the section's models may stand, `captions_only` those of them that are given no z_i."""

    volatile: ClassVar[tuple[str, ...]] = ("checkpoint_seconds",)
    serves_as: ClassVar[str | None] = None
    captions_only: ClassVar[tuple[str, ...]] = ()
    optimiser: OptimiserSettings = OptimiserSettings()
    checkpoint_seconds: float = Field(default=30.0, gt=0)
    validation_samples: int = Field(default=256, ge=2)

    def shaping(self) -> dict[str, Any]:
        """The settings that decide the weights, as JSON types."""
        return self.model_dump(mode="json", exclude=set(self.volatile))


class ClipTrainingSettings(TrainingSection):
    """CLIP from scratch on the view `base` (only where `clip.source = "run"`)."""

    section: ClassVar[str] = "clip_training"
    owns: ClassVar[tuple[str, ...]] = ("clip",)
    architecture: ClipArchitecture = ClipArchitecture()
    validation_samples: int = Field(default=1000, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, given: Any) -> Any:
        return merged(CLIP_DEFAULTS, given) if isinstance(given, Mapping) else given


class PriorSettings(TrainingSection):
    """The diffusion prior: caption and z_t -> z_i. Both conditions are dropped together with probability `drop`."""

    section: ClassVar[str] = "prior"
    owns: ClassVar[tuple[str, ...]] = ("models/prior",)
    serves_as: ClassVar[str | None] = "prior"
    preset: Literal["tiny", "small", "paper"] = "tiny"
    architecture: PriorArchitecture = PriorArchitecture()
    diffusion: DiffusionSettings = DiffusionSettings(prediction="x0")
    drop: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        return over_preset(PRIOR_PRESETS, given, {"diffusion": {"prediction": "x0"}})


class DecoderSettings(TrainingSection):
    """The decoder and its GLIDE twin: same network, data and steps; GLIDE sees captions alone.

    The decoder drops z_i and the caption independently (paper, section 2.1); GLIDE drops the caption with `drop_caption_glide`.
    """

    section: ClassVar[str] = "decoder"
    owns: ClassVar[tuple[str, ...]] = ("models/decoder", "models/glide")
    serves_as: ClassVar[str | None] = "decoder"
    captions_only: ClassVar[tuple[str, ...]] = ("glide",)
    preset: Literal["tiny", "small", "paper"] = "tiny"
    architecture: DecoderArchitecture = DecoderArchitecture()
    diffusion: DiffusionSettings = DiffusionSettings()
    drop_clip: float = Field(default=0.1, ge=0, le=1)
    drop_caption: float = Field(default=0.5, ge=0, le=1)
    drop_caption_glide: float = Field(default=0.15, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        return over_preset(DECODER_PRESETS, given, {})


class SystemSettings(Settings):
    """A system: the model that draws its images and, where it has one, the model that gives that its z_i, by the names of their
    trainings. Without a `prior` images are drawn from captions alone."""

    prior: str | None = None
    decoder: str


class SystemsSettings(Section):
    """What turns captions into images: one row a system, `[systems.<name>]`. Without the section: `unclip` and `glide`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, SystemSettings]
    section: ClassVar[str] = "systems"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_rows(cls, given: Any) -> Any:
        return given or {"unclip": {"prior": "prior", "decoder": "decoder"}, "glide": {"decoder": "glide"}}

    @model_validator(mode="after")
    def _names_make_folders(self) -> "SystemsSettings":
        for name in self.rows:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(f"the name of a system is lower-case letters, digits, - and _, got {name!r}")
        return self

    @property
    def rows(self) -> dict[str, SystemSettings]:
        """Name -> row, in the order of the config."""
        return dict(self.__pydantic_extra__)

    def models(self) -> tuple[str, ...]:
        """Names of the models that the rows ask for, each once."""
        named = [model for row in self.rows.values() for model in (row.prior, row.decoder) if model is not None]
        return tuple(dict.fromkeys(named))


def problem_between_sections(config: Config) -> str | None:
    """Why sections of a config cannot go together, in one line; None when they can."""
    return next(_problems(config), None)


def _problems(config: Config) -> Iterator[str]:
    yield from _unknown_models(config)
    yield from _priors_for_nothing(config)
    yield from _no_validation(config)
    if any(f"models/{name}" in DecoderSettings.owns for name in config[SystemsSettings].models()):
        yield from _images_too_small(config)
        yield from _other_text_tower(config)


def _unknown_models(config: Config) -> Iterator[str]:
    for name, row in config[SystemsSettings].rows.items():
        for key, model in row.model_dump(exclude_none=True).items():
            known = _models_serving_as(config, key)
            if model not in known:
                yield f"systems.{name}.{key} = {model!r} is no {key} that can be trained; known: {', '.join(known)}"


def _models_serving_as(config: Config, key: str) -> list[str]:
    sections = [s for s in config if isinstance(s, TrainingSection) and s.serves_as == key]
    return [owned.removeprefix("models/") for section in sections for owned in section.owns]


def _priors_for_nothing(config: Config) -> Iterator[str]:
    """A prior whose z_i the decoder of the row does not take."""
    unconditioned = {
        name for section in config if isinstance(section, TrainingSection) for name in section.captions_only
    }
    for name, row in config[SystemsSettings].rows.items():
        if row.prior is not None and row.decoder in unconditioned:
            yield (
                f"systems.{name}: {row.decoder} draws from captions alone, what {row.prior} gives would be thrown away; take the key "
                "prior out of the row, or name a decoder that is given z_i"
            )


def _no_validation(config: Config) -> Iterator[str]:
    """Every training looks at the split val. A config that says nothing of training may be meant for a dataset alone."""
    sections = [section for section in config if isinstance(section, TrainingSection | SystemsSettings)]
    if all(section == type(section).model_validate({}) for section in sections):
        return
    dataset = config[DatasetSettings]
    if dataset.coco is not None:
        if "val" not in dataset.coco.annotations:
            yield "dataset.coco.annotations has no split val, which every training validates on; add its file"
    elif dataset.webdataset is None and dataset.split.val == 0:  # tars may bring splits of their own
        yield "dataset.split.val = 0, but every training validates on the split val; set it above 0"


def _images_too_small(config: Config) -> Iterator[str]:
    """By what is known before the images are: no mode stores more than `size` pixels but `no`, and only two enlarge."""
    dataset, side = config[DatasetSettings], config[DecoderSettings].architecture.side
    image, scenes = dataset.image, dataset.scenes
    if image.mode != "no" and side > image.size:
        yield (
            f"decoder.architecture.side = {side}, but stored images have at most dataset.image.size = {image.size} pixels; "
            "lower the one or raise the other"
        )
    elif scenes is not None and image.mode not in ENLARGING_MODES and side > scenes.side:
        yield (
            f"decoder.architecture.side = {side}, but scenes have dataset.scenes.side = {scenes.side} pixels, which "
            f"dataset.image.mode = {image.mode!r} does not enlarge; lower the one or raise the other"
        )


def _other_text_tower(config: Config) -> Iterator[str]:
    """`text.start = "clip"` reads the states of the CLIP that this run trains: their width is known before."""
    text, width = config[DecoderSettings].architecture.text, config[ClipTrainingSettings].architecture.text_width
    if text.start == "clip" and config[ClipSettings].source == "run" and text.width != width:
        yield (
            "decoder.architecture.text.start = 'clip' reads the CLIP's own text tower, whose width clip_training.architecture says is "
            f"{width}; decoder.architecture.text.width = {text.width}"
        )
