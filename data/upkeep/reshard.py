"""Resharding: a view written out as a dataset of its own, in another run folder, without what the view leaves out.

Keys, splits and image bytes stay as they are. Of a sample's captions only the kept ones go along, so `caption_index` counts anew.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.dataset.download import count, planned_table, write_table
from data.dataset.ledger import LEDGER_SCHEMA, read_ledger
from data.dataset.origin import MARK, is_resharded
from data.dataset.plan import PLAN_FILE, SOURCE_FILE, FrozenPlan, freeze_plan, read_plan
from data.dataset.settings import DatasetSettings
from data.dataset.shards import ShardReader, ShardWriter
from data.pipeline.artifacts import Artifact, Receipt, canonical_json, fingerprint, publish_json, read_json
from data.pipeline.config import parse_config
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import Executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.sources.candidates import Candidate, Served
from data.sources.settings import ExcludeSettings
from data.views.reading import kept_pairs
from data.views.removal import removed_keys

STAGE_VERSION = 1


def reshard(run: Run, view: str, name: str, executor: Executor) -> Run:
    """Write the view `view` of `run` out as the dataset of the run `name` beside it. Returns that run.

    Killed half-way, the same call goes on. Raises UserError when the view is missing, stale or empty, or `name` is taken.
    """
    artifact = Lineage(run).require(f"views/{view}", f"python -m data view --name {view}")
    if not artifact.manifest()["counts"]["kept_pairs"]:
        raise UserError(
            f"the view {view} keeps nothing, so there is nothing to write out; loosen [views.{view}] and run "
            f"`python -m data view --name {view}`",
            Code.EMPTY,
        )
    target = _target_run(run, name)
    origin = {"view": view, "view_digest": artifact.digest(), "dataset": run.dataset.digest(), "run": run.folder.name}
    _claim(target.dataset, origin)
    settings = run.config[DatasetSettings].model_copy(update={"exclude": ExcludeSettings()})
    source = ViewSource(run, view, origin)
    plan = freeze_plan(target.dataset.folder, source, settings, run.seed)
    parts = _parts(run.dataset, target.dataset, plan)
    shaping = {"view": view, "samples_per_shard": settings.samples_per_shard}
    stage = Stage("reshard", STAGE_VERSION, target.dataset.folder, shaping, parts, copy_shard, finish, "shards")
    run_stage(stage, executor, target.logs)
    return target


def _target_run(run: Run, name: str) -> Run:
    if name == run.folder.name:
        raise UserError(
            f"--to {name} is this run itself; give the new dataset a run of its own, e.g. --to {name}-clean"
        )
    tables = run.config.to_dict()
    tables["run"]["name"] = name
    target = Run(parse_config(tables, f"--to {name}"))
    if (target.dataset.folder / "plan.json").exists() and not is_resharded(target.dataset):
        raise UserError(f"{target.dataset.folder} holds a downloaded dataset; choose another name for --to")
    return Run.open(target.config)


def _claim(dataset: Artifact, origin: Mapping[str, str]) -> None:
    """Mark the folder. Raises UserError when it was made from something else."""
    path = dataset.folder / MARK
    if not path.exists():
        publish_json(path, dict(origin))
        return
    before = read_json(path, "origin of the resharded dataset")
    changed = sorted(name for name in origin if before.get(name) != origin[name])
    if changed:
        raise UserError(
            f"{dataset.folder} was resharded from another {changed[0].replace('_digest', '')} "
            f"({before.get(changed[0], '')[:12]}, now {origin[changed[0]][:12]}); choose another name for --to, or delete {dataset.folder}"
        )


@dataclass(frozen=True)
class CopyWork:
    """Which dataset a shard is written for, and out of which parts of which dataset."""

    dataset: Path
    source: Artifact
    parts: tuple[str, ...]


class ViewSource:
    """What a view keeps, as a source: candidates with keys of ours, in order of key."""

    def __init__(self, run: Run, view: str, origin: Mapping[str, str]) -> None:
        self.run, self.view, self.origin = run, view, dict(origin)
        self.notes: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        return {"kind": "reshard", **self.origin}

    def candidates(self) -> Iterator[Candidate]:
        removed = removed_keys(self.run)
        kept: dict[str, list[int]] = {}
        pairs = kept_pairs(self.run.view(self.view)).sort_by([("key", "ascending"), ("caption_index", "ascending")])
        for key, index in zip(pairs["key"].to_pylist(), pairs["caption_index"].to_pylist(), strict=True):
            kept.setdefault(key, []).append(index)
        wanted = pa.array(sorted(kept.keys() - removed), pa.string())
        folder = self.run.dataset.folder
        index = read_plan(folder, columns=["key", "shard"])
        shards = pc.unique(index.filter(pc.is_in(index["key"], wanted))["shard"]).to_pylist()
        for shard in sorted(shards):
            table = read_plan(folder, shard)
            for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist():
                yield _candidate(row, kept[row["key"]])

    def serving(self) -> AbstractContextManager[Served]:
        raise UserError("a resharded dataset is copied, not downloaded")


def _candidate(row: Mapping[str, Any], kept: list[int]) -> Candidate:
    attributes = json.loads(row["attributes"]) if row["attributes"] else None
    if attributes and len(attributes.get("named", ())) == len(row["captions"]):
        attributes["named"] = [attributes["named"][i] for i in kept]  # one entry a caption: what that caption names
    return Candidate(
        source_id=row["source_id"], url=row["url"], captions=tuple(row["captions"][i] for i in kept), attributes=attributes,
        split=row["split"], license=row["license"], source_page=row["source_page"], attribution=row["attribution"],
        key=row["key"], expected_hash=row["expected_hash"], extra=json.loads(row["extra"]) if row["extra"] else None,
        nsfw=row["nsfw"], watermark=row["watermark"],
    )  # fmt: skip


def _parts(source: Artifact, target: Artifact, plan: FrozenPlan) -> list[PartSpec]:
    """One part a shard, with the source's parts that hold its samples."""
    receipts = {receipt.name: receipt for receipt in source.receipts()}
    names, keys, owners = list(receipts), [], []
    for n, name in enumerate(names):
        ledger = read_ledger(source, name, ["key", "reason"])
        stored = ledger.filter(pc.is_null(ledger["reason"]))["key"]
        keys += stored.chunks
        owners.append(np.full(len(stored), n))
    held = pa.table({"key": pa.chunked_array(keys, pa.string()), "owner": pa.array(np.concatenate(owners))})
    joined = read_plan(target.folder, columns=["key", "shard"]).join(held, "key", join_type="inner")
    needed = joined.group_by(["shard", "owner"]).aggregate([]).sort_by([("shard", "ascending"), ("owner", "ascending")])
    of_shard: dict[int, list[str]] = {}
    for shard, owner in zip(needed["shard"].to_pylist(), needed["owner"].to_pylist(), strict=True):
        of_shard.setdefault(shard, []).append(names[owner])
    parts = []
    for shard, digest in enumerate(plan.shards):
        origins = of_shard.get(shard, [])
        shards = fingerprint([receipts[o].files[f"shards/{o}.tar"]["sha256"] for o in origins])
        name = f"{shard:05d}"
        inputs = (Input(f"@source:{name}", digest), Input("@origin", shards))
        parts.append(PartSpec(name, inputs, CopyWork(target.folder, source, tuple(origins))))
    return parts


