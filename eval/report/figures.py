"""Figures of the report as data URLs: nothing outside the file is ever needed to see them."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.pipeline.lineage import Node
from data.reports.funnel import FunnelRow, draw_funnel
from eval.images import write_png
from eval.metrics.metric import TWO_OBJECTS
from eval.report.lineage import draw_lineage
from eval.report.page import in_order, title_of
from eval.table import Row

# Of systems by their position in the config; the page has a class of the same number for each.
PALETTE = ("#1f6f8b", "#c8553d", "#6a4c93", "#4f772d", "#b5651d", "#ad2e5f", "#3d5a80", "#7a6c5d")
MARKERS = "os^Dvp*X"
REAL = "#3c3c3c"


def png_url(pixels: NDArray[np.uint8]) -> str:
    """uint8 (h, w, 3) -> data URL."""
    return "data:image/png;base64," + base64.b64encode(write_png(pixels)).decode()


def figure_url(figure: Figure) -> str:
    """A figure as SVG in a data URL; the same for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def figures(
    rows: Sequence[Row], systems: Sequence[str], funnel: list[FunnelRow], nodes: Sequence[Node]
) -> Mapping[str, Any]:
    """Guidance curves of every metric but the two-object details, the funnel, and the lineage, as data URLs."""
    metrics = in_order(r.metric for r in rows if r.kind == "system" and r.metric.scope != TWO_OBJECTS)
    curves = [figure_url(guidance_curve([r for r in rows if r.metric == m], systems, title_of(m))) for m in metrics]
    return {
        "curves": curves, "funnel": figure_url(draw_funnel(funnel)),
        "lineage": figure_url(draw_lineage(nodes)),
    }  # fmt: skip


def guidance_curve(rows: Sequence[Row], systems: Sequence[str], title: str) -> Figure:
    """One metric over the decoder's guidance scale, 95 % intervals as bars; real images as a line with a band, chance dotted."""
    figure = Figure(figsize=(4.2, 2.9))
    axes = figure.add_subplot()
    for i, system in enumerate(systems):
        mine = [r for r in rows if r.kind == "system" and r.system == system]
        if mine:
            mine.sort(key=lambda r: r.guidance or 0)
            # Beside each other, not one over the other.
            x = np.array([r.guidance for r in mine]) * (1 + 0.015 * (2 * i - len(systems) + 1))
            below, above = [r.value - r.lo for r in mine], [r.hi - r.value for r in mine]
            axes.errorbar(
                x, [r.value for r in mine], yerr=np.maximum([below, above], 0), color=PALETTE[i % len(PALETTE)],
                marker=MARKERS[i % len(MARKERS)], markersize=4.5, capsize=2.5, linewidth=1.4, label=system,
            )  # fmt: skip
    for row in rows:
        if row.kind == "real":
            axes.axhline(row.value, color=REAL, linewidth=1, label="real images")
            axes.axhspan(row.lo, row.hi, color=REAL, alpha=0.12, linewidth=0)
        if row.kind == "chance":
            axes.axhline(row.value, color=REAL, linewidth=1, linestyle=":", label="chance")
    scales = sorted({r.guidance for r in rows if r.guidance is not None})
    if min(scales) > 0:
        axes.set_xscale("log")
    axes.set_xticks(scales, [f"{s:g}" for s in scales])
    axes.minorticks_off()
    axes.set_xlabel("decoder guidance scale")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7.5, frameon=False)
    return figure
