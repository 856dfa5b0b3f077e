"""Reading the embedding cache: aligned tensors by key, in an order that a seed fixes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from data.artifacts import Artifact
from data.errors import UserError
from embed.cache import as_matrix, read_metadata
from embed.encoder import NULL_PART

COLUMNS = ["key", "caption_index", "caption", "image_embedding", "text_embedding", "token_ids", "n_tokens", "split"]


@dataclass(frozen=True)
class PairBatch:
    """n pairs. Embeddings are float32 (n, d) of unit length, token ids int64 (n, context_length), zero-padded."""

    keys: list[str]
    caption_index: NDArray[np.int32]
    image_embedding: torch.Tensor
    text_embedding: torch.Tensor
    token_ids: torch.Tensor
    n_tokens: torch.Tensor


@dataclass(frozen=True)
class NullCaption:
    """The empty caption: text embedding float32 (d,), token ids int64 (context_length,)."""

    text_embedding: torch.Tensor
    token_ids: torch.Tensor


class EmbeddingReader:
    """The pairs of a cache that a view keeps and a split holds, as float16 in memory.

    Rows are ordered by (key, caption_index). Raises UserError for a cache made with another CLIP than `identity`, a view made of
    other pairs, and an empty selection.
    """

    def __init__(
        self, embeddings: Artifact, view: Artifact | None = None, split: str | None = None, identity: str | None = None
    ) -> None:
        self.folder = embeddings.require("make embeddings").folder
        self.metadata = read_metadata(str(self.folder / f"{NULL_PART}.parquet"))
        self.identity = self.metadata["clip_identity"]
        if identity is not None and identity != self.identity:
            raise UserError(
                f"{self.folder} was made with the CLIP {self.metadata['clip_name']} ({self.identity[:12]}), "
                f"not with the one in use ({identity[:12]}); "
                f"delete {self.folder} and run `make embeddings`, or use the CLIP it was made with"
            )
        self.dim = int(self.metadata["dim"])
        names = [receipt.name for receipt in embeddings.receipts() if receipt.name != NULL_PART]
        table = pa.concat_tables([self._read_part(name, view, split) for name in names]) if names else pa.table({})
        if split is not None and not len(table) and any(len(self._read_part(name, view, None)) for name in names):
            raise UserError(
                f"no pair of the split {split!r} is left in {self.folder}; a larger [dataset.split] {split} or a larger dataset gives some"
                if split != "train"
                else f"no pair of the split 'train' is left in {self.folder}; lower [dataset.split] val and test"
            )
        if not len(table):
            raise UserError(
                f"no pairs are left in {self.folder} after view {view.folder.name if view else '(none)'} and split {split or '(any)'}; "
                f"loosen [views] or use a larger dataset (`make status` shows the counts)"
            )
        self._hold(table)

    def _read_part(self, name: str, view: Artifact | None, split: str | None) -> pa.Table:
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            raise UserError(
                f"{path} is missing although the manifest lists it; run `python -m embed verify`, then `make embeddings`"
            )
        if read_metadata(str(path))["clip_identity"] != self.identity:
            raise UserError(
                f"{path} was made with another CLIP than the rest of {self.folder}; delete it and run `make embeddings`"
            )
        table = pq.read_table(path, columns=COLUMNS, memory_map=True)
        if view is not None:
            table = table.filter(kept_mask(view, name, table))
        return table.filter(pc.equal(table["split"], split)) if split is not None else table

    def _hold(self, table: pa.Table) -> None:
        token_dtype = np.dtype(table.schema.field("token_ids").metadata[b"dtype"].decode())
        width = table.schema.field("token_ids").type.byte_width // token_dtype.itemsize
        self.keys: NDArray[np.str_] = np.array(table["key"].to_pylist())
        self.caption_index: NDArray[np.int32] = table["caption_index"].to_numpy()
        self._captions: pa.ChunkedArray = table["caption"]
        self._image = torch.from_numpy(as_matrix(table["image_embedding"], "<f2", self.dim).copy())
        self._text = torch.from_numpy(as_matrix(table["text_embedding"], "<f2", self.dim).copy())
        self._tokens = torch.from_numpy(as_matrix(table["token_ids"], token_dtype, width).astype(np.int32))
        self._n_tokens = torch.from_numpy(table["n_tokens"].to_numpy().astype(np.int64))
        self.null = self._read_null(token_dtype, width)

    def _read_null(self, token_dtype: np.dtype, width: int) -> NullCaption:
        null = pq.read_table(self.folder / f"{NULL_PART}.parquet")
        text = torch.from_numpy(as_matrix(null["text_embedding"], "<f2", self.dim)[0].astype(np.float32))
        tokens = torch.from_numpy(as_matrix(null["token_ids"], token_dtype, width)[0].astype(np.int64))
        return NullCaption(normalize(text, dim=-1), tokens)

    def __len__(self) -> int:
        return len(self.keys)

    def fetch(self, rows: NDArray[np.int64] | Sequence[int]) -> PairBatch:
        """The pairs at `rows` (positions within this reader), in that order; vectors renormalised in float32."""
        index = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        return PairBatch(
            keys=self.keys[index.numpy()].tolist(),
            caption_index=self.caption_index[index.numpy()],
            image_embedding=normalize(self._image[index].float(), dim=-1),
            text_embedding=normalize(self._text[index].float(), dim=-1),
            token_ids=self._tokens[index].long(),
            n_tokens=self._n_tokens[index],
        )

    def captions(self, rows: NDArray[np.int64] | Sequence[int]) -> list[str]:
        found: list[str] = self._captions.take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()
        return found

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of the rows that depends on (seed, epoch) alone."""
        return np.random.default_rng([seed, epoch]).permutation(len(self))

    def images(self) -> tuple[NDArray[np.str_], torch.Tensor]:
        """Distinct keys, ascending, and their image embeddings float32 (n, d): statistics over images count each image once."""
        keys, first = np.unique(self.keys, return_index=True)
        return keys, normalize(self._image[torch.from_numpy(first)].float(), dim=-1)


def kept_mask(view: Artifact, name: str, table: pa.Table) -> pa.Array:
    """Which rows of part `name` the view keeps, matched by (key, caption_index). Raises UserError when a row is not in the view."""
    path = view.require("make dataset").folder / f"{name}.parquet"
    if not path.is_file():
        raise UserError(
            f"view {view.folder} has no part {name}; make the view again (`make dataset`, `make embeddings`)"
        )
    decisions = pq.read_table(path, columns=["key", "caption_index", "keep"])
    keep = dict(
        zip(
            zip(decisions["key"].to_pylist(), decisions["caption_index"].to_pylist(), strict=True),
            decisions["keep"].to_pylist(),
            strict=True,
        )
    )
    try:
        return pa.array(
            [keep[pair] for pair in zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True)],
            pa.bool_(),
        )
    except KeyError as error:
        raise UserError(
            f"pair {error.args[0]} of part {name} is not in the view {view.folder}: "
            "they were made from different datasets; make the view again"
        ) from None
