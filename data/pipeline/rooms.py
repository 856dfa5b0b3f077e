"""The rooms by name: which settings model owns each section of a config, which stages there are, who checks what.

This is the one place where the ground floor knows the table of contents of the rooms above it. They are named, not imported:
nothing here is loaded before it is asked for, and every model and table listed here imports nothing heavy.
"""

import importlib
from dataclasses import dataclass
from typing import Any

SECTIONS = {
    "run": "data.pipeline.settings:RunSettings",
    "cluster": "data.pipeline.settings:ClusterSettings",
    "dataset": "data.dataset.settings:DatasetSettings",
    "views": "data.views.settings:ViewsSettings",
    "clip": "embed.settings:ClipSettings",
    "embeddings": "embed.settings:EmbeddingsSettings",
    "clip_training": "training.settings:ClipTrainingSettings",
    "prior": "training.settings:PriorSettings",
    "decoder": "training.settings:DecoderSettings",
    "systems": "training.settings:SystemsSettings",
    "eval": "eval.settings:EvalSettings",
    "humaneval": "humaneval.settings:HumanevalSettings",
}
# Functions `(config) -> problem or None` that compare sections with each other, asked by every front door.
CHECKS = (
    "embed.settings:problem_between_sections",
    "training.settings:problem_between_sections",
    "eval.settings:problem_between_sections",
    "humaneval.settings:problem_between_sections",
)
# Tables of stages, in the order in which a run makes them (see data.pipeline.lineage.StageRow).
STAGES = (
    "data.stages:STAGES",
    "embed.stages:STAGES",
    "training.stages:STAGES",
    "eval.stages:STAGES",
    "humaneval.stages:STAGES",
)


@dataclass(frozen=True)
class Fact:
    """What parts are made from and no artifact holds (`@name` or `@name:rest` in `Input.of`): who tells its digest of today, and what is
    said when that is another. Some can't be told without making the artifact again: they follow from its other inputs or settings."""

    told_by: str | None = None
    changed: str = "it has changed since"


FACTS = {
    "source": Fact(),  # rows of the plan; `make status` compares the user's files with it
    "origin": Fact(),  # shards of another run that a dataset was resharded from
    "removed": Fact("data.views.removal:removed_digest", "samples were removed since"),
    "thresholds": Fact(),  # of rules on a top fraction, over all parts of the scores among the inputs
    "copies": Fact(),  # which images of a part give way to others
    "clip": Fact("embed.stages:clip_identity", "the CLIP it was made with has been replaced since"),
    "results": Fact("eval.stages:results_digest", "the results of the human evaluation have changed since"),
    "images": Fact(),  # which real images a set holds, and at which side
    "shown": Fact(),  # labels and settings that a report shows
}


def load(name: str) -> Any:
    """What `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
