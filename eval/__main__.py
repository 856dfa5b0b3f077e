"""`python -m eval sample|features|metrics|sweep|report --config FILE`: the front door of evaluation."""

import argparse
import sys
from pathlib import Path

from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from eval.settings import EvalSettings


def main() -> int:
    commands = [
        Command(
            "sample",
            "draw both systems on the held-out captions, or one system on a --caption of yours",
            sample,
            _sample_options,
        ),
        Command("features", "features of all samples and of real images, through every judge", features),
        Command("metrics", "eval/metrics.parquet: every number with its interval", metrics),
        Command(
            "sweep", "sample, features and metrics over all guidance scales, then the report: all of `make eval`", sweep
        ),
        Command("report", "eval/report.json and eval/report.html from the metrics", report),
    ]
    return front_door("eval", "Samples, metrics and the report of a run.", commands)


def _sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--caption", help="draw this caption instead of the run's prompt sets")
    parser.add_argument("--system", default="unclip", help="unclip or glide (with --caption)")
    parser.add_argument("--n", type=int, default=8, help="how many images (with --caption)")
    parser.add_argument(
        "--guidance", type=float, help="the decoder's guidance scale (with --caption; default eval.grid_guidance)"
    )
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG file to write (with --caption)")


def sample(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.caption is None:
        _sample_all(Run.open(config))
        return
    if arguments.n < 1 or arguments.out.suffix != ".png":
        raise UserError(f"--n must be at least 1 and --out end in .png, got {arguments.n} and {arguments.out}")
    from data.pipeline.artifacts import publish_bytes
    from eval.generate import draw_caption
    from eval.images import write_png
    from eval.systems import open_system

    guidance = config[EvalSettings].grid_guidance if arguments.guidance is None else arguments.guidance
    run = Run(config)
    grid = draw_caption(open_system(run, arguments.system), arguments.caption, arguments.n, guidance, run.seed)
    publish_bytes(arguments.out, write_png(grid))
    print(f"wrote {arguments.out}")


def _sample_all(run: Run) -> None:
    from eval.generate import jobs, make_samples
    from eval.prompts import make_prompts
    from eval.real_images import RealImages
    from eval.systems import open_system
    from training.systems import SYSTEMS

    settings = run.config[EvalSettings]
    systems = [open_system(run, name) for name in SYSTEMS]
    real = RealImages(run.dataset, run.view("base").require("make dataset"))
    make_prompts(run, real, "captions", settings.captions)
    make_prompts(run, real, "grids", settings.grids)
    for system in systems:
        for job in jobs(system, settings, run.seed):
            print(f"wrote {make_samples(run, job).folder}")


def features(config: Config, arguments: argparse.Namespace) -> None:
    from eval.protocols.run import extract_all

    for artifact in extract_all(Run.open(config)):
        print(f"wrote {artifact.folder}")


def metrics(config: Config, arguments: argparse.Namespace) -> None:
    from eval.protocols.run import compute_metrics

    print(f"wrote {compute_metrics(Run.open(config))}")


def sweep(config: Config, arguments: argparse.Namespace) -> None:
    _sample_all(Run.open(config))
    features(config, arguments)
    metrics(config, arguments)
    report(config, arguments)


def report(config: Config, arguments: argparse.Namespace) -> None:
    from eval.report.build import write_report

    for path in write_report(Run.open(config)):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
