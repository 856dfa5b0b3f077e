"""The stages of this room, what makes one stale besides its inputs, and the fact that its report is made from and that no artifact
holds."""

from dataclasses import dataclass
from typing import Any

from data.dataset.settings import DatasetSettings
from data.pipeline.artifacts import fingerprint, read_json, sha256_file
from data.pipeline.config import Config
from data.pipeline.lineage import Lineage, StageRow
from data.pipeline.run import Run
from eval.settings import EvalSettings
from training.settings import SystemsSettings

COMMAND = "make eval"
AGAIN = "delete it and run `make eval`"
PROMPT_SET = "captions"  # the one that is measured
REAL_SETS = ("reference", "real", "prompts", "held-out", "texts")  # what features are of besides systems
RESULTS, STUDY = "humaneval/results.json", "humaneval/study"


def knows_attributes(config: Config) -> bool:
    """Whether the dataset says what its images show: the synthetic world does."""
    return config[DatasetSettings].scenes is not None


def prompt_folders(config: Config) -> int:
    """How many prompt sets a run has."""
    return len(config[EvalSettings].prompt_sets)


def generated_folders(config: Config) -> int:
    """How many folders of generated images a run has: every system's, for every prompt set at its scales."""
    settings = config[EvalSettings]
    return len(config[SystemsSettings].rows) * sum(len(settings.scales(name)) for name in settings.prompt_sets)


def feature_folders(config: Config) -> int:
    """How many sets of features: of every judge for each system and scale, for the reference and the real row beside them; of those
    that judge captions for the prompts' own images; of the CLIP for captions, of the classifier for held-out scenes."""
    settings, attributes = config[EvalSettings], knows_attributes(config)
    sets = len(config[SystemsSettings].rows) * len(settings.guidance) + 2
    judges = 1 + attributes + (settings.inception is not None)
    return judges * sets + (1 + attributes) + 1 + attributes


def other_system(run: Run, name: str) -> str | None:
    """Whether generated images were drawn by other models than the row of `[systems]` names now. Those of a system without a row
    are what they are."""
    system = name.split("/")[1]
    row = run.config[SystemsSettings].rows.get(system)
    inputs = [of for part in run.artifact(name).inputs().values() for of, _ in part]
    drawn_by = {of.partition("/")[2] for of in inputs if of.startswith("models/")}
    if row is None or not drawn_by:  # or drawn by somebody's own code, from no model of the run
        return None
    named = {model for model in (row.prior, row.decoder) if model is not None}
    if drawn_by == named:
        return None
    return f"it was drawn by {' and '.join(sorted(drawn_by))}, systems.{system} names {' and '.join(sorted(named))}"


def other_numbers(run: Run, name: str) -> str | None:
    """Whether the metrics are of other sets of images than the config asks for, or miss a family of today."""
    from eval.metrics.families import versions

    artifact, systems = run.artifact(name), run.config[SystemsSettings].rows
    asked = [set_label(system, scale) for scale in run.config[EvalSettings].guidance for system in systems]
    measured = [part for part in artifact.inputs() if "@" in part]
    if measured != asked:
        return f"it measures {', '.join(measured)}, the config asks for {', '.join(asked)}"
    if artifact.settings().get("families") != versions():
        return "the metrics that there are (eval/metrics/families.py) have changed since"
    return None


def is_asked_for(config: Config, name: str) -> bool:
    """Whether the config asks for a prompt set, a folder of generated images or one of features; a system's that has no row any more
    may still stand."""
    settings, systems = config[EvalSettings], config[SystemsSettings].rows
    room, *_, last = name.split("/")
    if room == "prompts":
        return last in settings.prompt_sets
    if room == "generations":
        return name.split("/")[1] in systems
    return last in REAL_SETS or any(last.startswith(f"{system}-{PROMPT_SET}-") for system in systems)


def set_label(system: str, guidance: float) -> str:
    """What a system's images at one scale are called among the metrics."""
    return f"{system}@{guidance:g}"


STAGES = (
    StageRow("eval/attributes", COMMAND, AGAIN, asked_for=knows_attributes),
    StageRow("prompts/*", COMMAND, AGAIN, count=prompt_folders, holds="keys", member=is_asked_for),
    StageRow(
        "generations/*/*",
        COMMAND,
        AGAIN,
        count=generated_folders,
        holds="keys",
        check=other_system,
        member=is_asked_for,
    ),
    StageRow("eval/features/*/*", COMMAND, AGAIN, count=feature_folders, holds="keys", member=is_asked_for),
    StageRow("eval/metrics", COMMAND, AGAIN, check=other_numbers),
    StageRow("eval/report", COMMAND, "delete it and run `make eval`; copies that were given away show what they show"),
)


@dataclass(frozen=True)
class HumanResults:
    """The human evaluation's results as a report may show them; `note` is what a reader must know of them."""

    content: dict[str, Any] | None = None
    note: str | None = None


def human_results(run: Run) -> HumanResults:
    """Results of the study that stands in the run; those of another one are left out, with a note. Raises UserError for a damaged
    file."""
    path, study = run.folder / RESULTS, run.folder / STUDY / "study.json"
    if not path.is_file():
        return HumanResults()
    content = read_json(path, "results of the human evaluation")
    if not study.is_file() or (content.get("study") or {}).get("hash") != sha256_file(study):
        return HumanResults(
            None, "The results of the human evaluation are of another study than this run's, and are left out."
        )
    if why := Lineage(run).why_stale(STUDY):
        return HumanResults(
            content, f"The human evaluation is of images that are not this report's: its study is stale ({why})."
        )
    return HumanResults(content)


def results_digest(run: Run, rest: str) -> str:
    """The fact `@results`: of what a report shows of the human evaluation."""
    found = human_results(run)
    return fingerprint([found.content, found.note])
