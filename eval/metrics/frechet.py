"""Frechet distances between a set of images and real reference images, in every feature space that a judge offers.

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

float64, symmetric, never an imaginary part: with any factor F F^T = S the last trace is the nuclear norm of F_1^T F_2.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.pipeline.errors import UserError
from eval.metrics.gaussian import Gaussian
from eval.metrics.metric import Measured
from eval.metrics.subject import Found, Space, Subject
from eval.statistics import intervals
from eval.statistics.moments import Floats, as_matrix

ENOUGH_IMAGES = 10_000
EXACT_RANK = 1024


def measure_fd(subject: Subject) -> Iterator[Found]:
    """In the spaces of the run's own judges."""
    yield from _distances(subject, "fd")


def measure_fid(subject: Subject) -> Iterator[Found]:
    """In Inception's space, where its weights are given."""
    yield from _distances(subject, "fid")


def _distances(subject: Subject, family: str) -> Iterator[Found]:
    for space in subject.spaces:
        if space.family == family:
            yield Found(distance(space, subject.groups, subject.draws), space.label)


def distance(space: Space, groups: NDArray[np.intp], draws: NDArray[np.int64]) -> Measured:
    """Frechet distance of a space's features (n, d) to its reference, clamped at 0; the raw value is named where the clamp
    changed it."""
    features = space.features
    raw = frechet_distance(Gaussian.fit(features), space.reference)
    estimate = intervals.centred(raw, frechet_draws(features, groups, draws, space.reference), floor=0.0)
    bias = small_n_warning(len(features), space.references, features.shape[1])
    own = []
    if bias is not None:
        own.append(f"resampling puts the bias of the images' side at {np.mean(estimate.draws) - raw:+.3g}")
    if raw < 0:
        own.append(f"raw value {raw:.3g}, below 0 by rounding")
    shared = (*([bias] if bias is not None else []), *space.warnings)
    return Measured(estimate, len(np.unique(groups)), len(features), shared, tuple(own))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The raw value: rounding may leave it slightly below 0 for equal Gaussians (a report clamps it)."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions cannot be compared")
    return float(np.sum((a.mean - b.mean) ** 2) + a.variance + b.variance - 2 * _nuclear_norm(a.factor.T @ b.factor))


def frechet_draws(
    features: ArrayLike, groups: NDArray[np.intp], weights: NDArray[np.int64], reference: Gaussian
) -> Floats:
    """Distances (draws,) of resampled features (n, d) to a fixed reference, which is factored once.

    `groups` (n,) is each image's caption, `weights` (draws, captions) how often each caption was drawn. The reference's
    own sampling is not part of the spread. Cost: one k x k eigvalsh a draw, k = min(n, rank of the reference).
    """
    x = as_matrix(features) - reference.mean
    z = x @ reference.factor
    if z.shape[1] > len(z):
        # The resampled covariance lives in the row space of z: turn it to as few coordinates as there are images.
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
    smallest, enough = min(n, m), max(ENOUGH_IMAGES, 10 * d)
    if smallest >= enough:
        return None
    return (
        f"biased upward: {n} images against {m} references in {d} dimensions (below {enough}); "
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
