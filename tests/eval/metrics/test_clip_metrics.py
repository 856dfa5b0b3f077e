"""CLIP score conventions, R-precision and diversity on hand-made vectors."""

import numpy as np
import pytest

from eval.metrics.clip_score import clip_score, clip_score_hessel, r_precision
from eval.metrics.diversity import within_caption_diversity
from eval.metrics.measure import NO_VARIATION, difference
from eval.metrics.metric import Measured
from eval.statistics.intervals import Estimate

X, Y = np.array([1.0, 0.0]), np.array([0.0, 1.0])
DIAGONAL = np.array([0.6, 0.8])


def test_the_two_conventions_differ_by_scale_and_clamp():
    images, texts = np.stack([X, DIAGONAL, -X]), np.stack([X, X, X])
    np.testing.assert_allclose(clip_score(images, texts), [100, 60, -100])
    np.testing.assert_allclose(clip_score_hessel(images, texts), [2.5, 1.5, 0.0])


def test_r_precision():
    captions = np.stack([X, Y])
    right = r_precision(np.stack([X, DIAGONAL, DIAGONAL]), captions, np.array([0, 0, 1]))
    assert right.tolist() == [True, False, True]
    same = r_precision(np.stack([X]), np.stack([X, X]), np.array([0]))
    assert same.tolist() == [False]


def test_diversity_of_equal_images_is_0_and_of_orthogonal_ones_1():
    images = np.stack([X, X, X, Y, X, Y, DIAGONAL])
    values, groups = within_caption_diversity(images, np.array([0, 0, 0, 4, 4, 9, 9]))
    assert groups.tolist() == [0, 4, 9]
    np.testing.assert_allclose(values, [0, 1, 1 - 0.8], atol=1e-12)


def test_diversity_is_the_mean_over_pairs_in_any_order():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    groups = rng.integers(4, size=30)
    values, captions = within_caption_diversity(x, groups)
    for value, caption in zip(values, captions, strict=True):
        mine = x[groups == caption]
        i, j = np.triu_indices(len(mine), 1)
        assert value == pytest.approx(np.mean(1 - np.sum(mine[i] * mine[j], axis=1)))
    order = rng.permutation(30)
    np.testing.assert_allclose(within_caption_diversity(x[order], groups[order])[0], values)


def test_a_caption_with_one_image_has_no_diversity():
    assert within_caption_diversity(np.stack([X]), np.array([0]))[0].size == 0


def test_a_difference_keeps_only_the_warnings_that_hold_for_it():
    flat, varied = Estimate(1.0, 0.8, 1.0, np.ones(50)), Estimate(0.5, 0.4, 0.6, np.linspace(0.4, 0.6, 50))
    a = {"m": Measured(flat, 5, 9, ("of both", "biased upward: few"), ("of a's interval",))}
    b = {"m": Measured(varied, 5, 9, ("of both",), ("of b's interval",))}
    assert difference(a, b)["m"].warnings == ("of both", "biased upward: few")
    assert difference(a, b)["m"].own_warnings == ()
    same = difference(a, a)["m"]
    assert (same.estimate.lo, same.estimate.hi) == (0, 0) and same.own_warnings == (NO_VARIATION,)
