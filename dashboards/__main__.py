"""`python -m dashboards rate|results --config FILE`: start a Streamlit server for raters, or for researchers."""

import argparse
import os
import sys
from pathlib import Path

from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config

ROOT = Path(__file__).resolve().parent.parent
# A page for raters shows no menu, no stack trace, and reports to nobody.
FLAGS = (
    "--server.headless=true",
    "--browser.gatherUsageStats=false",
    "--client.toolbarMode=minimal",
    "--client.showErrorDetails=none",
)


def rate(config: Config, arguments: argparse.Namespace) -> None:
    from data.pipeline.run import Run
    from humaneval.study.study import Study

    Study.of(Run(config))  # a missing study is said here, before a server starts
    serve("rate.py", arguments)


def results(config: Config, arguments: argparse.Namespace) -> None:
    from data.pipeline.run import Run
    from humaneval.results import read_results

    read_results(Run(config))
    serve("app.py", arguments)


def serve(script: str, arguments: argparse.Namespace) -> None:
    """Become the Streamlit server of a script in this folder."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    address = (f"--server.address={arguments.address}", f"--server.port={arguments.port}")
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboards" / script), *FLAGS, *address]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "--", "--config", arguments.config, *arguments.overrides])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument(
        "--address", default="localhost", help="0.0.0.0 lets other machines in; default: this machine only"
    )


COMMANDS = (
    Command("rate", "the rating page, for raters", rate, options),
    Command("results", "results, for researchers", results, options),
)

if __name__ == "__main__":
    sys.exit(front_door("dashboards", "Streamlit pages.", COMMANDS))
