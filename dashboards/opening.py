"""What every page does first: read the command line, open the run, turn a user's mistake into one line on the page."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from data.pipeline.config import load_config
from data.pipeline.errors import ToolkitError, UserError
from data.pipeline.run import Run


def open_run() -> Run:
    """The run that `-- --config FILE [section.key=value ...]` names. Raises UserError. Writes nothing."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    arguments, unknown = parser.parse_known_args(sys.argv[1:])
    if unknown or not arguments.config:
        raise UserError("start this page with `python -m dashboards rate|results --config FILE`")
    return Run(load_config(arguments.config, arguments.overrides))


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Show a ToolkitError where the page would have been, as plain text, and stop."""
    try:
        yield
    except ToolkitError as error:
        with st.container(border=True):
            st.text(f"error: {' '.join(str(error).split())}")
        st.stop()
