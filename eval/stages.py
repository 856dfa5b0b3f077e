"""The stages of this room, and the fact that its report is made from and that no artifact holds."""

from data.dataset.settings import DatasetSettings
from data.pipeline.artifacts import fingerprint, sha256_file
from data.pipeline.config import Config
from data.pipeline.lineage import StageRow
from data.pipeline.run import Run
from eval.settings import EvalSettings
from training.settings import SystemsSettings

COMMAND = "make eval"
AGAIN = "delete it and run `make eval`"
RESULTS = "humaneval/results.json"


def knows_attributes(config: Config) -> bool:
    """Whether the dataset says what its images show: the synthetic world does."""
    return config[DatasetSettings].scenes is not None


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


STAGES = (
    StageRow("eval/attributes", COMMAND, AGAIN, asked_for=knows_attributes),
    StageRow("prompts/*", COMMAND, AGAIN, count=lambda config: len(config[EvalSettings].prompt_sets), holds="keys"),
    StageRow("generations/*/*", COMMAND, AGAIN, count=generated_folders, holds="keys"),
    StageRow("eval/features/*/*", COMMAND, AGAIN, count=feature_folders, holds="keys"),
    StageRow("eval/metrics", COMMAND, AGAIN),
    StageRow("eval/report", COMMAND, "delete it and run `make eval`; copies that were given away show what they show"),
)


def results_digest(run: Run, rest: str) -> str:
    """The fact `@results`: of the human evaluation's results, or of there being none."""
    path = run.folder / RESULTS
    return sha256_file(path) if path.is_file() else fingerprint(None)
