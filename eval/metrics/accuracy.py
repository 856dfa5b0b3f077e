"""Does an image show what its caption names? Pure functions over a classifier's logits. Only named attributes are judged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.pipeline.errors import Code, UserError
from eval.metrics.metric import ONE_OBJECT, TWO_OBJECTS, Measured
from eval.metrics.subject import Found, Subject
from eval.statistics import bootstrap

Logits = Mapping[str, NDArray[np.floating]]
JOINT = ("colour", "background")
ALL_ALIKE = "all right or all wrong: Wilson's interval over captions"


@dataclass(frozen=True)
class Judged:
    """For the images whose caption names the attribute: their rows (m,), whether each is right (m,), and the probability
    (m,) that a guesser who knows only the values, each equally likely, is right."""

    rows: NDArray[np.intp]
    right: NDArray[np.bool_]
    chance: NDArray[np.float64]


def measure_accuracy(subject: Subject) -> Iterator[Found]:
    """Accuracy of every named attribute, captions of one object apart from those of two."""
    judge = subject.attributes
    if judge is None:
        return
    named = [subject.named[group] for group in subject.groups]
    one = judge_one_object(judge.logits, judge.vocabulary, named)
    two = judge_two_objects(judge.logits, judge.vocabulary, named, judge.scene)
    for scope, judged in ((ONE_OBJECT, one), (TWO_OBJECTS, two)):
        for attribute, found in judged.items():
            yield Found(_accuracy(found, subject), judge.label, attribute, scope)


def _accuracy(judged: Judged, subject: Subject) -> Measured:
    of = subject.groups[judged.rows]
    estimate = bootstrap.proportion(judged.right, of, subject.draws)
    own = (ALL_ALIKE,) if estimate.value in (0, 1) else ()
    chance = float(judged.chance.mean())
    return Measured(estimate, len(np.unique(of)), len(of), own_warnings=own, chance=chance)


def judge_one_object(
    logits: Logits, vocabulary: Mapping[str, Sequence[str]], named: Sequence[Mapping[str, Any]]
) -> dict[str, Judged]:
    """For images of one-object captions; `named[i]` is what caption i names. Attribute -> Judged, plus `colour+background`
    (both right) where both are named. Images of other captions are ignored."""
    rows = [i for i, n in enumerate(named) if len(n.get("objects", ())) == 1]
    flat = {i: {**named[i]["objects"][0], **{k: v for k, v in named[i].items() if k != "objects"}} for i in rows}
    found = {}
    for attribute, values in vocabulary.items():
        mine = [i for i in rows if attribute in flat[i]]
        predicted = logits[attribute][mine].argmax(axis=1) if mine else np.empty(0)
        truth = np.array([_index(values, attribute, flat[i][attribute]) for i in mine])
        found[attribute] = Judged(
            np.array(mine, dtype=np.intp), predicted == truth, np.full(len(mine), 1 / len(values))
        )
    if all(a in found for a in JOINT):
        found["+".join(JOINT)] = _both(*(found[a] for a in JOINT))
    return {a: judged for a, judged in found.items() if len(judged.rows)}


def judge_two_objects(
    logits: Logits, vocabulary: Mapping[str, Sequence[str]], named: Sequence[Mapping[str, Any]], scene: Sequence[str]
) -> dict[str, Judged]:
    """For images of two-object captions: the attributes of the scene as above; `colour` is right when every named colour
    is among the two that the classifier sees most clearly (which object has it is not judged)."""
    rows = [i for i, n in enumerate(named) if len(n.get("objects", ())) == 2]
    as_one = [{**n, "objects": [{}]} if len(n.get("objects", ())) == 2 else {} for n in named]
    found = judge_one_object(logits, {a: vocabulary[a] for a in scene}, as_one)
    if "colour" in vocabulary:
        values = vocabulary["colour"]
        colours = {
            i: [_index(values, "colour", t["colour"]) for t in named[i]["objects"] if "colour" in t] for i in rows
        }
        mine = [i for i in rows if colours[i]]
        seen = {i: set(np.argsort(logits["colour"][i])[-2:].tolist()) for i in mine}
        right = np.array([set(colours[i]) <= seen[i] for i in mine], dtype=bool)
        # Of all pairs of values, how many hold the named ones.
        chance = np.array(
            [comb(len(values) - len(colours[i]), 2 - len(colours[i])) / comb(len(values), 2) for i in mine]
        )
        found["colour"] = Judged(np.array(mine, dtype=np.intp), right, chance)
    return {a: judged for a, judged in found.items() if len(judged.rows)}


def _index(values: Sequence[str], attribute: str, value: str) -> int:
    if value not in values:
        raise UserError(
            f"a caption names the {attribute} {value!r}, which none of the attribute classifier's training scenes has "
            f"(they have {', '.join(values)}); use a larger dataset, or a larger eval.attributes.scenes", Code.EMPTY,
        )  # fmt: skip
    return values.index(value)


def _both(a: Judged, b: Judged) -> Judged:
    rows = np.intersect1d(a.rows, b.rows)
    in_a, in_b = np.searchsorted(a.rows, rows), np.searchsorted(b.rows, rows)
    return Judged(rows, a.right[in_a] & b.right[in_b], a.chance[in_a] * b.chance[in_b])
