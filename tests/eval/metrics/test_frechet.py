"""Frechet distance: closed forms, published vectors, two independent implementations, merging, and the bootstrap."""

import numpy as np
import pytest
import scipy.linalg
from cleanfid.fid import frechet_distance as cleanfid_distance

from data.pipeline.errors import UserError
from eval.metrics.frechet import frechet_distance, frechet_draws, small_n_warning
from eval.metrics.gaussian import Gaussian
from eval.statistics import bootstrap, intervals
from eval.statistics.moments import Moments


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def covariance(rng: np.random.Generator, d: int) -> np.ndarray:
    a = rng.normal(size=(d, d))
    return a @ a.T / d


def distance_of(x, y) -> float:
    return frechet_distance(Gaussian.fit(x), Gaussian.fit(y))


def test_published_vector_of_pytorch_fid():
    # mseitzer/pytorch-fid tests/test_fid_score.py: zeros and ones, identity covariances, 2048 dimensions.
    a, b = (Gaussian(np.full(2048, v), np.eye(2048)) for v in (0.0, 1.0))
    assert frechet_distance(a, b) == pytest.approx(2048.0, rel=1e-12)


def test_published_vector_pins_the_unbiased_covariance():
    # The same file: three constant images 0, 127, 255 of 255, three channels.
    moments = Moments.of(np.repeat(np.array([[0.0], [127.0], [255.0]]) / 255, 3, axis=1))
    np.testing.assert_allclose(moments.mean, 0.5, atol=1e-3)
    np.testing.assert_allclose(moments.covariance, 0.25, atol=1e-3)


