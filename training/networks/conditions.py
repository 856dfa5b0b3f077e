"""What networks are conditioned on: tensors, and masks that say which rows are dropped."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipShape:
    """What a network must know of the CLIP it was trained beside."""

    embed_dim: int
    context_length: int
    vocab_size: int


@dataclass(frozen=True)
class PriorCondition:
    """token_ids int64 (n, length), z_t (n, d) of unit length, drop bool (n,): caption and z_t dropped together."""

    token_ids: Tensor
    z_t: Tensor
    drop: Tensor

    def null(self) -> "PriorCondition":
        return replace(self, drop=torch.ones_like(self.drop))


@dataclass(frozen=True)
class DecoderCondition:
    """token_ids int64 (n, length); z_i (n, d) of unit length, or None for GLIDE; bool (n,) masks of what is dropped."""

    token_ids: Tensor
    z_i: Tensor | None
    drop_caption: Tensor
    drop_clip: Tensor

    def null(self) -> "DecoderCondition":
        everything = torch.ones_like(self.drop_caption)
        return replace(self, drop_caption=everything, drop_clip=everything)


@dataclass(frozen=True)
class DecoderContext:
    """A condition as the UNet takes it: an addition to the timestep embedding (n, e) and context tokens (n, length, width)."""

    embedding: Tensor
    tokens: Tensor
