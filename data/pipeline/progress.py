"""Progress with rate and time to go: bars on a terminal, plain lines elsewhere."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0


class Bar:
    """Counts units done; `note` replaces the text at the end of the line (a loss, a rate of success)."""

    def __init__(self, what: str, total: int, unit: str, live: Progress | None, quiet: bool = False) -> None:
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.done = 0
        self._start = self._printed = time.monotonic()
        self._live = live
        self._task = live.add_task(what, total=total, rate="", note="") if live else None

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = f"{self.done / elapsed:.1f} {self.unit}/s"
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, rate=rate, note=note)
        elif not self.quiet and (time.monotonic() - self._printed > PLAIN_INTERVAL_S or self.done >= self.total):
            self._printed = time.monotonic()
            left = (self.total - self.done) * elapsed / max(self.done, 1)
            print(
                f"{self.what}: {self.done}/{self.total} {self.unit}, {rate}, {left:.0f} s left {note}".rstrip(),
                flush=True,
            )


@contextmanager
def progress(what: str, total: int, unit: str, quiet: bool = False) -> Iterator[Bar]:
    """Show the progress of `total` units (named in the plural, e.g. "parts"); nothing when `quiet`."""
    # Two live displays on one terminal would overwrite each other: workers print lines.
    if quiet or not sys.stdout.isatty() or multiprocessing.parent_process() is not None:
        yield Bar(what, total, unit, None, quiet)
        return
    columns = [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    ]  # fmt: skip
    with Progress(*columns, console=Console()) as live:
        yield Bar(what, total, unit, live)
