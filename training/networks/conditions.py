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
class Captions:
    """n tokenised captions. `ids` int64 (n, length), padded; `counts` int64 (n,), the ids up to and with the end-of-text.

    `states` float32 (n, length, width): what a frozen CLIP's text tower makes of each token, for a network that has no text
    transformer of its own; None for the others. What stands behind a caption's end, in ids and states, means nothing.
    """

    ids: Tensor
    counts: Tensor
    states: Tensor | None = None

    def mask(self) -> Tensor:
        """bool (n, length): True up to and with the end-of-text.

        By the counts and not by an id: CLIP's vocabulary has a token of id 0, the "!" inside a word, and where the end-of-text
        stands among the ids is the tokenizer's affair."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.counts[:, None]

    def to(self, device: torch.device) -> "Captions":
        states = None if self.states is None else self.states.to(device)
        return Captions(self.ids.to(device), self.counts.to(device), states)


@dataclass(frozen=True)
class PriorCondition:
    """captions of n rows, z_t (n, d) of unit length, drop bool (n,): caption and z_t dropped together."""

    captions: Captions
    z_t: Tensor
    drop: Tensor

    def null(self) -> "PriorCondition":
        return replace(self, drop=torch.ones_like(self.drop))


@dataclass(frozen=True)
class DecoderCondition:
    """captions of n rows; z_i (n, d) of unit length, or None for GLIDE; bool (n,) masks of what is dropped."""

    captions: Captions
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
