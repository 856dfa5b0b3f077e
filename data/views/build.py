"""Making views: decisions about pairs. A view compares columns, touches no image, and says why a pair is left out.

A part holds `(key, caption_index, keep, reason)` for every pair of the shard's stored samples, in order. What was removed goes
first; then the view's rules in their order (`data.views.rules`), of which the first that fails names the reason; then, among what
is left of all parts, copies (`data.views.copies`). A view that narrows another repeats its reasons: what it dropped itself is the
difference of the counts (`parent` in its settings).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.pairs import PAIR, aligned
from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.errors import UserError
from data.pipeline.executors import Executor, gather
from data.pipeline.lineage import Lineage, row_of
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import ABSENT, Input, PartSpec, Stage
from data.scores.basic import SIZED_AS_IN_TAR
from data.views.copies import copies_to_drop
from data.views.reading import VIEW_SCHEMA, view_counts
from data.views.recipes import deviations
from data.views.removal import removed_in_part, removed_keys
from data.views.rules import REMOVED, base_rules, configured_rules, first_reasons, top_threshold
from data.views.settings import BaseViewSettings, ScoreRule, TrainViewSettings, ViewsSettings

STAGE_VERSION = 4


@dataclass(frozen=True)
class ViewWork:
    """The artifact (a folder) on whose pairs is decided, the scores that the rules read, the rules with their thresholds resolved,
    removed keys of the part, and which of its images give way to a copy (key, reason)."""

    rows: Path
    scores: Mapping[str, Path]
    rules: tuple[ScoreRule, ...]
    removed: tuple[str, ...]
    copies: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Recipe:
    """What one view is made by: the artifact that has its pairs, its settings and its rules."""

    name: str
    parent: str | None
    rows: Artifact
    rows_name: str
    settings: BaseViewSettings | TrainViewSettings
    rules: list[ScoreRule]


def build_base_view(run: Run, executor: Executor) -> Artifact:
    """The view `base`: sizes, captions, copies and leaks, from `scores/basic` and `scores/duplicates`; no CLIP needed."""
    settings = run.config[ViewsSettings].base
    rows = Lineage(run).require("scores/basic")
    return _build(run, _Recipe("base", None, rows, "scores/basic", settings, base_rules(settings)), executor)


def build_train_view(run: Run, executor: Executor) -> Artifact:
    """The view `train`: what `base` keeps, narrowed by the configured recipe and rules."""
    settings = run.config[ViewsSettings].train
    base = Lineage(run).require("views/base")
    return _build(run, _Recipe("train", "base", base, "views/base", settings, configured_rules(settings)), executor)


def _build(run: Run, recipe: _Recipe, executor: Executor) -> Artifact:
    """A part for every part of the artifact whose pairs are decided on."""
    lineage = Lineage(run)
    scores = {}
    for rule in recipe.rules:
        name = f"scores/{rule.scores}"
        # Scores that somebody's own code made stand in no table.
        scores[rule.scores] = lineage.require(name, None if row_of(name) else "make embeddings")
    for rule in recipe.rules:
        _require_column(scores[rule.scores], rule)
    rules = tuple(_resolve(rule, scores[rule.scores], executor) for rule in recipe.rules)
    parts = _with_copies(_parts(run, recipe, scores, rules), rules, recipe.name, executor)
    shaping = recipe.settings.model_dump(mode="json") | {
        "parent": recipe.parent,
        "deviations": deviations(recipe.settings.recipe, run.config.to_dict(), _sized_as_in_tar(run)),
    }
    view = run.view(recipe.name)
    stage = Stage(f"view-{recipe.name}", STAGE_VERSION, view.folder, shaping, parts, view_part, movable=True)
    return run_stage(stage, executor, run.logs)


def _parts(run: Run, recipe: _Recipe, scores: Mapping[str, Artifact], rules: tuple[ScoreRule, ...]) -> list[PartSpec]:
    """A part depends on its pairs, on the scores its rules read, on thresholds that are taken over all parts, and on what was removed
    of its own keys."""
    removed = removed_keys(run)
    thresholds = fingerprint([rule.model_dump(mode="json", exclude_none=True) for rule in rules])
    folders = {name: artifact.folder for name, artifact in scores.items()}
    of_scores = {name: artifact.part_digests() for name, artifact in scores.items()}
    parts: list[PartSpec] = []
    for name, digest in recipe.rows.part_digests().items():
        gone = removed_in_part(run, name, removed)
        inputs = [Input(f"{recipe.rows_name}:{name}", digest), Input(f"@removed:{name}", fingerprint(gone))]
        inputs += [
            Input(f"scores/{other}:{name}", digests.get(name, ABSENT))
            for other, digests in sorted(of_scores.items())
            if f"scores/{other}" != recipe.rows_name
        ]
        inputs.append(Input("@thresholds", thresholds))
        parts.append(PartSpec(name, tuple(inputs), ViewWork(recipe.rows.folder, folders, rules, tuple(gone))))
    return parts


def view_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Part function: judge the pairs of one shard."""
    work: ViewWork = spec.work
    pairs, reasons = _judged(spec.name, work)
    if work.copies:
        keys, why = (pa.array(column, pa.string()) for column in zip(*work.copies, strict=True))
        where = pc.index_in(pairs["key"], keys)
        reasons = pc.coalesce(reasons, why.take(where.combine_chunks()))
    view = pa.table([pairs["key"], pairs["caption_index"], pc.is_null(reasons), reasons], schema=VIEW_SCHEMA)
    pq.write_table(view, attempt / f"{spec.name}.parquet", compression="zstd")
    return view_counts(view)


