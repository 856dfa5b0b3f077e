"""Removal: samples that must not be used any more. Views leave them out as `removed`; `reshard` takes them out of the bytes.

`removed.parquet` in the run folder grows by appending: one row per entry of a list and key that it names in the frozen plan `plan`,
key null where none is. Entries hold for what is stored later too, so what is removed is asked of `removed_keys`, never of the file.
"""

import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.ledger import ledger_path, read_ledger, stored_keys
from data.dataset.plan import read_frozen, read_plan
from data.dataset.settings import DatasetSettings
from data.pipeline.artifacts import fingerprint, publish_bytes
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from data.sources.canonical import host_of
from data.sources.exclude import domain_in, phash_in, sha256_in, url_in
from data.views.reading import kept_pairs

REMOVED_FILE = "removed.parquet"
REMOVED_SCHEMA = pa.schema([("key", pa.string()), ("entry", pa.string()), ("plan", pa.string())])
FORMAT = (
    "write one entry a line: a key (000000042), a sha256 (64 hex digits), a URL, a domain, or kind:value with one of "
    "key, sha256, url, domain, phash (16 hex digits)"
)
# They name images by content, of which more may be stored; the others are settled once the plan is frozen.
BY_CONTENT = ("sha256", "phash")
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
    """Keys of removed samples as the dataset stands; empty when nothing was removed.

    That is what the entries named when they were given, what they name of what was stored since, and all copies of those.
    """
    if not removed_path(run).exists():
        return frozenset()
    recorded = _recorded(run)
    settled = recorded.filter(pc.equal(recorded["plan"], _plan_digest(run)))
    keys = frozenset(settled["key"].drop_null().to_pylist())
    if not run.dataset.is_complete():
        return keys
    known = set(settled["entry"].to_pylist())
    entries = [Entry(*text.split(":", 1)) for text in pc.unique(recorded["entry"]).to_pylist() if ":" in text]
    open_ = [e for e in entries if e.kind in BY_CONTENT or str(e) not in known]
    if not run.scores("basic").is_complete():  # no view is made before them
        open_ = [e for e in open_ if e.kind != "phash"]
    found = resolve(run, open_, run.config[DatasetSettings].exclude.phash_distance)
    return with_copies(run, keys.union(*found.values()))


def removed_in_part(run: Run, part: str, removed: frozenset[str]) -> list[str]:
    """Which of the removed keys a part of the dataset holds a stored sample of, sorted."""
    if not removed:
        return []
    keys = stored_keys(run.dataset, part)
    return sorted(removed & set(keys.to_pylist()))


def removed_digest(run: Run, part: str) -> str | None:
    """The fact `@removed:<part>`: of the removed keys among a part's samples, as things stand now. None (it cannot be told) while the
    dataset is not complete."""
    if not run.dataset.is_complete() or not ledger_path(run.dataset.folder, part).is_file():
        return None
    return fingerprint(removed_in_part(run, part, _removed_now(run, _stamp(run))))


def keeps_removed(run: Run, name: str) -> str | None:
    """Whether a view, whatever it was made from, keeps samples that were removed since."""
    if not removed_path(run).exists():
        return None
    removed = pa.array(sorted(_removed_now(run, _stamp(run))), pa.string())
    kept = pc.any(pc.is_in(kept_pairs(run.artifact(name))["key"], removed)).as_py()
    return "it keeps samples that were removed since" if kept else None


def _stamp(run: Run) -> tuple[int, ...]:
    """Changes when what `removed_keys` reads may have changed."""
    paths = (removed_path(run), run.dataset.manifest_path, run.scores("basic").manifest_path)
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


@lru_cache(maxsize=2)
def _removed_now(run: Run, _stamp: tuple[int, ...]) -> frozenset[str]:
    return removed_keys(run)


def with_copies(run: Run, keys: frozenset[str]) -> frozenset[str]:
    """`keys`, and those of all candidates with the same original or stored bytes: whoever asks wants the image gone."""
    columns = ("original_sha256", "stored_sha256")
    ledger = read_ledger(run.dataset, columns=["key", *columns])
    named = pc.is_in(ledger["key"], pa.array(sorted(keys), pa.string()))
    before = -1
    while (n := pc.sum(named).as_py() or 0) > before:
        before = n
        for column in columns:
            hashes = pc.unique(ledger[column].filter(named)).drop_null()
            named = pc.or_(named, pc.is_in(ledger[column], hashes))
    return keys.union(ledger["key"].filter(named).to_pylist())


def _recorded(run: Run) -> pa.Table:
    """REMOVED_SCHEMA; without a file, no rows."""
    path = removed_path(run)
    if not path.exists():
        return REMOVED_SCHEMA.empty_table()
    table = pq.read_table(path)
    if "plan" not in table.column_names:  # of an earlier version of the toolkit
        table = table.append_column("plan", pa.array([_plan_digest(run)] * len(table), pa.string()))
    return table


def _plan_digest(run: Run) -> str:
    """Of the frozen plan: under another one, from a dataset that was deleted and made anew, a key names another image."""
    frozen = read_frozen(run.dataset.folder)
    return "" if frozen is None else fingerprint(list(frozen.shards))


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
    kind, colon, value = text.partition(":")
    value = value.strip()
    if not (colon and kind in ("key", "sha256", "url", "domain", "phash")):
        kind, value = _kind_of(text), text
    if kind == "key":
        return Entry("key", value) if re.fullmatch(r"[0-9]{9,}", value) else None
    if kind == "phash":
        number = phash_in(value)
        return None if number is None else Entry("phash", f"{number:016x}")
    parse = {"sha256": sha256_in, "url": url_in, "domain": domain_in}[kind]
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

    The bytes of a candidate that is not stored are unknown: what a hash names of them is found once they are (`removed_keys`).
    Raises UserError when a perceptual hash is given and `scores/basic`, which holds those of the images, is missing.
    """
    if not entries:
        return {}
    dataset = run.dataset.require("make dataset")
    found: dict[Entry, set[str]] = {entry: set() for entry in entries}
    plan = read_plan(dataset.folder, columns=["key"])["key"]
    _by_value(found, "key", plan, plan)
    if any(entry.kind == "sha256" for entry in entries):
        ledger = read_ledger(dataset, columns=["key", "original_sha256", "stored_sha256"])
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
            if urls and (entry := urls.get(url_in(address) or "")):
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


def record(run: Run, found: dict[Entry, list[str]]) -> None:
    """Append what is new to `removed.parquet`."""
    old, plan = _recorded(run), _plan_digest(run)
    known = set(zip(*(old[name].to_pylist() for name in REMOVED_SCHEMA.names), strict=True))
    rows: list[tuple[str | None, str, str]] = []
    for entry, keys in found.items():
        rows += [(key, str(entry), plan) for key in keys] or [(None, str(entry), plan)]
    new = [row for row in rows if row not in known]
    if new:
        added = pa.table([pa.array(column, pa.string()) for column in zip(*new, strict=True)], schema=REMOVED_SCHEMA)
        out = io.BytesIO()
        pq.write_table(pa.concat_tables([old, added]).combine_chunks(), out, compression="zstd")
        publish_bytes(removed_path(run), out.getvalue())
        run.logs.mkdir(parents=True, exist_ok=True)
        with (run.logs / "removal.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"time": time.time(), "entries": [str(entry) for entry in found]}) + "\n")
