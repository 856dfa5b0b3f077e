"""The tables that sections of trainings consist of: optimiser, noise process, shapes of the networks."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from data.pipeline.config import Settings

PositiveInt = Annotated[int, Field(ge=1)]
# A section that merges a preset validates plain objects, where strictness would refuse TOML's arrays for tuples.
Integers = Annotated[
    tuple[PositiveInt, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]


class OptimiserSettings(Settings):
    """AdamW with linear warm-up, then constant or cosine to `final_lr * lr`; EMA of the weights (its decay warms up too).

    `batch` items make one update, taken in `accumulation` slices; `validate_every` 0 validates after the last step only.
    """

    steps: int = Field(default=500, ge=1)
    batch: int = Field(default=64, ge=1)
    accumulation: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=50, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    final_lr: float = Field(default=0.02, ge=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.995, ge=0, lt=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    log_every: int = Field(default=25, ge=1)
    validate_every: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _slices_are_whole(self) -> "OptimiserSettings":
        if self.batch % self.accumulation:
            raise ValueError(f"batch must be a multiple of accumulation, got {self.batch} and {self.accumulation}")
        return self


class DiffusionSettings(Settings):
    """The noise process: T steps, schedule of alpha-bar, and what the network predicts."""

    steps: int = Field(default=1000, ge=2)
    schedule: Literal["cosine", "linear"] = "cosine"
    prediction: Literal["eps", "x0", "v"] = "v"


class PriorArchitecture(Settings):
    """diffusers' PriorTransformer: one causal transformer over caption tokens, z_t, timestep, noised z_i and a final query."""

    width: int = Field(default=192, ge=8)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "PriorArchitecture":
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads, got {self.width} and {self.heads}")
        return self


class TextEncoderSettings(Settings):
    """How the decoder reads a caption; `width` is also the decoder's context width.

    `start = "random"`: a text transformer over token ids, trained with the decoder, as GLIDE and the paper do. `start = "clip"`: the
    states of the CLIP's own frozen text tower, whose width is given here (`depth` and `heads` are not used); much cheaper where steps
    are few.
    """

    start: Literal["random", "clip"] = "random"
    width: int = Field(default=96, ge=8)
    depth: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)


class DecoderArchitecture(Settings):
    """diffusers' UNet2DConditionModel in the GLIDE / Karlo layout. Level i has `channels[i]` channels at `side / 2**i` pixels;
    every level but the first attends (self and context)."""

    side: int = Field(default=16, ge=4)
    channels: Integers = (32, 64, 128)
    depth: int = Field(default=1, ge=1)
    head_channels: int = Field(default=64, ge=4)
    norm_groups: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    text: TextEncoderSettings = TextEncoderSettings()

    @model_validator(mode="after")
    def _fits(self) -> "DecoderArchitecture":
        if len(self.channels) < 2 or self.side % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"channels needs two or more levels that halve side = {self.side} evenly, got {list(self.channels)}"
            )
        if any(c % self.norm_groups for c in self.channels):
            raise ValueError(
                f"every entry of channels must be a multiple of norm_groups = {self.norm_groups}, got {list(self.channels)}"
            )
        if any(c % self.head_channels for c in self.channels[1:]):
            raise ValueError(
                f"channels beyond the first must be multiples of head_channels = {self.head_channels}, got {list(self.channels)}"
            )
        return self


class ClipArchitecture(Settings):
    """An open_clip `CLIP`. With `patch` a ViT of `depth` blocks; without, a ModifiedResNet of `layers` bottlenecks a stage."""

    embed_dim: int = Field(default=128, ge=8)
    image_size: int = Field(default=32, ge=8)
    width: int = Field(default=24, ge=8)
    layers: Integers = (1, 1, 1, 1)
    patch: int | None = Field(default=None, ge=1)
    depth: int = Field(default=3, ge=1)
    head_width: int = Field(default=64, ge=8)
    context_length: int = Field(default=28, ge=4)
    text_width: int = Field(default=128, ge=8)
    text_heads: int = Field(default=4, ge=1)
    text_layers: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ClipArchitecture":
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_width must be a multiple of text_heads, got {self.text_width} and {self.text_heads}"
            )
        return self
