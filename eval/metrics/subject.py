"""What metrics are computed from: the features of one set of images, and all that is the same for every set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.gaussian import Gaussian
from eval.metrics.metric import Measured

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Space:
    """A feature space: features (n, d) of the images, and a Gaussian fitted to those of `references` real images.

    `family` is what a Frechet distance in it is called."""

    label: str
    family: str
    features: Floats
    reference: Gaussian
    references: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipJudge:
    """Unit CLIP vectors: of the images (n, d), and of all captions of the prompt set (captions, d)."""

    label: str
    images: Floats
    texts: Floats
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttributeJudge:
    """The attribute classifier's logits (n, values) of every head for the images. `scene` names the heads that are about the
    whole scene; `vocabulary` the values of each head."""

    label: str
    logits: Mapping[str, Floats]
    vocabulary: Mapping[str, Sequence[str]]
    scene: Sequence[str]


@dataclass(frozen=True)
class Subject:
    """n images under every judge there is. `groups` (n,) says which caption each belongs to, `named` what each caption names,
    `draws` (draws, captions) is from `bootstrap.caption_draws`."""

    groups: NDArray[np.intp]
    named: Sequence[Mapping[str, Any]]
    draws: NDArray[np.int64]
    spaces: tuple[Space, ...] = ()
    clip: ClipJudge | None = None
    attributes: AttributeJudge | None = None

    @property
    def captions(self) -> int:
        """How many captions the images have."""
        return len(np.unique(self.groups))


@dataclass(frozen=True)
class Found:
    """What a family found in a subject; `space`, `what` and `scope` as in `Metric`."""

    measured: Measured
    space: str
    what: str | None = None
    scope: str | None = None
