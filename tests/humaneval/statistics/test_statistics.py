import numpy as np
import pytest
from scipy.stats import binomtest, norm

from humaneval.statistics.clustered import two_way_clustered_interval
from humaneval.statistics.rates import (
    normal_interval,
    three_way_shares,
    wilson_interval,
    win_rate,
    win_rate_without_ties,
)

# unCLIP (arXiv 2204.06125), Table 1: P(unCLIP beats GLIDE) in percent and the printed half-width, n = 1000 each. One of them,
# 45.3 +- 3.0, is 3.085 by the formula of appendix B; hence the tolerance of 0.1.
TABLE_1 = [(47.1, 3.1), (41.1, 3.0), (62.6, 3.0), (48.9, 3.1), (45.3, 3.0), (70.5, 2.8)]


@pytest.mark.parametrize(("percent", "printed"), TABLE_1)
def test_normal_interval_reproduces_table_1(percent: float, printed: float) -> None:
    interval = normal_interval(percent / 100, 1000)
    assert 50 * (interval.hi - interval.lo) == pytest.approx(printed, abs=0.1)
    assert 50 * (interval.hi + interval.lo) == pytest.approx(percent)


def test_win_rates() -> None:
    assert win_rate(3, 2, 5) == 0.4
    assert win_rate_without_ties(3, 5) == 0.375
    assert win_rate_without_ties(0, 0) is None
    assert three_way_shares(3, 2, 5) == (0.3, 0.2, 0.5)
    for wins, ties, losses in ((3, 2, 5), (0, 7, 0), (4, 0, 0)):
        assert win_rate(wins, ties, losses) + win_rate(losses, ties, wins) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one"):
        win_rate(0, 0, 0)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (3, 7), (62, 100), (705, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_agrees_with_scipy(wins: int, n: int, confidence: float) -> None:
    ours, theirs = (
        wilson_interval(wins / n, n, confidence),
        binomtest(wins, n).proportion_ci(confidence, method="wilson"),
    )
    assert (ours.lo, ours.hi) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def brute_force_variance(scores: np.ndarray, questions: list[str], raters: list[str]) -> float:
    """Cameron, Gelbach and Miller by pairs of answers: every two that share a cluster contribute the product of deviations."""
    e, total = scores - scores.mean(), 0.0
    pairs = [(q, r) for q, r in zip(questions, raters, strict=True)]
    for labels, sign in ((questions, 1), (raters, 1), (pairs, -1)):
        g = len(set(labels))
        total += (
            sign
            * g
            / (g - 1)
            * sum(e[i] * e[j] for i in range(len(e)) for j in range(len(e)) if labels[i] == labels[j])
        )
    return total / len(e) ** 2


def answers(
    rng: np.random.Generator, questions: int, raters: int, each: int, spread: float
) -> tuple[np.ndarray, list[str], list[str]]:
    """Binary answers whose log-odds have a normal part per question and per rater; each rater answers `each` questions."""
    of_question, of_rater = spread * rng.standard_normal(questions), spread * rng.standard_normal(raters)
    pairs = [(q, r) for r in range(raters) for q in rng.choice(questions, each, replace=False)]
    odds = np.array([of_question[q] + of_rater[r] for q, r in pairs])
    scores = (rng.random(len(pairs)) < 1 / (1 + np.exp(-odds))).astype(float)
    return scores, [f"q{q}" for q, _ in pairs], [f"r{r}" for _, r in pairs]


def test_two_way_agrees_with_brute_force() -> None:
    from scipy.stats import t

    scores, questions, raters = answers(np.random.default_rng(0), 12, 9, 8, spread=2.0)
    interval = two_way_clustered_interval(scores.tolist(), questions, raters)
    half = t.ppf(0.975, 8) * np.sqrt(brute_force_variance(scores, questions, raters))
    assert interval
    assert (interval.lo, interval.hi) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=1e-12)


def test_two_way_closed_forms() -> None:
    # Raters who repeat themselves: 4 raters, each always the same answer on 50 questions, is 4 answers and not 200.
    scores, questions, raters = zip(
        *[(float(r < 2), f"q{q}", f"r{r}") for r in range(4) for q in range(50)], strict=True
    )
    interval = two_way_clustered_interval(scores, questions, raters)
    assert interval and (interval.lo, interval.hi) == (0.0, 1.0)
    # One answer a question, one question a rater: nothing clusters, and the interval is close to the normal one.
    rng = np.random.default_rng(1)
    scores = tuple((rng.random(2000) < 0.6).astype(float))
    labels = [str(i) for i in range(2000)]
    interval, normal = two_way_clustered_interval(scores, labels, labels), normal_interval(float(np.mean(scores)), 2000)
    assert interval and (interval.lo, interval.hi) == pytest.approx((normal.lo, normal.hi), abs=2e-4)
    # Order does not matter.
    order = rng.permutation(2000)
    again = two_way_clustered_interval(
        [scores[i] for i in order], [labels[i] for i in order], [labels[i] for i in order]
    )
    assert again and (again.lo, again.hi) == pytest.approx((interval.lo, interval.hi), abs=1e-12)


def test_two_way_says_when_it_cannot_know() -> None:
    assert two_way_clustered_interval([1.0, 0.0], ["q1", "q2"], ["r", "r"]) is None
    assert two_way_clustered_interval([1.0, 0.0], ["q", "q"], ["r1", "r2"]) is None


def test_clustered_interval_covers_where_the_normal_one_does_not() -> None:
    """600 studies of 30 raters x 20 of 60 questions whose true mean is one half: clustered 95% covers, naive falls far short."""
    rng, covered, naive = np.random.default_rng(2), 0, 0
    for _ in range(600):
        scores, questions, raters = answers(rng, 60, 30, 20, spread=1.0)
        clustered, normal = (
            two_way_clustered_interval(scores.tolist(), questions, raters),
            normal_interval(float(scores.mean()), len(scores)),
        )
        assert clustered
        covered += clustered.lo <= 0.5 <= clustered.hi
        naive += normal.lo <= 0.5 <= normal.hi
    assert 0.92 <= covered / 600 <= 0.985
    assert naive / 600 < 0.75


def test_confidence_is_honoured() -> None:
    half = normal_interval(0.5, 400, 0.9).hi - 0.5
    assert half == pytest.approx(norm.ppf(0.95) * 0.025)
