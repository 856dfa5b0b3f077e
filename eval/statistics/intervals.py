"""95 % intervals: of resampled values, and of a share of independent trials."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the draws from which that came (draws,), kept for paired differences."""

    value: float
    lo: float
    hi: float
    draws: Floats


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


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for the share of `right` among `n` independent trials."""
    found = binomtest(right, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)