def test_diagonal_gaussians(rng):
    a, b, m, n = (rng.uniform(0.1, 3, size=9) for _ in range(4))
    expected = np.sum((m - n) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    found = frechet_distance(Gaussian.of_covariance(m, np.diag(a)), Gaussian.of_covariance(n, np.diag(b)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_commuting_covariances(rng):
    q, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    a, b = rng.uniform(0.1, 3, size=(2, 7))
    found = frechet_distance(*(Gaussian.of_covariance(np.zeros(7), q * v @ q.T) for v in (a, b)))
    assert found == pytest.approx(np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-10)


@pytest.mark.parametrize("d", [4, 32, 96])
def test_agrees_with_sqrtm_and_clean_fid(rng, d):
    m, n, s, t = rng.normal(size=d), rng.normal(size=d), covariance(rng, d), covariance(rng, d)
    found = frechet_distance(Gaussian.of_covariance(m, s), Gaussian.of_covariance(n, t))
    root = scipy.linalg.sqrtm(s @ t).real
    assert found == pytest.approx(np.sum((m - n) ** 2) + np.trace(s + t - 2 * root), rel=1e-7)
    assert found == pytest.approx(float(cleanfid_distance(m, s, n, t)), rel=1e-7)


@pytest.mark.parametrize("n", [5, 40, 400])
def test_a_set_is_at_distance_0_from_itself(rng, n):
    x = rng.normal(size=(n, 40)) @ rng.normal(size=(40, 40))
    assert distance_of(x, x) == pytest.approx(0, abs=1e-8 * np.trace(np.cov(x.T)))


def test_low_rank_data_is_at_distance_0_from_itself(rng):
    x = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 40))
    assert distance_of(x, x) == pytest.approx(0, abs=1e-9 * np.trace(np.cov(x.T)))


def test_translation_adds_its_square_and_rotation_nothing(rng):
    x, y = rng.normal(size=(200, 12)), rng.normal(size=(150, 12)) * 2
    shift, (q, _) = rng.normal(size=12), np.linalg.qr(rng.normal(size=(12, 12)))
    assert distance_of(x, x + shift) == pytest.approx(shift @ shift, rel=1e-9)
    assert distance_of(x @ q, y @ q) == pytest.approx(distance_of(x, y), rel=1e-10)


def test_symmetric_and_independent_of_the_order_of_samples(rng):
    x, y = rng.normal(size=(60, 20)), rng.normal(size=(70, 20)) + 1
    assert distance_of(x, y) == pytest.approx(distance_of(y, x), rel=1e-12)
    assert distance_of(rng.permutation(x), y) == pytest.approx(distance_of(x, y), rel=1e-12)


def test_low_rank_route_agrees_with_the_covariance_route(rng):
    x, y = rng.normal(size=(20, 48)), rng.normal(size=(31, 48)) + 0.3
    full = frechet_distance(*(Gaussian.of_covariance(z.mean(0), np.cov(z.T)) for z in (x, y)))
    assert Gaussian.fit(x).factor.shape == (48, 20)
    assert distance_of(x, y) == pytest.approx(full, rel=1e-6)


def test_moments_of_a_large_mean_are_exact(rng):
    x = (rng.normal(size=(500, 10)) + 1e4).astype(np.float32)
    whole = Moments.of(x)
    np.testing.assert_allclose(whole.covariance, np.cov(x.astype(np.float64).T), rtol=1e-9, atol=1e-10)


def test_float32_features_are_computed_in_float64(rng):
    x, y = (rng.normal(size=(300, 16)).astype(np.float32) + 1000 for _ in range(2))
    assert distance_of(x, y) == pytest.approx(distance_of(x.astype(np.float64), y.astype(np.float64)), rel=1e-12)
    assert Gaussian.fit(x).factor.dtype == np.float64


def test_broken_features_are_refused():
    with pytest.raises(UserError, match="at least 2 images"):
        Gaussian.fit(np.zeros((1, 3)))
    with pytest.raises(UserError, match="1 values that are not finite"):
        Gaussian.fit(np.array([[1.0, np.nan], [0.0, 0.0]]))
    with pytest.raises(UserError, match="3 and 4 dimensions"):
        distance_of(np.eye(3), np.eye(4))


@pytest.mark.parametrize("d", [6, 60])
def test_draws_are_the_distances_of_resampled_data(rng, d):
    x, y, groups = rng.normal(size=(30, d)), rng.normal(size=(100, d)) + 1, np.arange(30) // 2
    weights = bootstrap.caption_draws(15, 5, seed=1)
    draws = frechet_draws(x, groups, weights, Gaussian.fit(y))
    for draw, weight in zip(draws, weights, strict=True):
        again = np.repeat(x, weight[groups], axis=0)
        assert draw == pytest.approx(distance_of(again, y), rel=1e-6)


def test_the_interval_covers_what_the_estimator_gives_at_this_n():
    """The target is E[FD_n], from many fresh sets; plain percentiles would miss it because resampling biases upward."""
    n, d, trials = 80, 8, 150
    reference = Gaussian.of_covariance(np.zeros(d), np.eye(d))
    rng = np.random.default_rng(7)
    sets = [rng.normal(size=(n, d)) * 1.3 + 0.3 for _ in range(trials)]
    values = np.array([frechet_distance(Gaussian.fit(x), reference) for x in sets])
    centred, plain = 0, 0
    for i, (x, value) in enumerate(zip(sets, values, strict=True)):
        draws = frechet_draws(x, np.arange(n), bootstrap.caption_draws(n, 200, seed=i), reference)
        estimate = intervals.centred(float(value), draws)
        centred += estimate.lo <= values.mean() <= estimate.hi
        naive = intervals.percentile(float(value), draws)
        plain += naive.lo <= values.mean() <= naive.hi
    assert centred / trials >= 0.89
    assert centred > plain


def test_small_n_is_named():
    assert "biased upward: 600 images against 2000 references in 64 dimensions" in (
        small_n_warning(600, 2000, 64) or ""
    )
    assert small_n_warning(30_000, 40_504, 2048) is None
    assert small_n_warning(15_000, 15_000, 2048) is not None
