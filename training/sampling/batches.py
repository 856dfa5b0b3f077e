"""What both networks' sampling shares. Batches always have the same size (the last one is padded with copies), because the last
bits of a matrix product may depend on its shape; captions go through the CLIP one at a time, for the same reason.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.pipeline.errors import UserError
from embed.clip.model import Clip
from training.loop.precision import plain_attention
from training.networks.conditions import Captions


def fixed_batches(n: int, size: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """(rows, how many of them count) with always `size` rows; the last batch repeats its last row."""
    for start in range(0, n, size):
        count = min(size, n - start)
        yield start + np.minimum(np.arange(size), count - 1), count


def captions_of(clip: Clip, ids: Tensor, with_states: bool = False) -> Captions:
    """Captions of token ids int64 (n, length), on the CPU; `with_states` for a network that reads the frozen CLIP's.

    Equal captions have equal states, whatever stands beside them: each distinct one goes through the text tower alone."""
    if not with_states:
        return Captions(ids, clip.token_counts(ids))
    distinct, rows = torch.unique(ids, dim=0, return_inverse=True)
    with plain_attention(clip.device):  # as in trainings
        states = [clip.token_states(one) for one in distinct.split(1)]
    return Captions(ids, clip.token_counts(ids), torch.cat(states)[rows])


def require_counts(n: int, seeds: Sequence[int], **others: Tensor | None) -> None:
    """Raises UserError where there is not one of each for every caption."""
    for name, value in (("seeds", seeds), *others.items()):
        if value is not None and len(value) != n:
            raise UserError(f"{n} captions need as many {name}, got {len(value)}")
