"""The embedding cache's Parquet format: one part per shard, one row per pair, keyed, with vectors as raw float16.

Vectors are `fixed_size_binary(2 d)` holding little-endian float16 of unit length: measured ten times faster to read and write
than list columns. Token ids are `fixed_size_binary` of uint16 (uint32 for vocabularies above 65,536).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.pipeline.errors import Code, UserError

FORMAT = "unclip-embeddings-1"
NULL_PART = "null"
NORM_TOLERANCE = 1e-3  # a stored vector's length from 1: float16 rounding moves it by up to 6e-5


@dataclass(frozen=True)
class CacheFormat:
    """What decides the bytes of a part beside its rows."""

    dim: int
    context_length: int
    vocab_size: int
    metadata: Mapping[str, str]

    @property
    def token_dtype(self) -> np.dtype:
        return np.dtype("<u2") if self.vocab_size <= 2**16 else np.dtype("<u4")

    @property
    def schema(self) -> pa.Schema:
        vector = {"dtype": "float16", "shape": f"[{self.dim}]", "normalized": "true", "byte_order": "little"}
        tokens = {"dtype": self.token_dtype.name, "shape": f"[{self.context_length}]", "byte_order": "little"}

        def field(name: str, kind: pa.DataType, facts: Mapping[str, str] | None = None) -> pa.Field:
            return pa.field(name, kind, nullable=False, metadata=facts)

        return pa.schema(
            [
                field("key", pa.string()),
                field("caption_index", pa.int32()),
                field("uid", pa.string()),  # the source's own id of the image
                field("caption", pa.string()),
                field("caption_hash", pa.binary(16)),  # first half of sha256
                field("image_hash", pa.binary(16)),  # first half of sha256 of the stored bytes
                field("image_embedding", pa.binary(2 * self.dim), vector),
                field("image_norm", pa.float32()),  # length before normalisation
                field("text_embedding", pa.binary(2 * self.dim), vector),
                field("text_norm", pa.float32()),
                field("token_ids", pa.binary(self.token_dtype.itemsize * self.context_length), tokens),
                field("n_tokens", pa.int32()),
                field("clip_score", pa.float32()),  # cosine of the two stored vectors
                field("width", pa.int32()),
                field("height", pa.int32()),
                field("split", pa.string()),
            ],
            metadata={
                "format": FORMAT,
                "dim": str(self.dim),
                "context_length": str(self.context_length),
                **self.metadata,
            },
        )


def fixed_binary(rows: NDArray[np.generic]) -> pa.FixedSizeBinaryArray:
    """Array (n, m) of any fixed-size type -> n binary values, without a copy of each row."""
    contiguous = np.ascontiguousarray(rows)
    width = contiguous.shape[1] * contiguous.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(contiguous), [None, pa.py_buffer(contiguous)])


def as_matrix(column: pa.ChunkedArray | pa.Array, dtype: np.dtype | str, width: int) -> NDArray[np.generic]:
    """A fixed-size binary column -> array (n, width) of `dtype`; a view of Arrow's memory where it is one chunk."""
    kind = np.dtype(dtype)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [
        np.frombuffer(c.buffers()[1], dtype=kind, count=len(c) * width, offset=c.offset * width * kind.itemsize)
        for c in chunks
        if len(c)
    ]
    if not parts:
        return np.empty((0, width), dtype=kind)
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, width)


def as_fixed_size_list(column: pa.FixedSizeBinaryArray, dim: int) -> pa.FixedSizeListArray:
    """A chunk of a vector column -> lists of `dim` float16 over the same memory: no byte is copied.

    Of a chunked column: `pa.chunked_array([as_fixed_size_list(chunk, dim) for chunk in column.chunks])`.
    """
    if column.type != pa.binary(2 * dim):
        raise UserError(f"a column of {column.type} does not hold {dim} float16 each; expected {pa.binary(2 * dim)}")
    buffers = [None, column.buffers()[1]]
    values = pa.Array.from_buffers(pa.float16(), len(column) * dim, buffers, offset=column.offset * dim)
    return pa.FixedSizeListArray.from_arrays(values, dim)


def write_part(path: str, table: pa.Table, row_group: int) -> None:
    """Vectors stay uncompressed and undictionaried (float data compresses by 9 % and would read 20 times slower).

    A column of a row group is one page, so that its vectors lie in the file as one matrix that a reader can map."""
    text = ["key", "uid", "caption", "split"]
    pq.write_table(
        table, path, row_group_size=row_group, use_dictionary=["uid", "split"],
        compression={name: "zstd" if name in text else "none" for name in table.column_names},
        write_statistics=["key", "clip_score"], data_page_size=2**30, max_rows_per_page=row_group,
    )  # fmt: skip


def read_metadata(path: str) -> dict[str, str]:
    """Schema metadata of a part. Raises UserError for a file that is not of this format."""
    try:
        metadata = {k.decode(): v.decode() for k, v in (pq.read_schema(path).metadata or {}).items()}
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}", Code.DAMAGED) from None
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is not an embedding cache of format {FORMAT}; it says {metadata.get('format')!r}",
            Code.OTHER_VERSION,
        )
    return metadata
