"""Bootstrap intervals against SciPy's, and how often they cover."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from bdl.calibration import (
    Interval,
    accuracy,
    area_under_risk_coverage,
    bootstrap,
    bootstrap_interval,
    brier_score,
    classwise_calibration_error,
    debiased_calibration_error,
    excess_area_under_risk_coverage,
    expected_calibration_error,
    interval_coverage,
    maximum_calibration_error,
    negative_log_likelihood,
    normal_crps,
    normal_negative_log_likelihood,
    out_of_distribution_auroc,
    root_mean_square_calibration_error,
    root_mean_square_error,
    sample_crps,
)
from bdl.calibration.metrics import ranking


def classified(seed, n):
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(n, 3))
    p = np.exp(logits)
    return np.argmax(logits + random.gumbel(size=logits.shape), axis=1), p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("metric", [negative_log_likelihood, brier_score])
def test_the_interval_of_a_mean_is_that_of_scipy(metric):
    y, p = classified(0, 200)
    ours = bootstrap_interval(metric, y, p, num_resamples=20_000)
    terms = np.array([metric(y[i : i + 1], p[i : i + 1]) for i in range(len(y))])
    assert_allclose(ours.value, terms.mean())
    theirs = stats.bootstrap((terms,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    # An end's standard error is that of a quantile of 20,000 resampled means, about 0.02 of their spread; of both.
    error = 0.02 * terms.std() / np.sqrt(len(y))
    assert abs(ours.low - theirs.low) < 5 * error
    assert abs(ours.high - theirs.high) < 5 * error


def test_an_infinite_figure_is_infinite_for_certain():
    def surprise(y, mean):
        return float(np.mean(np.where(y == mean, 0.0, np.inf)))

    infinite = Interval(np.inf, np.inf, np.inf, 0.95)
    assert bootstrap_interval(surprise, np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 3.0])) == infinite
    with np.errstate(over="ignore"):
        assert bootstrap_interval(normal_negative_log_likelihood, [0.0, 1e200], [0.0, 0.0], [1.0, 1.0]) == infinite


def test_any_other_metric_gets_the_interval_of_its_percentiles():
    y, p = classified(1, 150)
    ours = bootstrap_interval(classwise_calibration_error, y, p, num_bins=5, num_resamples=200)
    random = np.random.default_rng(0)
    rows = [random.integers(0, 150, size=150) for _ in range(200)]
    found = [classwise_calibration_error(y[row], p[row], num_bins=5) for row in rows]
    assert_allclose([ours.low, ours.high], np.quantile(found, [0.025, 0.975]))


def test_samples_are_resampled_on_their_second_axis_and_masks_with_the_rows():
    random = np.random.default_rng(2)
    y, samples = random.normal(size=(40, 2)), random.normal(size=(7, 40, 2))
    interval = bootstrap_interval(sample_crps, y, samples, num_resamples=50)
    assert interval.low < interval.value < interval.high
    tokens, p = classified(3, 60)
    mask = np.arange(60).reshape(20, 3) % 3 != 2
    masked = bootstrap_interval(accuracy, tokens.reshape(20, 3), p.reshape(20, 3, 3), mask=mask, num_resamples=50)
    assert_allclose(masked.value, accuracy(tokens[mask.ravel()], p[mask.ravel()]))


def test_familiar_and_unfamiliar_inputs_are_resampled_apart():
    random = np.random.default_rng(5)
    inside, outside = random.normal(size=400), random.normal(size=700) + 1.0
    interval = bootstrap_interval(out_of_distribution_auroc, inside, outside, num_resamples=400)
    # Hanley and McNeil's (1982) standard error of the area; the half-width of a 95 % interval is 1.96 of them.
    area = interval.value
    pairs = (399 * (area / (2 - area) - area**2), 699 * (2 * area**2 / (1 + area) - area**2))
    error = np.sqrt((area * (1 - area) + sum(pairs)) / (400 * 700))
    assert_allclose((interval.high - interval.low) / 2, 1.96 * error, rtol=0.15)  # of 400 resamples, and their formula
    with pytest.raises(ValueError, match=r"`arrays` must have one row for each example, not \[2, 3\] rows"):
        bootstrap_interval(lambda a, b: float(np.mean(a) - np.mean(b)), [1.0, 2.0], [1.0, 2.0, 3.0])


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    y, p = classified(4, 100)
    first, again, other = (bootstrap_interval(brier_score, y, p, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_probabilities_and_masks_may_have_their_names():
    y, p = classified(11, 30)
    mask = np.arange(30) % 3 > 0
    named = bootstrap_interval(accuracy, y.tolist(), probabilities=p.tolist(), mask=mask.tolist())
    assert named == bootstrap_interval(accuracy, y[mask], p[mask])


def test_a_constant_has_an_interval_of_no_width():
    assert bootstrap_interval(accuracy, [0, 1], [0.1, 0.9]).low == 1.0


def coverage(simulate, metric, truth, n, simulations=300):
    hits = 0
    for seed in range(simulations):
        interval = bootstrap_interval(metric, *simulate(seed, n), num_resamples=400, seed=seed)
        hits += interval.low <= truth <= interval.high
    return hits


def regression(seed, n):
    random = np.random.default_rng(seed)
    return random.normal(size=n), np.zeros(n), np.ones(n)


def intervals(seed, n):
    return regression(seed, n)[0], np.full(n, -1.5), np.full(n, 1.5)


@pytest.mark.parametrize(
    ("simulate", "metric", "truth"),
    [
        (regression, normal_crps, 1 / np.sqrt(np.pi)),
        (intervals, interval_coverage, 2 * stats.norm.cdf(1.5) - 1),
    ],
)
def test_intervals_cover(simulate, metric, truth):
    low, high = stats.binom.interval(0.9999, 300, 0.95)
    assert low <= coverage(simulate, metric, truth, n=500) <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 1.0}, r"`level` must be between 0 and 1"),
        ({"num_resamples": 0}, r"`num_resamples` must be a positive integer, not 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(accuracy, [0, 1], [0.1, 0.9], **arguments)
    with pytest.raises(ValueError, match=r"at least two examples"):
        bootstrap_interval(accuracy, [0], [0.1])
    with pytest.raises(ValueError, match=r"`scores_in` must hold"):
        bootstrap_interval(out_of_distribution_auroc, [], [1.0])


# Resamples by how often each example was drawn


def drawn(seed, n):
    """Rows of a resample in the order that they were drawn, and how often each was."""
    rows = np.random.default_rng(seed).integers(0, n, size=n)
    return rows, np.bincount(rows, minlength=n).astype(float)


def statistic(metric, *arrays, **options):
    return bootstrap._statistic(metric, *bootstrap._plain_events(metric, arrays, options))


CALIBRATION_ERRORS = [
    expected_calibration_error,
    maximum_calibration_error,
    root_mean_square_calibration_error,
    debiased_calibration_error,
]


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from(["float32", "float64"]), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_metric_of_counts_is_the_metric_of_the_rows_drawn(seed, n, dtype, is_binary):
    y, p = classified(seed, n)
    p = p.astype(dtype)
    if is_binary:
        y, p = (y > 1).astype(int), p[:, 2]
    rows, counts = drawn(seed, n)
    by_counts = [accuracy, negative_log_likelihood, brier_score, *CALIBRATION_ERRORS, classwise_calibration_error]
    for metric in by_counts:
        found, sizes = statistic(metric, y, p)
        assert sizes == [n]
        assert_allclose(found.value, metric(y, p), rtol=1e-12, atol=1e-12)
        # The root that ends the debiased error doubles the digits that rounding takes near zero.
        tolerance = 1e-7 if metric is debiased_calibration_error else 1e-12
        assert_allclose(found.of_counts(counts), metric(y[rows], p[rows]), rtol=1e-12, atol=tolerance)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 60), st.sampled_from([1, 4, 2**14]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_ranking_of_counts_is_that_of_the_rows_drawn_with_ties(seed, n, num_values, block):
    with mock.patch.object(ranking, "_TIES_IN_A_BLOCK", block):
        check_rankings(seed, n, num_values)


def check_rankings(seed, n, num_values):
    random = np.random.default_rng(seed)
    losses, uncertainty = random.uniform(size=n), random.integers(0, num_values, n) / num_values
    rows, counts = drawn(seed, n)
    for metric in (area_under_risk_coverage, excess_area_under_risk_coverage):
        found, _ = statistic(metric, losses, uncertainty)
        assert_allclose(found.of_counts(counts), metric(losses[rows], uncertainty[rows]), rtol=1e-12, atol=1e-13)
    others = random.integers(0, num_values, n + 3) / num_values
    other_rows, other_counts = drawn(seed + 1, n + 3)
    found, sizes = statistic(out_of_distribution_auroc, uncertainty, others)
    assert sizes == [n, n + 3]
    expected = out_of_distribution_auroc(uncertainty[rows], others[other_rows])
    assert found.of_counts(counts, other_counts) == expected


@pytest.mark.parametrize("metric", [accuracy, negative_log_likelihood, brier_score, *CALIBRATION_ERRORS])
def test_sequences_are_drawn_whole(metric):
    y, p = classified(6, 60)
    y, p = y.reshape(12, 5), p.reshape(12, 5, 3)
    mask = np.random.default_rng(7).random(y.shape) < 0.5
    mask[3] = False  # padding alone is no example
    found, sizes = statistic(metric, y, p, mask=mask)
    assert sizes == [11]
    kept = np.delete(np.arange(12), 3)
    rows, counts = drawn(8, 11)
    expected = metric(y[kept][rows], p[kept][rows], mask=mask[kept][rows])
    assert_allclose(found.of_counts(counts), expected, rtol=1e-12)


def test_targets_of_several_columns_are_drawn_by_rows():
    random = np.random.default_rng(9)
    y, mean, scale = random.normal(size=(30, 2)), random.normal(size=(30, 2)), random.uniform(1, 2, size=(30, 2))
    rows, counts = drawn(10, 30)
    for metric, arrays in ((normal_crps, (y, mean, scale)), (root_mean_square_error, (y, mean))):
        found, _ = statistic(metric, *arrays)
        assert_allclose(found.of_counts(counts), metric(*(array[rows] for array in arrays)), rtol=1e-12)


def test_a_table_of_many_classes_is_read_once():
    readings = []

    class Table(np.ndarray):
        def __getitem__(self, key):
            readings.append(key)
            return super().__getitem__(key)

    p = np.full((3000, 400), 1 / 400, "float32").view(Table)
    bootstrap_interval(expected_calibration_error, np.arange(3000) % 400, p, num_resamples=500)
    assert 0 < len(readings) < 10
