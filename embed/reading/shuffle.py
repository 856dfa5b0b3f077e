"""The order of an epoch: a pure function of (seed, epoch) and of what is read, never of ranks, threads or batch size.

What fits the memory limit is one window, and its order a permutation of everything. What does not is read in units (row groups, shards):
the units are permuted, as many of them as fit make a window, and the items of a window are permuted. So an item can move anywhere,
and only two stretches of the whole are in memory at a time: the window in use and the next one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """A stretch of an epoch's order. `units` are those whose items it holds, in the order in which `shuffled` takes them; None where the
    window is everything."""

    units: NDArray[np.int64] | None
    entropy: tuple[int, ...]

    def shuffled(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """The window's items, given unit after unit, in the window's order."""
        return items[np.random.default_rng(self.entropy).permutation(len(items))]


class Shuffle:
    """Orders of epochs. `sizes` (rows, bytes) are those of the units; `limit` is how much a window may hold, None for everything."""

    def __init__(self, sizes: NDArray[np.int64], limit: int | None) -> None:
        self.sizes, self.limit = sizes, limit

    def windows(self, seed: int, epoch: int) -> list[Window]:
        """The windows of an epoch in order; together they hold every unit once."""
        if self.limit is None:
            return [Window(None, (seed, epoch))]
        units = np.random.default_rng((seed, epoch)).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[units])
        windows: list[Window] = []
        first = start = 0
        while first < len(units):
            # At least one unit, or as many as fit.
            last = max(first + 1, int(np.searchsorted(ends, start + self.limit, side="right")))
            windows.append(Window(units[first:last], (seed, epoch, len(windows))))
            first, start = last, int(ends[last - 1])
        return windows
