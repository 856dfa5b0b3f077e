"""Captions through a CLIP's text tower: each distinct caption once, and without its padding where the tower allows.

Causal towers that pool at the end of the text run packed (`embed/packing.py`), every other one at full length.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from embed.packing import PackedText

if TYPE_CHECKING:
    from embed.clip import Clip

PROBE_CAPTIONS = (
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


@dataclass(frozen=True)
class CaptionEncodings:
    """Captions in the order given: `ids` int64 (n, context_length), `n_tokens` int64 (n,) up to and with the end-of-text,
    `truncated` bool (n,), `raw` float32 (n, d), not of unit length."""

    ids: Tensor
    n_tokens: Tensor
    truncated: NDArray[np.bool_]
    raw: Tensor


def encode_captions(clip: "Clip", captions: Sequence[str], batch: int) -> CaptionEncodings:
    """Tokenise and encode captions, equal ones once. Equal `captions` and `batch` give equal bytes on one thread; in another order,
    company or batch the unit vectors differ by less than 1e-6 in fp32."""
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = clip.tokenize(list(distinct))
    raw = encode_ids(clip.text, ids, batch, clip.embed_dim)
    truncated = clip.tokenizer.truncated(list(distinct), ids)
    rows = torch.tensor([distinct[caption] for caption in captions], dtype=torch.int64)
    return CaptionEncodings(ids[rows], clip.token_counts(ids)[rows], truncated[rows.numpy()], raw[rows])


@torch.inference_mode()
def encode_ids(text: TextTower, ids: Tensor, batch: int, width: int) -> Tensor:
    """Raw float32 (n, d) in memory. `batch` captions of full length at a time, or as many short ones as have no more places."""
    raw = torch.empty(len(ids), width)
    for rows in text.batches(ids, batch):
        raw[rows] = text.encode(ids[rows]).cpu()
    return raw


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


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
