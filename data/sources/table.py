"""Source `table`: a list of URLs with captions, as Parquet, CSV, TSV or JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError
from data.sources.candidates import Candidate
from data.sources.settings import TableSettings

READERS = {
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="replace"),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding_errors="replace"),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
}

UNREADABLE = (OSError, ValueError, pa.ArrowException)


def table_candidates(settings: TableSettings) -> Iterator[Candidate]:
    """One candidate per distinct URL, in order of first appearance, with all its captions.

    Raises UserError for an unreadable file, an unknown ending and missing columns. Rows without a URL are kept as candidates
    that the download will drop with a reason, so that counts add up.
    """
    path = Path(settings.path)
    frame = _read(path, [settings.url, settings.caption])
    rows: dict[str, list[str]] = {}
    for url, caption in zip(frame[settings.url], frame[settings.caption], strict=True):
        captions = rows.setdefault(_text(url), [])
        text = " ".join(_text(caption).split())
        if text:
            captions.append(text)
    for url, captions in rows.items():
        yield Candidate(source_id=url or "(no url)", url=url, captions=tuple(captions))


def _read(path: Path, columns: list[str]) -> Any:
    known = (*READERS, ".parquet")
    if path.suffix not in known:
        raise UserError(f"dataset.table.path: {path} ends in {path.suffix!r}; readable are {', '.join(known)}")
    try:
        names = pq.read_schema(path).names if path.suffix == ".parquet" else None
        frame: Any = None if names is not None else READERS[path.suffix](path)
    except UNREADABLE as error:
        raise _cannot_read(path, error) from None
    present = names if names is not None else list(frame.columns)
    lacking = [c for c in columns if c not in present]
    if lacking:
        raise UserError(
            f"{path} has no column {', '.join(lacking)}; it has {', '.join(map(str, present))}: "
            "name yours with dataset.table.url and dataset.table.caption"
        )
    try:
        return pq.read_table(path, columns=columns).to_pandas() if names is not None else frame
    except UNREADABLE as error:
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: BaseException) -> UserError:
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"dataset.table.path: cannot read {path}: {first_line[:300]}")


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
