"""Batches of the cache with the stored images of their pairs, joined by key: what a decoder trains on."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact
from data.pipeline.errors import UserError
from embed.reading.rows import PairBatch

Image = NDArray[np.uint8]


def require_same_shards(embeddings: Artifact, dataset: Artifact) -> None:
    """Raise UserError unless the cache was made from the very shards that stand there: their digests are those recorded with it."""
    plan = embeddings.require("make embeddings").plan_json() or {"parts": []}
    made_from = {p["name"]: p["inputs"]["shard"] for p in plan["parts"] if "shard" in p["inputs"]}
    standing = {r.name: r.files[f"shards/{r.name}.tar"]["sha256"] for r in dataset.require("make dataset").receipts()}
    differing = sorted(name for name in made_from.keys() | standing.keys() if made_from.get(name) != standing.get(name))
    if differing:
        raise UserError(
            f"{embeddings.folder} was made from other shards than those in {dataset.folder}: {len(differing)} differ, "
            f"e.g. {differing[0]}; run `make embeddings`, which makes the parts of changed shards again"
        )


def with_images(
    batches: Iterable[PairBatch], embeddings: Artifact, dataset: Artifact, threads: int = 4, ahead: int = 2
) -> Generator[tuple[PairBatch, list[Image]], None, None]:
    """Each batch with its images, uint8 (h, w, 3), one for each pair; `threads` decode `ahead` batches before they are asked for.

    Each image of a batch is decoded once, whatever its captions. Raises UserError when the shards are not those of the cache.
    """
    require_same_shards(embeddings, dataset)
    shards = ShardReader(dataset)
    waiting: deque[tuple[PairBatch, dict[str, Future[Image]]]] = deque()

    def handed_out() -> tuple[PairBatch, list[Image]]:
        batch, images = waiting.popleft()
        decoded = {key: image.result() for key, image in images.items()}
        return batch, [decoded[key] for key in batch.keys]

    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in batches:
                waiting.append((batch, {key: pool.submit(shards.image, key) for key in dict.fromkeys(batch.keys)}))
                if len(waiting) > ahead:
                    yield handed_out()
            while waiting:
                yield handed_out()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
