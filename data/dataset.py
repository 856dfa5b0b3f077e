"""The dataset stage: plan -> download -> shards and ledger, one shard a part."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts import Artifact, PartSpec, fingerprint
from data.card import write_card
from data.errors import UserError
from data.executors import Executor
from data.fetch.files import FolderFetcher
from data.fetch.http import Fetched, HttpFetcher
from data.fetch.img2dataset_seam import Outcome, download_shard
from data.fetch.reasons import Reason
from data.fetch.resize import resize_image
from data.fetch.settings import HOW_TO_ASK, FetchSettings, ImageSettings
from data.ledger import LEDGER_SCHEMA, LOG_SCHEMA
from data.plan import freeze_plan, plan_table, read_plan
from data.run import Run
from data.runner import Stage, run_stage
from data.settings import DatasetSettings
from data.shards import Sample, ShardWriter
from data.sources.candidates import Candidate
from data.sources.folder import folder_candidates
from data.sources.scenes import PREFIX, scenes_candidates, scenes_server
from data.sources.table import table_candidates

STAGE_VERSION = 1


def build_dataset(run: Run, executor: Executor) -> Artifact:
    """Download what is missing of the planned shards and publish the dataset."""
    settings = run.config[DatasetSettings]
    folder = run.dataset.folder
    table = plan_table(candidates(settings, run.seed), settings.samples_per_shard, settings.split, run.seed)
    freeze_plan(folder, table)
    # The folder's or table's own path is not recorded: its content is, in the frozen plan.
    ways: Any = {"fetch": set(HOW_TO_ASK), "folder": True, "table": True}
    shaping = settings.model_dump(mode="json", exclude=ways) | {"seed": run.seed}
    with serving(settings) as source:
        payload = {
            "source": source,
            "fetch": settings.fetch.model_dump(mode="json"),
            "image": settings.image.model_dump(mode="json"),
            "plan": str(folder),
        }
        parts = []
        for shard in range(table["shard"][-1].as_py() + 1):
            rows = table.filter(pc.equal(table["shard"], shard))
            parts.append(PartSpec(f"{shard:05d}", {"plan": fingerprint(rows.to_pylist())}, {**payload, "shard": shard}))
        stage = Stage("dataset", STAGE_VERSION, folder, shaping, parts, make_shard, finish, precious=True)
        return run_stage(stage, executor, run.logs)


def candidates(settings: DatasetSettings, seed: int) -> Iterator[Candidate]:
    """The configured source's candidates, in the source's fixed order."""
    if settings.scenes is not None:
        return scenes_candidates(settings.scenes, seed)
    if settings.table is not None:
        return table_candidates(settings.table)
    assert settings.folder is not None
    return folder_candidates(settings.folder)


@contextmanager
def serving(settings: DatasetSettings) -> Iterator[dict[str, Any]]:
    """Keep the source reachable while shards are made; yields what a worker needs to know to fetch from it."""
    if settings.scenes is not None:
        with scenes_server(settings.scenes) as address:
            yield {"kind": "scenes", "address": address}
        return
    if settings.table is not None:
        yield {"kind": "web"}
        return
    assert settings.folder is not None
    yield {"kind": "folder", "root": str(Path(settings.folder.path).resolve())}


def fetcher(source: dict[str, Any], settings: FetchSettings) -> Callable[[str], Fetched]:
    if source["kind"] == "folder":
        return FolderFetcher(Path(source["root"]), settings.max_bytes)
    if source["kind"] == "web":
        return HttpFetcher(settings)
    base = f"http://{source['address']}/"
    return HttpFetcher(settings, trusted=source["address"], rewrite=lambda url: url.replace(PREFIX, base, 1))


def make_shard(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Part function: download the rows of one shard; writes `shards/`, `ledger/` and `log/` under `attempt`."""
    payload = spec.payload
    image = ImageSettings(**payload["image"])
    settings = FetchSettings(**payload["fetch"])
    rows = read_plan(Path(payload["plan"]), payload["shard"]).to_pylist()
    if fingerprint(rows) != spec.inputs["plan"]:
        raise UserError(f"{payload['plan']}/plan.parquet changed while its shards were made; run `make dataset` again")
    wanted = [row for row in rows if row["captions"]]
    start = time.perf_counter()
    outcomes, spool = download_shard(
        [row["url"] for row in wanted], fetcher(payload["source"], settings), lambda content: resize_image(content, image),
        settings.threads, attempt / "scratch",
    )  # fmt: skip
    by_key = {row["key"]: outcome for row, outcome in zip(wanted, outcomes, strict=True)}
    records = _write_shard(attempt / "shards" / f"{spec.name}.tar", rows, by_key, spool, image)
    _write_table(attempt / "ledger" / f"{spec.name}.parquet", records, LEDGER_SCHEMA)
    log = [
        {"key": key, "attempts": o.log.get("attempts"), "detail": o.log.get("detail") or None}
        for key, o in by_key.items()
    ]
    _write_table(attempt / "log" / f"{spec.name}.parquet", log, LOG_SCHEMA, seconds=time.perf_counter() - start)
    for path in (attempt / "scratch").iterdir():
        path.unlink()
    return count(records)


