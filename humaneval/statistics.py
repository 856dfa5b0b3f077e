"""Win rates and their intervals, in float64. A score is 1 for a win of system a, 0 for a loss, one half for "not sure".

The paper (appendix B) treats 1,000 comparisons as independent. Several answers by one rater, or about one question, are not;
the two-way clustered interval allows for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

TIE = 0.5


@dataclass(frozen=True)
class Interval:
    lo: float
    hi: float


def win_rate(wins: int, ties: int, losses: int) -> float:
    """Share of comparisons won, a tie counting half a win for each side (GLIDE, appendix A; the paper follows it)."""
    return (wins + TIE * ties) / _positive(wins + ties + losses)


def win_rate_without_ties(wins: int, losses: int) -> float | None:
    """Share of decided comparisons won; None where none was decided."""
    return wins / (wins + losses) if wins + losses else None


def three_way_shares(wins: int, ties: int, losses: int) -> tuple[float, float, float]:
    """Shares of wins, ties and losses."""
    n = _positive(wins + ties + losses)
    return wins / n, ties / n, losses / n


def normal_interval(rate: float, n: int, confidence: float = 0.95) -> Interval:
    """The paper's interval: rate +- z sqrt(rate (1 - rate) / n), cut to [0, 1]. Degenerates to a point at 0 and 1."""
    half = _z(confidence) * sqrt(rate * (1 - rate) / _positive(n))
    return Interval(max(0.0, rate - half), min(1.0, rate + half))


def wilson_interval(rate: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval: the rates that a normal test would not reject. Keeps its coverage for small n and near 0 and 1."""
    z2 = _z(confidence) ** 2
    centre = (rate + z2 / (2 * _positive(n))) / (1 + z2 / n)
    half = sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


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
    _positive(len(values))
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


def _z(confidence: float) -> float:
    return float(ndtri(0.5 + confidence / 2))


def _positive(n: int) -> int:
    if n < 1:
        raise ValueError(f"statistics need at least one answer, got {n}")
    return n
