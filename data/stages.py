"""The stages of this room, and the facts that their parts are made from and that no artifact holds."""

from data.dataset.build import refuse_changed_source
from data.dataset.plan import read_frozen
from data.dataset.retries import frozen_retries
from data.pipeline.lineage import StageRow
from data.pipeline.run import Run
from data.views.removal import removed_digest

__all__ = ["STAGES", "planned_rows_digest", "removed_digest", "untold"]

_AT_ONCE = "it is made again at once, without them"
_SCORES = "delete it, or reshard and run `make dataset embeddings` there"
STAGES = (
    StageRow(
        "dataset", "make dataset", "python -m data reshard --view base --to NAME, then delete this run's folder",
        holds="bytes", costly=("@source",), precious=True,
    ),
    StageRow("scores/basic", "make dataset", _SCORES, follows="dataset", holds="rows by part"),
    StageRow("scores/duplicates", "make dataset", _SCORES, settings="views.duplicates", holds="rows by part"),
    StageRow("views/base", "make dataset", _AT_ONCE, follows="dataset", settings="views.base"),
    StageRow("views/train", "make embeddings", _AT_ONCE, follows="dataset", settings="views.train", after="scores/semantic"),
)  # fmt: skip


def planned_rows_digest(run: Run, part: str) -> str | None:
    """The fact `@source:<part>`: of the plan's rows for a part of the dataset, where the user's files are still those of the plan.

    Raises UserError saying what changed in them."""
    refuse_changed_source(run)
    folder = run.dataset.folder
    frozen = read_frozen(folder)
    planned = dict(enumerate(frozen.shards)) if frozen is not None else {}
    return planned.get(int(part)) or next((r.digest for r in frozen_retries(folder) if r.name == part), None)


def untold(run: Run, part: str) -> None:
    """A fact that nobody can tell without making the artifact again; what it follows from is among the other inputs."""
