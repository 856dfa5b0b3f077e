"""`python -m data COMMAND --config FILE`: the front door of the data room."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.dataset.settings import DatasetSettings
from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config
from data.pipeline.errors import StageFailed
from data.pipeline.run import Run
from data.pipeline.settings import ClusterSettings

if TYPE_CHECKING:
    from data.pipeline.artifacts import Artifact

CHEAP = 64  # a part of a view takes milliseconds, a local cluster seconds to start


def build(config: Config, _: argparse.Namespace) -> None:
    from data.dataset.build import build_dataset, require_stored
    from data.dataset.origin import describe, is_resharded, require_written
    from data.pipeline.executors import open_executor
    from data.reports.card import refresh_card

    run = Run.open(config)
    if is_resharded(run.dataset):
        print(describe(require_written(run.dataset)))
        return
    with open_executor(config[ClusterSettings], run.scratch) as executor:
        artifact = build_dataset(run, executor)
    refresh_card(run)
    require_stored(artifact)
    _print_stored(artifact)


def _print_stored(artifact: "Artifact") -> None:
    counts = artifact.manifest()["counts"]
    stored, planned, pairs = (counts[name] for name in ("stored_samples", "planned_samples", "stored_pairs"))
    print(f"stored {stored:,} of {planned:,} samples ({pairs:,} pairs) in {artifact.folder}")


def retry_failed(config: Config, arguments: argparse.Namespace) -> None:
    from data.pipeline.executors import open_executor
    from data.reports.card import refresh_card
    from data.upkeep.retry import reasons_to_retry, retry

    run = Run.open(config)
    reasons = reasons_to_retry(arguments.reason)
    with open_executor(config[ClusterSettings], run.scratch) as executor:
        result = retry(run, reasons, executor)
    refresh_card(run)
    print(result)
    _print_stored(run.dataset)


def scores(config: Config, _: argparse.Namespace) -> None:
    from data.pipeline.executors import open_executor
    from data.scores.basic import build_basic_scores
    from data.scores.duplicates import build_duplicates

    run = Run.open(config)
    with open_executor(config[ClusterSettings], run.scratch) as executor:
        basic = build_basic_scores(run, executor)
        print(f"scored {basic.manifest()['counts'].get('pairs', 0):,} pairs: {basic.folder}")
        print(f"compared all images and captions: {build_duplicates(run, executor).folder}")


def view(config: Config, arguments: argparse.Namespace) -> None:
    from data.pipeline.executors import open_executor
    from data.reports.card import refresh_card
    from data.views.build import build_base_view, build_train_view

    run = Run.open(config)
    make = build_base_view if arguments.name == "base" else build_train_view
    with open_executor(config[ClusterSettings], run.scratch, at_least=CHEAP) as executor:
        artifact = make(run, executor)
    refresh_card(run)
    counts = artifact.manifest()["counts"]
    gone = counts.get("dropped_removed_pairs", 0)
    removed = f", {gone:,} left out as removed" if gone else ""
    print(
        f"view {arguments.name} keeps {counts['kept_pairs']:,} of {counts['pairs']:,} pairs{removed}: {artifact.folder}"
    )


def verify(config: Config, arguments: argparse.Namespace) -> None:
    """Every complete artifact of the run against its recorded sizes and sha256."""
    from data.pipeline.artifacts import Artifact

    run = Run(config)
    run.dataset.require("make dataset")
    if arguments.leaks:
        from data.upkeep.leaks import verify_leaks

        report = verify_leaks(run)
        print(report.text())
        if report.leaks:
            raise StageFailed(
                f"{len(report.leaks)} training copies of evaluation images are trained on; "
                "set views.base.drop_leaks = true and run `make dataset`"
            )
        return
    problems: list[str] = []
    for manifest in sorted(run.folder.glob("**/manifest.json")):
        found = Artifact(manifest.parent).verify()
        problems += found
        print(f"{manifest.parent}: {'ok' if not found else f'{len(found)} problems'}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise StageFailed(
            f"{len(problems)} problems; delete the damaged parts' receipts (parts/*.json) and run the stage again"
        )


def status(config: Config, arguments: argparse.Namespace) -> None:
    from data.reports.status import next_command, run_notes, run_status

    run = Run(config)
    statuses = run_status(run)
    for line in statuses:
        print(f"{line.name:<20}{line.state:<12}{line.detail}")
    for note in run_notes(run):
        print(note)
    command = next_command(statuses)
    other = next((f" RUN={run.folder.name}" for text in arguments.overrides if text.startswith("run.name=")), "")
    stale = ", ".join(line.name for line in statuses if line.state == "stale")
    done = f"nothing is missing; stale: {stale}" if stale else "everything is complete"
    print(f"next: {command} CONFIG={config.source}{other}" if command else done)


def funnel(config: Config, arguments: argparse.Namespace) -> None:
    import io

    from data.pipeline.artifacts import publish_bytes
    from data.reports.funnel import draw_funnel, funnel_notes, funnel_rows, funnel_text, shards_text

    run = Run(config)
    rows = funnel_rows(run)
    print("\n".join([shards_text(run) if arguments.per_shard else funnel_text(rows), *funnel_notes(run)]))
    if arguments.per_shard:
        return
    out = io.BytesIO()
    draw_funnel(rows).savefig(out, format="png", dpi=120)
    publish_bytes(run.folder / "funnel.png", out.getvalue())
    print(f"wrote {run.folder / 'funnel.png'}")


def show(config: Config, arguments: argparse.Namespace) -> None:
    from data.reports import show as looking

    run = Run(config)
    for note in looking.notes(run):
        print(note)
    if arguments.reasons:
        print("\n".join(looking.reason_lines(run)))
        return
    name, reason, n, seed = arguments.view, arguments.reason, arguments.n, arguments.seed
    if reason is not None and name is None and looking.is_download_reason(reason):
        print("\n".join(looking.dropped_lines(run, reason, n, seed)))
        return
    name = name or looking.default_view(run, reason)
    samples = looking.read_shown(run, looking.choose_keys(run, name, reason, n, seed), name, reason)
    print(looking.shown_text(samples))
    path = run.folder / "show" / f"{name or 'stored'}{f'-{reason}' if reason else ''}.png"
    looking.write_sheet(run, samples, path)
    print(f"wrote {path}")


def remove(config: Config, arguments: argparse.Namespace) -> None:
    from data.pipeline.executors import open_executor
    from data.reports.card import refresh_card
    from data.upkeep.apply_removal import remove as apply
    from data.views.removal import read_entries, resolve

    run = Run.open(config)
    found = resolve(run, read_entries(Path(arguments.list)), config[DatasetSettings].exclude.phash_distance)
    with open_executor(config[ClusterSettings], run.scratch, at_least=CHEAP) as executor:
        lines = apply(run, found, executor)
    refresh_card(run)
    print("\n".join(lines))


def reshard(config: Config, arguments: argparse.Namespace) -> None:
    from data.pipeline.executors import open_executor
    from data.reports.card import refresh_card
    from data.upkeep.reshard import reshard as write

    run = Run.open(config)
    with open_executor(config[ClusterSettings], run.scratch) as executor:
        target = write(run, arguments.view, arguments.to, executor)
    refresh_card(target)
    _print_stored(target.dataset)
    print(
        f"keys and splits are as before; captions that view {arguments.view} leaves out are gone, so caption_index counts anew; "
        f"go on with `make dataset embeddings CONFIG={config.source} RUN={arguments.to}`"
    )


def _retry_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reason",
        action="append",
        default=[],
        metavar="R",
        help="retry these reasons only (default: the transient ones)",
    )


def _view_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", choices=["base", "train"], default="base", help="which view to make")


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--leaks", action="store_true", help="report evaluation images that stand in the training split"
    )


def _funnel_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--per-shard", action="store_true", help="print one line a shard instead")


def _show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--view", metavar="NAME", help="samples that this view keeps (default: the narrowest that is made)"
    )
    parser.add_argument("--reason", metavar="R", help="what was left out for this reason")
    parser.add_argument("--reasons", action="store_true", help="list the reasons that occur, with counts and meanings")
    parser.add_argument("--n", type=int, default=32, help="how many (default 32)")
    parser.add_argument("--seed", type=int, default=0, help="which ones are drawn (default 0)")


def _remove_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--list",
        required=True,
        metavar="FILE",
        help="one key, sha256, URL, domain or phash:HEX a line; # starts a comment",
    )


def _reshard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--view", default="base", metavar="NAME", help="which view to write out (default base)")
    parser.add_argument(
        "--to", required=True, metavar="RUN_NAME", help="the run, beside this one, that gets the dataset"
    )


def cost(config: Config, _: argparse.Namespace) -> None:
    from data.pipeline.cost import cost_text, read_costs

    run = Run(config)
    print(cost_text(read_costs(run.logs)))


COMMANDS = (
    Command("build", "plan, download and store the dataset", build),
    Command(
        "retry-failed",
        "download again what failed for a reason that may pass, into new shards",
        retry_failed,
        _retry_options,
    ),
    Command("scores", "score pairs without CLIP: captions, sizes, duplicates", scores),
    Command("view", "decide which pairs are kept", view, _view_options),
    Command(
        "funnel", "counts from planned to training pairs, as text and picture", funnel, _funnel_options, costs=False
    ),
    Command("show", "print samples and draw a contact sheet, also by drop reason", show, _show_options, costs=False),
    Command("remove", "take samples out of every view, and name what has seen them", remove, _remove_options),
    Command("reshard", "write a view out as the dataset of another run", reshard, _reshard_options),
    Command(
        "verify", "compare every complete artifact with its recorded digests", verify, _verify_options, costs=False
    ),
    Command("status", "what is complete, what is stale and why, and the next command", status, costs=False),
    Command("cost", "wall time, processor time and memory of every command of the run", cost, costs=False),
)

if __name__ == "__main__":
    raise SystemExit(front_door("data", __doc__ or "", COMMANDS))
