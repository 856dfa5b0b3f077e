"""Pairs `(key, caption_index)`, the primary key of caches, scores and views: joining tables by it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PAIR = ["key", "caption_index"]


def aligned(path: Path, columns: list[str], pairs: pa.Table) -> tuple[pa.Table, pa.ChunkedArray | None]:
    """The columns of a part of scores, row by row beside `pairs`, and which pairs have such a row (None: all). Null where not."""
    if not path.exists():
        nothing = pa.chunked_array([pa.array(np.zeros(len(pairs), bool))])
        return pa.table({name: pa.nulls(len(pairs)) for name in columns}), nothing
    table = pq.read_table(path, columns=[*PAIR, *columns])
    if all(table[name].equals(pairs[name]) for name in PAIR):
        return table, None
    where = pc.index_in(_identity(pairs), _identity(table).combine_chunks())
    return table.take(where), pc.is_valid(where)


def _identity(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["key"], table["caption_index"].cast(pa.string()), "/")
