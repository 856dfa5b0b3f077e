"""One shard: the rows of the plan through fetch and resizer into a tar, a ledger and a log. Runs inside a worker."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset.breaker import Breaker
from data.dataset.img2dataset_seam import Outcome, download_shard
from data.dataset.ledger import LEDGER_SCHEMA, LOG_SCHEMA, check_counts, ledger_path
from data.dataset.plan import plan_digest, read_plan
from data.dataset.shards import ShardWriter, decode_rgb
from data.fetch.http import Fetched
from data.fetch.limits import HostLimits
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from data.images.phash import near_any, phash64
from data.images.resize import resize_image
from data.images.settings import ImageSettings
from data.pipeline.artifacts import canonical_json
from data.pipeline.errors import Code, UserError
from data.pipeline.stage import PartSpec
from data.sources.candidates import Served
from data.sources.exclude import Exclusions, read_exclusions
from data.sources.settings import ExcludeSettings
from data.sources.source import fetcher_for

# Columns of the plan that a sample's JSON carries where they are not null.
CARRIED = ("key", "source_id", "url", "captions", "split", "license", "source_page", "attribution", "nsfw", "watermark")
AS_JSON = ("attributes", "extra")


@dataclass(frozen=True)
class ShardWork:
    """What one shard is made by. `earlier` names the parts that hold the rows' earlier outcomes, in order: it is given when the part
    is a retry, whose counts say what changed."""

    dataset: Path
    served: Served
    fetch: FetchSettings
    image: ImageSettings
    exclude: ExcludeSettings
    earlier: tuple[str, ...] | None = None


def make_shard(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Part function: writes `shards/`, `ledger/` and `log/` under `attempt`. Returns counts of samples and pairs."""
    work: ShardWork = spec.work
    table = planned_table(work.dataset, spec)
    rows = table.sort_by("key").to_pydict()
    start = time.perf_counter()
    outcomes, spool = _download(rows, work, attempt / "scratch")
    exclude_by_content(outcomes, spool, work.exclude)
    stored = write_shard(attempt / "shards" / f"{spec.name}.tar", rows, outcomes, spool, work.image.format)
    ledger = ledger_table(rows, outcomes, stored)
    write_table(attempt / "ledger" / f"{spec.name}.parquet", ledger)
    log = _log_table(rows["key"], outcomes).replace_schema_metadata({"seconds": f"{time.perf_counter() - start:.3f}"})
    write_table(attempt / "log" / f"{spec.name}.parquet", log)
    shutil.rmtree(attempt / "scratch")
    return count(ledger, None if work.earlier is None else earlier_reasons(work.dataset, work.earlier))


def planned_table(dataset: Path, spec: PartSpec) -> pa.Table:
    """The plan's rows of a part. Raises UserError when they are not those that the part was planned from."""
    table = read_plan(dataset, int(spec.name))
    if plan_digest(table) != spec.digest_of(f"@source:{spec.name}"):
        raise UserError(
            f"the plan in {dataset} changed while its shards were made; run the same command again", Code.INPUT_CHANGED
        )
    return table


def _download(rows: Mapping[str, list[Any]], work: ShardWork, scratch: Path) -> tuple[list[Outcome], Path]:
    """One outcome a row. Nothing is asked for a row that an exclusion list names or that has no caption."""
    settings = work.fetch
    outcomes = [
        Outcome(i, _refused(e, c)) for i, (e, c) in enumerate(zip(rows["excluded"], rows["captions"], strict=True))
    ]
    wanted = [o.row for o in outcomes if o.reason is None]
    found, spool = download_shard(
        [rows["url"][i] for i in wanted],
        _fetcher(work.served, settings, *_hosts_file(work.dataset)),
        lambda content: resize_image(content, work.image),
        settings.threads,
        scratch,
        # What is retried failed before: if it fails again, that says nothing about the run.
        breaker=Breaker(settings.breaker_window, settings.breaker_min_success) if work.earlier is None else None,
        expected_hashes=[rows["expected_hash"][i] for i in wanted] if settings.verify_hash else None,
    )
    for i, outcome in zip(wanted, found, strict=True):
        outcomes[i] = outcome
    return outcomes, spool


def _refused(excluded: str | None, captions: list[str]) -> Reason | None:
    if excluded is not None:
        return Reason(excluded)
    return None if captions else Reason.NO_CAPTION


def _hosts_file(dataset: Path) -> tuple[Path, int]:
    """Where all workers of a dataset keep their limits for each host, and which file it is (a deleted one is not shared)."""
    path = dataset / "log" / "hosts"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path, path.stat().st_ino


@lru_cache(maxsize=1)
def _fetcher(served: Served, settings: FetchSettings, hosts: Path, _inode: int) -> Callable[[str], Fetched]:
    """The fetch of this process for one dataset: its connections and what hosts said about robots outlive a shard."""
    return fetcher_for(served, settings, HostLimits(hosts, settings.per_host, settings.per_host_rate))


