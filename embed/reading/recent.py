"""Row groups of a cache that is larger than memory: those used last stay, within a bound on their rows."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from embed.reading.rows import Buffer, PairBatch, Rows, join_rows


class RecentUnits:
    """Gathers rows from units (row groups), loading those that are not in memory. `counts` are the rows of each; at most `limit` rows
    are held together, or one unit. Several threads may use it, one at a time."""

    def __init__(self, load: Callable[[int, Buffer], Rows], counts: NDArray[np.int64], limit: int) -> None:
        self._load, self._limit = load, limit
        self._counts, self._first = counts, np.concatenate([[0], np.cumsum(counts)])
        self._held: OrderedDict[int, tuple[Rows, Buffer]] = OrderedDict()
        self._lock = Lock()

    def gather(self, index: NDArray[np.int64]) -> PairBatch:
        """The rows at `index`, numbered unit after unit, in that order."""
        units = np.searchsorted(self._first, index, side="right") - 1
        order = np.argsort(units, kind="stable")
        cuts = np.flatnonzero(np.diff(units[order])) + 1
        with self._lock:
            if not len(cuts):
                unit = int(units[0]) if len(units) else 0
                return self._unit(unit).gather(index - self._first[unit])
            pieces = []
            for chosen in np.split(order, cuts):
                unit = int(units[chosen[0]])
                pieces.append(self._unit(unit).select(index[chosen] - self._first[unit]))
        # Unit by unit, then back into the order asked for.
        return join_rows(pieces).gather(np.argsort(order))

    def _unit(self, unit: int) -> Rows:
        if unit not in self._held:
            buffer, rows = Buffer(), int(self._counts[unit])
            while (
                self._held and sum(held.rows for _, held in self._held.values()) + max(rows, buffer.rows) > self._limit
            ):
                buffer = self._held.popitem(last=False)[1][1]
            self._held[unit] = self._load(unit, buffer), buffer
        self._held.move_to_end(unit)
        return self._held[unit][0]
