"""The page of the report: its tables, how numbers are written, and the template filled in."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.metrics.families import CLASSIFIER, FAMILIES
from eval.metrics.metric import TWO_OBJECTS, Metric
from eval.table import Kind, Row

ATTRIBUTES_FIRST = ("colour", "background", "colour+background", "shape", "size", "position", "texture")
HUMAN_COLUMNS = ("n", "win_rate", "lo", "hi", "normal_lo", "normal_hi", "wins", "ties", "losses")
SHARES = ("win_rate", "lo", "hi", "normal_lo", "normal_hi")


def render(
    report: Mapping[str, Any], rows: Sequence[Row], pictures: Mapping[str, Any], figures: Mapping[str, Any],
    palette: Sequence[str],
) -> str:  # fmt: skip
    """The page. Every string from outside is escaped; images are data URLs made here. `palette` are the systems' colours."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "percent": percent, "title_of": title_of,
        "pretty": lambda v: json.dumps(v, indent=2, ensure_ascii=False),
    }  # fmt: skip
    systems = report["systems"]
    return environment.get_template("page.html.j2").render(
        report=report, tables=tables(rows, systems), differences=differences(rows),
        classifier=[r for r in rows if r.metric.family == CLASSIFIER], warnings=warnings(rows),
        citations=citations(rows), pictures=pictures, figures=figures, human_columns=HUMAN_COLUMNS, shares=SHARES,
        palette=palette, css_class={system: f"system-{i % len(palette)}" for i, system in enumerate(systems)},
    )  # fmt: skip


def title_of(metric: Metric) -> str:
    """`Accuracy: colour`, `Frechet distance: clip:1234abcd`."""
    what = ", ".join(part for part in (metric.what or metric.space, _details(metric)) if part)
    return f"{FAMILIES[metric.family].title}: {what}"


def _details(metric: Metric) -> str | None:
    return metric.scope if metric.scope == TWO_OBJECTS else None


def in_order(metrics: Iterable[Metric]) -> list[Metric]:
    """Distinct metrics as they came, attributes by how much they matter."""

    def rank(metric: Metric) -> int:
        return ATTRIBUTES_FIRST.index(metric.what) if metric.what in ATTRIBUTES_FIRST else -1

    return sorted(dict.fromkeys(metrics), key=rank)


def tables(rows: Sequence[Row], systems: Sequence[str]) -> list[dict[str, Any]]:
    """The headline tables: rows are metrics, columns systems and scales, then real images and chance."""
    shown = [r for r in rows if r.kind != "difference" and r.metric.family != CLASSIFIER]
    kinds = {
        "Image quality, agreement with captions, diversity": [r for r in shown if r.metric.what is None],
        "What one-object captions name": [r for r in shown if r.metric.what and r.metric.scope != TWO_OBJECTS],
        "What two-object captions name": [r for r in shown if r.metric.what and r.metric.scope == TWO_OBJECTS],
    }
    return [_table(caption, mine, systems) for caption, mine in kinds.items() if mine]


def _table(caption: str, rows: Sequence[Row], systems: Sequence[str]) -> dict[str, Any]:
    scales = sorted({r.guidance for r in rows if r.guidance is not None})
    columns: list[tuple[Kind, str, float | None]] = [("system", s, g) for s in systems for g in scales]
    others: tuple[Kind, ...] = ("real", "chance")
    columns += [(kind, kind, None) for kind in others if any(r.kind == kind for r in rows)]
    cells = {(r.metric, r.kind, r.system, r.guidance): r for r in rows}
    lines = [(m, [cells.get((m, *column)) for column in columns]) for m in in_order(r.metric for r in rows)]
    return {"caption": caption, "columns": columns, "lines": lines}


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A table for every pair of systems: rows are metrics, columns scales."""
    paired = [r for r in rows if r.kind == "difference"]
    found = []
    for pair in dict.fromkeys(r.system for r in paired):
        mine = [r for r in paired if r.system == pair]
        cells = {(r.metric, r.guidance): r for r in mine}
        scales = sorted({r.guidance for r in mine if r.guidance is not None})
        lines = [(m, [cells.get((m, scale)) for scale in scales]) for m in in_order(r.metric for r in mine)]
        found.append({"caption": pair, "scales": scales, "lines": lines})
    return found


def warnings(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Warning -> the numbers that it concerns."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in row.warnings:
            at = "" if row.guidance is None else f" at {row.guidance:g}"
            found.setdefault(text, []).append(f"{row.metric.name}, {row.system}{at}")
    return found


def citations(rows: Sequence[Row]) -> dict[str, str]:
    """Title of a family -> where it is defined, of those that occur."""
    families = dict.fromkeys(row.metric.family for row in rows)
    return {FAMILIES[name].title: FAMILIES[name].citation for name in families}


def percent(value: float | None) -> str:
    """A share as a percentage; nothing for None."""
    return "-" if value is None else f"{100 * value:.1f}%"


def number(value: Any) -> str:
    """Three decimals below 10, one above; nothing for None; other values as they are."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(inner)}" for key, inner in value.items())
    if isinstance(value, bool) or not isinstance(value, float | int):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
