"""Rules on columns, alone: every kind on each side of its threshold, ties, missing scores."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from data.pipeline.errors import UserError
from data.views.rules import MEANING, base_rules, first_reasons, top_threshold, verdicts
from data.views.settings import BaseViewSettings, ScoreRule, ViewsSettings


def rule(**bounds: Any) -> ScoreRule:
    return ScoreRule(scores="s", column="v", **bounds)


def judged(values: list[Any], kind: pa.DataType | None = None, **bounds: Any) -> list[bool | None]:
    return verdicts(rule(**bounds), pa.chunked_array([pa.array(values, kind)])).to_pylist()


def test_min_and_max_keep_the_bound_above_and_below_do_not() -> None:
    values = [1.0, 2.0, 3.0, None, float("nan")]
    assert judged(values, min=2) == [False, True, True, None, None]
    assert judged(values, max=2) == [True, True, False, None, None]
    assert judged(values, above=2) == [False, False, True, None, None]
    assert judged(values, below=2) == [True, False, False, None, None]
    assert judged(values, above=1, max=2) == [False, True, False, None, None]


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.int64()])
def test_whole_numbers_meet_broken_bounds(kind: pa.DataType) -> None:
    assert judged([2, 3, None], kind, min=2.5) == [False, True, None]


@pytest.mark.parametrize("bound", [0.28, 0.3, 0.7, 0.1])
def test_a_score_stored_in_single_precision_meets_its_own_decimal(bound: float) -> None:
    """0.7 in single precision is less than 0.7 in double: compared as written, a score of 0.7 would miss min = 0.7."""
    up, down = np.nextafter(np.float32(bound), np.float32(9)), np.nextafter(np.float32(bound), np.float32(-9))
    values = [float(np.float32(bound)), float(up), float(down)]
    assert judged(values, pa.float32(), min=bound) == [True, True, False]
    assert judged(values, pa.float32(), max=bound) == [True, False, True]
    assert judged(values, pa.float32(), above=bound) == [False, True, False]


def test_lists() -> None:
    assert judged(["en", "de", None], is_in=["en"]) == [True, False, None]
    assert judged(["en", "de", None], not_in=["en", "fr"]) == [False, True, None]
    assert judged(["en", "de"], is_in=["en", "de"], not_in=["de"]) == [True, False]
    assert judged([True, False, None], is_in=[False]) == [False, True, None]
    assert judged([1, 2], is_in=[2]) == [False, True]


def test_absent_is_for_keys_of_copies() -> None:
    assert judged(["000000001", None], pa.string(), absent=True) == [False, True]


def test_a_pair_that_the_scores_do_not_know_is_not_absent_from_them() -> None:
    values, scored = pa.chunked_array([["k", None, None]]), pa.chunked_array([[True, True, False]])
    assert verdicts(rule(absent=True), values, scored).to_pylist() == [False, True, None]


def test_a_part_without_any_score() -> None:
    assert judged([None, None], pa.null(), min=1) == judged([None, None], pa.null(), is_in=["a"]) == [None, None]


def test_bounds_on_text_are_refused_in_one_line() -> None:
    with pytest.raises(
        UserError, match=r"the rule 'v_out_of_range' cannot compare scores/s, column 'v', which holds string"
    ):
        judged(["a"], min=1)
    with pytest.raises(UserError, match="the rule 'v_not_allowed' cannot compare"):
        judged([0.5], is_in=["a"])


def test_the_top_fraction_is_datacomps() -> None:
    """As in the published code: n = int(len * fraction); the threshold is the value at place n, and ties with it are kept."""
    rng = np.random.default_rng(0)
    for n in (1, 3, 10, 101):
        values = rng.permutation(np.round(rng.normal(size=n), 1))
        for fraction in (0.1, 0.3, 0.5, 0.99):
            published = -np.sort(-values)[int(len(values) * fraction)]
            assert top_threshold(pa.chunked_array([values]), fraction) == published
    tied = pa.chunked_array([[5.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0]])
    assert top_threshold(tied, 0.3) == 4.0  # int(10 * .3) = 3: the fourth value; the three 4.0 stay, four are kept
    assert top_threshold(tied, 0.4) == 3.0


def test_pairs_without_a_score_do_not_count_for_the_top_fraction() -> None:
    values = pa.chunked_array([[3.0, 2.0, 1.0, None, float("nan"), None]])
    assert top_threshold(values, 0.34) == 2.0
    assert top_threshold(pa.chunked_array([[None, None]], pa.float64()), 0.3) == float("inf")


def test_the_first_rule_that_does_not_keep_names_the_reason() -> None:
    before = pa.chunked_array([[None, None, None, "removed", None]], pa.string())
    rules = [rule(min=1), rule(max=5, name="too_much")]
    values = [pa.chunked_array([[0.0, 1.0, 2.0, 0.0, None]]), pa.chunked_array([[9.0, 9.0, 5.0, 9.0, 9.0]])]
    judged = [(rule, column, None) for rule, column in zip(rules, values, strict=True)]
    assert first_reasons(before, judged).to_pylist() == ["v_out_of_range", "too_much", None, "removed", "no_score"]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "has none of these"),
        ({"min": 1, "is_in": ["a"]}, "has several of these"),
        ({"top_fraction": 0.3, "max": 1}, "has several"),
        ({"top_fraction": 1.0}, "less than 1"),
        ({"unique": True}, "unique = true is for groups of copies"),
        ({"min": 1, "name": "Not a name"}, "match pattern"),
    ],
)
def test_rules_that_say_nothing_or_too_much_are_refused(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        rule(**bounds)


def test_the_view_base_may_not_read_scores_of_a_clip() -> None:
    with pytest.raises(ValidationError, match=r"a rule on scores/similarity belongs in \[\[views.train.rules\]\]"):
        BaseViewSettings(rules=(ScoreRule(scores="similarity", column="similarity", min=0),))
    assert (
        BaseViewSettings(rules=(ScoreRule(scores="basic", column="area", min=9),)).rules[0].reason
        == "area_out_of_range"
    )


def test_a_config_file_can_say_all_of_it() -> None:
    import json

    text = {
        "duplicates": {"distance": 5, "colour_tolerance": 30, "min_pixel_std": 2.0},
        "base": {
            "recipe": "datacomp-basic",
            "rules": [{"scores": "basic", "column": "language", "is_in": ["en", "de"], "name": "language"}],
        },
        "train": {"recipe": "laion2b", "rules": [{"scores": "aesthetic", "column": "score", "top_fraction": 0.25}]},
    }
    settings = ViewsSettings.model_validate_json(json.dumps(text), strict=True)
    assert settings.train.rules[0].reason == "score_out_of_range"
    assert settings.base.rules[0].is_in == ("en", "de")


def test_every_reason_of_a_base_view_has_a_meaning() -> None:
    everything = BaseViewSettings(
        near_duplicates=True, drop_boilerplate=True, max_caption_copies=3, min_pixel_std=2, recipe="datacomp-basic"
    )
    reasons = [rule.reason for rule in base_rules(everything)]
    assert set(reasons) <= MEANING.keys() and len(reasons) == 17
    assert reasons[0] == "copy_of_evaluation_image"
    assert reasons[-3:] == ["duplicate_url", "duplicate_image", "near_duplicate_image"]
