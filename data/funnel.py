"""The funnel: how many candidates became training pairs, and where the others went, in samples and pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.artifacts import Artifact
from data.run import Run
from data.status import stale
from data.views import BASE_REASONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FunnelRow:
    """`reason` is None for what goes on after `step`, else why so many were dropped there. A view drops pairs; a sample counts
    as dropped (without a reason of its own, `samples` is None) only when all its pairs are."""

    step: str
    reason: str | None
    samples: int | None
    pairs: int


def funnel_rows(run: Run) -> list[FunnelRow]:
    """From planned to the narrowest complete view. Each step's pairs add up to those before it."""
    counts = run.dataset.require("make dataset").manifest()["counts"]
    rows = [FunnelRow("planned", None, counts["planned_samples"], counts["planned_pairs"])]
    reasons = sorted(
        k.removeprefix("dropped_").removesuffix("_samples")
        for k in counts
        if k.startswith("dropped_") and k.endswith("_samples")
    )
    rows += [FunnelRow("download", r, counts[f"dropped_{r}_samples"], counts[f"dropped_{r}_pairs"]) for r in reasons]
    rows.append(FunnelRow("stored", None, counts["stored_samples"], counts["stored_pairs"]))
    before = rows[-1]
    for name in ("base", "train"):
        if not run.view(name).is_complete() or stale(run, f"views/{name}", run.view(name)):
            break  # a view of another dataset would not add up; `make status` says why it is stale
        rows += _view_rows(name, run.view(name), before)
        before = rows[-1]
    return rows


def _view_rows(name: str, view: Artifact, before: FunnelRow) -> list[FunnelRow]:
    """A later view repeats the reasons of the one it narrows; only what it adds is shown."""
    counts = view.manifest()["counts"]
    dropped = {
        k.removeprefix("dropped_").removesuffix("_pairs"): v for k, v in counts.items() if k.startswith("dropped_")
    }
    if name != "base":
        dropped = {reason: n for reason, n in dropped.items() if reason not in BASE_REASONS}
    rows = [FunnelRow(f"view {name}", reason, None, n) for reason, n in sorted(dropped.items())]
    rows.append(FunnelRow(f"view {name}", None, counts["kept_samples"], counts["kept_pairs"]))
    assert before.pairs == sum(r.pairs for r in rows), f"view {name}: {before.pairs} pairs before, {rows} after"
    return rows


def funnel_text(rows: list[FunnelRow]) -> str:
    """A table for the terminal."""
    lines = [f"{'step':<14}{'reason':<28}{'samples':>12}{'pairs':>12}"]
    for row in rows:
        samples = "" if row.samples is None else f"{row.samples:,}"
        lines.append(
            f"{row.step:<14}{'' if row.reason is None else '- ' + row.reason:<28}{samples:>12}{row.pairs:>12,}"
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