def count(records: list[dict[str, Any]]) -> dict[str, int]:
    """Planned = stored + sum over reasons, for samples and pairs: asserted here, summed in the manifest."""
    counts = {"planned_samples": len(records), "planned_pairs": 0, "stored_samples": 0, "stored_pairs": 0}
    for record in records:
        pairs = record["n_captions"]
        counts["planned_pairs"] += pairs
        name = "stored" if record["reason"] is None else f"dropped_{record['reason']}"
        counts[f"{name}_samples"] = counts.get(f"{name}_samples", 0) + 1
        counts[f"{name}_pairs"] = counts.get(f"{name}_pairs", 0) + pairs
    for unit in ("samples", "pairs"):
        parts = sum(v for k, v in counts.items() if k.endswith(f"_{unit}") and not k.startswith("planned"))
        assert counts[f"planned_{unit}"] == parts, f"{unit} do not add up: {counts}"
    return counts


def _write_shard(
    path: Path, rows: list[dict[str, Any]], outcomes: dict[str, Outcome], spool: Path, image: ImageSettings
) -> list[dict[str, Any]]:
    """Write the stored samples in order of key, and return one ledger record per planned row."""
    writer = ShardWriter(path)
    records = []
    with spool.open("rb") as bytes_of:
        for row in sorted(rows, key=lambda r: r["key"]):
            outcome = outcomes.get(row["key"], Outcome(0, Reason.NO_CAPTION))
            record = _ledger_record(row, outcome)
            if outcome.image is not None:
                bytes_of.seek(outcome.image[0])
                content = bytes_of.read(outcome.image[1])
                record |= {"stored_bytes": len(content), "stored_sha256": hashlib.sha256(content).hexdigest()}
                writer.write(Sample(row["key"], content, image.format, _sample_json(row, record)))
            records.append(record)
    writer.close()
    return records


def _ledger_record(row: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    stored = outcome.image is not None
    assert stored == (outcome.reason is None), (
        f"{row['key']}: outcome {outcome} is neither stored nor dropped with a reason"
    )
    return {
        "key": row["key"], "source_id": row["source_id"], "url": row["url"], "n_captions": len(row["captions"]), "split": row["split"],
        "reason": None if outcome.reason is None else str(outcome.reason), "http_status": outcome.http_status,
        "original_bytes": outcome.original_bytes, "original_sha256": outcome.original_sha256,
        "original_width": outcome.original_width, "original_height": outcome.original_height,
        "width": outcome.width, "height": outcome.height, "stored_bytes": None, "stored_sha256": None, "license": row["license"],
    }  # fmt: skip


def _sample_json(row: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    known = {
        k: record[k]
        for k in ("original_width", "original_height", "width", "height", "original_sha256", "stored_sha256")
    }
    carried = {
        k: row[k]
        for k in ("key", "source_id", "url", "captions", "split", "license", "source_page", "attribution")
        if row[k] is not None
    }
    attributes = {} if row["attributes"] is None else {"attributes": json.loads(row["attributes"])}
    return carried | known | attributes


def _write_table(path: Path, records: list[dict[str, Any]], schema: pa.Schema, seconds: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(records, schema)
    if seconds is not None:
        table = table.replace_schema_metadata({"seconds": f"{seconds:.3f}"})
    pq.write_table(table, path, compression="zstd")


def finish(folder: Path, receipts: list[Any]) -> list[str]:
    """Whole-artifact files: the dataset card and the frozen plan's place in the manifest."""
    return write_card(folder, receipts)


def require_stored(artifact: Artifact) -> None:
    """Raise UserError when nothing was stored, naming the commonest reason."""
    counts = artifact.manifest()["counts"]
    if counts.get("stored_samples", 0):
        return
    dropped = {
        k.removeprefix("dropped_").removesuffix("_samples"): v
        for k, v in counts.items()
        if k.startswith("dropped_") and k.endswith("_samples")
    }
    worst = max(dropped, key=lambda name: dropped[name])
    raise UserError(
        f"no image was stored: {dropped[worst]} of {counts['planned_samples']} were dropped as {worst}; see `python -m data funnel`"
    )
