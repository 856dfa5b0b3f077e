"""Intervals for answers that are not independent: several about one question, several by one rater."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from humaneval.statistics.rates import Interval, at_least_one


def two_way_clustered_interval(
    scores: Sequence[float], questions: Sequence[str], raters: Sequence[str], confidence: float = 0.95
) -> Interval | None:
    """Interval of the mean score when answers hang together within a question and within a rater.

    Cameron, Gelbach and Miller (2011): V = V_question + V_rater - V_question-and-rater, each the sum over clusters of squared sums of
    deviations times G / (G - 1); Student's t with min(G_question, G_rater) - 1 degrees of freedom; where the difference comes
    out smaller than one of its two parts, the larger part stands (conservative). Cut to [0, 1]. None with a single question or
    a single rater: how much raters differ cannot be seen in one of them.
    """
    values = np.asarray(scores, dtype=np.float64)
    at_least_one(len(values))
    by_question, by_rater = _codes(questions), _codes(raters)
    groups = min(by_question.max(), by_rater.max()) + 1
    if groups < 2:
        return None
    residuals = values - values.mean()
    v_question, v_rater = _clustered_variance(residuals, by_question), _clustered_variance(residuals, by_rater)
    v_both = _clustered_variance(residuals, _codes([f"{q}\0{r}" for q, r in zip(questions, raters, strict=True)]))
    variance = max(v_question + v_rater - v_both, v_question, v_rater)
    half = float(stdtrit(groups - 1, 0.5 + confidence / 2)) * sqrt(variance)
    return Interval(max(0.0, float(values.mean()) - half), min(1.0, float(values.mean()) + half))


def _clustered_variance(residuals: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Variance of the mean with clusters `codes` (0 .. G-1): G / (G - 1) * sum over clusters of (sum of residuals)^2 / n^2."""
    sums = np.bincount(codes, weights=residuals)
    return float(len(sums) / (len(sums) - 1) * np.sum(sums**2) / len(residuals) ** 2)


def _codes(labels: Sequence[str]) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = np.unique(np.asarray(labels), return_inverse=True)[1]
    return codes
