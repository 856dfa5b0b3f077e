"""The report, the artifact `eval/report/`: `report.json` with every number, `report.html`, one file that shows them without a network.

Unlike other artifacts its bytes name the day, the machine, and what the run had cost until then. It is made again when something
else that it shows has changed.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.dataset.settings import DatasetSettings
from data.generations import find_generations
from data.pipeline.artifacts import Artifact, fingerprint, publish_bytes, publish_json, read_json
from data.pipeline.config import Config, without_passwords
from data.pipeline.cost import SUMMARY
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage, graph
from data.pipeline.provenance import provenance
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.reports.funnel import funnel_rows
from embed.settings import ClipSettings
from eval.protocols.rows import FILE, FOLDER
from eval.report.figures import PALETTE, figures
from eval.report.page import render
from eval.report.pictures import pictures
from eval.settings import EvalSettings
from eval.stages import human_results, results_digest
from eval.table import read_rows
from training.settings import SystemsSettings

REPORT = "eval/report"
JSON_FILE, HTML_FILE = "report.json", "report.html"
VERSION = 1


@dataclass(frozen=True)
class ReportWork:
    """The run that is reported on."""

    run: Run


def write_report(run: Run) -> tuple[Path, Path]:
    """Write report.json and report.html unless they stand; returns their paths. Raises UserError for metrics or generated images that
    are not there or are stale."""
    part = PartSpec("report", tuple(_inputs(run)), ReportWork(run))
    stage = Stage("report", VERSION, run.folder / REPORT, {}, [part], make_report, unit="reports")
    run_stage(stage, InProcess(), run.logs)
    return run.folder / REPORT / JSON_FILE, run.folder / REPORT / HTML_FILE


def _inputs(run: Run) -> list[Input]:
    """Everything that is shown. Numbers and pictures are of the same images: both must be current."""
    lineage, settings = Lineage(run), run.config[EvalSettings]
    names = [FOLDER, "dataset", "views/train", *(f"prompts/{name}" for name in settings.prompt_sets)]
    for prompt_set in settings.prompt_sets:
        for scale in settings.scales(prompt_set):
            for system in run.config[SystemsSettings].rows:
                folder = find_generations(run.folder, system, prompt_set, scale).folder
                names.append(folder.relative_to(run.folder).as_posix())
    found = [Input(name, lineage.require(name, _command(name)).digest()) for name in names]
    return [*found, Input("@results", results_digest(run, "")), Input("@shown", fingerprint(shown(run)))]


def shown(run: Run) -> dict[str, Any]:
    """What the page shows of the config itself."""
    systems = list(run.config[SystemsSettings].rows)
    return {
        "title": f"{run.folder.name}: {' and '.join(systems)}",
        "systems": systems,
        "labels": labels(run.config),
        "config": without_passwords(run.config.to_dict()),
    }


def _command(name: str) -> str | None:
    """The command of this room that makes an artifact again; None for artifacts of others."""
    return {"eval": "python -m eval metrics", "generations": "python -m eval generate"}.get(name.partition("/")[0])


def make_report(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Write both files."""
    run = spec.work.run
    rows, facts = read_rows(run.folder / FOLDER / FILE)
    people, funnel = human_results(run), funnel_rows(run)
    nodes = [node for node in graph(run) if node.name != REPORT]  # which is being made
    report = shown(run) | {
        "facts": facts,
        "metrics": [row.to_json() for row in rows],
        "funnel": [asdict(row) for row in funnel],
        "human_evaluation": people.content,
        "human_evaluation_note": people.note,
        "cost": optional_json(run.logs / SUMMARY, "record of the run's cost"),
        "lineage": [asdict(node) for node in nodes],
        "artifacts": artifact_digests(run),
        "provenance": provenance(),
    }
    publish_json(attempt / JSON_FILE, finite(report))
    page = render(report, rows, pictures(run), figures(rows, report["systems"], funnel, nodes), PALETTE)
    publish_bytes(attempt / HTML_FILE, page.encode())
    return {"numbers": len(rows)}


def labels(config: Config) -> list[str]:
    """What a reader must know before any number: sentences for the head of the report."""
    label = config[EvalSettings].label
    found = [label] if label else []
    if config[DatasetSettings].scenes is not None:
        found.append("Synthetic data: images and captions are drawn by a program; nothing here is a photograph.")
    if config[ClipSettings].source == "random":
        found.append("The CLIP has random weights: every number that rests on it is meaningless.")
    return found


def optional_json(path: Path, what: str) -> dict[str, Any] | None:
    """A JSON file as it is; None where there is none."""
    return read_json(path, what) if path.exists() else None


def artifact_digests(run: Run) -> dict[str, str]:
    """Folder (relative to the run) -> digest, of every complete artifact but the report."""
    folders = sorted(path.parent for path in run.folder.glob("**/manifest.json"))
    names = [folder.relative_to(run.folder).as_posix() for folder in folders]
    return {name: Artifact(run.folder / name).digest() for name in names if name != REPORT}


def finite(value: Any) -> Any:
    """The same with NaN and infinities as null: JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
