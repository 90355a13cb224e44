"""Recalibrated Normals: scales and quantiles that hold what they promise."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression

from bdl.calibration import (
    QuantileCalibration,
    VarianceScaling,
    normal_negative_log_likelihood,
    normal_probability_integral_transform,
)


def problem(seed, n=2000):
    """Targets of heavy tails, with scales that are half of what they should be."""
    random = np.random.default_rng(seed)
    mean, scale = random.normal(size=n), random.uniform(0.5, 2, size=n)
    return np.stack([mean, scale / 2], axis=1), mean + scale * random.standard_t(4, size=n)


def test_the_factor_is_that_of_least_likelihood_loss():
    x, y = problem(0)
    scaling = VarianceScaling().fit(x, y)
    best = normal_negative_log_likelihood(y, *scaling.transform(x).T)
    for factor in (0.98, 1.02):
        assert normal_negative_log_likelihood(y, x[:, 0], factor * scaling.predict_scale(x)) > best
    assert_allclose(scaling.factor_, np.sqrt(np.mean(((y - x[:, 0]) / x[:, 1]) ** 2)))
    assert_allclose(scaling.predict(x), x[:, 0])


def test_calibrated_quantiles_hold_their_share_of_new_targets():
    x, y = problem(1)
    calibration = clone(QuantileCalibration()).fit(x, y)
    x_new, y_new = problem(2)
    for level in (0.05, 0.3, 0.5, 0.9):
        share = np.mean(y_new <= calibration.predict_quantile(x_new, level))
        # Both samples are of 2,000: their binomial errors add.
        assert abs(share - level) < 4 * np.sqrt(2 * level * (1 - level) / 2000)
    pit = normal_probability_integral_transform(y_new, *x_new.T)
    assert stats.kstest(pit, "uniform").pvalue < 1e-6
    # Kolmogorov's distance of two samples exceeds 1.95 sqrt(2 / n) once in a thousand times.
    assert stats.kstest(calibration.transform_probabilities(pit), "uniform").statistic < 1.95 * np.sqrt(2 / 2000)
    assert_allclose(calibration.predict(x_new), calibration.predict_quantile(x_new, 0.5))


def test_levels_and_shares_are_inverse():
    calibration = QuantileCalibration().fit(*problem(3, n=100))
    levels = np.linspace(0.05, 0.95, 10)
    assert_allclose(calibration.transform_probabilities(calibration.transform_levels(levels)), levels, atol=1e-9)
    assert calibration.predict_quantile(np.array([[0.0, 1.0]] * 3), levels).shape == (10, 3)


def test_a_weight_is_a_repetition_and_what_weighs_nothing_is_not_read():
    x, y = problem(4, n=60)
    y[3] = y[4] - x[4, 0] + x[3, 0]
    x[3, 1] = x[4, 1]  # two of the standardized targets are equal
    weights = (1 + np.arange(60)) % 3
    repeated, targets = np.repeat(x, weights, axis=0), np.repeat(y, weights)
    x[weights == 0], y[weights == 0] = np.nan, np.inf
    scaling = VarianceScaling().fit(x, y, sample_weight=weights)
    assert_allclose(scaling.factor_, VarianceScaling().fit(repeated, targets).factor_)
    calibration = QuantileCalibration().fit(x, y, sample_weight=weights)
    expected = QuantileCalibration().fit(repeated, targets)
    levels = np.linspace(0.05, 0.95, 19)
    assert_allclose(calibration.transform_levels(levels), expected.transform_levels(levels))
    with pytest.raises(ValueError, match=r"`sample_weight` must be finite and at least 0, not -1\.0 at index 0"):
        QuantileCalibration().fit(repeated, targets, sample_weight=np.full(len(targets), -1.0))


def test_shares_are_the_isotonic_regression_of_ranks():
    x, y = problem(5, n=50)
    y = np.round(y)
    x[:] = [0.0, 1.0]  # many ties
    z = np.sort(y)
    expected = IsotonicRegression().fit(z, np.arange(1, 51) / 51).predict(z)
    calibration = QuantileCalibration().fit(x, y)
    assert_allclose(calibration.shares_[np.searchsorted(calibration.quantiles_, z)], expected)


@pytest.mark.parametrize("calibrator", [VarianceScaling, QuantileCalibration])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[0.0]], [1.0], r"`X` must have two columns, mean and scale, not shape \(1, 1\)"),
        ([[0.0, 0.0]], [1.0], r"`X\[:, 1\]` must be positive"),
        ([[0.0, np.nan]], [1.0], r"NaN"),
        ([[0.0, 1.0]], [1.0, 2.0], r"`X` and `y` must have one row a target"),
    ],
)
def test_bad_input_is_refused(calibrator, x, y, message):
    with pytest.raises(ValueError, match=message):
        calibrator().fit(x, y)


def test_a_model_without_error_has_no_scale():
    with pytest.raises(ValueError, match=r"`y` must differ from the means"):
        VarianceScaling().fit([[0.0, 1.0]], [0.0])
    with pytest.raises(ValueError, match=r"`levels` must be between 0 and 1"):
        QuantileCalibration().fit([[0.0, 1.0]], [0.0]).transform_levels(1.0)
