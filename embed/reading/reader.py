"""Reading the embedding cache: aligned tensors by row or key, an order of the rows that a seed fixes, in bounded memory.

reader = EmbeddingReader(run.embeddings, Lineage(run).require("views/train"), "train", clip.identity)
rows = reader.order(seed=0, epoch=0)        # a permutation of range(len(reader))
batch = reader.fetch(rows[:1024])
batch.image_embedding                       # float32 (1024, d), unit length

`training.loop.feed.Feed` makes batches of these two: read ahead, for one process or many, from any step on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.pipeline.artifacts import Artifact
from data.pipeline.errors import Code, UserError
from embed.format import NULL_PART, as_matrix
from embed.reading.lookup import Pairs, Span, find_rows
from embed.reading.mapped import as_tensor
from embed.reading.parts import CacheParts, Unit
from embed.reading.recent import RecentUnits
from embed.reading.rows import CHUNK, VECTORS, Buffer, Kind, PairBatch, Rows, known_kinds, text, unit_scale
from embed.reading.shuffle import Shuffle

__all__ = ["EmbeddingReader", "NullCaption", "PairBatch"]

MEMORY_LIMIT = 4 * 2**30


@dataclass(frozen=True)
class NullCaption:
    """The empty caption: text embedding float32 (d,), token ids int64 (context_length,)."""

    text_embedding: Tensor
    token_ids: Tensor


class EmbeddingReader:
    """The pairs of a cache that a view keeps and a split holds.

    A selection of at most `memory_limit` bytes is held in memory, its rows ordered by (key, caption_index) however the cache is cut
    into parts. A larger one stays on disk: rows are numbered part by part in the manifest's order (a retried sample's row lies in its
    retry part), each part by (key, caption_index). `vectors` names those to read; the order of an epoch does not depend on it, but on
    `memory_limit` where the selection is larger: going on in the middle of an epoch takes the same limit.

    Raises UserError for a cache made with another CLIP than `identity`, a missing or damaged part, a view of other pairs, an unknown
    kind of vector or split, and an empty selection.
    """

    def __init__(
        self, embeddings: Artifact, view: Artifact | None = None, split: str | None = None, identity: str | None = None,
        vectors: Kind | Sequence[Kind] = ("image", "text"), memory_limit: int = MEMORY_LIMIT,
    ) -> None:  # fmt: skip
        self.vectors = known_kinds(vectors)
        self.parts = CacheParts(embeddings, view, split, identity)
        self.folder, self.metadata = self.parts.folder, self.parts.metadata
        self.identity, self.dim = self.parts.identity, self.parts.dim
        if not self.parts.units:
            raise _nothing_left(self.parts)
        self._first = np.concatenate([[0], np.cumsum(self.parts.counts)])
        self.in_memory = len(self) * self.parts.row_bytes <= memory_limit
        most = max(1, memory_limit // self.parts.row_bytes)
        # Two windows fit: while one is used, the row groups of the next are loaded.
        self.shuffle = Shuffle(self.parts.counts, None if self.in_memory else max(1, most // 2))
        self._held = self.parts.load(self.parts.units, self.vectors, by_pair=True) if self.in_memory else None
        self._recent = RecentUnits(self._load, self.parts.counts, most)
        self.null = self._read_null()

    def _read_null(self) -> NullCaption:
        null = pq.read_table(self.folder / f"{NULL_PART}.parquet")
        vector = torch.from_numpy(as_matrix(null["text_embedding"], "<f2", self.dim)[0].astype(np.float32))
        tokens = as_matrix(null["token_ids"], self.parts.token_dtype, self.parts.context_length)[0].astype(np.int64)
        return NullCaption(normalize(vector, dim=-1), torch.from_numpy(tokens))

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def _pairs(self) -> Pairs:
        if self._held is not None:
            return self._held.key, self._held.caption_index
        return self.parts.keys(self.parts.units)

    @cached_property
    def keys(self) -> NDArray[np.str_]:
        """The key of every row, read when first asked for (36 bytes a row)."""
        return text(self._pairs[0])

    @property
    def caption_index(self) -> NDArray[np.int32]:
        return self._pairs[1]

    def find(self, keys: Sequence[str], caption_index: Sequence[int] | None = None) -> NDArray[np.int64]:
        """The rows of pairs by key, int64 (n,); without `caption_index`, each key's first row. Raises UserError for one not read.

        Of a cache on disk, reads the keys of the row groups in which a wanted one can lie."""
        if caption_index is not None and len(caption_index) != len(keys):
            raise UserError(
                f"find: {len(keys):,} keys but {len(caption_index):,} caption numbers; give one for each key, or none"
            )
        wanted = np.array([key.encode() for key in keys], dtype=np.bytes_)
        numbers = None if caption_index is None else np.asarray(caption_index, np.int32)
        found = find_rows(self._spans, self._pairs_of, wanted, numbers)
        if (found < 0).any():
            first = int((found < 0).argmax())
            key = str(keys[first])
            pair = key if caption_index is None else (key, int(caption_index[first]))
            raise UserError(
                f"{pair!r} is not among the {len(self):,} pairs read of {self.folder} "
                f"(view {self.parts.view.folder.name if self.parts.view else '(none)'}, split {self.parts.split or '(any)'})"
            )
        return found

    @cached_property
    def _spans(self) -> list[Span]:
        if self._held is not None:
            return [Span(0, self._held.key[0], self._held.key[-1])]
        groups = [self.parts.parts[unit.part].groups[unit.group] for unit in self.parts.units]
        return [Span(int(at), group.lowest, group.highest) for at, group in zip(self._first[:-1], groups, strict=True)]

    def _pairs_of(self, span: int) -> Pairs:
        return self._pairs if self._held is not None else self.parts.keys([self.parts.units[span]])

    def fetch(self, rows: NDArray[np.int64] | Sequence[int]) -> PairBatch:
        """The pairs at `rows` (numbers within this reader), in that order. Raises UserError for a number that there is not.

        Of a cache on disk, loads the row groups touched and keeps those used last, within the memory limit. Takes any thread."""
        index = self._known_rows(rows)
        return self._recent.gather(index) if self._held is None else self._held.gather(index)

    def _known_rows(self, rows: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
        index = np.asarray(rows, dtype=np.int64)
        outside = (index < 0) | (index >= len(self))
        if outside.any():
            raise UserError(
                f"there is no row {index[outside][0]}; this reader's are numbered from 0 to {len(self) - 1}"
            )
        return index

    def _load(self, unit: int, buffer: Buffer) -> Rows:
        return self.parts.load([self.parts.units[unit]], self.vectors, buffer=buffer)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of the rows that depends on (seed, epoch) alone; 8 bytes a row. Of a cache on disk it walks through windows of
        row groups that fit the memory limit, so that `fetch` of successive stretches loads each row group once."""
        found, at = np.empty(len(self), np.int64), 0
        for window in self.shuffle.windows(seed, epoch):
            rows = window.shuffled(np.arange(len(self)) if window.units is None else self._rows_of(window.units))
            found[at : at + len(rows)] = rows
            at += len(rows)
        return found

    def _rows_of(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([np.arange(self._first[unit], self._first[unit + 1]) for unit in units])

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names that `column` takes."""
        return tuple(pq.read_schema(self.parts.parts[0].path, memory_map=True).names)

    def column(self, name: str, rows: NDArray[np.int64] | Sequence[int]) -> pa.Array:
        """Any other column of the cache at `rows`: `caption`, `uid`, `image_hash`, `split`, `width` ... Reads the row groups touched.

        Raises UserError for a column or a row that there is not."""
        index = self._known_rows(rows)
        if name not in self.columns:
            raise UserError(f"{self.folder} has no column {name!r}; its columns are {', '.join(self.columns)}")
        if self._held is None:
            units = np.searchsorted(self._first, index, side="right") - 1
            touched = np.unique(units)
            starts = np.concatenate([[0], np.cumsum(self.parts.counts[touched])])
            local = index - self._first[units] + starts[np.searchsorted(touched, units)]
            return self._whole_column(name, [self.parts.units[i] for i in touched]).take(pa.array(local))
        return self._held_column(name).take(pa.array(index))

    def _held_column(self, name: str) -> pa.Array:
        """A column in the order of the rows held, which need not be that of the parts."""
        column = self._whole_column(name, self.parts.units)
        keys, numbers = self.parts.keys(self.parts.units)
        return column.take(pa.array(np.lexsort((numbers, keys))))

    def _whole_column(self, name: str, units: Sequence[Unit]) -> pa.Array:
        chunks: list[pa.Array] = []
        if not units:
            return self._whole_column(name, self.parts.units[:1]).slice(0, 0)
        for unit, part, keep in self.parts.walk(units):
            column = part.columns(unit.group, [name])[name]
            chunks += (column if keep is None else column.filter(pa.array(keep))).chunks
        return pa.concat_arrays(chunks)

    def captions(self, rows: NDArray[np.int64] | Sequence[int]) -> list[str]:
        found: list[str] = self.column("caption", rows).to_pylist()
        return found

    def image_batches(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Each image once: rows int64 (n,) and image embeddings float32 (n, d), in the order of the rows, in constant memory."""
        self._require_vectors("image")
        previous = b""
        for start, rows in self._stretches():
            fresh = np.concatenate([[True], rows.key[1:] != rows.key[:-1]])
            fresh[0] = rows.key[0] != previous  # an image's captions may be cut by a row group's end
            previous = rows.key[-1]
            for chosen in np.split(np.flatnonzero(fresh), range(CHUNK, int(fresh.sum()), CHUNK)):
                yield start + chosen, rows.image.gather(torch.from_numpy(chosen))

    def _require_vectors(self, kind: Kind) -> None:
        if known_kinds(kind)[0] not in self.vectors:
            raise UserError(
                f"this reader was opened without {kind} vectors; add {kind!r} to `vectors` of EmbeddingReader, now {self.vectors}"
            )

    def _stretches(self) -> Iterator[tuple[int, Rows]]:
        """All rows in order, a stretch at a time, with the number of each stretch's first row."""
        if self._held is not None:
            yield 0, self._held
            return
        for number, unit in enumerate(self.parts.units):
            yield int(self._first[number]), self.parts.load([unit], self.vectors)

    def images(self) -> tuple[NDArray[np.str_], Tensor]:
        """Distinct keys, ascending, and their image embeddings float32 (n, d): statistics over images count each image once.

        All of them at once; `image_batches` gives them in constant memory."""
        rows, vectors = zip(*self.image_batches(), strict=True)
        keys, embeddings = self.keys[np.concatenate(rows)], torch.cat(vectors)
        if self._held is not None:
            return keys, embeddings
        order = np.argsort(keys, kind="stable")
        return keys[order], embeddings[torch.from_numpy(order)]

    def scan(self, kind: Kind = "image", batch: int = CHUNK, unit: bool = True) -> Iterator[Tensor]:
        """The vectors of every row in order, float32 (at most `batch`, d), read sequentially in constant memory.

        `unit = False` gives the stored float16 values as they are, within 1e-3 of unit length."""
        self._require_vectors(kind)
        what = f"{self.folder}: {VECTORS[kind]}"
        for start, stored in self._stored(kind):
            for i, half in enumerate(stored.split(batch)):
                vectors = half.float()
                yield (
                    vectors.mul_(unit_scale(vectors, what, partial(self._keys_from, start + i * batch)))
                    if unit
                    else vectors
                )

    def _keys_from(self, row: int) -> NDArray[np.bytes_]:
        return self._pairs[0][row:]

    def _stored(self, kind: Kind) -> Iterator[tuple[int, Tensor]]:
        """float16 vectors in the order of the rows, a stretch at a time, with the number of each stretch's first row."""
        if self._held is not None:
            yield 0, self._held.vectors(kind).stored
            return
        for number, (row_group, part, keep) in enumerate(self.parts.walk(self.parts.units)):
            matrix = part.matrix(row_group.group, VECTORS[kind], np.dtype("<f2"), self.dim)
            yield int(self._first[number]), as_tensor(matrix if keep is None else matrix[keep])


def _nothing_left(parts: CacheParts) -> UserError:
    view, split = parts.view.folder.name if parts.view else "(none)", parts.split
    if split is not None and parts.kept_by_view():
        return parts.no_pair_of_split()
    return UserError(
        f"no pairs are left in {parts.folder} after view {view} and split {split or '(any)'}; "
        f"loosen [views] or use a larger dataset (`make status` shows the counts)",
        Code.EMPTY,
    )
