"""Front door of the training room: `python -m training clip|decoder|glide|prior|all --config FILE`."""

import argparse
import sys

from data.pipeline.artifacts import Artifact
from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config
from data.pipeline.run import Run
from embed.settings import ClipSettings
from training.stages import TRAININGS


def train_one(config: Config, arguments: argparse.Namespace) -> None:
    """The training of the command's name."""
    training = next(one for one in TRAININGS if one.name == arguments.command)
    if training.name == "clip" and not training.row.asked_for(config):
        source = config[ClipSettings].source
        print(f'nothing to train: clip.source = "{source}" names a CLIP that exists; clip.source = "run" trains one')
        return
    from training.launch import train_together

    run = Run.open(config)
    report(train_together(run, [training.stage(run)])[0])


def train_all(config: Config, arguments: argparse.Namespace) -> None:
    """Every model that a row of `[systems]` names, independent ones side by side."""
    asked_for = [one for one in TRAININGS if one.together and one.row.asked_for(config)]
    from training.launch import train_together

    run = Run.open(config)
    for artifact in train_together(run, [one.stage(run) for one in asked_for]):
        report(artifact)


def report(artifact: Artifact) -> None:
    """The last number of each kind, and where the model lies."""
    from training.loop.ranks import rank_and_ranks

    if rank_and_ranks()[0] != 0:  # the first process of a launcher speaks for all
        return
    from training.checkpoints import read_log

    last = {name: value for _, name, value in read_log(artifact)}
    print(", ".join(f"{name} {value:.4g}" for name, value in sorted(last.items())))
    print(f"wrote {artifact.folder}")


COMMANDS = [
    *(Command(training.name, training.help, train_one) for training in TRAININGS),
    Command("all", "train every model that a row of [systems] names, independent ones side by side", train_all),
]

if __name__ == "__main__":
    sys.exit(front_door("training", "Networks and their trainers.", COMMANDS))
