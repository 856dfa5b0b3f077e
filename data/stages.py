"""The stages of this room."""

from data.dataset.build import refuse_changed_source
from data.pipeline.errors import UserError
from data.pipeline.lineage import StageRow
from data.pipeline.run import Run
from data.views.removal import keeps_removed

SCORES = "delete it, or reshard and run `make dataset embeddings` there"
AT_ONCE = "it is made again at once, without them"


def input_changed(run: Run) -> str | None:
    """What changed in the user's own files since the dataset was planned from them."""
    try:
        refuse_changed_source(run)
        return None
    except UserError as error:
        return str(error)


STAGES = (
    StageRow(
        "dataset", "make dataset", "python -m data reshard --view base --to NAME, then delete this run's folder",
        holds="bytes", input_changed=input_changed, precious=True,
    ),
    StageRow("scores/basic", "make dataset", SCORES, follows="dataset", holds="rows by part"),
    StageRow("scores/duplicates", "make dataset", SCORES, settings="views.duplicates", holds="rows by part"),
    StageRow("views/base", "make dataset", AT_ONCE, follows="dataset", settings="views.base"),
    StageRow("views/train", "make embeddings", AT_ONCE, follows="dataset", settings="views.train", after="scores/semantic"),
    # Of somebody's own code: no config asks for them, and they record what they like.
    StageRow("scores/*", "make embeddings", SCORES, asked_for=lambda config: False, holds="rows by part", after="views/train"),
    StageRow(
        "views/*", "make embeddings", "delete it and make it again", asked_for=lambda config: False, holds="keys",
        check=keeps_removed, after="scores/*",
    ),
)  # fmt: skip
