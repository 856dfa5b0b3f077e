"""The report: `eval/report.json` with every number, and `eval/report.html`, one file that shows them without a network."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from data.dataset.settings import DatasetSettings
from data.dataset.shards import ShardReader
from data.generations import find_samples, read_samples
from data.pipeline.artifacts import Artifact, publish_bytes, publish_json, read_json
from data.pipeline.config import Config
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from data.pipeline.runner import provenance
from data.reports.funnel import draw_funnel, funnel_rows
from embed.settings import ClipSettings
from eval.generate import drawn_with
from eval.images import read_png, tile
from eval.prompts import Prompt, read_prompts
from eval.protocols.run import sample_name
from eval.report.figures import figure_url, guidance_curve, png_url
from eval.settings import EvalSettings
from eval.table import Row, read_rows
from training.loop.pixels import reduce_image
from training.systems import SYSTEMS

GRID_SIDE = 4
ATTRIBUTES_FIRST = ("colour", "background", "colour+background", "shape", "size", "position", "texture")
HUMAN_COLUMNS = ("n", "win_rate", "lo", "hi", "normal_lo", "normal_hi", "wins", "ties", "losses")
SHARES = ("win_rate", "lo", "hi", "normal_lo", "normal_hi")
SIDE_BY_SIDE = 12  # captions shown at every scale
TITLES = {
    "fid": "FID", "fd": "Frechet distance", "clip_score": "CLIP score", "clip_score_hessel": "CLIP score (Hessel)",
    "r_precision": "R-precision, top 1", "diversity": "Within-caption diversity", "attribute_accuracy": "Accuracy",
}  # fmt: skip


def write_report(run: Run) -> tuple[Path, Path]:
    """Write report.json and report.html from the metrics table, the samples and the run's artifacts; returns their paths."""
    rows, facts = read_rows(run.folder / "eval" / "metrics.parquet")
    require_same_samples(run, facts)
    report = {
        "title": f"{run.folder.name}: unCLIP and GLIDE",
        "labels": labels(run.config),
        "facts": facts,
        "metrics": [row.to_json() for row in rows],
        "funnel": [asdict(row) for row in funnel_rows(run)],
        "human_evaluation": human_evaluation(run),
        "artifacts": artifact_digests(run),
        "config": run.config.to_dict(),
        "provenance": provenance(),
    }
    folder = run.folder / "eval"
    publish_json(folder / "report.json", finite(report))
    publish_bytes(folder / "report.html", render(report, rows, pictures(run), figures(run, rows)).encode())
    return folder / "report.json", folder / "report.html"


def require_same_samples(run: Run, facts: Mapping[str, Any]) -> None:
    """Pictures and numbers must be of the same samples. Raises UserError naming the samples that the numbers do not know."""
    settings = run.config[EvalSettings]
    for system in SYSTEMS:
        grids = find_samples(run.folder, system, "grids", settings.grid_guidance)
        for scale in settings.guidance:
            artifact = find_samples(run.folder, system, "captions", scale)
            if facts["samples"].get(sample_name(system, scale)) != artifact.digest():
                raise UserError(
                    f"the metrics were not computed from {artifact.folder} as it is now; run `python -m eval metrics`"
                )
            if drawn_with(grids) != drawn_with(artifact):
                raise UserError(
                    f"{grids.folder} and {artifact.folder} were drawn with different models; run `python -m eval sample`"
                )


def labels(config: Config) -> list[str]:
    """What a reader must know before any number: sentences for the head of the report."""
    found = [config[EvalSettings].label] if config[EvalSettings].label else []
    if config[DatasetSettings].scenes is not None:
        found.append("Synthetic data: images and captions are drawn by a program; nothing here is a photograph.")
    if config[ClipSettings].source == "random":
        found.append("The CLIP has random weights: every number that rests on it is meaningless.")
    return found


def human_evaluation(run: Run) -> dict[str, Any] | None:
    """The results file of humaneval, as it is; None where there is none."""
    path = run.folder / "humaneval" / "results.json"
    return read_json(path, "results of the human evaluation") if path.exists() else None


def artifact_digests(run: Run) -> dict[str, str]:
    """Folder (relative to the run) -> digest, of every complete artifact."""
    manifests = sorted(run.folder.glob("**/manifest.json"))
    return {m.parent.relative_to(run.folder).as_posix(): Artifact(m.parent).digest() for m in manifests}


