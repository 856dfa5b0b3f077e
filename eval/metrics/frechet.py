"""Frechet distance between Gaussians fitted to two sets of features: float64, symmetric, never an imaginary part.

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

With any factor F F^T = S the last trace is the nuclear norm of F_1^T F_2. So one formula serves both routes: with fewer
samples than dimensions the centred samples themselves are an exact low-rank factor; otherwise the covariance's eigenvectors are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.pipeline.errors import UserError
from eval.statistics.moments import Floats, Moments, _matrix

ENOUGH_SAMPLES = 10_000
EXACT_RANK = 1024
BIASED = "biased upward"


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and a factor (d, r) of the covariance."""

    mean: Floats
    factor: Floats

    @classmethod
    def fit(cls, features: ArrayLike) -> "Gaussian":
        """features (n, d). Raises UserError for fewer than two samples or values that are not finite."""
        x = _matrix(features)
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


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The raw value: rounding may leave it slightly below 0 for equal Gaussians (a report clamps it)."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions cannot be compared")
    return float(np.sum((a.mean - b.mean) ** 2) + a.variance + b.variance - 2 * _nuclear_norm(a.factor.T @ b.factor))


def frechet_draws(
    features: ArrayLike, groups: NDArray[np.intp], weights: NDArray[np.int64], reference: Gaussian
) -> Floats:
    """Distances (draws,) of resampled features (n, d) to a fixed reference, which is factored once.

    `groups` (n,) is each sample's caption, `weights` (draws, captions) how often each caption was drawn. The reference's
    own sampling is not part of the spread. Cost: one k x k eigvalsh a draw, k = min(n, rank of the reference).
    """
    x = _matrix(features) - reference.mean
    z = x @ reference.factor
    if z.shape[1] > len(z):
        # The resampled covariance lives in the row space of z: turn it to as few coordinates as there are samples.
        z = np.asarray(np.linalg.qr(z.T, mode="r")).T
    squares = np.sum(x**2, axis=1)
    draws = np.empty(len(weights))
    for i, weight in enumerate(weights):
        w = weight[groups].astype(np.float64)
        n = w.sum()
        mean, mean_z = w @ x / n, w @ z / n
        variance = (w @ squares - n * mean @ mean) / (n - 1)
        scatter = (z * w[:, None]).T @ z - n * np.outer(mean_z, mean_z)
        draws[i] = mean @ mean + variance + reference.variance - 2 * _trace_sqrt(scatter / (n - 1))
    return draws


def small_n_warning(n: int, m: int, d: int) -> str | None:
    """Names the upward bias of a distance from `n` images to `m` references in `d` dimensions; None when both are plenty."""
    smallest, enough = min(n, m), max(ENOUGH_SAMPLES, 10 * d)
    if smallest >= enough:
        return None
    return (
        f"{BIASED}: {n} images against {m} references in {d} dimensions (below {enough}); "
        "compare only with distances at the same n and references"
    )


def _nuclear_norm(cross: Floats) -> float:
    """Sum of singular values. Squaring costs half of the digits and is many times faster: so only where it matters."""
    if min(cross.shape) <= EXACT_RANK:
        return float(np.linalg.svd(cross, compute_uv=False).sum())
    return _trace_sqrt(cross @ cross.T if cross.shape[0] <= cross.shape[1] else cross.T @ cross)


def _trace_sqrt(covariance: Floats) -> float:
    """tr S^(1/2) of a PSD matrix. Eigenvalues within rounding of zero count as zero, else their roots would add up."""
    values = np.linalg.eigvalsh(covariance)
    floor = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return float(np.sqrt(values[values > floor]).sum())
