"""Reading tables as a stream: Parquet, CSV, TSV and JSON lines, the text forms also gzipped, a batch of rows at a time.

Text is read with the standard library on purpose: one unclosed quote or one ragged line costs its own rows, which are counted, where
a columnar reader would refuse the file. Bytes that are not UTF-8 become replacement characters.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.sources.facts import cannot_read

ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
SETTING = "dataset.table.path"
UNREADABLE = (OSError, ValueError, EOFError, zlib.error, pa.ArrowException)
JSON_SAMPLE = 1000  # lines of a .jsonl that are looked at for its columns: rows may leave out what is null

Batch = list[list[Any]]  # one list of values per column asked for
Dropped = Callable[[int], None]  # told how many lines could not be read as a row


def is_table(name: str) -> bool:
    return name.endswith(ENDINGS)


class Table:
    """One file. `header` names the columns of a CSV or TSV that has none; such a file (CC3M, CC12M) knows no quoting either."""

    def __init__(self, path: Path, header: Sequence[str] = ()) -> None:
        self.path, self.header = path, tuple(header)
        name = path.name.removesuffix(".gz")
        self.kind = name.rpartition(".")[2]

    def columns(self) -> list[str]:
        """Names of the columns; empty for an empty text file. Raises UserError when the file cannot be read."""
        with self._readable():
            if self.kind == "parquet":
                return [str(name) for name in pq.read_schema(self.path).names]
            with self._text() as file:
                if self.kind == "jsonl":
                    sample = (_json_object(text) for text in islice(file, JSON_SAMPLE))
                    return list(dict.fromkeys(name for row in sample if row for name in row))
                return self._csv_header(self._csv_reader(file))[0]

    def batches(self, names: Sequence[str], rows: int, dropped: Dropped) -> Iterator[Batch]:
        """The columns `names`, at most `rows` rows at a time. Raises UserError when the file turns out damaged."""
        with self._readable():
            if self.kind == "parquet":
                yield from self._parquet_batches(names, rows)
                return
            with self._text() as file:
                is_json = self.kind == "jsonl"
                found = _json_rows(file, names, dropped) if is_json else self._csv_rows(file, names, dropped)
                while batch := list(islice(found, rows)):
                    yield [list(column) for column in zip(*batch, strict=True)]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            raise cannot_read(SETTING, self.path, error) from None

    def _text(self) -> io.TextIOWrapper:
        raw: Any = gzip.open(self.path, "rb") if self.path.name.endswith(".gz") else self.path.open("rb")  # noqa: SIM115
        return io.TextIOWrapper(
            raw, encoding="utf-8-sig", errors="replace", newline="" if self.kind != "jsonl" else "\n"
        )

    def _parquet_batches(self, names: Sequence[str], rows: int) -> Iterator[Batch]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=rows, columns=list(names), use_threads=False):
                present = batch.schema.names
                yield [_values(batch.column(present.index(name))) for name in names]

    def _csv_reader(self, file: io.TextIOBase) -> Any:
        delimiter = "\t" if self.kind == "tsv" else ","
        return csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if self._is_bare() else csv.QUOTE_MINIMAL)

    def _is_bare(self) -> bool:
        return bool(self.header) and self.kind == "tsv"

    def _csv_header(self, reader: Any) -> tuple[list[str], list[str] | None]:
        """Column names, and the first row where that is no header but data already."""
        first: list[str] = next((row for row in reader if row), [])
        if not self.header or not first or {name.lower() for name in first} >= set(self.header):
            return first, None
        more = [f"column{number}" for number in range(len(self.header) + 1, len(first) + 1)]
        return [*self.header, *more], first

    def _csv_rows(self, file: io.TextIOBase, names: Sequence[str], dropped: Dropped) -> Iterator[list[Any]]:
        reader = self._csv_reader(file)
        header, first = self._csv_header(reader)
        places = [header.index(name) for name in names]
        if first is not None and len(first) == len(header):
            yield [first[place] for place in places]
        while True:
            before = reader.line_num
            try:
                row = next(reader, None)
            except csv.Error:  # a field of more than 131,072 characters: most often a quote that nobody closed
                dropped(reader.line_num - before)
                continue
            if row is None:
                return
            if len(row) == len(header):
                yield [row[place] for place in places]
            elif row:
                dropped(reader.line_num - before)


def _values(column: pa.Array) -> list[Any]:
    """A Parquet column as Python values; text that is not UTF-8, which Parquet does not check, as replacement characters."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        return [None if value is None else value.decode("utf-8", "replace") for value in raw.to_pylist()]


def _json_rows(file: io.TextIOBase, names: Sequence[str], dropped: Dropped) -> Iterator[list[Any]]:
    for text in file:
        row = _json_object(text)
        if row is not None:
            yield [row.get(name) for name in names]
        elif text.strip():
            dropped(1)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
