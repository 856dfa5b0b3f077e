"""Retrying what failed: the same keys once more, in new shards behind the others. Nothing that stands is touched.

`retries/NNNNN.parquet` holds the planned rows of one retry shard; `retries.json`, written last, names those that are frozen.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts import Artifact, publish_bytes, publish_json, read_json
from data.errors import UserError
from data.executors import Executor
from data.faults import boundary
from data.fetch.reasons import TRANSIENT, Reason
from data.ledger import last_of_each, ledger_path, read_ledger
from data.plan import PLAN_SCHEMA, RETRIES, freeze_plan, plan_digest, read_plan, retry_path
from data.run import Run
from data.settings import DatasetSettings
from data.upkeep.words import counted

RETRIES_FILE = "retries.json"
# Nothing was asked for these, and asking again would not change that.
NEVER_ASKED = frozenset({Reason.NO_CAPTION, Reason.EXCLUDED_URL, Reason.EXCLUDED_DOMAIN})


@dataclass(frozen=True)
class Retry:
    """One retry shard: its rows' digest, and the parts, in order, that hold earlier outcomes of its keys."""

    name: str
    digest: str
    earlier: tuple[str, ...]


def frozen_retries(folder: Path) -> list[Retry]:
    """Retry shards of a dataset folder, in order; empty when there are none."""
    path = folder / RETRIES_FILE
    if not path.exists():
        return []
    return [Retry(r["name"], r["digest"], tuple(r["earlier"])) for r in read_json(path, "list of retries")["retries"]]


def waiting_retries(dataset: Artifact) -> list[Retry]:
    """Frozen retry shards that are not downloaded yet."""
    return [retry for retry in frozen_retries(dataset.folder) if dataset.standing(retry.name) is None]


def reasons_to_retry(names: Sequence[str]) -> frozenset[Reason]:
    """Reasons by name; the transient ones when none is named. Raises UserError for an unknown one, and where asking is no use."""
    if not names:
        return TRANSIENT
    allowed = sorted(reason for reason in Reason if reason not in NEVER_ASKED)
    for name in names:
        if name not in allowed:
            why = "was never asked for" if name in set(Reason) else "is not a reason"
            raise UserError(f"--reason {name} {why}; reasons that can be retried: {', '.join(allowed)}")
    return frozenset(Reason(name) for name in names)


def freeze_retry(
    dataset: Artifact, reasons: frozenset[Reason], samples_per_shard: int, without: frozenset[str] = frozenset()
) -> list[Retry]:
    """Freeze shards with the rows that failed for one of `reasons` and are not in `without`; returns the new ones, empty when
    nothing failed so."""
    ledger = read_ledger(dataset, columns=["key", "reason"])
    failed = pc.is_in(ledger["reason"], pa.array(sorted(str(r) for r in reasons)))
    keys = sorted(set(ledger.filter(failed)["key"].to_pylist()) - without)
    if not keys:
        return []
    folder = dataset.folder
    before = frozen_retries(folder)
    for path in (folder / RETRIES).glob("*.parquet"):  # of a freeze that was killed, perhaps for other reasons
        if path.stem not in {retry.name for retry in before}:
            path.unlink()
    parts = [receipt.name for receipt in dataset.receipts()]
    rows, latest = planned_rows(folder, keys), _latest_part(folder, parts, keys)
    new: list[Retry] = []
    for start in range(0, len(keys), samples_per_shard):
        shard = len(parts) + len(new)
        part = rows.slice(start, samples_per_shard)
        part = part.set_column(1, "shard", pa.array([shard] * len(part), pa.int32()))
        earlier = {latest[key] for key in part["key"].to_pylist()}
        out = io.BytesIO()
        pq.write_table(part, out, compression="zstd")
        publish_bytes(retry_path(folder, shard), out.getvalue())
        new.append(Retry(f"{shard:05d}", plan_digest(part), tuple(name for name in parts if name in earlier)))
        boundary("retries", f"{shard:05d}")
    publish_json(folder / RETRIES_FILE, {"retries": [vars(retry) for retry in before + new]})
    return new


def planned_rows(folder: Path, keys: Sequence[str]) -> pa.Table:
    """The plan's rows of `keys`, in order of key. Reads only the shards that hold one."""
    wanted = pa.array(keys, pa.string())
    index = read_plan(folder, columns=["key", "shard"])
    shards = pc.unique(index.filter(pc.is_in(index["key"], wanted))["shard"]).to_pylist()
    tables = [read_plan(folder, shard) for shard in sorted(shards)]
    found = pa.concat_tables([table.filter(pc.is_in(table["key"], wanted)) for table in tables])
    return found.select(PLAN_SCHEMA.names).sort_by("key").combine_chunks()


def _latest_part(folder: Path, parts: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """key -> the last of `parts` that has a row of it."""
    wanted = pa.array(keys, pa.string())
    found, owner = [], []
    for n, name in enumerate(parts):
        column = pq.read_table(ledger_path(folder, name), columns=["key"])["key"]
        column = column.filter(pc.is_in(column, wanted))
        found.append(column)
        owner.append(np.full(len(column), n))
    column, owners = pa.chunked_array([c for col in found for c in col.chunks], pa.string()), np.concatenate(owner)
    last = last_of_each(column)
    held = column.take(pa.array(last)).to_pylist()
    return {key: parts[owners[row]] for key, row in zip(held, last, strict=True)}


def refuse_changed_source(run: Run) -> None:
    """Raise UserError when the input cannot be read, or differs from the one whose plan finished parts were made from."""
    from data.sources.source import open_source
    from data.upkeep.reshard import is_resharded

    folder, settings = run.dataset.folder, run.config[DatasetSettings]
    # With finished parts, freezing only compares.
    if any((folder / "parts").glob("*.json")) and not is_resharded(run.dataset):
        freeze_plan(folder, open_source(settings, run.seed), settings, run.seed)


def retry(run: Run, reasons: frozenset[Reason], executor: Executor) -> str:
    """Finish what was begun, or else freeze and download a retry; returns what was done, in a line.

    A retry that was killed is finished before another may begin: that is how the same command, repeated, ends in the same bytes.
    """
    from data.dataset import build_dataset
    from data.upkeep.removal import removed_keys
    from data.upkeep.reshard import describe, is_resharded, require_written

    dataset = run.dataset
    if dataset.plan_json() is None:
        dataset.require("make dataset")
    if is_resharded(dataset):
        return describe(require_written(dataset))
    refuse_changed_source(run)
    if not dataset.is_complete() or waiting_retries(dataset):
        build_dataset(run, executor)
        return "finished what an earlier command had begun; run retry-failed again to retry what still failed"
    new = freeze_retry(dataset, reasons, run.config[DatasetSettings].samples_per_shard, removed_keys(run))
    if not new:
        return f"nothing to retry: no candidate failed with {', '.join(sorted(reasons))}"
    build_dataset(run, executor)
    counts = [dataset.standing(retry.name) for retry in new]
    stored = sum(receipt.counts["stored_samples"] for receipt in counts if receipt is not None)
    rows = sum(len(read_plan(dataset.folder, int(retry.name), ["key"])) for retry in new)
    return f"retried {counted(rows, 'sample')} in {counted(len(new), 'new shard')}, stored now: {stored:,}"
