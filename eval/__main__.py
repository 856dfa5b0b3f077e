"""`python -m eval classifier|generate|features|metrics|sweep|report --config FILE`: the front door of evaluation."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config
from data.pipeline.errors import UserError
from data.pipeline.executors import Executor, InProcess, open_executor
from data.pipeline.run import Run
from data.pipeline.settings import ClusterSettings
from eval.settings import EvalSettings
from training.settings import SystemsSettings

WORTH_A_CLUSTER = 1000  # generated images: of fewer, workers would take longer to start than to draw and judge them


def main() -> int:
    commands = [
        Command("classifier", "train the attribute classifier, where the dataset knows what its images show", classifier),
        Command(
            "generate", "every system's images of the held-out captions, or one system's of a --caption of yours", generate,
            _generate_options,
        ),
        Command("features", "features of all generated images and of real ones, through every judge", features),
        Command("metrics", "eval/metrics/metrics.parquet: every number with its interval", metrics),
        Command("sweep", "generate and metrics over all guidance scales, then the report", sweep),
        Command("report", "eval/report/report.json and report.html from the metrics", report),
    ]  # fmt: skip
    return front_door("eval", "Generated images, metrics and the report of a run.", commands)


def _generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--caption", help="draw this caption instead of the run's prompt sets")
    parser.add_argument("--system", help="a row of [systems] (with --caption; default the first)")
    parser.add_argument("--n", type=int, default=8, help="how many images (with --caption)")
    parser.add_argument(
        "--guidance", type=float, help="the decoder's guidance scale (with --caption; default eval.grid_guidance)"
    )
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG file to write (with --caption)")


@contextmanager
def _executor(run: Run, resource: str | None = None, holders: int = 0) -> Iterator[Executor]:
    settings, systems = run.config[EvalSettings], len(run.config[SystemsSettings].rows)
    images = sum(s.captions * s.images * len(settings.scales(n)) for n, s in settings.prompt_sets.items()) * systems
    at_least = 1 if images >= WORTH_A_CLUSTER else sys.maxsize
    with open_executor(run.config[ClusterSettings], run.scratch, resource, holders, at_least) as executor:
        yield executor


def classifier(config: Config, arguments: argparse.Namespace) -> None:
    from eval.protocols.run import train_attributes

    made = train_attributes(Run.open(config), InProcess())
    print(
        "the dataset does not know what its images show: nothing to train" if made is None else f"wrote {made.folder}"
    )


def generate(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.caption is None:
        _generate_all(Run.open(config))
        return
    if arguments.n < 1 or arguments.out.suffix != ".png":
        raise UserError(f"--n must be at least 1 and --out end in .png, got {arguments.n} and {arguments.out}")
    from data.pipeline.artifacts import publish_bytes
    from eval.generate import draw_caption
    from eval.images import write_png
    from eval.systems import open_system

    guidance = config[EvalSettings].grid_guidance if arguments.guidance is None else arguments.guidance
    run = Run(config)
    system = open_system(run, arguments.system or next(iter(config[SystemsSettings].rows)))
    grid = draw_caption(system, arguments.caption, arguments.n, guidance, run.seed)
    publish_bytes(arguments.out, write_png(grid))
    print(f"wrote {arguments.out}")


def _generate_all(run: Run) -> None:
    from embed.encoding.devices import gpus
    from eval.extract.inception import InceptionExtractor
    from eval.generate import generate_all
    from eval.prompts import make_prompts

    weights = run.config[EvalSettings].inception
    if weights is not None:
        InceptionExtractor.open(weights)  # what is wrong with them is said now, not after hours of drawing
    make_prompts(run, InProcess())
    here = (
        0 if run.config[ClusterSettings].address else len(gpus("auto"))
    )  # a running scheduler's workers know their own
    with _executor(run, "GPU", here) as executor:
        for artifact in generate_all(run, executor):
            print(f"wrote {artifact.folder}")


def features(config: Config, arguments: argparse.Namespace) -> None:
    from eval.protocols.run import extract_all

    run = Run.open(config)
    with _executor(run) as executor:
        for artifact in extract_all(run, executor):
            print(f"wrote {artifact.folder}")


def metrics(config: Config, arguments: argparse.Namespace) -> None:
    from eval.protocols.run import compute_metrics

    run = Run.open(config)
    with _executor(run) as executor:
        print(f"wrote {compute_metrics(run, executor)}")


def sweep(config: Config, arguments: argparse.Namespace) -> None:
    _generate_all(Run.open(config))
    metrics(config, arguments)
    report(config, arguments)


def report(config: Config, arguments: argparse.Namespace) -> None:
    from eval.report.build import write_report

    for path in write_report(Run.open(config)):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
