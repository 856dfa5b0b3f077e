"""Captions through a CLIP: tokenised and encoded, each distinct one once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.clip.model import Clip
from embed.clip.towers import encode_ids


@dataclass(frozen=True)
class CaptionEncodings:
    """Captions in the order given: `ids` int64 (n, context_length), `n_tokens` int64 (n,) up to and with the end-of-text,
    `truncated` bool (n,), `raw` float32 (n, d), not of unit length."""

    ids: Tensor
    n_tokens: Tensor
    truncated: NDArray[np.bool_]
    raw: Tensor


def encode_captions(clip: Clip, captions: Sequence[str], batch: int) -> CaptionEncodings:
    """Tokenise and encode captions, equal ones once. Equal `captions` and `batch` give equal bytes on one thread; in another order,
    company or batch the unit vectors differ by less than 1e-6 in fp32."""
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = clip.tokenize(list(distinct))
    raw = encode_ids(clip.text, ids, batch, clip.embed_dim)
    truncated = clip.tokenizer.truncated(list(distinct), ids)
    rows = torch.tensor([distinct[caption] for caption in captions], dtype=torch.int64)
    return CaptionEncodings(ids[rows], clip.token_counts(ids)[rows], truncated[rows.numpy()], raw[rows])
