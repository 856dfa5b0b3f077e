"""A dataset artifact made from rows in memory, without a download: for tests of scores and views."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from data.dataset.ledger import LEDGER_SCHEMA
from data.dataset.plan import PLAN_SCHEMA, PlanWriter, plan_digest, plan_tables
from data.dataset.shards import Sample, ShardWriter
from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.sources.candidates import Candidate
from data.sources.settings import SplitSettings


@dataclass(frozen=True)
class Stored:
    """One sample as it would have been downloaded; `reason` makes it a dropped one."""

    key: str
    image: bytes
    captions: tuple[str, ...] = ("a photograph of something",)
    split: str = "train"
    url: str | None = None
    original: bytes | None = None
    size: tuple[int, int] = (256, 256)
    nsfw: str | None = None
    watermark: float | None = None
    extra: dict[str, Any] | None = None
    reason: str | None = None


def photo(seed: int, side: int = 64) -> NDArray[np.uint8]:
    """A smooth random picture: as distinctive to a perceptual hash as a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def encoded(rgb: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, kind, **options)
    return out.getvalue()


def plan_table(candidates: Iterable[Candidate], samples_per_shard: int, split: SplitSettings, seed: int) -> pa.Table:
    """The whole plan in memory, for a handful of candidates."""
    return pa.concat_tables([PLAN_SCHEMA.empty_table(), *plan_tables(candidates, samples_per_shard, split, seed)])


def make_dataset(run: Run, shards: Sequence[Sequence[Stored]], retries: Sequence[Sequence[Stored]] = ()) -> Artifact:
    """Publish `run.dataset` holding these samples; `retries` are appended shards, as `retry-failed` would append them."""
    folder = run.dataset.folder
    tables = [_plan_rows(rows, number) for number, rows in enumerate([*shards, *retries])]
    with PlanWriter(folder / "plan.parquet") as writer:
        for table in tables[: len(shards)]:
            writer.write(table)
    for number, table in enumerate(tables[len(shards) :], len(shards)):
        path = folder / "retries" / f"{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    names = [f"{n:05d}" for n in range(len(tables))]
    parts = [
        PartSpec(name, (Input(f"@source:{name}", plan_digest(table)),), tuple(rows))
        for name, table, rows in zip(names, tables, [*shards, *retries], strict=True)
    ]
    stage = Stage("dataset", 1, folder, {}, parts, _part)
    return run_stage(stage, InProcess())


def _plan_rows(rows: Sequence[Stored], shard: int) -> pa.Table:
    values = [
        {
            "key": r.key, "shard": shard, "source_id": r.key, "url": _url(r), "captions": list(r.captions), "split": r.split,
            "nsfw": r.nsfw, "watermark": r.watermark, "extra": None if r.extra is None else json.dumps(r.extra),
        }
        for r in rows
    ]  # fmt: skip
    return pa.Table.from_pylist(values, PLAN_SCHEMA)


def _part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    rows = sorted(spec.work, key=lambda r: r.key)
    writer = ShardWriter(attempt / "shards" / f"{spec.name}.tar")
    records = []
    for r in rows:
        known = {
            "key": r.key, "source_id": r.key, "url": _url(r), "n_captions": len(r.captions), "split": r.split,
            "reason": r.reason, "original_width": r.size[0], "original_height": r.size[1],
            "original_sha256": hashlib.sha256(r.original or r.image).hexdigest(),
            "stored_sha256": hashlib.sha256(r.image).hexdigest(),
        }  # fmt: skip
        if r.reason is None:
            suffix = "png" if r.image.startswith(b"\x89PNG") else "jpg"
            writer.write(Sample(r.key, r.image, suffix, {"captions": list(r.captions), "split": r.split}))
        records.append(known)
    writer.close()
    (attempt / "ledger").mkdir()
    pq.write_table(pa.Table.from_pylist(records, LEDGER_SCHEMA), attempt / "ledger" / f"{spec.name}.parquet")
    stored = [r for r in rows if r.reason is None]
    return {"stored_samples": len(stored), "stored_pairs": sum(len(r.captions) for r in stored)}


def _url(row: Stored) -> str:
    return f"https://example.org/{row.key}.jpg" if row.url is None else row.url


def make_scores(
    run: Run, name: str, columns: dict[str, Sequence[Any]], skip: Sequence[int] = (), like: str = "views/base"
) -> Artifact:
    """Publish `scores/<name>` with these columns for the pairs of `like`, in order over its parts; rows in `skip` are left out."""
    artifact = run.artifact(like)
    names = [receipt.name for receipt in artifact.receipts()]
    pairs = [pq.read_table(artifact.folder / f"{n}.parquet", columns=["key", "caption_index"]) for n in names]
    whole = pa.concat_tables(pairs)
    for column, values in columns.items():
        whole = whole.append_column(column, pa.array(values))
    tables, start = {}, 0
    for part, own in zip(names, pairs, strict=True):
        rows = [row for row in range(start, start + len(own)) if row not in skip]
        tables[part] = whole.take(rows)
        start += len(own)
    values = fingerprint({part: str(table.to_pydict()) for part, table in tables.items()})
    digests = artifact.part_digests()
    specs = [PartSpec(part, (Input(f"{like}:{part}", digests[part]),), tables[part]) for part in names]
    stage = Stage(f"scores-{name}", 1, run.scores(name).folder, {"values": values}, specs, _scores_part)
    return run_stage(stage, InProcess())


def _scores_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    pq.write_table(spec.work, attempt / f"{spec.name}.parquet")
    return {"pairs": len(spec.work)}
