"""The rooms by name: which settings model owns each section of a config, which stages there are, who checks what.

This is the one place where the ground floor knows the table of contents of the rooms above it. They are named, not imported:
nothing here is loaded before it is asked for, and every model and table listed here imports nothing heavy.
"""

import importlib
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
# Facts that parts are made from and that no artifact holds: `@name` or `@name:rest` in `Input.of`; who tells them, and what is said
# when one has changed.
FACTS = {
    "source": ("data.stages:planned_rows_digest", "the input's rows have changed since"),
    "origin": ("data.stages:untold", "the run it was resharded from has changed since"),
    "removed": ("data.stages:removed_digest", "samples were removed since"),
    "thresholds": ("data.stages:untold", "a threshold over all parts has moved since"),
    "copies": ("data.stages:untold", "other images give way to copies since"),
    "clip": ("embed.stages:clip_identity", "the CLIP it was made with has been replaced since"),
    "results": ("eval.stages:results_digest", "the human evaluation has other results since"),
}


def load(name: str) -> Any:
    """What `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
