"""Resampling captions: seeds, coverage, clusters, paired differences."""

import numpy as np
import pytest

from eval.statistics import bootstrap, intervals


def test_draws_depend_on_the_seed_alone_and_keep_the_number_of_captions():
    a, b = bootstrap.caption_draws(30, 100, seed=1), bootstrap.caption_draws(30, 100, seed=1)
    np.testing.assert_array_equal(a, b)
    assert (a.sum(axis=1) == 30).all()
    assert not np.array_equal(a, bootstrap.caption_draws(30, 100, seed=2))


def test_coverage_of_a_mean_with_clusters():
    rng, hits = np.random.default_rng(0), 0
    groups = np.repeat(np.arange(40), 3)
    for trial in range(300):
        values = rng.normal(size=40)[groups] + 0.5 * rng.normal(size=120)
        estimate = bootstrap.mean(values, groups, bootstrap.caption_draws(40, 300, seed=trial))
        hits += estimate.lo <= 0 <= estimate.hi
    assert 0.89 <= hits / 300 <= 0.98


def test_copies_of_a_caption_are_not_evidence():
    """Three copies of every image: the interval must be as wide as with one, and would shrink if images were resampled."""
    values = np.random.default_rng(0).normal(size=50)
    draws = bootstrap.caption_draws(50, 1000, seed=0)
    one = bootstrap.mean(values, np.arange(50), draws)
    copies = bootstrap.mean(np.repeat(values, 3), np.repeat(np.arange(50), 3), draws)
    naive = bootstrap.mean(np.repeat(values, 3), np.arange(150), bootstrap.caption_draws(150, 1000, seed=0))
    assert copies.hi - copies.lo == pytest.approx(one.hi - one.lo)
    assert naive.hi - naive.lo < 0.75 * (one.hi - one.lo)


def test_order_of_images_does_not_matter():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=60), rng.integers(20, size=60)
    draws, order = bootstrap.caption_draws(20, 200, seed=0), rng.permutation(60)
    a, b = bootstrap.mean(values, groups, draws), bootstrap.mean(values[order], groups[order], draws)
    np.testing.assert_allclose([a.value, a.lo, a.hi], [b.value, b.lo, b.hi], rtol=1e-12)


def test_captions_without_a_value_do_not_count():
    estimate = bootstrap.mean([1.0, 1.0], np.array([0, 3]), bootstrap.caption_draws(4, 200, seed=0))
    assert (estimate.value, estimate.lo, estimate.hi) == (1.0, 1.0, 1.0)


def test_paired_difference_is_narrower_than_the_parts():
    rng = np.random.default_rng(0)
    hard, groups = rng.normal(size=100) * 5, np.arange(100)
    draws = bootstrap.caption_draws(100, 1000, seed=0)
    a = bootstrap.mean(hard + 0.5 + 0.1 * rng.normal(size=100), groups, draws)
    b = bootstrap.mean(hard, groups, draws)
    paired = bootstrap.difference(a, b)
    assert paired.value == pytest.approx(a.value - b.value)
    assert 0 < paired.lo < 0.5 < paired.hi + 0.05
    assert paired.hi - paired.lo < 0.1 * (a.hi - a.lo)


def test_all_right_still_has_an_interval():
    # Wilson at 20 of 20, 95 %: lower end 20 / (20 + z^2) = 0.8389.
    estimate = bootstrap.proportion(
        np.ones(40, bool), np.repeat(np.arange(20), 2), bootstrap.caption_draws(20, 100, seed=0)
    )
    assert (estimate.value, estimate.hi) == (1.0, 1.0)
    assert estimate.lo == pytest.approx(0.8389, abs=1e-4)


def test_centred_interval_sits_around_the_value():
    draws = np.random.default_rng(0).normal(size=2000) + 13
    estimate = intervals.centred(10.0, draws)
    assert estimate.lo == pytest.approx(10 - 1.96, abs=0.15)
    assert intervals.centred(-0.1, draws, floor=0.0).value == 0
    assert intervals.centred(0.5, draws, floor=0.0).lo == 0
