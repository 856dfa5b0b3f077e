"""This room's row in the table of stages (`data.pipeline.lineage.StageRow`), and what makes a study stale besides its images."""

from data.pipeline.lineage import StageRow
from data.pipeline.run import Run
from humaneval.settings import Arm, asks_for_study, compared


def other_arms(run: Run, name: str) -> str | None:
    """Whether a study compares other systems than the config does: which ones it says may follow from the rows of `[systems]`."""
    made, asked = run.artifact(name).settings().get("systems"), compared(run.config)
    if made is None or asked is None:
        return None
    arms = tuple(Arm(made[arm]["name"], made[arm]["guidance"]) for arm in "ab")
    return None if arms == asked else f"it compares {_words(arms)}, the config asks for {_words(asked)}"


def _words(arms: tuple[Arm, ...]) -> str:
    return " with ".join(f"{arm.name} at guidance {arm.guidance:g}" for arm in arms)


STAGES = (
    # Its questions are about generated images, whose lineage tells which samples their captions are from.
    StageRow(
        "humaneval/study", "make eval", "delete it and run `make eval`", asked_for=asks_for_study, check=other_arms
    ),
)
