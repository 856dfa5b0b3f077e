"""This room's row in the table of stages (`data.pipeline.lineage.StageRow`)."""

from data.pipeline.lineage import StageRow
from humaneval.settings import asks_for_study

STAGES = (
    # Its questions are about generated images, whose lineage tells which samples their captions are from.
    StageRow("humaneval/study", "make eval", "delete it and run `make eval`", asked_for=asks_for_study),
)