def _with_copies(parts: list[PartSpec], rules: tuple[ScoreRule, ...], view: str, executor: Executor) -> list[PartSpec]:
    """The parts, each with which of its images give way to a copy, chosen among what all other rules leave of all parts."""
    unique = [rule for rule in rules if rule.unique]
    if not unique or not parts:
        return parts
    found = gather(executor, f"view-{view}: copies", grouped_images, [(part.name, part.work, unique) for part in parts])
    dropped = copies_to_drop(pa.concat_tables(found), unique)
    own = [tuple((key, dropped[key]) for key in images["key"].to_pylist() if key in dropped) for images in found]
    return [
        replace(
            part,
            inputs=(*part.inputs, Input(f"@copies:{part.name}", fingerprint(copies))),
            work=replace(part.work, copies=copies),
        )
        for part, copies in zip(parts, own, strict=True)
    ]


def grouped_images(name: str, work: ViewWork, rules: list[ScoreRule]) -> pa.Table:
    """key, split and groups of a part's images that have a copy somewhere, as far as the other rules leave a pair of them."""
    columns = ["split", *sorted({rule.column for rule in rules})]
    pairs, reasons = _judged(name, work)
    groups, _ = aligned(work.scores["duplicates"] / f"{name}.parquet", columns, pairs)
    images = pa.table({"key": pairs["key"], **{column: groups[column] for column in columns}})
    has_copy = reduce(pc.or_, [pc.is_valid(images[column]) for column in columns[1:]])
    images = images.filter(pc.and_(pc.is_null(reasons), has_copy))
    return images.group_by(images.column_names, use_threads=False).aggregate([])


def _judged(name: str, work: ViewWork) -> tuple[pa.Table, pa.ChunkedArray]:
    """The pairs of one shard, and why each is dropped: by what stands already, by removal, and by every rule but those on copies."""
    rules = [rule for rule in work.rules if not rule.unique]
    path = work.rows / f"{name}.parquet"
    decided = "reason" in pq.read_schema(path).names
    pairs = pq.read_table(path, columns=[*PAIR, "reason"] if decided else PAIR)
    reasons = pairs["reason"] if decided else pa.chunked_array([pa.nulls(len(pairs), pa.string())])
    if work.removed:
        gone = pc.is_in(pairs["key"], pa.array(work.removed, pa.string()))
        reasons = pc.if_else(gone, REMOVED, reasons)
    tables = {}
    for scores, folder in work.scores.items():
        columns = sorted({rule.column for rule in rules if rule.scores == scores})
        tables[scores] = aligned(folder / f"{name}.parquet", columns, pairs)
    return pairs, first_reasons(reasons, [(r, tables[r.scores][0][r.column], tables[r.scores][1]) for r in rules])


def _sized_as_in_tar(run: Run) -> bool:
    return SIZED_AS_IN_TAR in run.scores("basic").manifest()["counts"]


def _require_column(scores: Artifact, rule: ScoreRule) -> None:
    for receipt in scores.receipts()[:1]:
        names = pq.read_schema(scores.folder / f"{receipt.name}.parquet").names
        if rule.column not in names:
            raise UserError(
                f"a rule of this view reads column {rule.column!r} of scores/{rule.scores}, "
                f"which has {', '.join(n for n in names if n not in PAIR)}"
            )


def _resolve(rule: ScoreRule, scores: Artifact, executor: Executor) -> ScoreRule:
    """A rule on the top fraction as one on the threshold that this means over all scored pairs."""
    if rule.top_fraction is None:
        return rule
    files = [scores.folder / f"{receipt.name}.parquet" for receipt in scores.receipts()]
    columns = gather(
        executor, f"scores/{scores.folder.name}: {rule.column}", column_of, [(f, rule.column) for f in files]
    )
    threshold = top_threshold(
        pa.chunked_array([chunk for column in columns for chunk in column.chunks]), rule.top_fraction
    )
    return rule.model_copy(update={"top_fraction": None, "min": threshold})


def column_of(file: Path, column: str) -> pa.ChunkedArray:
    """One column of one part of scores."""
    return pq.read_table(file, columns=[column])[0]