def finite(value: Any) -> Any:
    """The same with NaN and infinities as null: JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- pictures ---


def pictures(run: Run) -> dict[str, Any]:
    """Sample grids as data URLs: 4x4 of both systems for each caption of `grids`, and one image a scale for some captions."""
    settings = run.config[EvalSettings]
    grids = {p.prompt_id: p for p in read_prompts(run.artifact("prompts/grids"))}
    of = {s: _by_prompt(find_samples(run.folder, s, "grids", settings.grid_guidance)) for s in SYSTEMS}
    return {
        "guidance": settings.grid_guidance,
        "grids": [
            {"caption": p.caption, **{s: png_url(tile(of[s][i][: GRID_SIDE**2], GRID_SIDE)) for s in SYSTEMS}}
            for i, p in grids.items()
        ],
        "scales": list(settings.guidance),
        "side_by_side": _side_by_side(run, settings),
    }


def _side_by_side(run: Run, settings: EvalSettings) -> list[dict[str, Any]]:
    prompts = read_prompts(run.artifact("prompts/captions"))
    chosen: list[Prompt] = [
        prompts[i] for i in np.linspace(0, len(prompts) - 1, min(SIDE_BY_SIDE, len(prompts))).astype(int)
    ]
    ids = [p.prompt_id for p in chosen]
    reader = ShardReader(run.dataset)
    of = {
        (s, g): _by_prompt(find_samples(run.folder, s, "captions", g), ids) for s in SYSTEMS for g in settings.guidance
    }
    side = next(iter(of.values()))[ids[0]].shape[1]
    return [
        {
            "caption": p.caption,
            "real": png_url(reduce_image(reader.image(p.caption_key), side)),
            "systems": {s: [png_url(of[s, g][p.prompt_id][0]) for g in settings.guidance] for s in SYSTEMS},
        }
        for p in chosen
    ]


def _by_prompt(artifact: Artifact, prompts: Sequence[str] | None = None) -> dict[str, NDArray[np.uint8]]:
    """prompt_id -> uint8 (samples, h, w, 3) in the order of the sample index."""
    files: dict[str, list[str]] = {}
    for row in read_samples(artifact).select(["prompt_id", "file"]).to_pylist():
        if prompts is None or row["prompt_id"] in prompts:
            files.setdefault(row["prompt_id"], []).append(row["file"])
    return {p: np.stack([read_png((artifact.folder / f).read_bytes()) for f in names]) for p, names in files.items()}


def figures(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """Guidance curves of every metric but the two-object details, and the funnel, as data URLs."""
    metrics = in_order(r.metric for r in rows if r.system in SYSTEMS and "two objects" not in r.metric)
    curves = [figure_url(guidance_curve([r for r in rows if r.metric == m], title_of(m))) for m in metrics]
    return {"curves": curves, "funnel": figure_url(draw_funnel(funnel_rows(run)))}


# --- the page ---


def title_of(metric: str) -> str:
    """`attribute_accuracy[colour]` -> `Accuracy: colour`."""
    family, _, what = metric.removesuffix("]").partition("[")
    return f"{TITLES.get(family, family)}: {what}" if what else TITLES.get(family, family)


def in_order(metrics: Iterable[str]) -> list[str]:
    """Distinct metrics as they came, attributes by how much they matter."""

    def rank(metric: str) -> int:
        what = metric.removesuffix("]").partition("[")[2].partition(",")[0]
        return ATTRIBUTES_FIRST.index(what) if what in ATTRIBUTES_FIRST else -1

    return sorted(dict.fromkeys(metrics), key=rank)


def columns_of(rows: Sequence[Row]) -> list[tuple[str, float | None]]:
    """(system, scale) of every column of the headline table, systems side by side, then real images and chance."""
    scales = sorted({r.guidance for r in rows if r.guidance is not None})
    present = {r.system for r in rows}
    return [(s, g) for s in SYSTEMS for g in scales] + [(s, None) for s in ("real", "chance") if s in present]


def tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The headline tables: rows are metrics, columns systems and scales."""
    kinds = {
        "Image quality, agreement with captions, diversity": lambda m: not m.startswith(("attribute", "classifier")),
        "What one-object captions name": lambda m: m.startswith("attribute") and "two objects" not in m,
        "What two-object captions name": lambda m: "two objects" in m and m.startswith("attribute"),
    }
    found = []
    for caption, wanted in kinds.items():
        mine = [r for r in rows if wanted(r.metric) and r.system in (*SYSTEMS, "real", "chance")]
        if mine:
            cells = {(r.metric, r.system, r.guidance): r for r in mine}
            columns = columns_of(mine)
            lines = [(m, [cells.get((m, *column)) for column in columns]) for m in in_order(r.metric for r in mine)]
            found.append({"caption": caption, "columns": columns, "lines": lines})
    return found


def render(
    report: Mapping[str, Any], rows: Sequence[Row], pictures: Mapping[str, Any], figures: Mapping[str, Any]
) -> str:
    """The page. Every string from outside is escaped; images are data URLs made here."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "title_of": title_of,
        "pretty": lambda v: json.dumps(v, indent=2, ensure_ascii=False),
    }
    template = environment.get_template("page.html.j2")
    paired = [r for r in rows if r.system == " - ".join(SYSTEMS)]
    differences = [(m, [r for r in paired if r.metric == m]) for m in in_order(r.metric for r in paired)]
    classifier = [r for r in rows if r.metric.startswith("classifier")]
    warnings: dict[str, list[str]] = {}
    for row in rows:
        for text in row.warnings:
            warnings.setdefault(text, []).append(
                f"{row.metric}, {row.system}{'' if row.guidance is None else f' at {row.guidance:g}'}"
            )
    return template.render(
        report=report, tables=tables(rows), differences=differences, classifier=classifier, warnings=warnings,
        scales=sorted({r.guidance for r in paired}), pictures=pictures, figures=figures,
        human_columns=HUMAN_COLUMNS, shares=SHARES,
    )  # fmt: skip


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
