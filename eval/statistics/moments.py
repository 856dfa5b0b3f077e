"""Mean and scatter of features in float64, of all at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.pipeline.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and scatter `m2` = sum of (x - mean)(x - mean)^T (d, d)."""

    n: int
    mean: Floats
    m2: Floats

    @classmethod
    def of(cls, features: ArrayLike) -> "Moments":
        """features (n, d), n >= 1, any float type."""
        x = as_matrix(features)
        mean = x.mean(axis=0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    @property
    def covariance(self) -> Floats:
        """Unbiased (n - 1), as in every published FID."""
        return self.m2 / (self.n - 1)


def as_matrix(features: ArrayLike) -> Floats:
    """features (n, d), n >= 1, as float64. Raises UserError for another shape, or values that are not finite."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise UserError(f"features must be a matrix (n, d) with n >= 1, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise UserError(
            f"features hold {int((~np.isfinite(x)).sum())} values that are not finite; the extractor is broken"
        )
    return x
