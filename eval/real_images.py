"""Real images and captions as evaluation uses them: by split, in a seeded order, at the decoder's resolution."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.progress import progress
from eval.images import ImageSet
from training.loop.pixels import reduce_image

HELD_OUT = ("test", "val")


class RealImages:
    """Samples of a dataset that have at least one pair kept by a view."""

    def __init__(self, dataset: Artifact, view: Artifact) -> None:
        self.reader = ShardReader(dataset)
        self.digest = fingerprint([dataset.digest(), view.require("make dataset").digest()])
        self.captions = _kept_captions(view)
        self.meta: dict[str, dict[str, Any]] = {}
        self.splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for key in sorted(self.captions):
            self.meta[key] = self.reader.meta(key)
            self.splits[self.meta[key]["split"]].append(key)

    @property
    def has_attributes(self) -> bool:
        """Does the dataset know what its images show (the synthetic world does)?"""
        return any(meta.get("attributes") for meta in self.meta.values())

    def held_out(self, seed: int, purpose: str) -> list[str]:
        """Keys of the test split, then of the validation split, each in a seeded order."""
        return [key for split in HELD_OUT for key in ranked(self.splits[split], seed, purpose)]

    def train(self, seed: int, purpose: str) -> list[str]:
        """Keys of the training split in a seeded order."""
        return ranked(self.splits["train"], seed, purpose)

    def truth(self, key: str) -> dict[str, Any]:
        """What the image shows: {"objects": [{...}], "background": ..., ...}. Raises KeyError where that is not known."""
        return {name: value for name, value in self.meta[key]["attributes"].items() if name != "named"}

    def objects(self, key: str) -> int:
        """How many objects the image shows; 0 where that is not known."""
        return len((self.meta[key].get("attributes") or {}).get("objects", ()))

    def pixels(self, keys: Sequence[str], side: int) -> NDArray[np.uint8]:
        """uint8 (n, side, side, 3), reduced exactly as the decoder's training pixels are."""
        images = np.empty((len(keys), side, side, 3), dtype=np.uint8)
        with progress("reading real images", len(keys), "images") as bar:
            for i, key in enumerate(keys):
                images[i] = reduce_image(self.reader.image(key), side)
                bar.advance()
        return images

    def image_set(self, name: str, keys: Sequence[str], side: int) -> ImageSet:
        """A set for feature extraction; each image is its own group."""
        digest = fingerprint([self.digest, list(keys), side, "reduce_image"])
        return ImageSet(name, digest, list(keys), list(keys), lambda: self.pixels(keys, side))


def ranked(keys: Sequence[str], seed: int, purpose: str) -> list[str]:
    """Keys in an order that depends on each key, the seed and the purpose alone: a larger set extends a smaller one."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}/{purpose}/{key}".encode()).digest())


def _kept_captions(view: Artifact) -> dict[str, list[int]]:
    """key -> ascending indices of the captions that the view keeps."""
    kept: dict[str, list[int]] = {}
    for receipt in view.receipts():
        table = pq.read_table(view.folder / f"{receipt.name}.parquet", columns=["key", "caption_index", "keep"])
        for key, index, keep in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            if keep:
                kept.setdefault(key, []).append(index)
    return {key: sorted(indices) for key, indices in kept.items()}
