"""Prediction intervals against cases by hand and the coverage theorem."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from standard_errors import assert_mean, assert_within_standard_errors

from bdl.calibration.conformal import SplitConformalRegressor

Array = NDArray[Any]

METHODS = ["absolute", "normalized", "cqr"]
COVERAGE = 0.8
SIMULATIONS, NUM_CALIBRATION, NUM_TEST = 1_000, 42, 30  # neither 43 * 0.8 nor 43 * 0.9 is a whole number

quick = settings(max_examples=40, deadline=None, derandomize=True)


def skewed_targets(method: str, n: int, seed: int = 0) -> tuple[Array, Array]:
    """What a rough model predicts, as the method wants it, and targets `(n,)` with skewed, uneven noise."""
    random = np.random.default_rng(seed)
    mean, scale = random.normal(size=n), random.uniform(0.5, 2, size=n)
    y = mean + scale * (random.standard_exponential(n) - 0.7)
    prediction = {
        "absolute": mean,
        "normalized": np.stack([mean, scale**2], axis=1),
        "cqr": np.stack([mean - scale, mean + 0.1 * scale], axis=1),
    }
    return prediction[method], y


# By hand


def test_absolute_intervals_have_the_width_of_the_ranked_residual() -> None:
    conformal = SplitConformalRegressor().fit([0, 0, 0, 0], [1, -2, 3, -4])
    assert_allclose(conformal.scores_, [[1, 2, 3, 4]])
    assert_allclose(conformal.predict_interval([10, 20], 0.6), [[7, 13], [17, 23]])
    assert_allclose(conformal.predict_interval([10, 20], 0.8), [[6, 14], [16, 24]])


def test_normalized_intervals_are_as_wide_as_the_scale() -> None:
    conformal = SplitConformalRegressor("normalized").fit([[0, 1], [0, 2], [0, 1], [0, 8]], [1, -4, 3, 4])
    assert_allclose(conformal.scores_, [[1, 2, 3, 0.5]])
    assert_allclose(conformal.predict_interval([[10, 1], [20, 3]], 0.6), [[8, 12], [14, 26]])


def test_cqr_moves_both_quantiles_by_the_ranked_score() -> None:
    prediction = [[0, 1], [0, 1], [0, 2], [0, 4]]
    conformal = SplitConformalRegressor("cqr").fit(prediction, [-1, 1.5, 1, 1])
    assert_allclose(conformal.scores_, [[1, 0.5, -1, -1]])
    assert_allclose(conformal.predict_interval([[5, 6]], 0.6), [[4.5, 6.5]])


def test_cqr_intervals_that_cross_are_mended_to_their_midpoint() -> None:
    conformal = SplitConformalRegressor("cqr").fit([[0, 4], [0, 4], [0, 6]], [2, 2, 3])  # scores -2, -2, -3
    assert_allclose(
        conformal.predict_interval([[0, 10], [0, 4], [0, 3], [7, 8]], 0.5), [[2, 8], [2, 2], [1.5, 1.5], [7.5, 7.5]]
    )
    assert_allclose(conformal.predict_interval([[0, 1]], 0.2), [[0.5, 0.5]])


def test_sides_of_intervals_that_are_not_symmetric_have_their_own_thresholds() -> None:
    conformal = SplitConformalRegressor("absolute", symmetric=False).fit(np.zeros(4), [-1, 2, 3, 8])
    assert_allclose(conformal.scores_, [[1, -2, -3, -8], [-1, 2, 3, 8]])
    assert_allclose(conformal.predict_interval([10], 0.6), [[9, 18]])  # fourth of four on each side
    assert_allclose(conformal.predict_interval([10], 0.2), [[12, 13]])  # third of four


@pytest.mark.parametrize("method", ["absolute", "cqr"])
def test_intervals_move_and_stretch_with_the_data(method: Any) -> None:
    prediction, y = skewed_targets(method, 60)
    new, _ = skewed_targets(method, 10, seed=1)
    intervals = SplitConformalRegressor(method).fit(prediction, y).predict_interval(new)
    moved = SplitConformalRegressor(method).fit(3 * prediction + 7, 3 * y + 7).predict_interval(3 * new + 7)
    assert_allclose(moved, 3 * intervals + 7, rtol=1e-12)


def test_quantiles_of_no_width_are_absolute_residuals() -> None:
    mean, y = skewed_targets("absolute", 60)
    absolute = SplitConformalRegressor("absolute").fit(mean, y).predict_interval(mean)
    twice = np.stack([mean, mean], axis=1)
    assert_array_equal(SplitConformalRegressor("cqr").fit(twice, y).predict_interval(twice), absolute)
    unit = np.stack([mean, np.ones_like(mean)], axis=1)
    assert_array_equal(SplitConformalRegressor("normalized").fit(unit, y).predict_interval(unit), absolute)


# The theorem


def simulated_coverage(method: Any, symmetric: bool, decimals: int | None = None) -> Array:
    total = NUM_CALIBRATION + NUM_TEST
    prediction, y = skewed_targets(method, SIMULATIONS * total, seed=11)
    if decimals is not None:
        prediction, y = np.round(prediction, decimals), np.round(y, decimals)
    conformal = SplitConformalRegressor(method, symmetric)
    shares = np.empty(SIMULATIONS)
    for i in range(SIMULATIONS):
        fitted, tested = np.split(np.arange(i * total, (i + 1) * total), [NUM_CALIBRATION])
        lower, upper = conformal.fit(prediction[fitted], y[fitted]).predict_interval(prediction[tested], COVERAGE).T
        shares[i] = ((lower <= y[tested]) & (y[tested] <= upper)).mean()
    return shares


def theoretical_coverage(symmetric: bool) -> float:
    n = NUM_CALIBRATION
    if symmetric:
        return float(np.ceil((n + 1) * COVERAGE) / (n + 1))
    return float(2 * np.ceil((n + 1) * (1 + COVERAGE) / 2) / (n + 1) - 1)


@pytest.mark.parametrize("method", METHODS)
def test_coverage_is_that_of_the_theorem(method: Any) -> None:
    """Without ties the coverage is `Beta(k, n + 1 - k)` (Vovk 2012), the number covered binomial given it."""
    mean = theoretical_coverage(symmetric=True)
    assert COVERAGE <= mean <= COVERAGE + 1 / (NUM_CALIBRATION + 1)
    of_coverage = mean * (1 - mean) / (NUM_CALIBRATION + 2)
    variance = of_coverage + (mean * (1 - mean) - of_coverage) / NUM_TEST
    shares = simulated_coverage(method, symmetric=True)
    assert_within_standard_errors(shares.mean(), mean, np.sqrt(variance / SIMULATIONS), k=4)


@pytest.mark.parametrize("method", METHODS)
def test_each_side_misses_its_half_of_the_rest(method: Any) -> None:
    mean = theoretical_coverage(symmetric=False)
    assert COVERAGE <= mean <= COVERAGE + 2 / (NUM_CALIBRATION + 1)
    assert_mean(simulated_coverage(method, symmetric=False), mean, k=4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_coverage_is_at_least_that_of_the_theorem_with_ties(symmetric: bool) -> None:
    shares = simulated_coverage("absolute", symmetric, decimals=0)
    standard_error = shares.std(ddof=1) / np.sqrt(SIMULATIONS)
    assert shares.mean() >= theoretical_coverage(symmetric) - 4 * standard_error


@given(st.integers(0, 2**32 - 1), st.sampled_from(METHODS), st.booleans(), st.data())
@quick
def test_intervals_grow_with_coverage(seed: int, method: Any, symmetric: bool, data: st.DataObject) -> None:
    prediction, y = skewed_targets(method, 120, seed)
    conformal = SplitConformalRegressor(method, symmetric).fit(prediction[:100], y[:100])
    low, high = sorted(data.draw(st.tuples(*[st.floats(0.001, 0.98)] * 2)))
    small, large = (conformal.predict_interval(prediction[100:], coverage) for coverage in (low, high))
    assert (small[:, 0] <= small[:, 1]).all()
    mended = small[:, 0] == small[:, 1]  # the midpoint stands for an empty interval
    assert (large[:, 0] <= small[:, 0])[~mended].all()
    assert (small[:, 1] <= large[:, 1])[~mended].all()


# Refusals


@pytest.mark.parametrize(
    ("method", "prediction", "y", "message"),
    [
        ("mean", [0], [0], "`method` must be one of 'absolute', 'normalized', 'cqr', not 'mean'"),
        ("absolute", [[0], [1]], [0, 1], r"`prediction` must have shape \(n,\).*not shape \(2, 1\).*reshape"),
        ("normalized", [0, 1], [0, 1], r"`prediction` must have shape \(n, 2\), .* scales.*np.stack\(\[mean, scale\]"),
        ("cqr", [[0, 1, 2]], [0], r"`prediction` must have shape \(n, 2\).*not shape \(1, 3\).*\[lower, upper\]"),
        ("absolute", 0.5, 0.5, r"not shape \(\)"),
        ("absolute", [], [], "`prediction` must hold at least one example"),
        ("absolute", [0, np.nan], [0, 1], "`prediction` must be finite"),
        ("absolute", [0, 1], [0, np.inf], "`y` must be finite"),
        ("absolute", [0, 1], [0, 1, 2], r"`y` must have shape \(2,\).*not shape \(3,\)"),
        ("absolute", [0, 1], [[0], [1]], r"`y` must have shape \(2,\).*not shape \(2, 1\)"),
        ("absolute", [0, 1], 0, r"`y` must have shape \(2,\).*not shape \(\)"),
        ("absolute", ["a"], [0], "`prediction` must hold real numbers"),
        ("normalized", [[0, 1], [0, -2]], [0, 1], r"`prediction\[:, 1\]` must be positive, not -2.0 at index 1"),
        ("normalized", [[0, 0]], [0], r"`prediction\[:, 1\]` must be positive"),
        ("cqr", [[0, 1], [3, 2]], [0, 1], r"must be at most `prediction\[:, 1\]`.*3.0 and 2.0 at index 1.*np.sort"),
    ],
)
def test_fit_refuses(method: Any, prediction: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConformalRegressor(method).fit(prediction, y)


def test_fit_refuses_another_symmetric() -> None:
    with pytest.raises(ValueError, match=r"`symmetric` must be True or False, not 'no'"):
        SplitConformalRegressor(symmetric="no").fit([0], [0])  # type: ignore[arg-type]


def test_predict_interval_refuses() -> None:
    with pytest.raises(NotFittedError, match=r"SplitConformalRegressor is not fitted. Call `fit\(prediction, y\)`"):
        SplitConformalRegressor().predict_interval([0])
    conformal = SplitConformalRegressor("cqr").fit([[0, 1]] * 9, np.zeros(9))
    for coverage in (0, 1, 90, np.nan, None):
        with pytest.raises(ValueError, match="`coverage` must be between 0 and 1"):
            conformal.predict_interval([[0, 1]], coverage)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be at most"):
        conformal.predict_interval([[1, 0]])
    with pytest.raises(ValueError, match=r"`coverage` of 0.95 needs at least 19 .*not 9. .* at most 0\.9,"):
        conformal.predict_interval([[0, 1]], 0.95)


def test_two_thresholds_need_twice_the_examples() -> None:
    conformal = SplitConformalRegressor(symmetric=False).fit(np.zeros(9), np.arange(9))
    with pytest.raises(ValueError, match=r"`coverage` of 0.9 needs at least 19 .*not 9. .* at most 0\.8,"):
        conformal.predict_interval([0], 0.9)
    conformal.predict_interval([0], 0.8)
    SplitConformalRegressor(symmetric=False).fit(np.zeros(19), np.arange(19)).predict_interval([0], 0.9)
    alone = SplitConformalRegressor(symmetric=False).fit([0], [0])
    with pytest.raises(ValueError, match=r"not 1. Calibrate on more examples"):
        alone.predict_interval([0], 0.1)


def test_estimator_clones_with_its_parameters() -> None:
    assert clone(SplitConformalRegressor("cqr", symmetric=False)).get_params() == {"method": "cqr", "symmetric": False}
