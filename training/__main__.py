"""Front door of the training room: `python -m training clip|prior|decoder|glide|sample --config FILE`."""

import argparse
import re
import sys
from pathlib import Path

from data.artifacts import Artifact
from data.cli import Command, front_door
from data.config import Config
from data.errors import UserError
from data.run import Run
from embed.settings import ClipSettings


def train_clip(config: Config, arguments: argparse.Namespace) -> None:
    source = config[ClipSettings].source
    if source != "run":
        print(
            f'nothing to train: clip.source = "{source}" names a CLIP that exists; only clip.source = "run" is trained here'
        )
        return
    from training.clip import train_clip as train

    artifact = train(Run.open(config))
    assert artifact is not None
    report(artifact)


def train_prior(config: Config, arguments: argparse.Namespace) -> None:
    from training.prior import train_prior as train

    report(train(Run.open(config)))


def train_decoder(config: Config, arguments: argparse.Namespace) -> None:
    from training.decoder import train_decoder as train

    report(train(Run.open(config), arguments.command))


def report(artifact: Artifact) -> None:
    """The last number of each kind, and where the model lies."""
    import pyarrow.parquet as pq

    last = {row["name"]: row["value"] for row in pq.read_table(artifact.folder / "log.parquet").to_pylist()}
    print(", ".join(f"{name} {value:.4g}" for name, value in sorted(last.items())))
    print(f"wrote {artifact.folder}")


def sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", choices=("unclip", "glide"), default="unclip")
    parser.add_argument(
        "--prompt", action="append", required=True, help="a caption; may be given several times, one row each"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first column")
    parser.add_argument("--columns", type=int, default=4, help="images per caption, seeds counting up from --seed")
    parser.add_argument("--guidance", type=float, default=2.0, help="of the decoder; 1 is none")
    parser.add_argument("--prior-guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=50, help="of the decoder")
    parser.add_argument("--prior-steps", type=int, default=64)
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE.png", help="default: previews/ of the run folder"
    )


def sample(config: Config, arguments: argparse.Namespace) -> None:
    """One PNG: a row for each caption, a column for each seed."""
    if min(arguments.columns, arguments.steps, arguments.prior_steps) < 1 or arguments.seed < 0:
        raise UserError("--columns, --steps and --prior-steps must be at least 1, --seed at least 0")
    from training.sample import SamplingOptions, load_system, save_grid

    run = Run(config)
    options = SamplingOptions(arguments.prior_guidance, arguments.guidance, arguments.prior_steps, arguments.steps)
    captions = [prompt for prompt in arguments.prompt for _ in range(arguments.columns)]
    seeds = [arguments.seed + column for _ in arguments.prompt for column in range(arguments.columns)]
    images = load_system(run, arguments.system).generate(captions, seeds, options)
    slug = re.sub(r"[^a-z0-9]+", "-", arguments.prompt[0].lower()).strip("-")[:60] or "empty"
    path = arguments.out or run.folder / "previews" / f"{arguments.system}-{slug}-{arguments.seed}.png"
    save_grid(images, arguments.columns, path)
    print(f"wrote {path}")


COMMANDS = [
    Command("clip", "train the run's own CLIP on the view base", train_clip),
    Command("prior", "train the diffusion prior", train_prior),
    Command("decoder", "train the decoder", train_decoder),
    Command("glide", "train the GLIDE baseline: the decoder's network on captions alone", train_decoder),
    Command("sample", "draw images for captions with a trained system", sample, sample_options),
]

if __name__ == "__main__":
    sys.exit(front_door("training", "Networks, trainers and sampling.", COMMANDS))
