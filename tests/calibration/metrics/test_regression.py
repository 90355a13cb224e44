"""Regression scores against integrals, SciPy, TensorFlow Probability and simulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from regression_problem import problem, quick, seeds
from scipy import integrate, stats

from bdl.calibration import (
    expected_normalized_calibration_error,
    normal_crps,
    normal_negative_log_likelihood,
    sample_crps,
    sample_probability_integral_transform,
    sharpness,
)


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


def test_ranks_among_few_samples_are_uniform_also_with_ties():
    random = np.random.default_rng(3)
    y, samples = random.poisson(2.0, size=20_000), random.poisson(2.0, size=(5, 20_000))
    assert stats.kstest(sample_probability_integral_transform(y, samples), "uniform").pvalue > 1e-3


def test_normalized_error_of_scales_that_are_half_too_small():
    y, mean, scale = problem(4, n=100_000)
    # Observed errors are twice those predicted: |1 - 2| = 1 in each bin, with relative error sqrt(1 / (2 n / bins)).
    standard_error = 2 * np.sqrt(10 / (2 * len(y))) / np.sqrt(10)
    assert abs(expected_normalized_calibration_error(y, mean, scale / 2) - 1) < 4 * standard_error
    assert_allclose(expected_normalized_calibration_error(y, mean, scale, 1, "width"), abs(
        sharpness(scale) - np.sqrt(np.mean((y - mean) ** 2))
    ) / sharpness(scale), rtol=1e-12)  # fmt: skip


def test_sharpness_counts_forecasts_without_spread():
    assert_allclose(sharpness([0.0, 0.0, 3.0, 3.0]), np.sqrt(18 / 4))
    assert sharpness([0.0]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_crps([1.0], [1.0], [0.0]), r"`scale` must be positive, not 0\.0 at index 0"),
        (lambda: normal_crps([1.0], [[1.0]], [1.0]), r"`mean` must have the shape of `y`, \(1,\), not shape \(1, 1\)"),
        (lambda: normal_crps([np.nan], [1.0], [1.0]), r"`y` must be finite, not nan at index 0"),
        (lambda: normal_crps([], [], 1.0), r"`y` must hold at least one example"),
        (lambda: sample_crps([1.0], [1.0, 2.0]), r"`samples` must have shape"),
        (lambda: sample_crps([1.0], [[1.0]], fair=True), r"`samples` must hold at least two"),
        (lambda: sharpness([1.0, -1.0]), r"`scale` must be at least 0, not -1\.0 at index 1"),
        (lambda: expected_normalized_calibration_error([1.0], 0.0, 1.0, binning="x"), r"`binning` must be"),
    ],
)
def test_bad_arguments_are_refused_with_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
