"""Views: decisions about pairs. A view compares columns, touches no image, and says why a pair is left out.

A part holds `(key, caption_index, keep, reason)` for every pair of the shard's stored samples, in order. What was removed goes
first; then the view's rules in their order (`data.views.rules`), of which the first that fails names the reason; then, among what
is left of all parts, copies (`data.views.copies`). A view that
narrows another repeats its reasons: what it dropped itself is the difference of the counts (`parent` in its settings).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.pairs import PAIR, _aligned
from data.pipeline.artifacts import Artifact, PartSpec, Receipt, fingerprint
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import Stage, locked, run_stage
from data.reports.card import refresh_card
from data.scores.basic import SIZED_AS_IN_TAR, require_fresh_basic
from data.scores.duplicates import require_fresh_duplicates
from data.views.copies import copies_to_drop
from data.views.reading import VIEW_SCHEMA, view_counts
from data.views.recipes import deviations
from data.views.removal import removed_keys
from data.views.rules import REMOVED, base_rules, configured_rules, first_reasons, top_threshold
from data.views.settings import BaseViewSettings, ScoreRule, TrainViewSettings, ViewsSettings

STAGE_VERSION = 3
# Part -> its pairs, and why each is dropped (null: it is not) before copies are.
Judged = dict[str, tuple[pa.Table, pa.ChunkedArray]]
FRESH = {"basic": require_fresh_basic, "duplicates": require_fresh_duplicates}


def build_base_view(run: Run) -> Artifact:
    """The view `base`: sizes, captions, copies and leaks, from `scores/basic` and `scores/duplicates`; no CLIP needed."""
    settings = run.config[ViewsSettings].base
    rows = require_fresh_basic(run)
    receipts = {receipt.name: receipt for receipt in run.dataset.receipts()}
    inputs = {}
    for receipt in rows.receipts():
        ledger = receipts[receipt.name].files[f"ledger/{receipt.name}.parquet"]["sha256"]
        inputs[receipt.name] = {"ledger": ledger, "basic": rows.part_digest(receipt)}
    return _build(run, "base", None, rows, inputs, settings, base_rules(settings))


def build_train_view(run: Run) -> Artifact:
    """The view `train`: what `base` keeps, narrowed by the configured recipe and rules."""
    settings = run.config[ViewsSettings].train
    base = run.view("base").require("make dataset")
    inputs = {receipt.name: {"base": receipt.files[f"{receipt.name}.parquet"]["sha256"]} for receipt in base.receipts()}
    return _build(run, "train", "base", base, inputs, settings, configured_rules(settings))


def _build(
    run: Run, name: str, parent: str | None, rows: Artifact, inputs: Mapping[str, Mapping[str, str]],
    settings: BaseViewSettings | TrainViewSettings, rules: list[ScoreRule],
) -> Artifact:  # fmt: skip
    """A part for every part of `rows`, whose pairs are decided on. A part depends on the scores its rules read, on thresholds that
    are taken over all parts, on what was removed of its own keys, and on which of its images give way to copies."""
    scores = {rule.scores: _scores(run, rule.scores) for rule in rules}
    for rule in rules:
        _require_column(scores[rule.scores], rule)
    rules = [_resolve(rule, scores[rule.scores]) for rule in rules]
    removed = removed_keys(run)
    dumped = [rule.model_dump(mode="json", exclude_none=True) for rule in rules]
    parts: list[PartSpec] = []
    for receipt in rows.receipts():
        gone = _among(rows, receipt, removed)
        own = {**inputs[receipt.name], "removed": fingerprint(gone), "rules": fingerprint(dumped)}
        for other, artifact in scores.items():
            standing = artifact.standing(receipt.name)
            own[other] = artifact.part_digest(standing) if standing else "missing"
        folders = {other: str(artifact.folder) for other, artifact in scores.items()}
        payload = {"rows": str(rows.folder), "scores": folders, "rules": dumped, "removed": gone}
        parts.append(PartSpec(receipt.name, own, payload))
    judged: Judged = {}
    parts = _with_copies(parts, [rule for rule in rules if rule.unique], judged)
    shaping = settings.model_dump(mode="json") | {
        "parent": parent, "deviations": deviations(settings.recipe, run.config.to_dict(), _sized_as_in_tar(run)),
    }  # fmt: skip
    _discard_other_thresholds(run.view(name), shaping)
    stage = Stage(f"view-{name}", STAGE_VERSION, run.view(name).folder, shaping, parts, partial(view_part, judged))
    view = run_stage(stage, InProcess(), run.logs)
    refresh_card(run)
    return view


def _discard_other_thresholds(view: Artifact, shaping: Mapping[str, Any]) -> None:
    """Thresholds move in seconds: parts that were made with others go, the manifest first, so that a kill leaves a view that is
    visibly incomplete. What was made from the view stays, and is stale."""
    made = view.plan_json()
    if made is None or made["settings"] == shaping:
        return
    with locked(view.folder):
        view.manifest_path.unlink(missing_ok=True)
        for path in sorted((view.folder / "parts").glob("*.json")):
            for relative in Receipt.read(path).files:
                (view.folder / relative).unlink(missing_ok=True)
            path.unlink()


def view_part(judged: Judged, spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Part function: judge the pairs of one shard, unless `judged` knows them already. Stays in this process."""
    pairs, reasons = judged.pop(spec.name) if spec.name in judged else _judged(spec)
    if copies := spec.payload["copies"]:
        where = pc.index_in(pairs["key"], pa.array(list(copies), pa.string()))
        reasons = pc.coalesce(reasons, pa.array(copies.values(), pa.string()).take(where.combine_chunks()))
    columns = [pairs["key"], pairs["caption_index"], pc.is_null(reasons), reasons]
    view = pa.table(columns, schema=VIEW_SCHEMA)
    pq.write_table(view, attempt / f"{spec.name}.parquet", compression="zstd")
    return view_counts(view)


