"""The stages of this room, and the fact that tells which CLIP a run has trained."""

from data.pipeline.artifacts import read_json
from data.pipeline.lineage import StageRow
from data.pipeline.run import Run
from embed.settings import ClipSettings, EmbeddingsSettings

COMMAND = "make embeddings"
SCORES_REMEDY = "delete it, or reshard and run `make dataset embeddings` there"

STAGES = (
    StageRow(
        "embeddings", COMMAND, "delete it, or reshard and run `make embeddings` there",
        follows="dataset", holds="rows by part",
    ),
    StageRow("scores/similarity", COMMAND, SCORES_REMEDY, follows="dataset", holds="rows by part"),
    StageRow(
        "scores/aesthetic", COMMAND, SCORES_REMEDY,
        asked_for=lambda config: config[EmbeddingsSettings].aesthetic is not None,
        follows="dataset", holds="rows by part",
    ),
    StageRow(
        "scores/semantic", COMMAND, SCORES_REMEDY,
        asked_for=lambda config: config[EmbeddingsSettings].semantic is not None,
        follows="dataset", settings="embeddings.semantic", holds="rows by part",
    ),
)  # fmt: skip


def clip_identity(run: Run, rest: str) -> str | None:
    """The fact `@clip`: the identity of the CLIP that the run has trained for itself (`rest` is empty, there is one). None where it is
    not trained, or comes from elsewhere: to tell its identity then, its weights would have to be read."""
    if run.config[ClipSettings].source != "run" or not run.clip.is_complete():
        return None
    return str(read_json(run.clip.folder / "metrics.json", "metrics of the run's CLIP")["identity"])
