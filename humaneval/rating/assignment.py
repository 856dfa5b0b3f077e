"""Who is asked what, and which image stands left: balanced greedily, the same for the same history.

A rater meets the kinds of question in order, a fixed number of each, and no question twice. Within a kind the least-asked
questions come first. A question alternates its sides from rater to rater; where that leaves a choice, the side evens out what
this rater has seen; where that leaves a choice, a keyed hash decides.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from humaneval.study.study import Question, Study


@dataclass(frozen=True)
class Shown:
    """A question in front of a rater, now or before."""

    question: str
    rater: str
    left_image: str


@dataclass(frozen=True)
class Assigned:
    """A question chosen for a rater, and the tokens of the images on its sides."""

    question: str
    left_image: str
    right_image: str


def choose_next(study: Study, rater: str, shown: Sequence[Shown], per_kind: int) -> Assigned | None:
    """The rater's next question and its sides; None when the rater has had `per_kind` of every kind, or all there are."""
    mine = {s.question for s in shown if s.rater == rater}
    had = Counter(study.questions[question].kind for question in mine)
    for kind in study.kinds:
        fresh = [q for q in study.questions.values() if q.kind == kind and q.id not in mine]
        if fresh and had[kind] < per_kind:
            return _assign(study, rater, shown, fresh)
    return None


def _assign(study: Study, rater: str, shown: Sequence[Shown], fresh: Sequence[Question]) -> Assigned:
    asked = Counter(s.question for s in shown)
    # How many times more system a stood left than right: for each question, and for this rater.
    surplus: Counter[str] = Counter()
    rater_surplus = 0
    for s in shown:
        side = 1 if study.arm(s.left_image) == "a" else -1
        surplus[s.question] += side
        rater_surplus += side if s.rater == rater else 0

    def rank(question: Question) -> tuple[int, bool, str]:
        worsens = surplus[question.id] * rater_surplus < 0  # evening the question out would add to the rater's surplus
        return asked[question.id], worsens, _hash(study, rater, question)

    question = min(fresh, key=rank)
    need = surplus[question.id] or rater_surplus or (1 if int(_hash(study, rater, question), 16) % 2 else -1)
    return _with_sides(study, question, a_left=need < 0)


def _with_sides(study: Study, question: Question, a_left: bool) -> Assigned:
    first, second = question.images
    left, right = (first, second) if (study.arm(first) == "a") == a_left else (second, first)
    return Assigned(question.id, left, right)


def _hash(study: Study, rater: str, question: Question) -> str:
    return hashlib.sha256(f"{study.hash}\0{rater}\0{question.id}".encode()).hexdigest()
