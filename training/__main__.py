"""Front door of the training room: `python -m training clip|prior|decoder|glide --config FILE`."""

import argparse
import sys

from data.pipeline.artifacts import Artifact
from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config
from data.pipeline.run import Run
from embed.settings import ClipSettings


def train_clip(config: Config, arguments: argparse.Namespace) -> None:
    source = config[ClipSettings].source
    if source != "run":
        print(
            f'nothing to train: clip.source = "{source}" names a CLIP that exists; only clip.source = "run" is trained here'
        )
        return
    from training.tasks.clip import train_clip as train

    artifact = train(Run.open(config))
    assert artifact is not None
    report(artifact)


def train_prior(config: Config, arguments: argparse.Namespace) -> None:
    from training.tasks.prior import train_prior as train

    report(train(Run.open(config)))


def train_decoder(config: Config, arguments: argparse.Namespace) -> None:
    from training.tasks.decoder import train_decoder as train

    report(train(Run.open(config), arguments.command))


def report(artifact: Artifact) -> None:
    """The last number of each kind, and where the model lies."""
    import pyarrow.parquet as pq

    last = {row["name"]: row["value"] for row in pq.read_table(artifact.folder / "log.parquet").to_pylist()}
    print(", ".join(f"{name} {value:.4g}" for name, value in sorted(last.items())))
    print(f"wrote {artifact.folder}")


COMMANDS = [
    Command("clip", "train the run's own CLIP on the view base", train_clip),
    Command("prior", "train the diffusion prior", train_prior),
    Command("decoder", "train the decoder", train_decoder),
    Command("glide", "train the GLIDE baseline: the decoder's network on captions alone", train_decoder),
]

if __name__ == "__main__":
    sys.exit(front_door("training", "Networks and their trainers.", COMMANDS))
