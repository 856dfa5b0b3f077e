"""Rules on columns of scores: every decision of a view is one, from `min_side` to a published recipe.

A rule keeps a pair, drops it, or finds no score to judge by. The first rule that does not keep a pair names the reason.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.pipeline.errors import UserError
from data.scores.settings import BASE_SCORES
from data.views.recipes import RECIPES
from data.views.settings import BaseViewSettings, ScoreRule, TrainViewSettings

REMOVED, NO_SCORE, LEAK = "removed", "no_score", "copy_of_evaluation_image"

# Why a view leaves a pair out. A rule of a config without a name is called `<column>_out_of_range` or `<column>_not_allowed`.
MEANING = {
    REMOVED: "the sample was taken out by `python -m data remove`",
    NO_SCORE: "the pair has no such score, or one that is not a number",
    LEAK: "a training image with the bytes of a stored val or test image, or near it by perceptual hash and colours",
    "duplicate_url": "the view `base` keeps another sample with the same URL, or a copy of that one",
    "duplicate_image": "the view `base` keeps another sample with the same original or stored bytes, or a copy of that one",
    "near_duplicate_image": "the view `base` keeps another sample near it, itself or through near copies, by perceptual hash and colours",
    "image_too_small": "the original's shorter side is below the limit",
    "aspect_too_large": "the original's longer side is too many times its shorter one",
    "near_uniform_image": "the grey values of the stored image hardly vary",
    "caption_too_short": "fewer words than the limit",
    "caption_too_long": "more characters than the limit",
    "boilerplate_caption": "a file name, a URL, markup, a placeholder, an instruction, a machine's or a stock seller's text",
    "repeated_caption": "an earlier caption of the same image has the same text",
    "caption_too_common": "more images carry this caption than the limit",
    "not_english": "the detector says another language (recipes)",
    "caption_too_few_words": "two words or fewer (datacomp-basic)",
    "caption_too_few_chars": "five characters or fewer (datacomp-basic)",
    "similarity_not_in_top": "CLIP similarity below that of the best 30 % (datacomp-clip-top30)",
    "similarity_too_low": "CLIP similarity below 0.28 (laion2b)",
}


def base_rules(settings: BaseViewSettings) -> list[ScoreRule]:
    """The view `base` as rules: leaks, then the image, the caption, the recipe and the config's own; copies come last, so that only
    what all else leaves stands for its copies."""
    s = settings
    rules: list[ScoreRule | None] = [
        ScoreRule(name=LEAK, scores="duplicates", column="eval_copy_of", absent=True) if s.drop_leaks else None,
        ScoreRule(name="image_too_small", scores="basic", column="min_side", min=s.min_side),
        ScoreRule(name="aspect_too_large", scores="basic", column="aspect", max=s.max_aspect),
        ScoreRule(name="near_uniform_image", scores="basic", column="pixel_std", min=s.min_pixel_std),
        ScoreRule(name="caption_too_short", scores="basic", column="caption_words", min=s.min_caption_words),
        ScoreRule(name="caption_too_long", scores="basic", column="caption_chars", max=s.max_caption_chars),
        _is_false("boilerplate_caption", "boilerplate") if s.drop_boilerplate else None,
        _is_false("repeated_caption", "repeated_caption") if s.drop_duplicates else None,
        ScoreRule(name="caption_too_common", scores="duplicates", column="caption_copies", max=s.max_caption_copies)
        if s.max_caption_copies is not None
        else None,
    ]
    copies = [
        ScoreRule(name=name, scores="duplicates", column=column, unique=True)
        for name, column, wanted in (
            ("duplicate_url", "url_group", s.drop_duplicates),
            ("duplicate_image", "bytes_group", s.drop_duplicates),
            ("near_duplicate_image", "near_group", s.near_duplicates),
        )
        if wanted
    ]
    return [rule for rule in rules if rule is not None] + configured_rules(settings) + copies


def configured_rules(settings: BaseViewSettings | TrainViewSettings) -> list[ScoreRule]:
    """The recipe's rules, then the config's own."""
    return [*(RECIPES[settings.recipe] if settings.recipe else ()), *settings.rules]


def rules_of(made_with: Mapping[str, Any]) -> list[ScoreRule]:
    """The rules of a view, from the settings in its manifest."""
    is_base = made_with["parent"] is None
    model: type[BaseViewSettings] | type[TrainViewSettings] = BaseViewSettings if is_base else TrainViewSettings
    own = {name: value for name, value in made_with.items() if name in model.model_fields}
    settings = model.model_validate_json(json.dumps(own))
    return base_rules(settings) if isinstance(settings, BaseViewSettings) else configured_rules(settings)


def in_words(rule: ScoreRule) -> str:
    """What a pair must meet to be kept, for people."""
    name = rule.column if rule.scores in BASE_SCORES else f"{rule.scores} {rule.column}"
    bounds = ((">=", rule.min), ("<=", rule.max), (">", rule.above), ("<", rule.below))
    said = [f"{sign} {bound:g}" for sign, bound in bounds if bound is not None]
    if rule.is_in is not None:
        said.append(f"one of {', '.join(map(str, rule.is_in))}")
    if rule.not_in is not None:
        said.append(f"none of {', '.join(map(str, rule.not_in))}")
    if rule.top_fraction is not None:
        said.append(f"among the top {rule.top_fraction:.4g} of all scored pairs")
    said += ["is null"] * bool(rule.absent) + ["the first image of its group that is left"] * bool(rule.unique)
    return f"{name} {' and '.join(said)}"


def _is_false(name: str, column: str) -> ScoreRule:
    return ScoreRule(name=name, scores="basic", column=column, is_in=(False,))


def top_threshold(values: pa.ChunkedArray, fraction: float) -> float:
    """The value that a pair must reach to be among the top `fraction` of `values`, as DataComp's published code computes it:

    `n = int(len(df) * fraction); threshold = -np.sort(-df[key].values)[n]` (apply_filter.py, get_threshold), kept is `>=`. So
    n + 1 pairs are kept, and all that tie with the last of them. Values that are no number are not counted.
    """
    found = values.cast(pa.float64()).drop_null().to_numpy()
    falling = -np.sort(-found[~np.isnan(found)])
    return float(falling[int(len(falling) * fraction)]) if len(falling) else float("inf")


def verdicts(rule: ScoreRule, values: pa.ChunkedArray, scored: pa.ChunkedArray | None = None) -> pa.ChunkedArray:
    """For each value: true to keep the pair, false to drop it, null where there is no score. `top_fraction` must be resolved.

    `scored` tells pairs whose score is null from pairs that the scores do not know (default: all are known). Bounds are compared
    in the column's own precision, so that a stored 0.28 meets `min = 0.28`.
    """
    if rule.absent:
        kept = pc.is_null(values)
        return kept if scored is None else pc.if_else(scored, kept, None)
    if pa.types.is_null(values.type):
        return values.cast(pa.bool_())
    try:
        return _in_lists(rule, values) if rule.is_list else _in_bounds(rule, values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise UserError(
            f"the rule {rule.reason!r} cannot compare scores/{rule.scores}, column {rule.column!r}, which holds {values.type}: "
            "bounds are for numbers, is_in and not_in for text, whole numbers and true or false"
        ) from None


def _in_bounds(rule: ScoreRule, values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    elif pa.types.is_integer(values.type):
        values = values.cast(pa.float64())
    else:
        raise pa.ArrowInvalid("not a number")
    kept = pc.is_valid(values)
    for bound, compare in (
        (rule.min, pc.greater_equal), (rule.max, pc.less_equal), (rule.above, pc.greater), (rule.below, pc.less),
    ):  # fmt: skip
        if bound is not None:
            kept = pc.and_kleene(kept, compare(values, pa.scalar(bound, values.type)))
    return pc.if_else(pc.is_valid(values), kept, None)


def _in_lists(rule: ScoreRule, values: pa.ChunkedArray) -> pa.ChunkedArray:
    kept = pc.is_valid(values)
    if rule.is_in is not None:
        kept = pc.and_(kept, pc.is_in(values, pa.array(rule.is_in, values.type)))
    if rule.not_in is not None:
        kept = pc.and_(kept, pc.invert(pc.is_in(values, pa.array(rule.not_in, values.type))))
    return pc.if_else(pc.is_valid(values), kept, None)


def first_reasons(
    before: pa.ChunkedArray, judged: Sequence[tuple[ScoreRule, pa.ChunkedArray, pa.ChunkedArray | None]]
) -> pa.ChunkedArray:
    """Why each pair is dropped, null where it is kept. `before` holds reasons that stand already; rules, each with its values and
    `scored` of `verdicts`, judge only the rest."""
    reasons = before
    for rule, values, scored in judged:
        verdict = verdicts(rule, values, scored)
        found = pc.if_else(
            pc.is_null(verdict), NO_SCORE, pc.if_else(verdict, pa.scalar(None, pa.string()), rule.reason)
        )
        reasons = pc.coalesce(reasons, found)
    return reasons
