"""Reliability bins against their definition and scikit-learn's calibration curve."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve

from bdl.calibration import expected_calibration_error, reliability_bins

Array = NDArray[Any]
Problem = tuple[Array, Array, int]

# Both sides sum the same float64 numbers in another order.
SAME_ARITHMETIC = 1e-12

quick = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes = draw(st.integers(1, 80)), draw(st.integers(2, 8))
    probabilities = random.dirichlet(np.full(classes, 0.5), size=n).astype(draw(st.sampled_from([np.float32, float])))
    return random.integers(classes, size=n), probabilities, draw(st.integers(1, 40))


@given(problems())
@quick
def test_bins_equal_the_calibration_curve_of_scikit_learn(problem: Problem) -> None:
    y, p, num_bins = problem
    confidence, correct = p.max(axis=1).astype(np.float64), p.argmax(axis=1) == y
    expected_accuracy, expected_confidence = calibration_curve(correct, confidence, n_bins=num_bins, strategy="uniform")
    bins = reliability_bins(y, p, num_bins)
    filled = bins.count > 0
    assert_allclose(bins.accuracy[filled], expected_accuracy, SAME_ARITHMETIC)
    assert_allclose(bins.confidence[filled], expected_confidence, SAME_ARITHMETIC)


@given(problems())
@quick
def test_calibration_error_is_the_sum_of_its_definition(problem: Problem) -> None:
    y, p, num_bins = problem
    confidence, correct = p.max(axis=1).astype(np.float64), p.argmax(axis=1) == y
    expected = 0.0
    for m in range(1, num_bins + 1):  # Guo et al. (2017), eq. 3
        in_bin = ((m - 1) / num_bins < confidence) & (confidence <= m / num_bins)
        if in_bin.any():
            expected += in_bin.mean() * abs(correct[in_bin].mean() - confidence[in_bin].mean())
    assert_allclose(expected_calibration_error(y, p, num_bins), expected, atol=SAME_ARITHMETIC)
    assert reliability_bins(y, p, num_bins).expected_calibration_error == expected_calibration_error(y, p, num_bins)


@given(problems())
@quick
def test_every_example_is_counted_once_in_the_bin_that_holds_its_confidence(problem: Problem) -> None:
    y, p, num_bins = problem
    bins = reliability_bins(y, p, num_bins)
    assert bins.count.sum() == len(y)
    assert bins.count.shape == bins.accuracy.shape == bins.confidence.shape == (num_bins,)
    assert_array_equal(bins.edges, [m / num_bins for m in range(num_bins + 1)])
    filled = bins.count > 0
    rounding = np.finfo(p.dtype).eps
    assert (bins.confidence[filled] > bins.edges[:-1][filled] - rounding).all()
    assert (bins.confidence[filled] <= bins.edges[1:][filled] + rounding).all()
    assert_array_equal(np.isnan(bins.confidence), ~filled)
    assert_array_equal(np.isnan(bins.accuracy), ~filled)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9, 10])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(dtype: type, tenths: int) -> None:
    bins = reliability_bins([1], np.array([tenths / 10], dtype), num_bins=10)
    assert bins.count.argmax() == tenths - 1


def test_a_binary_probability_is_confident_in_the_class_that_it_favours() -> None:
    bins = reliability_bins([0, 1, 1], [0.25, 0.25, 1.0], num_bins=4)
    assert_array_equal(bins.count, [0, 0, 2, 1])
    assert_array_equal(bins.confidence, [np.nan, np.nan, 0.75, 1.0])
    assert_array_equal(bins.accuracy, [np.nan, np.nan, 0.5, 1.0])


def test_bins_are_frozen() -> None:
    bins = reliability_bins([0], [0.2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        bins.count = np.zeros(15)  # type: ignore[misc, assignment]


@pytest.mark.parametrize("num_bins", [0, -1, 2.5, True, "15"])
def test_a_number_of_bins_that_is_none_is_refused(num_bins: Any) -> None:
    with pytest.raises(ValueError, match=rf"`num_bins` must be a positive integer, not {num_bins!r}\."):
        reliability_bins([0], [0.2], num_bins)


def test_bad_probabilities_are_refused_before_they_are_binned() -> None:
    with pytest.raises(ValueError, match=r"`probabilities` .* not 2\.0 at index 0\. .*logits"):
        reliability_bins([0], [2.0])
