"""What a cache looks like as a whole: `statistics.json`, made from its parts one after the other.

Vectors are counted once for each distinct image and each distinct caption. Up to LIMIT distinct ones all of them count; beyond it,
those whose hash is smallest, which is a uniform sample that any order of the parts gives. So memory and time stay bounded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.pipeline.artifacts import Receipt, publish_json, sum_counts
from embed.encoding.threads import one_thread
from embed.format import NULL_PART, as_matrix

STATISTICS_FILE, PICTURE_FILE = "statistics.json", "log/statistics.png"
LIMIT = 2**17
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
NOISE = 1e-15  # what float64 leaves of an eigenvalue that is zero; all of them together are at most 1
BINS = np.linspace(-1.0, 1.0, 201)
DIGITS = 7  # significant ones: the last bits of a sum are no statement about the cache


def write_statistics(folder: Path, receipts: Sequence[Receipt], dim: int) -> list[str]:
    """Write `statistics.json` and its picture for a cache in `folder` whose vectors have `dim` components; returns the files that
    belong to the artifact, by their names."""
    paths = [folder / f"{receipt.name}.parquet" for receipt in receipts if receipt.name != NULL_PART]
    with one_thread():  # the last bits of a sum depend on their number
        content = statistics(paths, dim)
    content["counts"] = {**sum_counts(list(receipts)), **content["counts"]}
    publish_json(folder / STATISTICS_FILE, content)
    # The picture is drawn by a library whose next version may draw another one: outside every digest.
    draw(content, folder / PICTURE_FILE)
    return [STATISTICS_FILE]


def statistics(paths: Sequence[Path], dim: int) -> dict[str, Any]:
    """Counts, lengths, similarities and effective dimensions over the parts at `paths` (JSON types)."""
    image, text, pairs, shuffled = _Side("image", dim), _Side("text", dim), _Similarities(), _Similarities()
    image.choose(paths)
    text.choose(paths)
    for number, path in enumerate(paths):
        file = pq.ParquetFile(path, memory_map=True)
        for group in range(file.num_row_groups):
            pairs.add(file.read_row_group(group, columns=["clip_score"])["clip_score"].to_numpy())
            rows, vectors = text.add(file, number, group)
            image_rows, image_vectors = image.add(file, number, group)
            shuffled.add(_strangers(rows, vectors, image_rows, image_vectors))
    return {
        "counts": {"distinct_images": image.distinct, "distinct_captions": text.distinct},
        "estimated": sorted(side.name for side in (image, text) if side.sampled),
        "image": image.result(), "text": text.result(),
        "similarity": {"bin_edges": [_round(edge) for edge in BINS], "pairs": pairs.result(), "shuffled": shuffled.result()},
        "gap": _round(float(np.linalg.norm(image.sums.mean - text.sums.mean))),
    }  # fmt: skip


@dataclass
class VectorSums:
    """Count, sum (d,) and sum of outer products (d, d) of vectors of d components, added up in float64 batch by batch."""

    dim: int
    n: int = 0
    first: NDArray[np.float64] = field(init=False)
    second: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.second = np.zeros(self.dim), np.zeros((self.dim, self.dim))

    def add(self, vectors: NDArray[np.generic]) -> None:
        """(n, d) of any float type."""
        x = torch.from_numpy(vectors.astype(np.float64))
        self.n += len(x)
        self.first += x.sum(dim=0).numpy()
        self.second += (x.T @ x).numpy()

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.first / max(self.n, 1)

    def eigenvalues(self) -> NDArray[np.float64]:
        """Of the covariance (divided by n), largest first, (d,)."""
        covariance = self.second / max(self.n, 1) - np.outer(self.mean, self.mean)
        found: NDArray[np.float64] = torch.linalg.eigvalsh(torch.from_numpy(covariance)).numpy()[::-1]
        return np.where(found > NOISE, found, 0.0)


class _Side:
    """One kind of vector, image or text, over its distinct values."""

    def __init__(self, name: str, dim: int) -> None:
        self.name, self.dim, self.sums = name, dim, VectorSums(dim)
        self.hash_column = "image_hash" if name == "image" else "caption_hash"
        self.distinct, self.sampled = 0, False
        self._rows: dict[int, NDArray[np.int64]] = {}
        self._norms: list[NDArray[np.float32]] = []

    def choose(self, paths: Sequence[Path]) -> None:
        """Which rows stand for a distinct value: the first of each, and of the smallest LIMIT hashes only."""
        chosen = _Smallest(LIMIT)
        for number, path in enumerate(paths):
            hashes = as_matrix(
                pq.read_table(path, columns=[self.hash_column], memory_map=True)[self.hash_column], "<u8", 2
            )
            chosen.add(hashes[:, 0], number)
        chosen.merge()
        self.distinct, self.sampled = chosen.distinct(), chosen.full
        for number in np.unique(chosen.part):
            self._rows[int(number)] = np.sort(chosen.row[chosen.part == number])

    def add(self, file: pq.ParquetFile, number: int, group: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Count the chosen rows of a row group; returns their places in the part and their vectors."""
        start = sum(file.metadata.row_group(i).num_rows for i in range(group))
        rows = self._rows.get(number, np.zeros(0, np.int64))
        rows = rows[(rows >= start) & (rows < start + file.metadata.row_group(group).num_rows)]
        if not len(rows):
            return rows, np.zeros((0, self.dim), np.float16)
        table = file.read_row_group(group, columns=[f"{self.name}_embedding", f"{self.name}_norm"])
        vectors = as_matrix(table[f"{self.name}_embedding"], "<f2", self.dim)[rows - start]
        self.sums.add(vectors)
        self._norms.append(table[f"{self.name}_norm"].to_numpy()[rows - start])
        return rows, vectors.astype(np.float16, copy=False)

    def result(self) -> dict[str, Any]:
        norms = np.concatenate([np.zeros(0), *self._norms])
        values = self.sums.eigenvalues()
        share = values / max(values.sum(), 1e-300)
        entropy = -float((share[share > 0] * np.log(share[share > 0])).sum())
        found = np.quantile(norms, QUANTILES) if len(norms) else np.zeros(len(QUANTILES))
        return {
            "n": self.sums.n,
            "mean_vector_norm": _round(float(np.linalg.norm(self.sums.mean))),
            "norm": {
                "mean": _round(float(norms.mean()) if len(norms) else 0.0), "std": _round(float(norms.std()) if len(norms) else 0.0),
                "quantiles": {f"{q:g}": _round(float(v)) for q, v in zip(QUANTILES, found, strict=True)},
            },
            "effective_dimension": {
                "participation_ratio": _round(float(values.sum() ** 2 / max((values**2).sum(), 1e-300))),
                "entropy": _round(float(np.exp(entropy))),
            },
            "eigenvalues": [_round(float(v)) for v in values],
        }  # fmt: skip


