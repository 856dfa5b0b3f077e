"""A Gaussian fitted to features: its mean, and a factor of its covariance that is exact for few samples too.

With fewer samples than dimensions the centred samples themselves are a low-rank factor; otherwise the covariance's
eigenvectors are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from data.pipeline.errors import UserError
from eval.statistics.moments import Floats, Moments, as_matrix


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and a factor (d, r) of the covariance."""

    mean: Floats
    factor: Floats

    @classmethod
    def fit(cls, features: ArrayLike) -> "Gaussian":
        """features (n, d). Raises UserError for fewer than two samples or values that are not finite."""
        x = as_matrix(features)
        if len(x) < 2:
            raise UserError(f"a Frechet distance needs at least 2 images a side, got {len(x)}")
        if len(x) <= x.shape[1]:
            mean = x.mean(axis=0)
            return cls(mean, (x - mean).T / np.sqrt(len(x) - 1))
        return cls.of_moments(Moments.of(x))

    @classmethod
    def of_moments(cls, moments: Moments) -> "Gaussian":
        return cls.of_covariance(moments.mean, moments.covariance)

    @classmethod
    def of_covariance(cls, mean: ArrayLike, covariance: ArrayLike) -> "Gaussian":
        """Rounding may leave a covariance's eigenvalues a little below zero; they count as zero."""
        values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
        return cls(np.asarray(mean, dtype=np.float64), vectors * np.sqrt(np.clip(values, 0, None)))

    @property
    def variance(self) -> float:
        """tr S."""
        return float(np.sum(self.factor**2))
