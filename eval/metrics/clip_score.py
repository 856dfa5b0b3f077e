"""How well an image fits its caption, by a CLIP: two conventions under two names, and R-precision.

All take unit vectors; `images[i]` was made for the caption whose vector is `texts[i]`.
"""

import numpy as np
from numpy.typing import NDArray

HESSEL_WEIGHT = 2.5


def cosines(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Row-wise cosine (n,) of unit vectors (n, d) and (n, d)."""
    return np.einsum("nd,nd->n", images.astype(np.float64), texts.astype(np.float64))


def clip_score(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """100 * cos per image, not clamped (n,): the paper's and GLIDE's convention, 100 being CLIP's logit scale."""
    return 100 * cosines(images, texts)


def clip_score_hessel(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """2.5 * max(cos, 0) per image (n,): Hessel et al. 2021, clamped before the mean; their caption prefix is the caller's."""
    return HESSEL_WEIGHT * np.maximum(cosines(images, texts), 0)


def r_precision(
    images: NDArray[np.floating], captions: NDArray[np.floating], own: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Is an image's own caption the nearest of all captions (k, d)? `own[i]` is its row. (n,); ties count as wrong."""
    similarity = images.astype(np.float64) @ captions.astype(np.float64).T
    mine = similarity[np.arange(len(own)), own].copy()
    similarity[np.arange(len(own)), own] = -np.inf
    return mine > similarity.max(axis=1)
