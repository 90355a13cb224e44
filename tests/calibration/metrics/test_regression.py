"""Regression scores against integrals, SciPy, TensorFlow Probability and simulations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import integrate, stats
from sklearn.metrics import mean_pinball_loss

from bdl.calibration import (
    expected_normalized_calibration_error,
    interval_coverage,
    interval_score,
    mean_interval_width,
    normal_crps,
    normal_negative_log_likelihood,
    normal_probability_integral_transform,
    pinball_loss,
    quantile_calibration_error,
    sample_crps,
    sample_probability_integral_transform,
    sharpness,
)
from bdl.calibration.metrics import observed_coverage

quick = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def problem(seed, n=30):
    random = np.random.default_rng(seed)
    mean, scale = random.normal(size=n), random.uniform(0.2, 3, size=n)
    return mean + scale * random.normal(size=n), mean, scale


@given(seeds)
@quick
def test_normal_likelihood_equals_that_of_scipy(seed):
    y, mean, scale = problem(seed)
    assert_allclose(
        normal_negative_log_likelihood(y, mean, scale), -stats.norm(mean, scale).logpdf(y).mean(), rtol=1e-12
    )


def test_normal_crps_is_the_integral_of_the_squared_distance_of_distribution_functions():
    y, mean, scale = problem(0, n=5)
    expected = []
    for target, m, s in zip(y, mean, scale, strict=True):
        below = integrate.quad(lambda t, m=m, s=s: stats.norm.cdf(t, m, s) ** 2, -np.inf, target)[0]
        above = integrate.quad(lambda t, m=m, s=s: stats.norm.sf(t, m, s) ** 2, target, np.inf)[0]
        expected.append(below + above)
    assert_allclose(normal_crps(y, mean, scale), np.mean(expected), rtol=1e-8)


@given(seeds, st.integers(2, 12), st.booleans())
@quick
def test_sample_crps_equals_the_double_sum(seed, num_samples, fair):
    random = np.random.default_rng(seed)
    y, samples = random.normal(size=4), random.integers(-3, 4, size=(num_samples, 4)).astype(float)
    pairs = np.abs(samples[:, None] - samples[None]).sum(axis=(0, 1)) / (num_samples * (num_samples - fair))
    expected = np.mean(np.abs(samples - y).mean(axis=0) - 0.5 * pairs)
    assert_allclose(sample_crps(y, samples, fair=fair), expected, rtol=1e-10, atol=1e-12)


def test_the_fair_score_of_few_samples_is_that_of_their_distribution_on_average():
    random = np.random.default_rng(1)
    y, samples = random.normal(size=200_000), random.normal(size=(3, 200_000))
    terms = np.abs(samples - y).mean(axis=0)
    standard_error = terms.std() / np.sqrt(len(y))
    assert abs(sample_crps(y, samples, fair=True) - normal_crps(y, 0.0, 1.0)) < 4 * standard_error


@given(seeds, st.floats(0.01, 0.99))
@quick
def test_pinball_loss_equals_that_of_scikit_learn(seed, level):
    y, quantile, _ = problem(seed)
    assert_allclose(pinball_loss(y, quantile, level), mean_pinball_loss(y, quantile, alpha=level), rtol=1e-12)


@given(seeds, st.floats(0.05, 0.95))
@quick
def test_interval_score_is_made_of_two_pinball_losses(seed, coverage):
    y, mean, scale = problem(seed)
    tail = (1 - coverage) / 2
    low, high = (stats.norm(mean, scale).ppf(q) for q in (tail, 1 - tail))
    expected = (pinball_loss(y, low, tail) + pinball_loss(y, high, 1 - tail)) / tail
    assert_allclose(interval_score(y, low, high, coverage), expected, rtol=1e-9)
    assert_allclose(mean_interval_width(low, high), np.mean(high - low), rtol=1e-12)


def test_calibrated_intervals_cover_and_their_transform_is_uniform():
    y, mean, scale = problem(2, n=20_000)
    low, high = stats.norm(mean, scale).interval(0.8)
    assert abs(interval_coverage(y, low, high) - 0.8) < 4 * np.sqrt(0.8 * 0.2 / len(y))
    pit = normal_probability_integral_transform(y, mean, scale)
    assert stats.kstest(pit, "uniform").pvalue > 1e-3
    shares, levels = observed_coverage(pit, [0.8])
    assert_allclose(shares, interval_coverage(y, low, high), atol=1e-12)
    assert levels == [0.8]


def test_ranks_among_few_samples_are_uniform_also_with_ties():
    random = np.random.default_rng(3)
    y, samples = random.poisson(2.0, size=20_000), random.poisson(2.0, size=(5, 20_000))
    assert stats.kstest(sample_probability_integral_transform(y, samples), "uniform").pvalue > 1e-3


@given(seeds, st.booleans())
@quick
def test_quantile_error_counts_targets(seed, central):
    y, mean, scale = problem(seed, n=25)
    levels = np.array([0.1, 0.5, 0.9])
    predictive = stats.norm(mean[:, None], scale[:, None])
    if central:
        low, high = predictive.interval(levels)
        shares = np.mean((low <= y[:, None]) & (y[:, None] <= high), axis=0)
    else:
        shares = np.mean(y[:, None] <= predictive.ppf(levels), axis=0)
    pit = normal_probability_integral_transform(y, mean, scale)
    assert_allclose(quantile_calibration_error(pit, levels, central), np.mean(np.abs(shares - levels)), atol=1e-12)


def test_normalized_error_of_scales_that_are_half_too_small():
    y, mean, scale = problem(4, n=100_000)
    # Observed errors are twice those predicted: |1 - 2| = 1 in each bin, with relative error sqrt(1 / (2 n / bins)).
    standard_error = 2 * np.sqrt(10 / (2 * len(y))) / np.sqrt(10)
    assert abs(expected_normalized_calibration_error(y, mean, scale / 2) - 1) < 4 * standard_error
    assert_allclose(expected_normalized_calibration_error(y, mean, scale, 1, "width"), abs(
        sharpness(scale) - np.sqrt(np.mean((y - mean) ** 2))
    ) / sharpness(scale), rtol=1e-12)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_crps([1.0], [1.0], [0.0]), r"`scale` must be positive, not 0\.0 at index 0"),
        (lambda: normal_crps([1.0], [[1.0]], [1.0]), r"`mean` must have the shape of `y`, \(1,\), not shape \(1, 1\)"),
        (lambda: normal_crps([np.nan], [1.0], [1.0]), r"`y` must be finite, not nan at index 0"),
        (lambda: normal_crps([], [], 1.0), r"`y` must hold at least one example"),
        (lambda: sample_crps([1.0], [1.0, 2.0]), r"`samples` must have shape"),
        (lambda: sample_crps([1.0], [[1.0]], fair=True), r"`samples` must hold at least two"),
        (lambda: pinball_loss([1.0], [1.0], 1.0), r"`level` must be between 0 and 1, both excluded, not 1\.0"),
        (
            lambda: interval_coverage([1.0], [2.0], [1.0]),
            r"`lower` must be at most `upper`, not 2\.0 above",
        ),
        (lambda: quantile_calibration_error([1.5]), r"`probability_integral_transform` must hold probabilities"),
        (lambda: expected_normalized_calibration_error([1.0], 0.0, 1.0, binning="x"), r"`binning` must be"),
    ],
)
def test_bad_arguments_are_refused_with_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
