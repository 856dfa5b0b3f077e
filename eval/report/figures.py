"""Figures of the report as data URLs: nothing outside the file is ever needed to see them."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.images import write_png
from eval.table import Row

COLOURS = {"unclip": "#1f6f8b", "glide": "#c8553d", "real": "#3c3c3c"}
MARKERS = {"unclip": "o", "glide": "s"}


def png_url(pixels: NDArray[np.uint8]) -> str:
    """uint8 (h, w, 3) -> data URL."""
    return "data:image/png;base64," + base64.b64encode(write_png(pixels)).decode()


def figure_url(figure: Figure) -> str:
    """A figure as SVG in a data URL; the same for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def guidance_curve(rows: Sequence[Row], title: str) -> Figure:
    """One metric over the decoder's guidance scale, 95 % intervals as bars; real images as a line with a band, chance dotted."""
    figure = Figure(figsize=(4.2, 2.9))
    axes = figure.add_subplot()
    for i, system in enumerate(COLOURS):
        mine = sorted((r for r in rows if r.system == system and r.guidance is not None), key=lambda r: r.guidance or 0)
        if mine:
            x = np.array([r.guidance for r in mine]) * (1 + 0.015 * (2 * i - 1))
            below, above = [r.value - r.lo for r in mine], [r.hi - r.value for r in mine]
            axes.errorbar(
                x, [r.value for r in mine], yerr=np.maximum([below, above], 0), color=COLOURS[system],
                marker=MARKERS[system], markersize=4.5, capsize=2.5, linewidth=1.4, label=system,
            )  # fmt: skip
    for row in rows:
        if row.system == "real":
            axes.axhline(row.value, color=COLOURS["real"], linewidth=1, label="real images")
            axes.axhspan(row.lo, row.hi, color=COLOURS["real"], alpha=0.12, linewidth=0)
        if row.system == "chance":
            axes.axhline(row.value, color=COLOURS["real"], linewidth=1, linestyle=":", label="chance")
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
