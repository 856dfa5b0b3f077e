"""The trainings of this room: one row each, from which its commands and its stages are made.

A new network is its own files (network, sampling, task), its section of the config, and a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from data.pipeline.config import Config
from data.pipeline.lineage import StageRow
from data.pipeline.run import Run
from data.pipeline.stage import Stage
from embed.settings import ClipSettings
from training.settings import SystemsSettings


@dataclass(frozen=True)
class Training:
    """`python -m training <name>` makes the artifact `row.name` by the stage that `stage(run)` gives; `together`: `all` does too,
    where the run asks for it."""

    name: str
    help: str
    row: StageRow
    stage: Callable[[Run], Stage]
    together: bool = True


def _clip(run: Run) -> Stage:
    from training.tasks.clip import clip_stage

    return clip_stage(run)


def _decoder(run: Run) -> Stage:
    from training.tasks.decoder import decoder_stage

    return decoder_stage(run)


def _glide(run: Run) -> Stage:
    from training.tasks.decoder import glide_stage

    return glide_stage(run)


def _prior(run: Run) -> Stage:
    from training.tasks.prior import prior_stage

    return prior_stage(run)


def _own_clip(config: Config) -> bool:
    return config[ClipSettings].source == "run"


def _model(name: str) -> StageRow:
    """A model is made where a row of `[systems]` names it."""
    return StageRow(
        f"models/{name}", "make train", "delete it and run `make train`",
        asked_for=lambda config: name in config[SystemsSettings].models(), precious=True,
    )  # fmt: skip


# The longest first: `all` begins them in this order.
TRAININGS = (
    Training(
        "clip", "train the run's own CLIP on the view base",
        StageRow("clip", "make clip", "delete it and run `make clip embeddings`", asked_for=_own_clip, after="views/base", precious=True),
        _clip, together=False,
    ),
    Training("decoder", "train the decoder", _model("decoder"), _decoder),
    Training("glide", "train the GLIDE baseline: the decoder's network on captions alone", _model("glide"), _glide),
    Training("prior", "train the diffusion prior", _model("prior"), _prior),
)  # fmt: skip
STAGES = tuple(training.row for training in TRAININGS)
