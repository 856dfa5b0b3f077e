"""Real images and captions as evaluation uses them: by split, in a seeded order, at the decoder's resolution."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.lineage import Lineage
from data.pipeline.progress import progress
from data.pipeline.run import Run
from data.pipeline.stage import Input
from data.views.reading import kept_pairs
from eval.images import Images
from training.loop.pixels import reduce_image

HELD_OUT = ("test", "val")


@dataclass(frozen=True)
class RealSource:
    """Where a run's real images are, with the digests that the dataset and the view had."""

    dataset: Path
    view: Path
    inputs: tuple[Input, ...]

    @classmethod
    def of(cls, run: Run) -> "RealSource":
        """The view `base`. Raises UserError when it or the dataset is not there, or is stale."""
        dataset, view = (Lineage(run).require(name) for name in ("dataset", "views/base"))
        inputs = (Input("dataset", dataset.digest()), Input("views/base", view.digest()))
        return cls(dataset.folder, view.folder, inputs)

    def open(self) -> "RealImages":
        """Read once in each process."""
        return _opened(self)


@lru_cache(maxsize=1)
def _opened(source: RealSource) -> "RealImages":
    return RealImages(Artifact(source.dataset), Artifact(source.view))


class RealImages:
    """Samples of a dataset that have at least one pair kept by a view."""

    def __init__(self, dataset: Artifact, view: Artifact) -> None:
        self.reader = ShardReader(dataset)
        self.captions = _kept_captions(view.require("make dataset"))
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
        """What the image shows, see `truth_of`."""
        return truth_of(self.meta[key])

    def objects(self, key: str) -> int:
        """How many objects the image shows; 0 where that is not known."""
        return len((self.meta[key].get("attributes") or {}).get("objects", ()))


def truth_of(meta: dict[str, Any]) -> dict[str, Any]:
    """What a stored image shows, from the JSON beside it: {"objects": [{...}], "background": ..., ...}. Raises KeyError where that is
    not known."""
    return {name: value for name, value in meta["attributes"].items() if name != "named"}


def read_pixels(reader: ShardReader, keys: Sequence[str], side: int) -> NDArray[np.uint8]:
    """uint8 (n, side, side, 3), reduced exactly as the decoder's training pixels are."""
    images = np.empty((len(keys), side, side, 3), dtype=np.uint8)
    with progress("reading real images", len(keys), "images") as bar:
        for i, key in enumerate(keys):
            images[i] = reduce_image(reader.image(key), side)
            bar.advance()
    return images


@dataclass(frozen=True)
class RealSet:
    """Stored images by key, each its own group, brought to `side` pixels. `sources` are what they come from."""

    name: str
    dataset: Path
    keys: tuple[str, ...]
    side: int
    sources: tuple[Input, ...]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The sources, and which of their images at which side."""
        return (*self.sources, Input("@images", fingerprint([self.side, list(self.keys)])))

    def load(self) -> Images:
        keys = list(self.keys)
        return Images(keys, keys, read_pixels(ShardReader(Artifact(self.dataset)), keys, self.side))


def ranked(keys: Sequence[str], seed: int, purpose: str) -> list[str]:
    """Keys in an order that depends on each key, the seed and the purpose alone: a larger set extends a smaller one."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}/{purpose}/{key}".encode()).digest())


def _kept_captions(view: Artifact) -> dict[str, list[int]]:
    """key -> ascending indices of the captions that the view keeps."""
    kept: dict[str, list[int]] = {}
    pairs = kept_pairs(view)
    for key, index in zip(pairs["key"].to_pylist(), pairs["caption_index"].to_pylist(), strict=True):
        kept.setdefault(key, []).append(index)
    return {key: sorted(indices) for key, indices in kept.items()}
