"""Retry shards: rows of the plan that are asked for once more, in numbered shards behind the planned ones.

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

from data.dataset.ledger import last_of_each, ledger_path, read_ledger
from data.dataset.plan import PLAN_SCHEMA, RETRIES, plan_digest, read_plan, retry_path
from data.fetch.reasons import Reason
from data.pipeline.artifacts import Artifact, publish_bytes, publish_json, read_json
from data.pipeline.faults import boundary

RETRIES_FILE = "retries.json"


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
    return [retry for retry in frozen_retries(dataset.folder) if dataset.receipt(retry.name) is None]


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
