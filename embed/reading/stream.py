"""Batches of an epoch in its shuffled order: for one process or many, resumable at any batch.

The epoch's order is one sequence over all ranks (`embed.reading.shuffle`). A step takes the next `batch` rows of it; rank r of R takes
rows r, r + R, ... of the step. So the rows of a step do not depend on R; together the ranks read every row once an epoch; and where a
step's rows do not divide, the first ranks take one more. The last step of an epoch is what is left, so a rank may get an empty
batch there; every rank makes the same number of steps. `drop_last` leaves that smaller step out: after the last full one the state is
the next epoch's beginning.

`batch.state` after a batch, or `Batches.state`, given as `start`, goes on with the next one, on any number of ranks and with any
batch size. A state of another order (the view changed, another seed ...) is refused: rows would be repeated and left out unseen.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from data.pipeline.errors import UserError
from embed.reading.rows import START, PairBatch, Room, Rows, State, join_batches
from embed.reading.shuffle import Window, rank_slice

if TYPE_CHECKING:
    from embed.reading.reader import EmbeddingReader


@dataclass
class Batches:
    """An iterator over `epochs` epochs from `start` (None: without end). Iterating again begins at `start` again; a start with no
    step left in its epoch is the beginning of the next. Raises UserError for a start or settings that give no such stream.

    `batch` counts rows of a step over all ranks. `worker` of `workers` yields every workers-th batch, so that a DataLoader, which
    asks its workers in turn, hands them out in the order of one worker.
    """

    reader: "EmbeddingReader"
    batch: int
    seed: int
    start: State = START
    epochs: int | None = 1
    rank: int = 0
    ranks: int = 1
    drop_last: bool = False
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.worker < self.workers
        self._check_settings()
        self.order = self.reader.order_name(self.seed)
        if self.start.order not in ("", self.order):
            raise UserError(
                f"the stream cannot go on at epoch {self.start.epoch}, row {self.start.position:,}: that place is in another order "
                f"({self.start.order}, not {self.order}); cache, view, split, seed or memory limit changed since. "
                f"State({self.start.epoch + 1}) begins the next epoch"
            )
        if self.start.epoch < 0 or not 0 <= self.start.position <= len(self.reader):
            raise UserError(
                f"State({self.start.epoch}, {self.start.position}) is no place in this stream: epochs count from 0, "
                f"and {len(self.reader):,} rows are in each (position 0 to {len(self.reader)})"
            )
        if not self._steps(self.start.position):
            self.start = State(self.start.epoch + 1, 0)
        self.state = self.start._replace(order=self.order)

    def _check_settings(self) -> None:
        rows = len(self.reader)
        if self.batch < 1:
            raise UserError(f"batch is {self.batch}; a batch has at least 1 row")
        if self.drop_last and self.batch > rows:
            raise UserError(
                f"a batch of {self.batch:,} is larger than the {rows:,} pairs read, so that drop_last leaves out every one; "
                f"take a batch of at most {rows}, or drop_last=False"
            )
        if not 0 <= self.rank < self.ranks:
            raise UserError(f"rank is {self.rank} of {self.ranks} ranks; ranks count from 0 and are fewer than `ranks`")
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}; at least 1, or None for a stream without end")

    def __iter__(self) -> Iterator[PairBatch]:
        epoch, position, number = self.start.epoch, self.start.position, 0
        while self.epochs is None or epoch < self.start.epoch + self.epochs:
            steps = self._steps(position)
            mine = [step for i, step in enumerate(steps, number) if i % self.workers == self.worker]
            for batch in self._epoch(epoch, mine):
                assert batch.state is not None
                self.state = batch.state
                yield batch
            epoch, position, number = epoch + 1, 0, number + len(steps)

    def _steps(self, position: int) -> range:
        """First positions of an epoch's steps."""
        end = len(self.reader)
        return range(position, end - self.batch + 1 if self.drop_last else end, self.batch)

    def __len__(self) -> int:
        """Batches of the epochs asked for, on each rank, over all workers."""
        if self.epochs is None:
            raise TypeError("a stream without end (epochs=None) has no length")
        return len(self._steps(self.start.position)) + (self.epochs - 1) * len(self._steps(0))

    def _epoch(self, epoch: int, steps: "list[int]") -> Iterator[PairBatch]:
        end = len(self.reader)
        if not steps:
            return
        windows = [w for w in self.reader.shuffle.windows(self.seed, epoch) if w.stop > steps[0]]
        with _Ahead(self.reader, windows) as loaded:
            for start in steps:
                stop = min(start + self.batch, end)
                state = State(epoch, stop, self.order) if self._steps(stop) else State(epoch + 1, 0, self.order)
                positions = rank_slice(start, stop, self.rank, self.ranks)
                yield join_batches(list(loaded.gather(positions, start, stop)), state)


class _Ahead:
    """The windows of an epoch one after the other, the next being read while one is used."""

    def __init__(self, reader: "EmbeddingReader", windows: list[Window]) -> None:
        self._reader = reader
        self._waiting = deque(windows)
        self._pool = ThreadPoolExecutor(1)
        self._next: Future[Rows] | None = None
        self._current: tuple[Window, NDArray[np.int64], Rows] | None = None
        self._used, self._free = Room(), Room()

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def gather(self, positions: NDArray[np.int64], start: int, stop: int) -> Iterator[PairBatch]:
        """The rows at `positions`, which lie in [start, stop), window by window; positions never go back."""
        while True:
            if self._current is None or self._current[0].stop <= start:
                self._advance()
                continue
            window, order, rows = self._current
            here = positions[(positions >= window.start) & (positions < window.stop)]
            yield rows.gather(order[here - window.start])
            if window.stop >= stop:
                return
            start = window.stop

    def _advance(self) -> None:
        """Go on with the next window. The memory of the one that is used up takes the one after that."""
        window, self._current = self._waiting.popleft(), None
        rows = self._reader.window(window, self._free) if self._next is None else self._next.result()
        self._used, self._free = self._free, self._used
        self._current = (window, window.permutation(), rows)
        self._next = self._pool.submit(self._reader.window, self._waiting[0], self._free) if self._waiting else None


class PairDataset(IterableDataset[PairBatch]):
    """The same batches for torch's DataLoader: `DataLoader(PairDataset(batches), batch_size=None, num_workers=W)`.

    Workers take whole batches in turn. A DataLoader that keeps order (`in_order=True`, the default) gives the same batches in the same
    order for every W. Each worker reads every window, so W multiplies memory; reading is quicker than training, and W = 0 serves.
    With workers, the state is the last batch's `state`: the dataset's copies run ahead.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[PairBatch]:
        info = get_worker_info()
        if info is None:
            return iter(self.batches)
        torch.set_num_threads(1)
        return iter(replace(self.batches, worker=info.id, workers=info.num_workers))

    def __len__(self) -> int:
        return len(self.batches)
