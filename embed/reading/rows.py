"""Rows of the cache in memory, and the batches that are gathered from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.pipeline.errors import UserError

Kind = Literal["image", "text"]
VECTORS: dict[Kind, str] = {"image": "image_embedding", "text": "text_embedding"}
NORM_TOLERANCE = 1e-3  # float16 rounding of a unit vector moves its length by up to 6e-5
CHUNK = 1024  # rows cast at a time: as float32 they stay within a processor's cache


class State(NamedTuple):
    """Where a stream stands: `position` rows of the epoch's order are behind it, over all ranks together. `order` tells that order
    from others (other rows, another seed, other windows); "" is any. Goes through JSON as a list: `State(*found)`."""

    epoch: int = 0
    position: int = 0
    order: str = ""


START = State()


@dataclass(frozen=True)
class PairBatch:
    """n pairs. Embeddings are float32 (n, d) of unit length, token ids int64 (n, context_length), zero-padded, n_tokens int64 (n,).

    A vector that the reader was not asked for has no columns: (n, 0). `state` is where the stream stands after this batch; None
    for a batch that was asked for by its rows.
    """

    keys: list[str]
    caption_index: NDArray[np.int32]
    image_embedding: Tensor
    text_embedding: Tensor
    token_ids: Tensor
    n_tokens: Tensor
    state: State | None = None

    def pin_memory(self) -> "PairBatch":
        """The same batch in page-locked memory; `DataLoader(pin_memory=True)` calls it."""
        return replace(
            self, image_embedding=self.image_embedding.pin_memory(), text_embedding=self.text_embedding.pin_memory(),
            token_ids=self.token_ids.pin_memory(), n_tokens=self.n_tokens.pin_memory(),
        )  # fmt: skip

    def take(self, rows: NDArray[np.int64]) -> "PairBatch":
        """The pairs at `rows` of this batch, in that order."""
        chosen = torch.from_numpy(rows)
        return PairBatch(
            [self.keys[i] for i in rows], self.caption_index[rows], self.image_embedding[chosen],
            self.text_embedding[chosen], self.token_ids[chosen], self.n_tokens[chosen],
        )  # fmt: skip


def known_kinds(vectors: Kind | Sequence[Kind]) -> tuple[Kind, ...]:
    """The vectors named, by one name or several. Raises UserError for a name that there is not."""
    named: tuple[Kind, ...] = (vectors,) if isinstance(vectors, str) else tuple(vectors)
    for kind in named:
        if kind not in VECTORS:
            raise UserError(f"vectors: there is no {kind!r}; a cache has {' and '.join(map(repr, VECTORS))}")
    return named


def unit_scale(vectors: Tensor, what: str, keys: Callable[[], NDArray[np.bytes_]]) -> Tensor:
    """What each of float32 (n, d) is multiplied by to be of unit length, (n, 1): as stored, rounding leaves them a little off.

    Raises UserError naming `what` and the first key whose vector was not of unit length when it was stored."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    right = (length - 1).abs() <= NORM_TOLERANCE  # not so where it is not a number
    if not bool(right.all()):
        first = int(right.int().argmin())
        raise UserError(
            f"{what}: the vector of {keys()[first].decode()} has length {float(length[first]):.4f}, not 1: the file is damaged; "
            "run `python -m embed verify`, delete the part it names and run `make embeddings`"
        )
    return length.reciprocal_()


@dataclass(frozen=True)
class Vectors:
    """float16 (n, d) as stored, or (n, 0) where they are not wanted, and `unit_scale` of each, float32 (n, 1)."""

    stored: Tensor
    scale: Tensor

    @classmethod
    def measure(cls, stored: Tensor, what: str, keys: NDArray[np.bytes_]) -> "Vectors":
        """Measured once, when they are loaded, and not at every gathering. Raises UserError for damaged ones."""
        n, dim = stored.shape
        scale = torch.ones(n, 1)
        room = torch.empty(min(CHUNK, n), dim)
        for start in range(0, n if dim else 0, CHUNK):
            half = stored[start : start + CHUNK]
            vectors = room[: len(half)].copy_(half)
            scale[start : start + CHUNK] = unit_scale(vectors, what, lambda start=start: keys[start:])  # type: ignore[misc]
        return cls(stored, scale)

    def gather(self, index: Tensor) -> Tensor:
        """float32 (len(index), d) of unit length."""
        # In this order: torch casts five times faster than numpy, and gathering halves moves half the bytes.
        return self.stored.index_select(0, index).float().mul_(self.scale.index_select(0, index))


@dataclass(frozen=True)
class Rows:
    """Aligned columns of n pairs: `key` fixed-width ASCII, `token_ids` (n, context_length) in the cache's unsigned type."""

    key: NDArray[np.bytes_]
    caption_index: NDArray[np.int32]
    image: Vectors
    text: Vectors
    token_ids: NDArray[np.unsignedinteger]
    n_tokens: Tensor

    def __len__(self) -> int:
        return len(self.key)

    def vectors(self, kind: Kind) -> Vectors:
        return self.image if kind == "image" else self.text

    def gather(self, index: NDArray[np.int64], state: State | None = None) -> PairBatch:
        """The rows at `index`, in that order."""
        chosen = torch.from_numpy(index)
        return PairBatch(
            keys=text(self.key[index]).tolist(),
            caption_index=self.caption_index[index],
            image_embedding=self.image.gather(chosen),
            text_embedding=self.text.gather(chosen),
            token_ids=torch.from_numpy(self.token_ids.take(index, axis=0)).long(),
            n_tokens=self.n_tokens.index_select(0, chosen),
            state=state,
        )


class Room:
    """Memory for rows, to be used again: fresh memory costs as much as what is copied there."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def take(self, name: str, rows: int, width: int, dtype: np.dtype) -> NDArray[Any]:
        """Array (rows, width), holding anything; the same memory for the same name."""
        known = self._arrays.get(name)
        if known is None or len(known) < rows or known.shape[1] != width or known.dtype != dtype:
            self._arrays[name] = known = np.empty((rows, width), dtype)
        return known[:rows]


def text(keys: NDArray[np.bytes_]) -> NDArray[np.str_]:
    """Fixed-width ASCII bytes -> strings of the same width; four times faster than numpy's own cast."""
    codes = np.ascontiguousarray(keys).view(np.uint8).astype(np.uint32)
    return codes.view(f"U{keys.dtype.itemsize}")


def join_batches(batches: list[PairBatch], state: State | None = None) -> PairBatch:
    """Batches one after the other as one."""
    if len(batches) == 1:
        return replace(batches[0], state=state)
    return PairBatch(
        keys=[key for batch in batches for key in batch.keys],
        caption_index=np.concatenate([batch.caption_index for batch in batches]),
        image_embedding=torch.cat([batch.image_embedding for batch in batches]),
        text_embedding=torch.cat([batch.text_embedding for batch in batches]),
        token_ids=torch.cat([batch.token_ids for batch in batches]),
        n_tokens=torch.cat([batch.n_tokens for batch in batches]),
        state=state,
    )
