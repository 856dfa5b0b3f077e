"""Resampling captions. Images of one caption resemble each other: the caption is the unit that is drawn.

Systems that are compared saw the same captions, so one table of draws serves all of them and differences are paired.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.statistics.intervals import Estimate, centred, percentile, wilson


def caption_draws(captions: int, draws: int, seed: int) -> NDArray[np.int64]:
    """(draws, captions): how often each caption was drawn; every row sums to `captions`."""
    rng = np.random.default_rng([seed, captions])
    return rng.multinomial(captions, np.full(captions, 1 / captions), size=draws)


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
    found = mean(np.asarray(right, dtype=np.float64), groups, weights)
    if 0 < found.value < 1:
        return found
    captions = len(np.unique(groups))
    lo, hi = wilson(captions if found.value else 0, captions)
    return Estimate(found.value, lo, hi, found.draws)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b over the same captions and draws, with the interval of the paired difference (centred, see `centred`)."""
    return centred(a.value - b.value, a.draws - b.draws)
