"""Which images are near copies of others: one pass in order of rank, against the images kept so far.

An image is a copy when a kept image before it has a cosine of at least the threshold; else it is kept. So no two kept images are
near each other, every copy is near the image it names, and memory holds the kept images, never a list of pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.pipeline.errors import UserError

BLOCK = 1024  # images compared at a time
NONE_BEFORE = -1.0  # the similarity of an image that nothing precedes

Vectors = NDArray[np.float32]


class Search(Protocol):
    """The kept images, numbered in the order in which they were added."""

    def add(self, vectors: Vectors) -> None: ...

    def nearest(self, vectors: Vectors) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The largest cosine to a kept image and that image's number, for each of n vectors; (-1, -1) where none is found."""
        ...


class ExactSearch:
    """Every kept image is compared, as float32: 4 d bytes each."""

    def __init__(self, dim: int) -> None:
        self._kept = np.empty((BLOCK, dim), np.float32)
        self._count = 0

    def add(self, vectors: Vectors) -> None:
        needed = self._count + len(vectors)
        if needed > len(self._kept):
            grown = np.empty((max(needed, 2 * len(self._kept)), self._kept.shape[1]), np.float32)
            grown[: self._count] = self._kept[: self._count]
            self._kept = grown
        self._kept[self._count : needed] = vectors
        self._count = needed

    def nearest(self, vectors: Vectors) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        best = np.full(len(vectors), NONE_BEFORE, np.float32)
        which = np.full(len(vectors), -1, np.int64)
        for start in range(0, self._count, 16 * BLOCK):
            cosines = vectors @ self._kept[start : min(start + 16 * BLOCK, self._count)].T
            at = cosines.argmax(axis=1)
            found = cosines[np.arange(len(vectors)), at]
            closer = found > best  # of equal ones the first stays
            best[closer], which[closer] = found[closer], start + at[closer]
        return best, which


class IndexSearch:
    """faiss's inverted file over float16 vectors: `probes` of its cells are searched, so that a neighbour can be missed.

    Cells are learnt from `sample`, on one thread and from a fixed seed, so that equal input gives equal output on one machine.
    """

    def __init__(self, dim: int, sample: Vectors, expected: int, probes: int, seed: int) -> None:
        faiss = import_faiss()
        cells = max(1, min(int(4 * np.sqrt(expected)), len(sample) // 39))  # faiss wants 39 points a cell to learn from
        self._faiss, self._threads = faiss, faiss.omp_get_max_threads()
        self._quantizer = faiss.IndexFlatIP(dim)
        self._index = faiss.IndexIVFScalarQuantizer(
            self._quantizer, dim, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        self._index.cp.seed, self._index.cp.spherical, self._index.nprobe = seed % 2**31, True, min(probes, cells)
        self._index.cp.min_points_per_centroid = 1
        self._alone(self._index.train, np.ascontiguousarray(sample))

    def add(self, vectors: Vectors) -> None:
        self._alone(self._index.add, np.ascontiguousarray(vectors))

    def nearest(self, vectors: Vectors) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        cosines, which = self._alone(self._index.search, np.ascontiguousarray(vectors), 1)
        found = which[:, 0] >= 0
        return np.where(found, cosines[:, 0], np.float32(NONE_BEFORE)), which[:, 0]

    def _alone(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """On one thread: sums over threads differ in their last bits."""
        self._faiss.omp_set_num_threads(1)
        try:
            return work(*arguments)
        finally:
            self._faiss.omp_set_num_threads(self._threads)


def import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "semantic duplicates among so many images need faiss: pip install 'unclip-toolkit[scale]', "
            "or raise embeddings.semantic.exact_up_to to compare them all"
        ) from None
    return faiss


@dataclass(frozen=True)
class Copies:
    """For n images in order of rank: `copy_of` is the rank of the kept image (-1: kept itself), `similarity` the largest cosine
    found to a kept image before it (-1 for the first)."""

    copy_of: NDArray[np.int64]
    similarity: NDArray[np.float32]


def find_copies(blocks: Iterator[Vectors], search: Search, threshold: float) -> Copies:
    """Walk images (float32, unit length) block by block in order of rank. An image is a copy of the nearest kept one before it."""
    copies: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    similarities: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    kept_ranks, done = np.zeros(0, np.int64), 0
    for vectors in blocks:
        similarity, which = search.nearest(vectors)
        nearest = kept_ranks[which] if len(kept_ranks) else which
        kept = _keep(vectors, similarity, nearest, done, threshold)
        search.add(vectors[kept])
        kept_ranks, done = np.concatenate([kept_ranks, done + np.flatnonzero(kept)]), done + len(vectors)
        copies.append(np.where(kept, -1, nearest))
        similarities.append(similarity)
    return Copies(np.concatenate(copies), np.concatenate(similarities))


def _keep(
    vectors: Vectors, similarity: NDArray[np.float32], nearest: NDArray[np.int64], done: int, threshold: float
) -> NDArray[np.bool_]:
    """Which images of a block are kept. `similarity` and `nearest`, which tell of earlier blocks, are brought up to date."""
    cosines = vectors @ vectors.T
    kept = np.zeros(len(vectors), np.bool_)
    for i in range(len(vectors)):
        before = np.where(kept[:i], cosines[i, :i], np.float32(NONE_BEFORE))
        closest = int(before.argmax()) if i else 0
        if i and before[closest] > similarity[i]:
            similarity[i], nearest[i] = before[closest], done + closest
        kept[i] = similarity[i] < threshold
    return kept
