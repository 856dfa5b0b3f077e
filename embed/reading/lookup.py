"""Finding rows by key without holding the cache's keys: row groups tell their smallest and largest key, and only those are read in
which a wanted key can lie."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.bytes_]
Pairs = tuple[Keys, NDArray[np.int32]]


class Span(NamedTuple):
    """Consecutive rows that are sorted by (key, caption_index): the first one's number, the smallest and the largest key."""

    first: int
    lowest: bytes
    highest: bytes


def find_rows(
    spans: Sequence[Span], read: Callable[[int], Pairs], keys: Keys, numbers: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """The row of each pair wanted, int64 (n,), -1 where there is none; without `numbers`, each key's first row.

    `spans` are in ascending order of rows; `read` gives keys and caption numbers of one, and is asked for those whose range holds a
    wanted key."""
    found = np.full(len(keys), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    for i, wanted in _touched(spans, keys[order]):
        asked = order[wanted]
        asked = asked[found[asked] < 0]
        if len(asked):
            place = _place(*read(i), keys[asked], None if numbers is None else numbers[asked])
            found[asked] = np.where(place < 0, -1, spans[i].first + place)
    return found


def _touched(spans: Sequence[Span], ascending: Keys) -> Iterator[tuple[int, slice]]:
    """The spans that can hold a wanted key, each with the wanted keys within its range."""
    lows = np.searchsorted(ascending, np.array([s.lowest for s in spans], np.bytes_), side="left")
    highs = np.searchsorted(ascending, np.array([s.highest for s in spans], np.bytes_), side="right")
    for i in np.flatnonzero(highs > lows).tolist():
        yield i, slice(lows[i], highs[i])


def _place(
    stored: Keys, stored_numbers: NDArray[np.int32], keys: Keys, numbers: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """Where each pair lies among sorted ones, -1 where it does not."""
    place = np.searchsorted(stored, keys, side="left")
    if numbers is None:
        return np.where(stored[np.minimum(place, len(stored) - 1)] == keys, place, -1)
    last = np.searchsorted(stored, keys, side="right")
    # Rows of a key are neighbours; its captions are few, and a view may have left some out.
    for _ in range(int((last - place).max(initial=0))):
        place += (place < last) & (stored_numbers[np.minimum(place, len(stored) - 1)] < numbers)
    right = (place < last) & (stored_numbers[np.minimum(place, len(stored) - 1)] == numbers)
    return np.where(right, place, -1)
