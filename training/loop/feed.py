"""Batches by the number of the step, read ahead on a thread: for one process or many, and from any step on.

Items are taken epoch after epoch, each epoch in its own order, as one endless sequence. Step `s` takes items [s * batch, (s + 1) * batch)
of it, so a batch may cross the end of an epoch; of these, rank r of R takes every R-th from the r-th on. So what a rank gets is a pure
function of the step: going on after a kill takes the number of the step and nothing else, a step's items do not depend on the number
of ranks, and together the ranks get every item once an epoch.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

B = TypeVar("B")
Items = NDArray[np.int64]


class Feed(Generic[B]):
    """This rank's batches, each as `slices` pieces (sizes differ by one at most).

    `order(epoch)` is a permutation of range(size), a pure function of the epoch. `fetch(items)` makes a batch of them, in that order; it
    runs on the feed's thread for up to `ahead` steps before they are asked for (none beyond `steps`, where that is given), and so must
    draw nothing from global generators.
    Closing (or leaving a `with` block) drops what has not begun and does not wait for the fetch that runs.
    """

    def __init__(
        self, order: Callable[[int], Items], size: int, fetch: Callable[[Items], B],
        batch: int, rank: int = 0, ranks: int = 1, slices: int = 1, ahead: int = 2, steps: int | None = None,
    ) -> None:  # fmt: skip
        assert size > 0 and batch > 0 and 0 <= rank < ranks and slices > 0 and ahead >= 0
        self._order, self._size, self._fetch = order, size, fetch
        self._batch, self._rank, self._ranks, self._slices = batch, rank, ranks, slices
        self._ahead, self._steps = ahead, steps
        self._orders: dict[int, Items] = {}
        self._waiting: dict[int, Future[list[B]]] = {}
        self._thread = ThreadPoolExecutor(1, "feed")

    def take(self, step: int) -> list[B]:
        """The slices of batch number `step` (from 0). Raises what `fetch` and `order` raise."""
        end = step + self._ahead + 1
        wanted = range(step, end if self._steps is None else max(step + 1, min(end, self._steps)))
        for other in self._waiting.keys() - set(wanted):
            self._waiting.pop(other).cancel()
        for one in wanted:
            if one not in self._waiting:
                self._waiting[one] = self._thread.submit(self._make, one)
        return self._waiting.pop(step).result()

    def close(self) -> None:
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "Feed[B]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, step: int) -> list[B]:
        batch = self._items(step * self._batch, self._batch)
        return [self._fetch(items) for items in np.array_split(batch[self._rank :: self._ranks], self._slices)]

    def _items(self, start: int, count: int) -> Items:
        """A stretch of the endless sequence."""
        found = []
        while count > 0:
            epoch, offset = divmod(start, self._size)
            found.append(self._order_of(epoch)[offset : offset + count])
            start, count = start + len(found[-1]), count - len(found[-1])
        return np.concatenate(found)

    def _order_of(self, epoch: int) -> Items:
        """An epoch's order, kept until a later one is asked for: 8 bytes an item."""
        if epoch not in self._orders:
            self._orders = {epoch: self._order(epoch)}
        return self._orders[epoch]
