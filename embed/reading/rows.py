"""Rows of the cache in memory, and the batches that are gathered from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.pipeline.errors import Code, UserError
from embed.format import NORM_TOLERANCE

Kind = Literal["image", "text"]
VECTORS: dict[Kind, str] = {"image": "image_embedding", "text": "text_embedding"}
CHUNK = 1024  # rows cast at a time: as float32 they stay within a processor's cache


@dataclass(frozen=True)
class PairBatch:
    """n pairs. Embeddings are float32 (n, d) of unit length, token ids int64 (n, context_length), zero-padded, n_tokens int64 (n,).
    A vector that the reader was not asked for has no columns: (n, 0)."""

    keys: list[str]
    caption_index: NDArray[np.int32]
    image_embedding: Tensor
    text_embedding: Tensor
    token_ids: Tensor
    n_tokens: Tensor


def known_kinds(vectors: Kind | Sequence[Kind]) -> tuple[Kind, ...]:
    """The vectors named, by one name or several. Raises UserError for a name that there is not."""
    named: tuple[Kind, ...] = (vectors,) if isinstance(vectors, str) else tuple(vectors)
    for kind in named:
        if kind not in VECTORS:
            raise UserError(f"vectors: there is no {kind!r}; a cache has {' and '.join(map(repr, VECTORS))}")
    return named


def unit_scale(vectors: Tensor, what: str, keys: Callable[[], NDArray[np.bytes_]]) -> Tensor:
    """The factor (n, 1) that brings each of float32 (n, d) to unit length; rounding to float16 left them a little off it.

    Raises UserError naming `what` and the first key whose vector was not of unit length when it was stored."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    right = (length - 1).abs() <= NORM_TOLERANCE  # not so where it is not a number
    if not bool(right.all()):
        first = int(right.int().argmin())
        raise UserError(
            f"{what}: the vector of {keys()[first].decode()} has length {float(length[first]):.4f}, not 1: the file is damaged; "
            "run `python -m embed verify`, delete the part it names and run `make embeddings`",
            Code.DAMAGED,
        )
    return length.reciprocal_()


@dataclass(frozen=True)
class Vectors:
    """float16 (n, d) as stored, or (n, 0) where they are not wanted, and `unit_scale` of each, float32 (n, 1)."""

    stored: Tensor
    scale: Tensor

    @classmethod
    def measure(cls, stored: Tensor, what: str, keys: NDArray[np.bytes_]) -> "Vectors":
        """Compute the scales, once when the vectors are loaded. Raises UserError for a vector that is not of unit length."""
        n, dim = stored.shape
        scale = torch.ones(n, 1)
        chunk = torch.empty(min(CHUNK, n), dim)
        for start in range(0, n if dim else 0, CHUNK):
            half = stored[start : start + CHUNK]
            vectors = chunk[: len(half)].copy_(half)
            scale[start : start + CHUNK] = unit_scale(vectors, what, lambda start=start: keys[start:])  # type: ignore[misc]
        return cls(stored, scale)

    def gather(self, index: Tensor) -> Tensor:
        """float32 (len(index), d) of unit length."""
        # In this order: torch casts five times faster than numpy, and gathering halves moves half the bytes.
        return self.stored.index_select(0, index).float().mul_(self.scale.index_select(0, index))

    def select(self, index: Tensor) -> "Vectors":
        """Copies of some of them, as stored."""
        return Vectors(self.stored.index_select(0, index), self.scale.index_select(0, index))


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

    def select(self, index: NDArray[np.int64]) -> "Rows":
        """Copies of the rows at `index`, in that order, as stored."""
        chosen = torch.from_numpy(index)
        return Rows(
            self.key[index], self.caption_index[index], self.image.select(chosen), self.text.select(chosen),
            self.token_ids.take(index, axis=0), self.n_tokens.index_select(0, chosen),
        )  # fmt: skip

    def gather(self, index: NDArray[np.int64]) -> PairBatch:
        """The rows at `index`, in that order, as a batch."""
        chosen = torch.from_numpy(index)
        return PairBatch(
            keys=text(self.key[index]).tolist(),
            caption_index=self.caption_index[index],
            image_embedding=self.image.gather(chosen),
            text_embedding=self.text.gather(chosen),
            token_ids=torch.from_numpy(self.token_ids.take(index, axis=0)).long(),
            n_tokens=self.n_tokens.index_select(0, chosen),
        )


class Buffer:
    """Memory for rows, to be used again: to take it from the system anew costs as much as filling it."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    @property
    def rows(self) -> int:
        """For how many rows there is memory."""
        return max(map(len, self._arrays.values()), default=0)

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


def join_rows(pieces: Sequence[Rows]) -> Rows:
    """Rows one after the other."""
    image, text = (
        Vectors(torch.cat([p.vectors(kind).stored for p in pieces]), torch.cat([p.vectors(kind).scale for p in pieces]))
        for kind in VECTORS
    )
    return Rows(
        np.concatenate([p.key for p in pieces]), np.concatenate([p.caption_index for p in pieces]), image, text,
        np.concatenate([p.token_ids for p in pieces]), torch.cat([p.n_tokens for p in pieces]),
    )  # fmt: skip