def _with_copies(parts: list[PartSpec], rules: list[ScoreRule], judged: Judged) -> list[PartSpec]:
    """The parts, each with which of its images give way to a copy, chosen among what all other rules leave of all parts. What was
    found out about a part's pairs on the way is left in `judged`."""
    images = pa.concat_tables([_grouped(part, rules, judged) for part in parts]) if rules and parts else None
    dropped = {} if images is None else copies_to_drop(images, rules)
    copies: dict[str, dict[str, str]] = {part.name: {} for part in parts}
    if images is not None:
        for key, name in zip(images["key"].to_pylist(), images["part"].to_pylist(), strict=True):
            if key in dropped:
                copies[name][key] = dropped[key]
    return [
        replace(part, inputs={**part.inputs, "copies": fingerprint(own)}, payload={**part.payload, "copies": own})
        for part in parts
        for own in [copies[part.name]]
    ]


def _grouped(part: PartSpec, rules: list[ScoreRule], judged: Judged) -> pa.Table:
    """key, split and groups of a part's images that have a copy somewhere, as far as the other rules leave a pair of them."""
    columns = ["split", *sorted({rule.column for rule in rules})]
    pairs, reasons = judged[part.name] = _judged(part)
    groups, _ = _aligned(Path(part.payload["scores"]["duplicates"]) / f"{part.name}.parquet", columns, pairs)
    images = pa.table({"key": pairs["key"], **{name: groups[name] for name in columns}})
    has_copy = reduce(pc.or_, [pc.is_valid(images[name]) for name in columns[1:]])
    images = images.filter(pc.and_(pc.is_null(reasons), has_copy))
    images = images.group_by(images.column_names, use_threads=False).aggregate([])
    return images.append_column("part", pa.array([part.name] * len(images), pa.string()))


def _judged(spec: PartSpec) -> tuple[pa.Table, pa.ChunkedArray]:
    """The pairs of one shard, and why each is dropped: by what stands already, by removal, and by every rule but those on copies."""
    rules = [rule for rule in (ScoreRule(**rule) for rule in spec.payload["rules"]) if not rule.unique]
    path = Path(spec.payload["rows"]) / f"{spec.name}.parquet"
    decided = "reason" in pq.read_schema(path).names
    pairs = pq.read_table(path, columns=[*PAIR, "reason"] if decided else PAIR)
    reasons = pairs["reason"] if decided else pa.chunked_array([pa.nulls(len(pairs), pa.string())])
    if spec.payload["removed"]:
        gone = pc.is_in(pairs["key"], pa.array(spec.payload["removed"], pa.string()))
        reasons = pc.if_else(gone, REMOVED, reasons)
    tables = {}
    for name, folder in spec.payload["scores"].items():
        columns = sorted({rule.column for rule in rules if rule.scores == name})
        tables[name] = _aligned(Path(folder) / f"{spec.name}.parquet", columns, pairs)
    return pairs, first_reasons(reasons, [(r, tables[r.scores][0][r.column], tables[r.scores][1]) for r in rules])


def _sized_as_in_tar(run: Run) -> bool:
    return SIZED_AS_IN_TAR in run.scores("basic").manifest()["counts"]


def _scores(run: Run, name: str) -> Artifact:
    """Complete scores; those of this room must also be of the dataset as it is."""
    return FRESH[name](run) if name in FRESH else run.scores(name).require("make embeddings")


def _require_column(scores: Artifact, rule: ScoreRule) -> None:
    for receipt in scores.receipts()[:1]:
        names = pq.read_schema(scores.folder / f"{receipt.name}.parquet").names
        if rule.column not in names:
            raise UserError(
                f"a rule of this view reads column {rule.column!r} of scores/{rule.scores}, "
                f"which has {', '.join(n for n in names if n not in PAIR)}"
            )


def _resolve(rule: ScoreRule, scores: Artifact) -> ScoreRule:
    """A rule on the top fraction as one on the threshold that this means over all scored pairs."""
    if rule.top_fraction is None:
        return rule
    files = [scores.folder / f"{receipt.name}.parquet" for receipt in scores.receipts()]
    values = pa.chunked_array([c for f in files for c in pq.read_table(f, columns=[rule.column])[0].chunks])
    threshold = top_threshold(values, rule.top_fraction)
    return rule.model_copy(update={"top_fraction": None, "min": threshold})


def _among(rows: Artifact, receipt: Receipt, removed: frozenset[str]) -> list[str]:
    """The removed keys that a part holds, sorted."""
    if not removed:
        return []
    keys = pq.read_table(rows.folder / f"{receipt.name}.parquet", columns=["key"])["key"]
    return sorted(removed & set(pc.unique(keys).to_pylist()))
