"""`python -m humaneval build|simulate|results --config FILE`: make a study, let simulated raters answer, print results."""

import argparse
import sys
from collections.abc import Callable, Sequence

from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config
from data.pipeline.settings import ClusterSettings
from humaneval.settings import HumanevalSettings, asks_for_study

# A part is 50 questions whose images are copied or pasted together: fewer parts are done before a cluster stands.
PARTS_WORTH_A_CLUSTER = 64
NO_STUDY = "no study: the config has fewer than two systems, or humaneval.questions asks for none of any kind"


def where_asked(command: Callable[[Config, argparse.Namespace], None]) -> Callable[[Config, argparse.Namespace], None]:
    """The command, where the config asks for a study; elsewhere a line that says that it does not. Not an error: `make eval` calls us."""

    def run(config: Config, arguments: argparse.Namespace) -> None:
        if asks_for_study(config):
            command(config, arguments)
        else:
            print(NO_STUDY)

    return run


def build(config: Config, _: argparse.Namespace) -> None:
    from data.pipeline.artifacts import sha256_file
    from data.pipeline.executors import open_executor
    from data.pipeline.run import Run
    from humaneval.rating.database import database_url, people_have_rated
    from humaneval.study.build import build_study
    from humaneval.study.study import FOLDER, Study

    run = Run.open(config)
    existing = run.folder / FOLDER / "study.json"
    precious = existing.exists() and people_have_rated(
        database_url(run, config[HumanevalSettings]), sha256_file(existing)
    )
    with open_executor(config[ClusterSettings], run.scratch, at_least=PARTS_WORTH_A_CLUSTER) as executor:
        study = Study(build_study(run, config, executor, precious))
    counts = ", ".join(f"{sum(q.kind == kind for q in study.questions.values())} {kind}" for kind in study.kinds)
    print(f"wrote {study.artifact.folder}: {counts}; study {study.hash[:12]}")


def simulate(config: Config, _: argparse.Namespace) -> None:
    from data.pipeline.run import Run
    from humaneval.rating import simulate as simulation
    from humaneval.rating.store import Store
    from humaneval.study.study import Study

    settings = config[HumanevalSettings].simulated
    if not settings.raters:
        print("humaneval.simulated.raters is 0: no rater is simulated in this run")
        return
    run = Run.open(config)
    study = Study.of(run)
    store = Store.of(run, config, study)
    ratings = simulation.simulate(study, store, settings, run.seed)
    print(
        f"{simulation.DISCLAIMER}\n{settings.raters} simulated raters gave {ratings} new ratings to study {study.hash[:12]}"
    )


def results(config: Config, _: argparse.Namespace) -> None:
    from data.pipeline.run import Run
    from humaneval.rating.store import Store
    from humaneval.results import open_rated, results_table, set_aside, summarise, write_results

    run = Run.open(config)
    study, note = open_rated(run)
    ratings = Store.of(run, config, study).ratings()
    if not ratings:
        # Not an error: `make eval` ends here for every run whose study waits for people.
        print(f"nobody has rated study {study.hash[:12]} yet; `make rate` starts the rating page")
        for old, aside in set_aside(run):
            print(f"{old} is of answers that are not there any more, or to another study; it is now {aside}")
        return
    summary = summarise(study, ratings)
    print("\n".join(_columns(results_table(summary))))
    for told in (summary["note"], note):
        if told:
            print(told)
    print("wrote {} and {}".format(*write_results(run, study, ratings)))


def _columns(rows: Sequence[dict[str, str]]) -> list[str]:
    """Rows as aligned lines under their headings."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


COMMANDS = (
    Command("build", "draw the questions from both systems' generated images and freeze the study", where_asked(build)),
    Command(
        "simulate",
        "let simulated raters answer (tests and the demo; labelled simulated everywhere)",
        where_asked(simulate),
    ),
    Command("results", "win rates with intervals, results.json and ratings.parquet", where_asked(results)),
)

if __name__ == "__main__":
    sys.exit(front_door("humaneval", "Human preference studies.", COMMANDS))
