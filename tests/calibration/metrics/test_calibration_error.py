"""Calibration errors against hand-made bins, simulations and one another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from bdl.calibration import (
    adaptive_calibration_error,
    brier_decomposition,
    brier_score,
    classwise_calibration_error,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
    root_mean_square_calibration_error,
    top_label_calibration_error,
)
from bdl.calibration.metrics import class_bins

quick = settings(max_examples=30, deadline=None, derandomize=True)
sizes = st.integers(2, 80)
seeds = st.integers(0, 2**32 - 1)


def calibrated(seed, n, classes=4, sharpness=1.0, dtype=np.float64):
    """Labels drawn from the probabilities; stated are those sharpened, so calibrated for 1."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(n, classes))
    y = np.argmax(logits + random.gumbel(size=(n, classes)), axis=1)
    p = np.exp(sharpness * logits)
    return y, (p / p.sum(axis=1, keepdims=True)).astype(dtype)


def gaps(forecast, outcome, num_bins, edges=None):
    """Count, and absolute gap of each bin, the slow way: by a loop over events."""
    members = [[] for _ in range(num_bins)]
    for f, o in zip(forecast, outcome, strict=True):
        if edges is None:
            number = next(
                m for m in range(num_bins) if f <= np.asarray((m + 1) / num_bins, f.dtype) or m == num_bins - 1
            )
        else:
            number = int(np.sum(f > edges[1:-1]))
        members[number].append((float(o) - float(f), 1))
    return [(len(each), abs(sum(r for r, _ in each)) / max(len(each), 1)) for each in members]


@given(seeds, sizes, st.integers(1, 20), st.sampled_from([np.float32, np.float64]))
@quick
def test_confidence_errors_equal_a_loop_over_events(seed, n, num_bins, dtype):
    y, p = calibrated(seed, n, dtype=dtype)
    found = gaps(p.max(axis=1), p.argmax(axis=1) == y, num_bins)
    options = {"num_bins": num_bins}
    assert_allclose(expected_calibration_error(y, p, **options), sum(c * g for c, g in found) / n, atol=1e-12)
    assert_allclose(maximum_calibration_error(y, p, **options), max(g for _, g in found), atol=1e-12)
    square = sum(c * g**2 for c, g in found) / n
    assert_allclose(root_mean_square_calibration_error(y, p, **options), np.sqrt(square), atol=1e-12)


@given(seeds, sizes, st.integers(1, 10))
@quick
def test_classwise_and_adaptive_errors_equal_a_loop_over_classes(seed, n, num_bins):
    y, p = calibrated(seed, n)
    by_width, by_mass = [], []
    for k in range(p.shape[1]):
        by_width.append(sum(c * g for c, g in gaps(p[:, k], y == k, num_bins)) / n)
        edges = np.quantile(p[:, k], np.linspace(0, 1, num_bins + 1))
        by_mass.append(sum(c * g for c, g in gaps(p[:, k], y == k, num_bins, edges)) / n)
    assert_allclose(classwise_calibration_error(y, p, num_bins), np.mean(by_width), atol=1e-12)
    assert_allclose(adaptive_calibration_error(y, p, num_bins), np.mean(by_mass), atol=1e-12)


@given(seeds, sizes)
@quick
def test_top_label_error_is_the_mean_of_the_errors_given_the_predicted_class(seed, n):
    y, p = calibrated(seed, n)
    predicted = p.argmax(axis=1)
    expected = 0.0
    for k in np.unique(predicted):
        rows = predicted == k
        expected += rows.mean() * expected_calibration_error(y[rows], p[rows], 7)
    assert_allclose(top_label_calibration_error(y, p, 7), expected, atol=1e-12)


@given(seeds, st.integers(2, 60))
@quick
def test_the_debiased_error_is_the_mean_over_pairs_of_events(seed, n):
    y, p = calibrated(seed, n)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    index = np.ceil(confidence * 5).astype(int)
    square = 0.0
    for m in np.unique(index):
        residual = (right - confidence)[index == m]
        if len(residual) > 1:
            products = np.outer(residual, residual)[~np.eye(len(residual), dtype=bool)]
            square += len(residual) / n * products.mean()
    expected = np.sign(square) * np.sqrt(abs(square))
    assert_allclose(debiased_calibration_error(y, p, 5), expected, rtol=1e-6, atol=1e-7)


