"""Source `table`: lists of URLs with captions, as Parquet, CSV, TSV or JSON lines.

One candidate per distinct canonical URL, at its first appearance, with the captions of all its rows. The list is never held: a first
pass over the URLs alone keeps 16 bytes of each and finds which repeat, a second gathers the captions of those, the third streams.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.candidates import Candidate, Served
from data.sources.canonical import canonical_url
from data.sources.facts import facts_of, valid_name
from data.sources.inputs import find_files
from data.sources.presets import PRESETS, Columns, find_columns
from data.sources.rows import ENDINGS, SETTING, Batch, Table, is_table
from data.sources.settings import TableSettings
from data.sources.values import is_blank, json_value, line, number, number_in, valid

BATCH_ROWS = 8192
NO_URL = "(no url)"
_HASH = re.compile(r"([0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})")


@dataclass(frozen=True)
class Repeats:
    """Per row of all files in order: the first row with the same URL, and whether there is another row with it at all."""

    first: NDArray[np.int64]
    repeated: NDArray[np.bool_]


class TableSource:
    """All rows of all files that the settings name. Rows without a URL are one candidate, which the download drops with a reason."""

    def __init__(self, settings: TableSettings, batch_rows: int = BATCH_ROWS) -> None:
        self.settings, self.batch_rows = settings, batch_rows
        self.notes: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """How columns are chosen, and every file's bytes and sha256."""
        root, names = self._files()
        return {
            "kind": "table",
            "columns": self.settings.model_dump(mode="json", exclude={"path"}),
            "files": facts_of(((valid_name(name), root / name) for name in names), SETTING),
        }

    @contextmanager
    def serving(self) -> Iterator[Served]:
        yield Served("web")

    def candidates(self) -> Iterator[Candidate]:
        """Raises UserError for an unreadable or damaged file, an unknown ending and missing columns."""
        self.notes.clear()
        tables = list(self._tables())
        repeats = self._find_repeats(tables)
        captions = self._captions_of_repeats(tables, repeats)
        row = 0
        for table, columns in tables:
            name = valid_name(table.path.name)
            for batch in table.batches(columns.names, self.batch_rows, partial(self._drop, name)):
                found = self._candidates_of(columns, batch)
                for candidate, first in zip(found, repeats.first[row : row + len(batch[0])].tolist(), strict=True):
                    if first == row:
                        merged = captions.pop(row, None)
                        yield candidate if merged is None else replace(candidate, captions=tuple(merged))
                    row += 1

    def _files(self) -> tuple[Path, list[str]]:
        # Links are followed: a download cache of lists is made of them (huggingface_hub's snapshots).
        return find_files(self.settings.path, SETTING, is_table, ", ".join(ENDINGS), follow_links=True)

    def _tables(self) -> Iterator[tuple[Table, Columns]]:
        root, names = self._files()
        header = PRESETS[self.settings.preset].header if self.settings.preset else ()
        for name in names:
            table = Table(root / name, header)
            present = table.columns()
            if present:
                yield table, find_columns(present, self.settings, table.path)
            else:
                self.notes[f"empty input file {valid_name(name)}"] += 1

    def _drop(self, name: str, lines: int) -> None:
        self.notes[
            f"line of {name} that is no row of the table (wrong number of fields, an unclosed quote, or no JSON object)"
        ] += lines

    def _find_repeats(self, tables: list[tuple[Table, Columns]]) -> Repeats:
        digests = bytearray()
        for table, columns in tables:
            for (urls,) in table.batches([columns.of_field["url"]], self.batch_rows, lambda _: None):
                for url in urls:
                    digests += blake2b(identity_of(clean_url(url)).encode(), digest_size=16).digest()
        return group_equal(digests)

    def _captions_of_repeats(self, tables: list[tuple[Table, Columns]], repeats: Repeats) -> dict[int, list[str]]:
        """First row -> captions of all rows with its URL, in order, for the URLs that repeat."""
        found: dict[int, list[str]] = {}
        if not repeats.repeated.any():
            return found
        row = 0
        for table, columns in tables:
            for (values,) in table.batches([columns.of_field["caption"]], self.batch_rows, lambda _: None):
                for place in np.flatnonzero(repeats.repeated[row : row + len(values)]).tolist():
                    found.setdefault(int(repeats.first[row + place]), []).extend(captions_in(values[place]))
                row += len(values)
        return found

    def _candidates_of(self, columns: Columns, batch: Batch) -> Iterator[Candidate]:
        """One candidate per row. Values are cleaned a column at a time, which a million rows feel."""
        values = dict(zip(columns.names, batch, strict=True))
        nothing = [None] * len(batch[0])

        def texts(field: str) -> list[str | None] | list[None]:
            return [line(v) or None for v in values[columns.of_field[field]]] if field in columns.of_field else nothing

        urls = [clean_url(value) for value in values[columns.of_field["url"]]]
        scores = values[columns.of_field["watermark"]] if "watermark" in columns.of_field else nothing
        carried = [
            [self._number(name, v) if name in columns.numbers else json_value(v) for v in values[name]]
            for name in columns.extra
        ]
        rows = zip(
            urls, map(identity_of, urls), map(captions_in, values[columns.of_field["caption"]]), texts("license"),
            texts("source_page"), texts("attribution"), texts("hash"), texts("nsfw"), map(number, scores),
            zip(*carried, strict=True) if carried else [()] * len(urls), strict=True,
        )  # fmt: skip
        for url, identity, captions, licence, page, attribution, digest, nsfw, watermark, extra in rows:
            yield Candidate(
                source_id=identity, url=url, captions=tuple(captions), license=licence, source_page=page, attribution=attribution,
                expected_hash=self._hash(digest) if digest else None, nsfw=nsfw, watermark=watermark,
                extra={n: v for n, v in zip(columns.extra, extra, strict=True) if v is not None and v != ""},
            )  # fmt: skip

    def _number(self, name: str, value: Any) -> Any:
        """A cell of a column that is known to hold numbers, which CSV and TSV give as text."""
        if not isinstance(value, str):
            return json_value(value)
        found = number_in(value)
        if found is None and not is_blank(value):
            self.notes[f"value of column {name} that is no number"] += 1
        return found

    def _hash(self, text: str) -> str | None:
        if _HASH.fullmatch(text.lower()):
            return text.lower()
        self.notes[
            f"value of column {self.settings.hash or 'sha256'} that is no MD5, SHA-1 or SHA-256 in hex digits"
        ] += 1
        return None


def clean_url(value: Any) -> str:
    """A cell as a URL: text without white space around it; empty where there is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return valid(value.strip()) if isinstance(value, str) else ""


def identity_of(url: str) -> str:
    """What names the image: its canonical URL."""
    return canonical_url(url) if url else NO_URL


def captions_in(value: Any) -> list[str]:
    """The captions of a cell, which holds one, or a list of them; empty ones are none."""
    if isinstance(value, str):
        text = line(value)
        return [text] if text else []
    return [text for text in map(line, value if isinstance(value, list) else [value]) if text]


def group_equal(digests: bytes | bytearray) -> Repeats:
    """Which of the 16-byte digests are equal."""
    pairs = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: rows of equal digests stay in order
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (pairs[order[1:]] != pairs[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    sizes = np.bincount(first, minlength=len(order))
    return Repeats(first, sizes[first] > 1)
