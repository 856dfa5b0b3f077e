"""Captions through a CLIP's text tower: each distinct caption once, and without its padding where the tower allows.

Causal towers that pool at the end of the text run packed (`embed/clip/packing.py`), every other one at full length.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from open_clip import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from embed.clip.packing import PackedText

# Captions on which our forward of a text tower is compared with open_clip's own: empty, short, odd letters, long, cut.
COMPARED_CAPTIONS = (
    "",
    "a dog",
    "A Corgi's \u201cnaïve\u201d 日本語 café & 12 o'clock",
    "a red cube on a blue cube, " * 3,
    "red " * 400,
)
TOLERANCE = 1e-5  # largest difference of unit vectors between the packed forward and open_clip's own, in fp32


class TextTower(Protocol):
    """Raw (not unit length) embeddings and states of token ids, on the tower's device."""

    pooling_at_end: bool

    def batches(self, ids: Tensor, batch: int) -> Iterator[Tensor]:
        """Rows (int64) of each batch, together every row once."""

    def encode(self, ids: Tensor) -> Tensor:
        """int64 (n, context_length) -> float32 (n, d)."""

    def states(self, ids: Tensor) -> Tensor:
        """int64 (n, context_length) -> float32 (n, context_length, width) after the last norm."""

    def hold_in(self, dtype: torch.dtype) -> None:
        """Keep the weights in a reduced precision, for good."""


class FullText:
    """Any tower open_clip can build, at full length through the model's own `encode_text`."""

    pooling_at_end = False

    def __init__(self, model: Any) -> None:
        self.model = model

    def batches(self, ids: Tensor, batch: int) -> Iterator[Tensor]:
        if len(ids):  # split would give one empty batch
            yield from torch.arange(len(ids)).split(batch)

    def encode(self, ids: Tensor) -> Tensor:
        # CoCa would return unit vectors if it was not asked.
        raw: Tensor = self.model.encode_text(ids.to(_device(self.model)), normalize=False)
        return raw.float()

    def states(self, ids: Tensor) -> Tensor:
        ids, tower = ids.to(_device(self.model)), getattr(self.model, "text", self.model)
        if isinstance(tower, CLIP):
            found = tower.forward_intermediates(
                text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True
            )
        elif isinstance(tower, TextTransformer):
            found = tower.forward_intermediates(
                ids, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
            )
        else:  # a Hugging Face tower
            mask = (ids != tower.config.pad_token_id).long()
            found = {"text_intermediates": [tower.transformer(input_ids=ids, attention_mask=mask).last_hidden_state]}
        states: Tensor = found["text_intermediates"][0]
        return states.float()

    def hold_in(self, dtype: torch.dtype) -> None:
        self.model.to(dtype)


@torch.inference_mode()
def text_tower(model: Any, probes: Tensor) -> TextTower:
    """The way to run a float32 model's text tower. A packed forward is checked against open_clip's own on `probes` (token ids);
    where they disagree it warns and takes the full length."""
    full, tower = FullText(model), getattr(model, "text", model)
    if not PackedText.fits(tower):
        return full
    packed = PackedText(tower)
    difference = float((normalize(packed.encode(probes), dim=-1) - normalize(full.encode(probes), dim=-1)).abs().max())
    if difference <= TOLERANCE:
        return packed
    warnings.warn(
        f"this CLIP's encode_text differs by {difference:.1e} from our forward of its text tower (at most {TOLERANCE:.0e} is allowed): "
        "captions are encoded at full length, which is several times slower",
        stacklevel=2,
    )
    return full


@torch.inference_mode()
def encode_ids(text: TextTower, ids: Tensor, batch: int, dim: int) -> Tensor:
    """int64 (n, context_length) -> raw float32 (n, dim) in memory. `batch` captions of full length at a time, or as many short ones
    as have no more places."""
    raw = torch.empty(len(ids), dim)
    for rows in text.batches(ids, batch):
        raw[rows] = text.encode(ids[rows]).cpu()
    return raw


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