class _Smallest:
    """The rows of the `limit` smallest distinct hashes, each at its first place. A bottom-k sketch: their number tells, beyond the
    limit, how many distinct ones there are."""

    def __init__(self, limit: int) -> None:
        self.limit, self.full = limit, False
        self.hash, self.part, self.row = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._rows_waiting = 0

    def add(self, hashes: NDArray[np.generic], part: int) -> None:
        rows = np.arange(len(hashes), dtype=np.int64)
        if self.full:
            below = hashes < self.hash[-1]
            hashes, rows = hashes[below], rows[below]
        self._waiting.append((hashes.astype(np.uint64), np.full(len(rows), part), rows))
        self._rows_waiting += len(rows)
        if self._rows_waiting >= self.limit:
            self.merge()

    def merge(self) -> None:
        columns = zip((self.hash, self.part, self.row), *self._waiting, strict=True)
        hashes, parts, rows = (np.concatenate(column) for column in columns)
        unique, first = np.unique(hashes, return_index=True)  # the first of equal ones, which is the earlier part's
        self.full |= len(unique) > self.limit
        first = first[: self.limit]
        self.hash, self.part, self.row = unique[: self.limit], parts[first], rows[first]
        self._waiting, self._rows_waiting = [], 0

    def distinct(self) -> int:
        """How many distinct hashes were added; an estimate (0.3 % off) where there were more than the limit."""
        if not self.full:
            return len(self.hash)
        return round((self.limit - 1) / (float(self.hash[-1]) / 2.0**64))


class _Similarities:
    """A histogram of cosines with their mean and standard deviation."""

    def __init__(self) -> None:
        self.n, self.first, self.second = 0, 0.0, 0.0
        self.histogram = np.zeros(len(BINS) - 1, np.int64)

    def add(self, cosines: NDArray[np.generic]) -> None:
        values = np.clip(cosines.astype(np.float64), -1.0, 1.0)
        self.n += len(values)
        self.first += float(values.sum())
        self.second += float((values**2).sum())
        self.histogram += np.histogram(values, BINS)[0]

    def result(self) -> dict[str, Any]:
        mean = self.first / max(self.n, 1)
        variance = max(self.second / max(self.n, 1) - mean**2, 0.0)
        return {"n": self.n, "mean": _round(mean), "std": _round(variance**0.5), "histogram": self.histogram.tolist()}


def _strangers(
    text_rows: NDArray[np.int64], texts: NDArray[np.float16], image_rows: NDArray[np.int64], images: NDArray[np.float16]
) -> NDArray[np.float64]:
    """Cosines of captions with images of other pairs: each caption with the image half the group further on."""
    if len(images) < 2:
        return np.zeros(0)
    own = np.searchsorted(image_rows, text_rows, side="right") - 1  # an image stands at the first of its rows
    other = (own + max(1, len(images) // 2)) % len(images)
    return (texts.astype(np.float64) * images[other].astype(np.float64)).sum(axis=1)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """The similarity histograms and the eigenvalue spectra as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    middle = (BINS[1:] + BINS[:-1]) / 2
    for name in ("pairs", "shuffled"):
        found = content["similarity"][name]
        heights = np.array(found["histogram"]) / max(found["n"], 1)
        left.step(middle, heights, where="mid", label=f"{name}: mean {found['mean']:.3f}, n = {found['n']:,}")
    used = np.flatnonzero(
        np.array([content["similarity"][name]["histogram"] for name in ("pairs", "shuffled")]).sum(axis=0)
    )
    if len(used):
        left.set_xlim(BINS[used[0]] - 0.02, BINS[used[-1] + 1] + 0.02)
    left.set(xlabel="cosine of image and caption", ylabel="share", ylim=(0, left.get_ylim()[1] * 1.25))
    left.legend(loc="upper right")
    for name in ("image", "text"):
        values, effective = np.array(content[name]["eigenvalues"]), content[name]["effective_dimension"]
        shown = values[values > values.max(initial=0.0) * 1e-9]
        label = (
            f"{name}: participation ratio {effective['participation_ratio']:.1f}, entropy {effective['entropy']:.1f}"
        )
        right.semilogy(np.arange(1, len(shown) + 1), shown, label=label)
    right.set(xlabel="eigenvalue of the covariance, largest first")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