def exclude_by_content(outcomes: list[Outcome], spool: Path, settings: ExcludeSettings) -> None:
    """Drop what the lists of sha256 (original bytes) and perceptual hashes (stored image) name."""
    if settings.sha256 is None and settings.phash is None:
        return
    lists = _exclusions(settings)
    for outcome in outcomes:
        if outcome.image is not None and outcome.original_sha256 in lists.sha256:
            outcome.reason, outcome.image = Reason.EXCLUDED_SHA256, None
    stored = [outcome for outcome in outcomes if outcome.image is not None]
    if not len(lists.phash) or not stored:
        return
    with spool.open("rb") as file:
        hashes = [phash64(decode_rgb(_read_spool(file, outcome))) for outcome in stored]
    near = near_any(np.array(hashes, np.uint64), lists.phash, settings.phash_distance)
    for outcome, is_near in zip(stored, near, strict=True):
        if is_near:
            outcome.reason, outcome.image = Reason.EXCLUDED_PHASH, None


@lru_cache(maxsize=1)
def _exclusions(settings: ExcludeSettings) -> Exclusions:
    return read_exclusions(settings)


def _read_spool(file: BinaryIO, outcome: Outcome) -> bytes:
    assert outcome.image is not None
    offset, size = outcome.image
    return os.pread(file.fileno(), size, offset)


def write_shard(
    path: Path, rows: Mapping[str, list[Any]], outcomes: list[Outcome], spool: Path, suffix: str
) -> list[tuple[int, str] | None]:
    """Write the stored samples in order of key. Returns (bytes, sha256) of each row's stored image, None where there is none."""
    carried = [(name, rows[name]) for name in CARRIED if any(value is not None for value in rows[name])]
    decoded = [(name, rows[name]) for name in AS_JSON if any(value is not None for value in rows[name])]
    stored: list[tuple[int, str] | None] = []
    with spool.open("rb") as file, ShardWriter(path) as writer:
        for i, outcome in enumerate(outcomes):
            if outcome.image is None:
                stored.append(None)
                continue
            content = _read_spool(file, outcome)
            digest = hashlib.sha256(content).hexdigest()
            stored.append((len(content), digest))
            meta = {name: column[i] for name, column in carried if column[i] is not None}
            meta |= {name: json.loads(column[i]) for name, column in decoded if column[i] is not None}
            meta |= {
                "original_width": outcome.original_width, "original_height": outcome.original_height,
                "width": outcome.width, "height": outcome.height,
                "original_sha256": outcome.original_sha256, "stored_sha256": digest,
            }  # fmt: skip
            writer.write_members(rows["key"][i], content, suffix, canonical_json(meta), rows["captions"][i][0].encode())
    return stored


def ledger_table(
    rows: Mapping[str, list[Any]], outcomes: list[Outcome], stored: list[tuple[int, str] | None]
) -> pa.Table:
    """One row a candidate, LEDGER_SCHEMA."""
    for key, o in zip(rows["key"], outcomes, strict=True):
        assert (o.image is None) != (o.reason is None), f"{key}: {o} is neither stored nor dropped with a reason"
    columns: dict[str, list[Any]] = {name: rows[name] for name in ("key", "source_id", "url", "split", "license")}
    columns["n_captions"] = [len(captions) for captions in rows["captions"]]
    columns["reason"] = [None if o.reason is None else str(o.reason) for o in outcomes]
    for name in (
        "http_status", "original_bytes", "original_sha256", "original_width", "original_height", "width", "height",
    ):  # fmt: skip
        columns[name] = [getattr(o, name) for o in outcomes]
    columns["stored_bytes"] = [None if s is None else s[0] for s in stored]
    columns["stored_sha256"] = [None if s is None else s[1] for s in stored]
    return pa.Table.from_pydict(columns, LEDGER_SCHEMA)


def _log_table(keys: list[str], outcomes: list[Outcome]) -> pa.Table:
    asked = [(key, o.log) for key, o in zip(keys, outcomes, strict=True) if o.log]
    return pa.Table.from_pydict(
        {
            "key": [key for key, _ in asked],
            "attempts": [log.get("attempts") for _, log in asked],
            "detail": [log.get("detail") or None for _, log in asked],
        },
        LOG_SCHEMA,
    )


def write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def earlier_reasons(folder: Path, parts: Sequence[str]) -> dict[str, str | None]:
    """key -> its reason in the latest of `parts`, which come in order."""
    reasons: dict[str, str | None] = {}
    for name in parts:
        table = pq.read_table(ledger_path(folder, name), columns=["key", "reason"])
        reasons.update(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))
    return reasons


def count(ledger: pa.Table, earlier: Mapping[str, str | None] | None = None) -> dict[str, int]:
    """Planned = stored + sum over reasons, for samples and pairs: asserted here, summed in the manifest.

    With `earlier` (key -> reason before) the counts are changes: nothing was planned anew, what was dropped before is taken back.
    """
    pairs = np.asarray(ledger["n_captions"])
    counts = {"planned_samples": 0, "planned_pairs": 0, "stored_samples": 0, "stored_pairs": 0}

    def add(reasons: list[str | None], sign: int) -> None:
        names = np.array(["stored" if reason is None else f"dropped_{reason}" for reason in reasons], dtype=object)
        for name in sorted(set(names.tolist())):
            mask = names == name
            for unit, amount in (("samples", int(mask.sum())), ("pairs", int(pairs[mask].sum()))):
                counts[f"{name}_{unit}"] = counts.get(f"{name}_{unit}", 0) + sign * amount

    add(ledger["reason"].to_pylist(), 1)
    if earlier is None:
        counts["planned_samples"], counts["planned_pairs"] = len(ledger), int(pairs.sum())
    else:
        add([earlier[key] for key in ledger["key"].to_pylist()], -1)
    check_counts(counts)
    return counts
