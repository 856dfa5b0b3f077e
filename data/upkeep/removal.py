"""Removal: samples that must not be used any more. Views leave them out as `removed`; `reshard` takes them out of the bytes.

`removed.parquet` in the run folder grows by appending: one row per entry of a list and key that it names, key null where none is.
"""

import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts import publish_bytes
from data.errors import UserError
from data.ledger import read_ledger
from data.plan import read_plan
from data.run import Run

REMOVED_FILE = "removed.parquet"
REMOVED_SCHEMA = pa.schema([("key", pa.string()), ("entry", pa.string())])
FORMAT = (
    "write one entry a line: a key (000000042), a sha256 (64 hex digits), a URL, a domain, or kind:value with one of "
    "key, sha256, url, domain, phash (16 hex digits)"
)
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class Entry:
    """What somebody wants removed. `value` is in canonical form."""

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


def removed_path(run: Run) -> Path:
    return run.folder / REMOVED_FILE


def removed_keys(run: Run) -> frozenset[str]:
    """Keys of removed samples; empty when nothing was removed."""
    path = removed_path(run)
    if not path.exists():
        return frozenset()
    return frozenset(pq.read_table(path, columns=["key"])["key"].drop_null().to_pylist())


def read_entries(path: Path) -> list[Entry]:
    """The entries of a list, in order, each once. Raises UserError naming the line that is not understood."""
    entries: dict[Entry, None] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--list: cannot read {path}: {why}") from None
    for number, line in enumerate(text.splitlines(), 1):
        content = _COMMENT.sub("", line).strip()
        if content:
            entry = parse_entry(content)
            if entry is None:
                raise UserError(f"--list: {path}, line {number}: {content[:100]!r} is not understood; {FORMAT}")
            entries[entry] = None
    if not entries:
        raise UserError(f"--list: {path} has no entry; {FORMAT}")
    return list(entries)


def parse_entry(text: str) -> Entry | None:
    """One line without its comment, or None when it is nothing that is known."""
    from data.sources.exclude import _domain, _phash, _sha256, _url

    kind, colon, value = text.partition(":")
    value = value.strip()
    if not (colon and kind in ("key", "sha256", "url", "domain", "phash")):
        kind, value = _kind_of(text), text
    if kind == "key":
        return Entry("key", value) if re.fullmatch(r"[0-9]{9,}", value) else None
    if kind == "phash":
        number = _phash(value)
        return None if number is None else Entry("phash", f"{number:016x}")
    parse = {"sha256": _sha256, "url": _url, "domain": _domain}[kind]
    found = parse(value)
    return None if found is None else Entry(kind, found)


def _kind_of(text: str) -> str:
    if re.fullmatch(r"[0-9]{9,}", text):
        return "key"
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return "sha256"
    return "url" if "://" in text else "domain"


def resolve(run: Run, entries: Sequence[Entry], phash_distance: int) -> dict[Entry, list[str]]:
    """Every entry -> keys of the candidates it names, ascending; of all candidates, because a retry might still store them.

    Raises UserError when a perceptual hash is given and `scores/basic`, which holds those of the images, is missing.
    """
    dataset = run.dataset.require("make dataset")
    found: dict[Entry, set[str]] = {entry: set() for entry in entries}
    plan = read_plan(dataset.folder, columns=["key"])["key"]
    ledger = read_ledger(dataset, columns=["key", "original_sha256", "stored_sha256"])
    _by_value(found, "key", plan, plan)
    for column in ("original_sha256", "stored_sha256"):
        _by_value(found, "sha256", ledger[column], ledger["key"])
    _by_url(run, found)
    _by_phash(run, found, phash_distance)
    return {entry: sorted(keys) for entry, keys in found.items()}


def _by_value(found: dict[Entry, set[str]], kind: str, column: pa.ChunkedArray, keys: pa.ChunkedArray) -> None:
    of_kind = {entry.value: entry for entry in found if entry.kind == kind}
    mask = pc.is_in(column, pa.array(sorted(of_kind), pa.string()))
    for value, key in zip(column.filter(mask).to_pylist(), keys.filter(mask).to_pylist(), strict=True):
        found[of_kind[value]].add(key)


def _by_url(run: Run, found: dict[Entry, set[str]]) -> None:
    """Compares canonical addresses; an image out of a tar also by the address it was once fetched from."""
    from data.sources.canonical import host_of
    from data.sources.exclude import _url

    urls = {entry.value: entry for entry in found if entry.kind == "url"}
    domains = {entry.value: entry for entry in found if entry.kind == "domain"}
    if not urls and not domains:
        return
    plan = read_plan(run.dataset.folder, columns=["key", "url", "extra"])
    for key, url, extra in zip(*(plan[name].to_pylist() for name in ("key", "url", "extra")), strict=True):
        once = json.loads(extra).get("url") if extra and '"url"' in extra else None
        for address in (url, once):
            if not isinstance(address, str):
                continue
            if urls and (entry := urls.get(_url(address) or "")):
                found[entry].add(key)
            host = host_of(address) if domains else ""
            while host:
                if entry := domains.get(host):
                    found[entry].add(key)
                host = host.partition(".")[2]


def _by_phash(run: Run, found: dict[Entry, set[str]], distance: int) -> None:
    entries = [entry for entry in found if entry.kind == "phash"]
    if not entries:
        return
    scores = run.scores("basic").require("python -m data scores")
    files = [scores.folder / f"{receipt.name}.parquet" for receipt in scores.receipts()]
    table = pa.concat_tables([pq.read_table(file, columns=["key", "phash"]) for file in files])
    keys, hashes = table["key"].to_pylist(), table["phash"].to_numpy()
    for entry in entries:
        near = np.bitwise_count(hashes ^ np.uint64(int(entry.value, 16))) <= distance
        found[entry].update(keys[row] for row in np.flatnonzero(near))


def record(run: Run, found: dict[Entry, list[str]]) -> frozenset[str]:
    """Append what is new to `removed.parquet`; returns the keys that were not removed before."""
    path = removed_path(run)
    before = removed_keys(run)
    old = pq.read_table(path) if path.exists() else REMOVED_SCHEMA.empty_table()
    known = set(zip(old["key"].to_pylist(), old["entry"].to_pylist(), strict=True))
    rows: list[tuple[str | None, str]] = []
    for entry, keys in found.items():
        rows += [(key, str(entry)) for key in keys] or [(None, str(entry))]
    new = [row for row in rows if row not in known]
    if new:
        added = pa.table({"key": [k for k, _ in new], "entry": [e for _, e in new]}, REMOVED_SCHEMA)
        out = io.BytesIO()
        pq.write_table(pa.concat_tables([old, added]).combine_chunks(), out, compression="zstd")
        publish_bytes(path, out.getvalue())
        run.logs.mkdir(parents=True, exist_ok=True)
        with (run.logs / "removal.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"time": time.time(), "entries": [str(entry) for entry in found]}) + "\n")
    return frozenset(key for key, _ in new if key is not None) - before
