"""Rows of the cache in memory, and the batches that are gathered from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import UserError

Kind = Literal["image", "text"]
VECTORS: dict[Kind, str] = {"image": "image_embedding", "text": "text_embedding"}
NORM_TOLERANCE = 1e-3  # float16 rounding of a unit vector moves its length by up to 6e-5
CHUNK = 1024  # rows cast at a time: as float32 they stay within a processor's cache


class State(NamedTuple):
    """Where a stream stands: `position` rows of the epoch's order are behind it, over all ranks together."""

    epoch: int = 0
    position: int = 0


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


def unit_length(vectors: Tensor, what: str, keys: Callable[[], NDArray[np.bytes_]]) -> Tensor:
    """Divide float32 (n, d) by their lengths, in place: as stored, rounding leaves them a little off 1.

    Raises UserError naming `what` and the first key whose vector was not of unit length when it was stored."""
    if vectors.numel() == 0:
        return vectors
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    right = (length - 1).abs() <= NORM_TOLERANCE  # not so where it is not a number
    if not bool(right.all()):
        first = int(right.int().argmin())
        raise UserError(
            f"{what}: the vector of {keys()[first].decode()} has length {float(length[first]):.4f}, not 1: the file is damaged; "
            "run `python -m embed verify`, delete the part it names and run `make embeddings`"
        )
    return vectors.div_(length)


@dataclass(frozen=True)
class Rows:
    """Aligned columns of n pairs as stored: `key` fixed-width ASCII, vectors float16 (n, d) or (n, 0), `token_ids`
    (n, context_length) in the cache's unsigned type. `source` is where they come from, for messages."""

    source: str

    key: NDArray[np.bytes_]
    caption_index: NDArray[np.int32]
    image: Tensor
    text: Tensor
    token_ids: NDArray[np.unsignedinteger]
    n_tokens: Tensor

    def __len__(self) -> int:
        return len(self.key)

    def gather(self, index: NDArray[np.int64], state: State | None = None) -> PairBatch:
        """The rows at `index`, in that order."""
        chosen = torch.from_numpy(index)
        return PairBatch(
            keys=text(self.key[index]).tolist(),
            caption_index=self.caption_index[index],
            image_embedding=self.vectors("image", chosen),
            text_embedding=self.vectors("text", chosen),
            token_ids=torch.from_numpy(self.token_ids.take(index, axis=0)).long(),
            n_tokens=self.n_tokens.index_select(0, chosen),
            state=state,
        )

    def vectors(self, kind: Kind, index: Tensor) -> Tensor:
        """float32 (len(index), d) of unit length."""
        # In this order: torch casts five times faster than numpy, and gathering halves moves half the bytes.
        stored = self.image if kind == "image" else self.text
        what = f"{self.source}: {VECTORS[kind]}"
        return unit_length(stored.index_select(0, index).float(), what, lambda: self.key[index.numpy()])

    def by_pair(self) -> "Rows":
        """The same rows by (key, caption_index), ascending; itself where they are already."""
        same = self.key[1:] == self.key[:-1]
        rising = self.caption_index[1:] > self.caption_index[:-1]
        if bool(((self.key[1:] > self.key[:-1]) | (same & rising)).all()):
            return self
        index = np.lexsort((self.caption_index, self.key))
        chosen = torch.from_numpy(index)
        image, text, n_tokens = (c.index_select(0, chosen) for c in (self.image, self.text, self.n_tokens))
        return Rows(
            self.source, self.key[index], self.caption_index[index], image, text, self.token_ids[index], n_tokens
        )


def text(keys: NDArray[np.bytes_]) -> NDArray[np.str_]:
    """Fixed-width ASCII bytes -> strings of the same width."""
    return keys.astype(f"U{keys.dtype.itemsize}")


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
