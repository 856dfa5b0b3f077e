"""`python -m data build|view|verify|status|funnel --config FILE`: the front door of the data room."""

import argparse
import sys

from data.cli import Command, front_door
from data.config import Config
from data.errors import StageFailed
from data.run import Run
from data.settings import ClusterSettings


def build(config: Config, _: argparse.Namespace) -> None:
    from data.dataset import build_dataset, require_stored
    from data.executors import open_executor

    run = Run.open(config)
    with open_executor(config[ClusterSettings], run.scratch) as executor:
        artifact = build_dataset(run, executor)
    require_stored(artifact)
    counts = artifact.manifest()["counts"]
    stored, planned, pairs = (counts[name] for name in ("stored_samples", "planned_samples", "stored_pairs"))
    print(f"stored {stored:,} of {planned:,} samples ({pairs:,} pairs) in {artifact.folder}")


def view(config: Config, arguments: argparse.Namespace) -> None:
    from data.views import build_base_view, build_train_view

    run = Run.open(config)
    artifact = build_base_view(run) if arguments.name == "base" else build_train_view(run)
    counts = artifact.manifest()["counts"]
    print(f"view {arguments.name} keeps {counts['kept_pairs']:,} of {counts['pairs']:,} pairs: {artifact.folder}")


def verify(config: Config, _: argparse.Namespace) -> None:
    """Every complete artifact of the run against its recorded sizes and sha256."""
    run = Run(config)
    problems: list[str] = []
    manifests = sorted(run.folder.glob("**/manifest.json"))
    run.dataset.require("make dataset")
    from data.artifacts import Artifact

    for manifest in manifests:
        found = Artifact(manifest.parent).verify()
        problems += found
        print(f"{manifest.parent}: {'ok' if not found else f'{len(found)} problems'}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise StageFailed(
            f"{len(problems)} problems; delete the damaged parts' receipts (parts/*.json) and run the stage again"
        )


def status(config: Config, _: argparse.Namespace) -> None:
    from data.status import next_command, run_status

    run = Run(config)
    statuses = run_status(run, frozenset() if config_trains_clip(config) else frozenset({"clip"}))
    for line in statuses:
        print(f"{line.name:<20}{line.state:<12}{line.detail}")
    command = next_command(statuses)
    print(f"next: {command} CONFIG={config.source}" if command else "everything is complete")


def funnel(config: Config, _: argparse.Namespace) -> None:
    from data.artifacts import publish_bytes
    from data.funnel import draw_funnel, funnel_rows, funnel_text

    run = Run(config)
    rows = funnel_rows(run)
    print(funnel_text(rows))
    import io

    out = io.BytesIO()
    draw_funnel(rows).savefig(out, format="png", dpi=120)
    publish_bytes(run.folder / "funnel.png", out.getvalue())
    print(f"wrote {run.folder / 'funnel.png'}")


def config_trains_clip(config: Config) -> bool:
    return config.to_dict().get("clip", {}).get("source") == "run"


def _view_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", choices=["base", "train"], default="base", help="which view to make")


COMMANDS = (
    Command("build", "plan, download and store the dataset", build),
    Command("view", "decide which pairs are kept", view, _view_options),
    Command("verify", "compare every complete artifact with its recorded digests", verify),
    Command("status", "what is complete, what is stale and why, and the next command", status),
    Command("funnel", "counts from planned to training pairs, as text and picture", funnel),
)

if __name__ == "__main__":
    raise SystemExit(front_door("data", __doc__ or "", COMMANDS))
