"""The funnel: how many candidates became training pairs, and where the others went, in samples and pairs.

Of a dataset that is not complete, its finished shards alone; `funnel_notes` says so, and what else the numbers leave out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.dataset.ledger import check_counts, dropped_counts
from data.dataset.plan import read_frozen, retry_path
from data.pipeline.artifacts import Artifact
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.terminal import printable
from data.reports.finished import FinishedShards, finished_dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VIEWS = ("base", "train")
MADE_BY = {"base": "dataset", "train": "embeddings"}


@dataclass(frozen=True)
class FunnelRow:
    """`reason` is None for what goes on after `step`, else why so many were dropped there. A view drops pairs; a sample counts
    as dropped (without a reason of its own, `samples` is None) only when all its pairs are."""

    step: str
    reason: str | None
    samples: int | None
    pairs: int


def funnel_rows(run: Run) -> list[FunnelRow]:
    """From planned to the narrowest complete view. Each step's samples and pairs add up to those before it, which is asserted for
    every shard and in all. Raises UserError where no shard is finished."""
    dataset = finished_dataset(run)
    for receipt in dataset.receipts():
        check_counts(receipt.counts)
    counts = dataset.manifest()["counts"]
    check_counts(counts)
    rows = [FunnelRow("planned", None, counts["planned_samples"], counts["planned_pairs"])]
    reasons = dropped_counts(counts, "samples").keys() | dropped_counts(counts, "pairs").keys()
    for reason in sorted(reasons):
        samples, pairs = (counts[f"dropped_{reason}_{unit}"] for unit in ("samples", "pairs"))
        rows.append(FunnelRow("download", reason, samples, pairs))
    rows.append(FunnelRow("stored", None, counts["stored_samples"], counts["stored_pairs"]))
    for name, view in current_views(run):
        rows += _view_rows(run, name, view, rows[-1])
    return rows


def funnel_notes(run: Run) -> list[str]:
    """What the numbers leave out, a line each: unfinished shards, views that are not up to date, and what never was a candidate."""
    dataset = finished_dataset(run)
    notes = [str(dataset)] if isinstance(dataset, FinishedShards) else []
    current = {name for name, _ in current_views(run)}
    for name in VIEWS:
        view = run.view(name)
        if name not in current and (view.folder / "plan.json").exists():
            why = _why_not(run, name, view) or "the view before it is left out"
            notes.append(f"view {name} is left out: {why}; `make {MADE_BY[name]}` makes it again")
    plan = read_frozen(run.dataset.folder)
    return notes + [f"not a candidate: {n:,} x {printable(note)}" for note, n in (plan.notes if plan else {}).items()]


def current_views(run: Run) -> list[tuple[str, Artifact]]:
    """Views in order, up to the first that is missing or of another dataset, whose numbers would not add up."""
    current: list[tuple[str, Artifact]] = []
    for name in VIEWS:
        view = run.view(name)
        if _why_not(run, name, view):
            break
        current.append((name, view))
    return current


def _why_not(run: Run, name: str, view: Artifact) -> str | None:
    """Why the view's numbers do not follow those of the dataset; None when they do."""
    if not run.dataset.is_complete():
        return "the dataset is not complete"
    if not view.manifest_path.is_file():
        return "it is not complete"
    return Lineage(run).why_stale(f"views/{name}")


def _view_rows(run: Run, name: str, view: Artifact, before: FunnelRow) -> list[FunnelRow]:
    counts, dropped = view.manifest()["counts"], dropped_by(run, view)
    rows = [FunnelRow(f"view {name}", reason, None, n) for reason, n in sorted(dropped.items())]
    rows.append(FunnelRow(f"view {name}", None, counts["kept_samples"], counts["kept_pairs"]))
    assert before.pairs == sum(r.pairs for r in rows), f"view {name}: {before.pairs} pairs before, {rows} after"
    return rows


def dropped_by(run: Run, view: Artifact) -> dict[str, int]:
    """reason -> pairs that the view itself dropped. It repeats its parent's reasons; what it added is its counts less the parent's."""
    dropped = dropped_counts(view.manifest()["counts"], "pairs")
    parent = view.settings().get("parent")
    if parent:
        for reason, n in dropped_counts(run.view(parent).manifest()["counts"], "pairs").items():
            dropped[reason] = dropped.get(reason, 0) - n
    return {reason: n for reason, n in dropped.items() if n}


def funnel_text(rows: list[FunnelRow]) -> str:
    """A table for the terminal."""
    width = max(len(row.reason or "") for row in rows) + 4
    lines = [f"{'step':<14}{'reason':<{width}}{'samples':>12}{'pairs':>12}"]
    for row in rows:
        samples = "" if row.samples is None else f"{row.samples:,}"
        reason = "" if row.reason is None else "- " + row.reason
        lines.append(f"{row.step:<14}{reason:<{width}}{samples:>12}{row.pairs:>12,}")
    return "\n".join(lines)


def shards_text(run: Run) -> str:
    """One line a shard: planned, stored and why not, then what the current views keep. The numbers of a retry say what it changed."""
    dataset = finished_dataset(run)
    views = {name: {r.name: r.counts for r in view.receipts()} for name, view in current_views(run)}
    lines = ["shard   " + "".join(f"{name:>12}" for name in ("planned", "stored", *views)) + "  dropped samples"]
    for receipt in dataset.receipts():
        check_counts(receipt.counts)
        numbers = [receipt.counts["planned_samples"], receipt.counts["stored_samples"]]
        numbers += [counts.get(receipt.name, {}).get("kept_samples", 0) for counts in views.values()]
        why = ", ".join(f"{reason} {n:,}" for reason, n in dropped_counts(receipt.counts, "samples").items())
        is_retry = retry_path(dataset.folder, int(receipt.name)).exists()
        lines.append(
            f"{receipt.name + '*' * is_retry:<8}" + "".join(f"{n:>12,}" for n in numbers) + f"  {why}".rstrip()
        )
    if any("*" in line for line in lines):
        lines.insert(
            0, "* a retry: what it changed, +1 stored and -1 dropped for a sample of an earlier shard that is here now"
        )
    return "\n".join(lines)


def draw_funnel(rows: list[FunnelRow]) -> "Figure":
    """Horizontal bars of pairs: what goes on in blue, what is dropped in grey with its reason."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.42 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    labels = [row.step if row.reason is None else f"dropped: {row.reason}" for row in rows]
    colours = ["#2b6cb0" if row.reason is None else "#b0b7c3" for row in rows]
    bars = axes.barh(range(len(rows)), [row.pairs for row in rows], color=colours)
    texts = [f"{row.pairs:,} pairs" + ("" if row.samples is None else f", {row.samples:,} samples") for row in rows]
    axes.bar_label(bars, texts, padding=4, fontsize=9)
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(row.pairs for row in rows) * 1.4 or 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("pairs")
    return figure