def copy_shard(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Part function: the planned samples out of the source's shards, image bytes as they are; writes `shards/` and `ledger/`."""
    work: CopyWork = spec.work
    table, source, parts = planned_table(work.dataset, spec), work.source, work.parts
    reader = ShardReader(source, parts)
    rows = table.sort_by("key").select(["key", "captions", "attributes"]).to_pylist()
    with ShardWriter(attempt / "shards" / f"{spec.name}.tar") as writer:
        for row in rows:
            sample = reader.sample(row["key"])
            if hashlib.sha256(sample.image).hexdigest() != sample.meta["stored_sha256"]:
                raise UserError(f"sample {row['key']} in {source.folder} is damaged; run `python -m data verify`")
            meta = sample.meta | {"captions": row["captions"]}
            if row["attributes"] is not None:
                meta["attributes"] = json.loads(row["attributes"])
            caption = row["captions"][0].encode()
            writer.write_members(row["key"], sample.image, sample.suffix, canonical_json(meta), caption)
    ledger = _ledger(source, parts, rows)
    write_table(attempt / "ledger" / f"{spec.name}.parquet", ledger)
    return count(ledger)


def _ledger(source: Artifact, parts: Sequence[str], rows: list[dict[str, Any]]) -> pa.Table:
    """The source's ledger rows of the samples, with the number of captions that went along."""
    wanted = pa.array([row["key"] for row in rows], pa.string())
    tables = [read_ledger(source, name) for name in parts]
    found = pa.concat_tables([LEDGER_SCHEMA.empty_table(), *tables])
    found = found.filter(pc.and_(pc.is_in(found["key"], wanted), pc.is_null(found["reason"]))).sort_by("key")
    assert found["key"].to_pylist() == [row["key"] for row in rows], "the source's ledger and its shards disagree"
    captions = pa.array([len(row["captions"]) for row in rows], pa.int32())
    return found.set_column(found.schema.get_field_index("n_captions"), "n_captions", captions).combine_chunks()


def finish(folder: Path, receipts: list[Receipt]) -> list[str]:
    return [PLAN_FILE, SOURCE_FILE, MARK]
