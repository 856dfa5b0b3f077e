"""One part of the cache, read by row groups: vectors as the file's own mapped bytes, other columns through Arrow.

A row group's vectors that were written as one uncompressed page (`embed.format.write_part`) lie in the file as one matrix, which is
mapped and not read: rows cost what is touched of them. Those of several pages are decoded by Arrow, to the same values.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.pipeline.errors import Code, UserError
from embed.format import as_matrix

LONGEST_HEADER = 256  # bytes of a data page's header, which is about 30


class OpenPart:
    """An open part. Use one from one thread at a time; it holds the file's footer and a read-only map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        mapped = pa.memory_map(str(path))
        self._bytes = np.frombuffer(mapped.read_buffer(), np.uint8)
        self._file = pq.ParquetFile(mapped, pre_buffer=False)
        schema = self._file.schema_arrow
        self._index = {name: i for i, name in enumerate(schema.names)}

    @property
    def groups(self) -> int:
        """How many row groups it has."""
        return int(self._file.num_row_groups)

    def columns(self, group: int, names: list[str]) -> pa.Table:
        """Columns of a row group. Raises UserError where they cannot be decoded."""
        try:
            return self._file.read_row_group(group, columns=names, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.path}: row group {group} cannot be read ({' '.join(str(error).split())}): the file is damaged; "
                "run `python -m embed verify`, delete the part it names and run `make embeddings`",
                Code.DAMAGED,
            ) from None

    def matrix(self, group: int, name: str, dtype: np.dtype, width: int) -> NDArray[np.generic]:
        """A fixed-size binary column of a row group as (rows, width); read-only."""
        rows = self._file.metadata.row_group(group).num_rows
        start = self._page_of(group, name, rows * width * dtype.itemsize)
        if start is None:
            return as_matrix(self.columns(group, [name])[name], dtype, width)
        end = start + rows * width * dtype.itemsize
        return np.asarray(self._bytes[start:end]).view(dtype).reshape(rows, width)

    def copy_into(
        self, target: NDArray[Any], here: slice | NDArray[np.int64], group: int, name: str, keep: NDArray[np.bool_] | None
    ) -> None:  # fmt: skip
        """Copy the rows of a row group that `keep` marks (None: all) to the rows `here` of `target` (n, width)."""
        rows, width = self._file.metadata.row_group(group).num_rows, target.shape[1]
        start = self._page_of(group, name, rows * width * target.itemsize)
        if start is not None and keep is None and isinstance(here, slice):
            # Read, not mapped: no page of the file becomes one of this process, and a file cut short is an error, not a signal.
            self._read(start, target[here].data.cast("B"))
            return
        matrix = self.matrix(group, name, target.dtype, width)
        if keep is not None and isinstance(here, slice):
            np.take(matrix, np.flatnonzero(keep), axis=0, out=target[here], mode="clip")
        else:
            target[here] = matrix if keep is None else matrix[keep]

    def _read(self, start: int, target: memoryview) -> None:
        done = 0
        with self.path.open("rb", buffering=0) as file:
            while done < len(target):
                count = os.preadv(file.fileno(), [target[done:]], start + done)
                if not count:
                    raise UserError(
                        f"{self.path} ends before its data: it was cut; delete it and run `make embeddings`",
                        Code.DAMAGED,
                    )
                done += count

    def _page_of(self, group: int, name: str, size: int) -> int | None:
        """Where the values of a column lie in the file, if they are one plain page of `size` bytes."""
        chunk = self._file.metadata.row_group(group).column(self._index[name])
        header = chunk.total_compressed_size - size
        plain = chunk.compression == "UNCOMPRESSED" and set(chunk.encodings) <= {"PLAIN", "RLE"}
        if not plain or chunk.has_dictionary_page or not 0 < header <= LONGEST_HEADER:
            return None
        start = chunk.data_page_offset
        # Pages of several headers have another size than their sum.
        return start + header if _page_size(bytes(self._bytes[start : start + header])) == size else None


def as_tensor(matrix: NDArray[np.generic]) -> torch.Tensor:
    """A matrix as a tensor over the same memory, which nobody may write to: it can be the file's own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(matrix)


def _page_size(header: bytes) -> int | None:
    """The uncompressed size that a page header tells: the second field of parquet.thrift's PageHeader in Thrift's compact protocol,
    where every i32 field that follows its neighbour begins with 0x15 and is a zigzag varint."""
    at, value = 0, None
    for _ in range(2):
        if at >= len(header) or header[at] != 0x15:
            return None
        value, at = _varint(header, at + 1)
    return None if value is None else (value >> 1) ^ -(value & 1)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(content):
        byte = content[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            break
    return value, at


def fixed_width(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Keys, which are ASCII and mostly of one length, as fixed-width bytes (n,)."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.string())
    if not len(array):
        return np.zeros(0, "S1")
    bounds = pc.min_max(pc.binary_length(array)).as_py()
    width = max(1, bounds["max"])
    if bounds["min"] != bounds["max"] or width != bounds["max"]:
        return np.array([key.encode() for key in array.to_pylist()], f"S{width}")
    offsets = np.frombuffer(array.buffers()[1], np.int32, 1, array.offset * 4)
    return np.frombuffer(array.buffers()[2], f"S{width}", len(array), int(offsets[0]))
