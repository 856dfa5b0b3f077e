"""The order of an epoch: a pure function of (seed, epoch) and of what is read, never of ranks, workers or batch size.

What fits the memory limit is one window, and its order a permutation of all rows. What does not is read in units (row groups): the
units are permuted, as many of them as fit make a window, and the rows of a window are permuted. So a row can move anywhere, and
only one stretch of the cache is in memory at a time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """The stretch [start, stop) of an epoch's order. `units` are the row groups that it is made of, in the order in which their
    rows are numbered within the window; None where the window is everything."""

    start: int
    stop: int
    units: NDArray[np.int64] | None
    entropy: tuple[int, ...]

    def permutation(self) -> NDArray[np.int64]:
        """The window's order: numbers of its rows."""
        return np.random.default_rng(self.entropy).permutation(self.stop - self.start)


class Shuffle:
    """Orders of epochs. `counts` are the rows of each unit; `rows` is how many a window may hold, None for all of them."""

    def __init__(self, counts: NDArray[np.int64], rows: int | None) -> None:
        self.counts, self.rows = counts, rows
        self.total = int(counts.sum())

    def windows(self, seed: int, epoch: int) -> list[Window]:
        """The windows of an epoch in order; together they hold every row once."""
        if self.rows is None:
            return [Window(0, self.total, None, (seed, epoch))]
        units = np.random.default_rng((seed, epoch)).permutation(len(self.counts))
        ends = np.cumsum(self.counts[units])
        windows: list[Window] = []
        first = start = 0
        while first < len(units):
            # At least one unit, or as many as fit.
            last = max(first + 1, int(np.searchsorted(ends, start + self.rows, side="right")))
            stop = int(ends[last - 1])
            windows.append(Window(start, stop, units[first:last], (seed, epoch, len(windows))))
            first, start = last, stop
        return windows
