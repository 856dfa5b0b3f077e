"""Feature extractors: what turns images into the named arrays that metrics are computed from.

Each does its own resizing from the images' own side, so real and generated images of one side are treated alike. An extractor is a
small frozen value that says where its network is; the network is loaded in the process that extracts, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.pipeline.stage import Input

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FeatureSpace:
    """One of an extractor's arrays, (n, d), in which Frechet distances are measured under the name of `family`.

    `label` tells it from other spaces; `warnings` hold for every number of generated images that rests on it."""

    array: str
    label: str
    family: str
    warnings: tuple[str, ...] = ()


class Extractor(Protocol):
    """`name` says which (a folder name). `inputs` and `settings` (JSON types) decide what it gives for the same images."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[Input, ...]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def spaces(self) -> tuple[FeatureSpace, ...]: ...

    def extract(self, images: NDArray[np.uint8]) -> Arrays:
        """uint8 (n, h, w, 3) -> float32 (n, d) by name."""
        ...
