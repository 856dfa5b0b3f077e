"""Win rates and their intervals, in float64. A score is 1 for a win of system a, 0 for a loss, one half for "not sure".

The paper (appendix B) treats 1,000 comparisons as independent. Several answers by one rater, or about one question, are not;
the two-way clustered interval allows for both.
"""

from dataclasses import dataclass
from math import sqrt

from scipy.special import ndtri

TIE = 0.5


@dataclass(frozen=True)
class Interval:
    """Ends of an interval of rates, both in [0, 1]."""

    lo: float
    hi: float


def win_rate(wins: int, ties: int, losses: int) -> float:
    """Share of comparisons won, a tie counting half a win for each side (GLIDE, appendix A; the paper follows it)."""
    return (wins + TIE * ties) / at_least_one(wins + ties + losses)


def win_rate_without_ties(wins: int, losses: int) -> float | None:
    """Share of decided comparisons won; None where none was decided."""
    return wins / (wins + losses) if wins + losses else None


def three_way_shares(wins: int, ties: int, losses: int) -> tuple[float, float, float]:
    """Shares of wins, ties and losses."""
    n = at_least_one(wins + ties + losses)
    return wins / n, ties / n, losses / n


def normal_interval(rate: float, n: int, confidence: float = 0.95) -> Interval:
    """The paper's interval: rate +- z sqrt(rate (1 - rate) / n), cut to [0, 1]. Degenerates to a point at 0 and 1."""
    half = _z(confidence) * sqrt(rate * (1 - rate) / at_least_one(n))
    return Interval(max(0.0, rate - half), min(1.0, rate + half))


def wilson_interval(rate: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval: the rates that a normal test would not reject. Keeps its coverage for small n and near 0 and 1.

    The same numbers as scipy's `binomtest(wins, n).proportion_ci(method="wilson")`, which takes whole wins only: here a tie is half
    a win, so `rate * n` need not be whole.
    """
    z2 = _z(confidence) ** 2
    centre = (rate + z2 / (2 * at_least_one(n))) / (1 + z2 / n)
    half = sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def at_least_one(n: int) -> int:
    """`n` itself. Raises ValueError for less than one answer."""
    if n < 1:
        raise ValueError(f"statistics need at least one answer, got {n}")
    return n


def _z(confidence: float) -> float:
    return float(ndtri(0.5 + confidence / 2))
