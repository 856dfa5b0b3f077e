from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from humaneval.rating.assignment import Assigned, Shown, choose_next
from humaneval.study.study import Question


@dataclass
class FakeStudy:
    """A study of `n` questions of each kind; system a's image ends in "a"."""

    n: int
    kinds: list[str] = field(default_factory=lambda: ["photorealism", "diversity"])
    hash: str = "h"

    def __post_init__(self) -> None:
        self.questions = {
            f"{kind}{i}": Question(
                f"{kind}{i}", kind, None, (f"{kind}{i}a", f"{kind}{i}b") if i % 2 else (f"{kind}{i}b", f"{kind}{i}a")
            )
            for kind in self.kinds
            for i in range(self.n)
        }

    def arm(self, token: str) -> str:
        return token[-1]


def play(study: Any, raters: int, per_kind: int, interleaved: bool) -> list[Shown]:
    """Every rater answers all that comes; one after another, or in turns."""
    shown: list[Shown] = []

    def step(rater: str) -> Assigned | None:
        if chosen := choose_next(study, rater, shown, per_kind):
            shown.append(Shown(chosen.question, rater, chosen.left_image))
        return chosen

    names = [f"r{i}" for i in range(raters)]
    if interleaved:
        while any(list(map(step, names))):
            pass
    else:
        for name in names:
            while step(name):
                pass
    return shown


def tilts(shown: list[Shown], by: str) -> Counter[str]:
    tilt: Counter[str] = Counter()
    for s in shown:
        tilt[getattr(s, by)] += 1 if s.left_image.endswith("a") else -1
    return tilt


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("n", "raters", "per_kind"), [(20, 6, 20), (50, 12, 20), (200, 9, 10), (7, 5, 3)])
def test_sides_are_balanced_per_question_and_per_rater(n: int, raters: int, per_kind: int, interleaved: bool) -> None:
    shown = play(FakeStudy(n), raters, per_kind, interleaved)
    assert len(shown) == raters * 2 * min(n, per_kind)
    assert max(abs(t) for t in tilts(shown, "question").values()) <= 1
    assert max(abs(t) for t in tilts(shown, "rater").values()) <= 2
    assert play(FakeStudy(n), raters, per_kind, interleaved) == shown


def test_no_rater_sees_a_question_twice_and_answers_spread_evenly() -> None:
    shown = play(FakeStudy(50), 12, 20, interleaved=True)
    assert len({(s.question, s.rater) for s in shown}) == len(shown)
    counts = Counter(s.question for s in shown)
    for kind in ("photorealism", "diversity"):
        of_kind = [counts[f"{kind}{i}"] for i in range(50)]
        assert max(of_kind) - min(of_kind) <= 1


def test_kinds_come_in_order_and_the_order_of_questions_differs_between_raters() -> None:
    shown = play(FakeStudy(30), 2, 10, interleaved=False)
    first = [s.question for s in shown if s.rater == "r0"]
    assert all(q.startswith("photorealism") for q in first[:10]) and all(q.startswith("diversity") for q in first[10:])
    alone = [choose_next(FakeStudy(30), f"r{i}", [], 10) for i in range(20)]
    assert len({a.question for a in alone if a}) > 5
    assert len({a.left_image[-1] for a in alone if a}) == 2
