"""Perceptual hashes of images, and finding those that differ in few bits among millions.

The hash is imagehash's `phash`: which of 64 low frequencies of the grey image lie above their median, as one 64-bit number.
A re-encoded or resized copy differs from its original in few bits, two photographs in about 32. Half of the bits are set, so
distances are even: a limit of 3 bits acts as 2.

The index cuts the 64 bits into `distance + k` blocks. Two hashes that differ in at most `distance` bits agree in at least k
blocks (pigeonhole), so they fall into one bucket for at least one choice of k blocks: every choice is one sort, and only
neighbours in the sorted order are compared. Exact: nothing within the distance is missed.
"""

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

BITS = 64
MAX_DISTANCE = 7  # beyond this, hashes of different photographs begin to meet
SCAN = 1000  # so many listed hashes are compared one by one sooner than an index is built
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it permutes the 64-bit numbers and mixes upwards


def phash64(rgb: NDArray[np.uint8]) -> int:
    """Perceptual hash of an image, uint8 (height, width, 3), as 64 bits: `f"{phash64(rgb):016x}" == str(imagehash.phash(image))`."""
    import imagehash
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(rgb)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs_between(hashes: NDArray[np.uint64], others: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """All pairs (i, j) where hashes[i] and others[j] differ in at most `distance` bits; int64 (m, 2), sorted.

    Every pair is listed, so let `others` hold no value thousands of times.
    """
    import pandas as pd

    values = np.unique(np.concatenate([hashes, others]).astype(np.uint64))
    near = values[near_values(values, distance)]
    links = np.concatenate([np.stack([values, values], axis=1), near, near[:, ::-1]])
    ours = pd.DataFrame({"ours": np.asarray(hashes, np.uint64), "i": np.arange(len(hashes))})
    theirs = pd.DataFrame({"theirs": np.asarray(others, np.uint64), "j": np.arange(len(others))})
    met = pd.DataFrame(links, columns=["ours", "theirs"]).merge(theirs, on="theirs").merge(ours, on="ours")
    return _sorted_rows(met[["i", "j"]].to_numpy())


def near_any(hashes: NDArray[np.uint64], listed: NDArray[np.uint64], distance: int) -> NDArray[np.bool_]:
    """Which of `hashes` (n,) differ from any of `listed` (m,) in at most `distance` bits (0 to 7); bool (n,)."""
    values, kind = np.unique(np.asarray(hashes, np.uint64), return_inverse=True)
    targets = np.unique(np.asarray(listed, np.uint64))
    found = np.zeros(len(values), bool)
    if len(targets) > SCAN:
        found[near_pairs_between(values, targets, distance)[:, 0]] = True
    else:
        _check(distance)
        for target in targets:
            found |= np.bitwise_count(values ^ target) <= distance
    return found[kind]


def near_values(values: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Pairs of places in `values` (n distinct hashes) that differ in 1 to `distance` bits, each pair once; int64 (m, 2)."""
    _check(distance)
    n = len(values)
    if distance == 0 or n < 2:
        return np.empty((0, 2), np.int64)
    found = [np.empty(0, np.int64)]
    for mask in _masks(distance, n):
        found += [one * n + other for one, other in _bucket_neighbours(values, mask, distance)]
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs // n, pairs % n], axis=1)


def _masks(distance: int, n: int) -> list[np.uint64]:
    """The bits covered by each choice of k out of `distance + k` blocks. A larger k means more sorts, fewer candidates each."""

    def cost(k: int) -> float:
        return comb(distance + k, k) * (4 + n / 2.0 ** (BITS * k / (distance + k)))

    k = min(range(1, 5), key=cost)
    blocks = [sum(1 << bit for bit in range(b, BITS, distance + k)) for b in range(distance + k)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, k)]


def _bucket_neighbours(
    values: NDArray[np.uint64], mask: np.uint64, distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(smaller places, larger places) of values that agree under `mask` and differ in at most `distance` bits in all."""
    n = len(values)
    place_bits = np.uint64(max(1, (n - 1).bit_length()))
    places = (np.uint64(1) << place_bits) - np.uint64(1)
    # Bucket above, place below, in one number: sorting that is several times faster than an argsort.
    packed = (((values & mask) * _SPREAD) & ~places) | np.arange(n, dtype=np.uint64)
    packed.sort()
    place = (packed & places).astype(np.int64)
    bucket, ordered = packed >> place_bits, values[place]
    at, step = np.arange(n - 1), 1
    while len(at):
        at = at[bucket[at] == bucket[at + step]]
        near = at[np.bitwise_count(ordered[at] ^ ordered[at + step]) <= distance]
        one, other = place[near], place[near + step]
        yield np.minimum(one, other), np.maximum(one, other)
        step += 1
        at = at[at + step < n]


def _sorted_rows(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)


def _check(distance: int) -> None:
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"distance must be 0 to {MAX_DISTANCE} bits, got {distance}")
