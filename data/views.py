"""Views: decisions about pairs. A view compares columns, touches no image, and says why a pair is left out.

A part holds `(key, caption_index, keep, reason)` for every pair of the shard's stored samples, in order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts import Artifact, PartSpec, fingerprint
from data.executors import InProcess
from data.filters.settings import BaseViewSettings, ScoreRule, ViewsSettings
from data.ledger import ledger_path, read_ledger
from data.plan import read_plan
from data.run import Run
from data.runner import Stage, run_stage

STAGE_VERSION = 1
VIEW_SCHEMA = pa.schema(
    [("key", pa.string()), ("caption_index", pa.int32()), ("keep", pa.bool_()), ("reason", pa.string())]
)
# Why the view `base` leaves a pair out; later views repeat these.
BASE_REASONS = frozenset(
    {
        "duplicate_image",
        "repeated_caption",
        "image_too_small",
        "aspect_too_large",
        "caption_too_short",
        "caption_too_long",
    }
)
# Of equal images the copy in the most protected split stays, so that no test image is trained on.
SPLIT_RANK = {"test": 0, "val": 1, "train": 2}


def build_base_view(run: Run) -> Artifact:
    """The view `base`: size, aspect, caption length and exact duplicates, from ledger and plan alone."""
    settings = run.config[ViewsSettings].base
    dataset = run.dataset.require("make dataset")
    duplicates = (
        find_duplicates(read_ledger(dataset, columns=["key", "split", "reason", "stored_sha256"]))
        if settings.drop_duplicates
        else {}
    )
    planned = {part["name"]: part["inputs"]["plan"] for part in (dataset.plan_json() or {"parts": []})["parts"]}
    parts = []
    for receipt in dataset.receipts():
        ledger = receipt.files[f"ledger/{receipt.name}.parquet"]["sha256"]
        plan = planned[receipt.name]
        keys = set(pq.read_table(ledger_path(dataset.folder, receipt.name), columns=["key"])["key"].to_pylist())
        ours = sorted(keys & duplicates.keys())
        parts.append(
            PartSpec(
                receipt.name,
                {"ledger": ledger, "plan": plan, "duplicates": fingerprint(ours)},
                {"dataset": str(dataset.folder), "duplicates": ours, **_dump(settings)},
            )
        )
    stage = Stage(
        "view-base", STAGE_VERSION, run.view("base").folder, settings.model_dump(mode="json"), parts, base_part
    )
    return run_stage(stage, InProcess(), run.logs)


def build_train_view(run: Run) -> Artifact:
    """The view `train`: what `base` keeps, narrowed by the configured rules on scores."""
    settings = run.config[ViewsSettings].train
    base = run.view("base").require("make dataset")
    scores = {rule.scores: run.scores(rule.scores).require("make embeddings") for rule in settings.rules}
    parts = []
    for receipt in base.receipts():
        inputs = {"base": receipt.files[f"{receipt.name}.parquet"]["sha256"]}
        for name, artifact in scores.items():
            standing = artifact.standing(receipt.name)
            inputs[name] = artifact.part_digest(standing) if standing else "missing"
        payload = {"base": str(base.folder), "scores": {n: str(a.folder) for n, a in scores.items()}, **_dump(settings)}
        parts.append(PartSpec(receipt.name, inputs, payload))
    stage = Stage(
        "view-train", STAGE_VERSION, run.view("train").folder, settings.model_dump(mode="json"), parts, train_part
    )
    return run_stage(stage, InProcess(), run.logs)


def find_duplicates(ledger: pa.Table) -> dict[str, str]:
    """Keys of stored images whose bytes equal those of a kept one -> the kept key."""
    best: dict[str, tuple[int, str]] = {}
    rows = [r for r in ledger.to_pylist() if r["reason"] is None]
    for row in rows:
        rank = (SPLIT_RANK[row["split"]], row["key"])
        best[row["stored_sha256"]] = min(best.get(row["stored_sha256"], rank), rank)
    return {row["key"]: best[row["stored_sha256"]][1] for row in rows if best[row["stored_sha256"]][1] != row["key"]}


def base_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    settings = BaseViewSettings(**spec.payload["settings"])
    folder = Path(spec.payload["dataset"])
    duplicates = set(spec.payload["duplicates"])
    captions = {
        row["key"]: row["captions"] for row in read_plan(folder, int(spec.name)).select(["key", "captions"]).to_pylist()
    }
    rows = []
    for sample in pq.read_table(ledger_path(folder, spec.name)).to_pylist():
        if sample["reason"] is not None:
            continue
        of_image = "duplicate_image" if sample["key"] in duplicates else _image_reason(sample, settings)
        seen: set[str] = set()
        for index, caption in enumerate(captions[sample["key"]]):
            reason = (
                of_image
                or _caption_reason(caption, settings)
                or ("repeated_caption" if settings.drop_duplicates and caption in seen else None)
            )
            seen.add(caption)
            rows.append({"key": sample["key"], "caption_index": index, "keep": reason is None, "reason": reason})
    return _write_view(attempt / f"{spec.name}.parquet", rows)


def train_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    base = pq.read_table(Path(spec.payload["base"]) / f"{spec.name}.parquet")
    rules = [ScoreRule(**rule) for rule in spec.payload["settings"]["rules"]]
    judges = [
        (_rule_reason(rule), _scores_of(Path(spec.payload["scores"][rule.scores]) / f"{spec.name}.parquet", rule))
        for rule in rules
    ]
    rows = []
    for row in base.to_pylist():
        for reason, judge in judges:
            if row["keep"]:
                verdict = judge((row["key"], row["caption_index"]))
                row |= {
                    "keep": verdict is True,
                    "reason": None if verdict else ("no_score" if verdict is None else reason),
                }
        rows.append(row)
    return _write_view(attempt / f"{spec.name}.parquet", rows)


def _image_reason(sample: dict[str, Any], settings: BaseViewSettings) -> str | None:
    sides = sorted((sample["original_width"], sample["original_height"]))
    if sides[0] < settings.min_side:
        return "image_too_small"
    return "aspect_too_large" if sides[1] > settings.max_aspect * sides[0] else None


def _caption_reason(caption: str, settings: BaseViewSettings) -> str | None:
    if len(caption.split()) < settings.min_caption_words:
        return "caption_too_short"
    return "caption_too_long" if len(caption) > settings.max_caption_chars else None


def _rule_reason(rule: ScoreRule) -> str:
    return f"{rule.column}_out_of_range"


def _scores_of(path: Path, rule: ScoreRule) -> Callable[[tuple[str, int]], bool | None]:
    """pair -> within the rule's bounds, or None where the pair has no score (or it is not a number)."""
    table = pq.read_table(path) if path.exists() else pa.table({"key": [], "caption_index": [], rule.column: []})
    values = dict(
        zip(
            zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True),
            table[rule.column].to_pylist(),
            strict=True,
        )
    )
    low, high = rule.min if rule.min is not None else float("-inf"), rule.max if rule.max is not None else float("inf")

    def judge(pair: tuple[str, int]) -> bool | None:
        value = values.get(pair)
        return None if value is None or value != value else low <= value <= high

    return judge


def _write_view(path: Path, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Write the decisions; the counts hold pairs and samples (a sample is kept when one of its pairs is)."""
    pq.write_table(pa.Table.from_pylist(rows, VIEW_SCHEMA), path, compression="zstd")
    counts = {
        "pairs": len(rows),
        "kept_pairs": 0,
        "samples": len({r["key"] for r in rows}),
        "kept_samples": len({r["key"] for r in rows if r["keep"]}),
    }
    for row in rows:
        name = "kept_pairs" if row["keep"] else f"dropped_{row['reason']}_pairs"
        counts[name] = counts.get(name, 0) + 1
    assert counts["pairs"] == sum(v for k, v in counts.items() if k.endswith("_pairs")), (
        f"pairs do not add up: {counts}"
    )
    return counts


def _dump(settings: Any) -> dict[str, Any]:
    return {"settings": settings.model_dump(mode="json")}


def kept_pairs(view: Artifact) -> pa.Table:
    """(key, caption_index) of every pair the view keeps, in order."""
    tables = [pq.read_table(view.folder / f"{receipt.name}.parquet") for receipt in view.receipts()]
    table = pa.concat_tables(tables)
    return table.filter(pc.field("keep")).select(["key", "caption_index"])