def test_the_debiased_error_of_calibrated_probabilities_is_zero_on_average_and_the_plain_one_is_not():
    bins = [reliability_bins(*calibrated(seed, 500)) for seed in range(400)]
    squares = np.array([each.squared_calibration_error for each in bins])
    assert abs(squares.mean()) < 4 * squares.std() / np.sqrt(len(squares))
    plain = np.array([each.root_mean_square_calibration_error for each in bins])
    assert plain.mean() > 50 * plain.std() / np.sqrt(len(plain))


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_the_debiased_interval_covers(sharpness):
    # The squared gap within the bins of equal width, from three million events.
    truth = reliability_bins(*calibrated(10**6, 3_000_000, sharpness=sharpness)).debiased_calibration_error
    truth = truth if sharpness > 1 else 0.0
    ends = np.array([
        reliability_bins(*calibrated(seed, 1000, sharpness=sharpness)).debiased_interval() for seed in range(600)
    ])  # fmt: skip
    covered = int(np.sum((ends[:, 0] <= truth) & (truth <= ends[:, 1])))
    low, high = stats.binom.interval(0.9999, 600, 0.95)
    assert low <= covered <= high


def test_bins_of_equal_mass_hold_equally_many_events():
    y, p = calibrated(0, 1200)
    assert set(reliability_bins(y, p, 12, "mass").count) == {100}


def test_the_band_of_a_bin_is_that_of_clopper_and_pearson():
    y, p = [1, 1, 0, 1], [0.9, 0.95, 0.92, 0.55]
    low, high = reliability_bins(y, p, 2).accuracy_band(0.9)
    expected = stats.binomtest(3, 4).proportion_ci(0.9, method="exact")
    assert_allclose([low[1], high[1]], expected, rtol=1e-10)
    assert np.isnan(low[0])
    assert np.isnan(high[0])


# Layouts of events


def test_binary_classwise_error_is_that_of_label_one():
    y, p = calibrated(1, 300, classes=2)
    (bins,) = class_bins(y, p[:, 1])
    assert_allclose(bins.expected_calibration_error, classwise_calibration_error(y, p[:, 1]))
    assert_allclose(bins.confidence[bins.count > 0].min(), p[p[:, 1] <= 1 / 15, 1].mean())


@pytest.mark.parametrize("metric", [expected_calibration_error, classwise_calibration_error, brier_score])
def test_a_masked_sequence_is_its_events(metric):
    y, p = calibrated(2, 60)
    mask = np.random.default_rng(0).uniform(size=(6, 10)) < 0.6
    sequences = metric(y.reshape(6, 10), p.reshape(6, 10, 4), mask=mask)
    assert_allclose(sequences, metric(y[mask.ravel()], p[mask.ravel()]), rtol=1e-12)


def test_independent_labels_are_binary_events():
    random = np.random.default_rng(3)
    p = random.uniform(size=(50, 3))
    y = (random.uniform(size=p.shape) < p).astype(int)
    for metric in (expected_calibration_error, brier_score, debiased_calibration_error):
        assert_allclose(metric(y, p), metric(y.ravel(), p.ravel()), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": [True]}, r"`mask` must have the shape of `y`, \(2,\), not shape \(1,\)"),
        ({"mask": [False, False]}, r"`mask` must keep at least one event"),
        ({"mask": [0.5, 1.0]}, r"`mask` must be True where an event counts"),
        ({"binning": "equal"}, r"`binning` must be 'width' or 'mass', not 'equal'"),
        ({"num_bins": 0}, r"`num_bins` must be a positive integer, not 0"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error([0, 1], [0.2, 0.9], **arguments)


# The Brier score in parts


@given(seeds, sizes, st.integers(1, 20), st.booleans())
@quick
def test_the_parts_of_the_brier_score_add_up(seed, n, num_bins, binary):
    y, p = calibrated(seed, n, classes=2 if binary else 4)
    p = p[:, 1] if binary else p
    parts = brier_decomposition(y, p, num_bins)
    assert_allclose(parts.score, brier_score(y, p), rtol=1e-9, atol=1e-12)
    frequencies = np.bincount(y, minlength=2) / n
    label_variance = np.sum(frequencies * (1 - frequencies))
    assert_allclose(parts.uncertainty, label_variance / 2 if binary else label_variance, atol=1e-12)


def test_discrete_forecasts_have_nothing_within_their_bins():
    random = np.random.default_rng(5)
    p = random.choice([0.15, 0.55, 0.85], size=3000)
    y = (random.uniform(size=3000) < p).astype(int)
    parts = brier_decomposition(y, p, 10)
    assert parts.within_bin == pytest.approx(0, abs=1e-12)
    expected = sum(np.mean(p == f) * (y[p == f].mean() - y.mean()) ** 2 for f in (0.15, 0.55, 0.85))
    assert_allclose(parts.resolution, expected, rtol=1e-12)
