"""Shards of noise images, one by one from their keys, and a program that streams them (for tests that kill it or bound its memory)."""

import hashlib
import io
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from data.dataset.shards import Sample, ShardReader, ShardWriter
from data.pipeline.artifacts import Artifact
from training.loop.feed import Feed
from training.loop.pixels import Pixels, Share


def picture(key: str, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(int(key)).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_shards(folder: Path, shards: Mapping[str, Sequence[int]], side: int) -> ShardReader:
    """A dataset's shards and ledger; images are numbered, their keys in ascending order within a shard."""
    (folder / "ledger").mkdir(parents=True)
    for name, numbers in shards.items():
        keys = [f"{number:09d}" for number in numbers]
        with ShardWriter(folder / "shards" / f"{name}.tar") as writer:
            for key in keys:
                content = io.BytesIO()
                Image.fromarray(picture(key, side)).save(content, "png", compress_level=0)
                writer.write(Sample(key, content.getvalue(), "png", {"captions": [f"number {key}"]}))
        table = pa.table({"key": [*keys, f"lost{name}"], "reason": [*([None] * len(keys)), "http_404"]})
        pq.write_table(table, folder / "ledger" / f"{name}.parquet")
    (folder / "manifest.json").write_text("{}")
    return open_shards(folder)


def open_shards(folder: Path) -> ShardReader:
    return ShardReader(Artifact(folder), sorted(path.stem for path in (folder / "shards").iterdir()))


def digests(
    shards: ShardReader, side: int, limit: int, batch: int, start: int, steps: int, rank: int, ranks: int
) -> Iterator[str]:
    """A digest of the keys and pixels of each step from `start` on."""
    keys = shards.keys()
    with Pixels(shards, keys, side, limit=limit, share=Share(batch, rank, ranks)) as pixels:

        def order(epoch: int) -> NDArray[np.int64]:
            found = pixels.order(5, epoch)
            return np.random.default_rng([5, epoch]).permutation(len(keys)) if found is None else found

        def fetch(items: NDArray[np.int64]) -> str:
            chosen = [keys[item] for item in items]
            found = pixels.fetch(chosen).numpy()
            return hashlib.sha256("".join(chosen).encode() + found.tobytes()).hexdigest()[:16]

        with Feed(order, len(keys), fetch, batch, rank, ranks, steps=steps) as feed:
            for step in range(start, steps):
                yield feed.take(step)[0]


def peak_mib() -> float:
    """The most resident memory since the beginning of the process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, numbers = Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:]]
    opened = open_shards(where)
    side, limit, batch, start, steps, rank, ranks = numbers
    for _ in digests(opened, side, 3 * side**2 * 512, batch, 0, 1, rank, ranks):
        pass  # allocators and threads are set up before memory is measured
    before = peak_mib()
    for step, found in enumerate(digests(opened, side, limit, batch, start, steps, rank, ranks), start):
        print(step, found, flush=True)
    print("grew", peak_mib() - before, flush=True)
