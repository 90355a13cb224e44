"""Scores of quantiles and intervals against scikit-learn, each other and counts of targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from regression_problem import problem, quick, seeds
from scipy import stats
from sklearn.metrics import mean_pinball_loss

from bdl.calibration import (
    interval_coverage,
    interval_score,
    mean_interval_width,
    normal_probability_integral_transform,
    pinball_loss,
    quantile_calibration_error,
)
from bdl.calibration.metrics import observed_coverage


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pinball_loss([1.0], [1.0], 1.0), r"`level` must be between 0 and 1, both excluded, not 1\.0"),
        (
            lambda: interval_coverage([1.0], [2.0], [1.0]),
            r"`lower` must be at most `upper`, not 2\.0 above",
        ),
        (lambda: quantile_calibration_error([1.5]), r"`probability_integral_transform` must hold probabilities"),
    ],
)
def test_bad_arguments_are_refused_with_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
