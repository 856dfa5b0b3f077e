"""Intervals by resampling captions. Images of one caption resemble each other: the caption is the unit that is drawn.

Systems that are compared saw the same captions, so one table of draws serves all of them and differences are paired.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
Z = 1.959963984540054  # the normal quantile of CONFIDENCE


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the draws from which that came (draws,), kept for paired differences."""

    value: float
    lo: float
    hi: float
    draws: Floats


def caption_draws(captions: int, draws: int, seed: int) -> NDArray[np.int64]:
    """(draws, captions): how often each caption was drawn; every row sums to `captions`."""
    rng = np.random.default_rng([seed, captions])
    return rng.multinomial(captions, np.full(captions, 1 / captions), size=draws)


def percentile(value: float, draws: Floats) -> Estimate:
    """The middle 95 % of the draws: for means."""
    lo, hi = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(lo), float(hi), draws)


def centred(value: float, draws: Floats, floor: float = -np.inf) -> Estimate:
    """The middle 95 % of the draws' deviations from their own mean, put around the value: for Frechet distances.

    A Frechet distance of resampled data is biased upward once more (repeated samples look like fewer samples), so plain
    percentiles would sit above the value, and reversed ones estimate another quantity, the distance at infinite n. This
    interval is for what the estimator gives at this n; the draws' mean less the value says how far that is off. `floor` bounds it.
    """
    lo, hi = np.quantile(draws - draws.mean(), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(max(value, floor), float(max(value + lo, floor)), float(max(value + hi, floor)), draws)


def mean(values: ArrayLike, groups: NDArray[np.intp], weights: NDArray[np.int64]) -> Estimate:
    """Mean of values (n,) with captions `groups` (n,) as clusters; `weights` as `caption_draws` gives them.

    A caption without a value simply does not count. Draws without any value (few captions, unlucky) are left out.
    """
    x = np.asarray(values, dtype=np.float64)
    captions = weights.shape[1]
    sums = np.bincount(groups, weights=x, minlength=captions)
    counts = np.bincount(groups, minlength=captions)
    drawn = weights @ counts
    draws = (weights @ sums)[drawn > 0] / drawn[drawn > 0]
    return percentile(float(x.mean()), draws)


def proportion(right: ArrayLike, groups: NDArray[np.intp], weights: NDArray[np.int64]) -> Estimate:
    """Mean of booleans. All right (or all wrong) leaves resampling nothing to vary: then Wilson's interval over the captions."""
    x = np.asarray(right, dtype=np.float64)
    found = mean(x, groups, weights)
    if 0 < found.value < 1:
        return found
    lo, hi = wilson(found.value, len(np.unique(groups)))
    return Estimate(found.value, lo, hi, found.draws)


def wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share `p` of `n` independent trials."""
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b over the same captions and draws, with the interval of the paired difference (centred, see `centred`)."""
    return centred(a.value - b.value, a.draws - b.draws)
