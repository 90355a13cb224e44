"""Metrics against closed forms, scikit-learn and simulations whose standard error is known."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import (
    accuracy,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    out_of_distribution_auroc,
    predictive_entropy,
)

Array = NDArray[Any]
Problem = tuple[Array, Array]
Score = Callable[[ArrayLike, ArrayLike], float]

# Scores of labels and probabilities, for what must hold of all of them.
SCORES: list[Score] = [negative_log_likelihood, brier_score, expected_calibration_error, accuracy]

# Both sides sum the same float64 numbers in another order.
SAME_ARITHMETIC = 1e-12

quick = settings(max_examples=40, deadline=None, derandomize=True)
problems = st.builds(
    lambda seed, n, classes, dtype: simulated(seed, n, classes, dtype),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    classes=st.integers(2, 12),
    dtype=st.sampled_from([np.float32, np.float64]),
)


def simulated(
    seed: int, n: int, classes: int, dtype: type[np.floating] = np.float64, sharpness: float = 1.0
) -> Problem:
    """Labels drawn from the softmax of random logits, and the softmax of `sharpness` times these logits."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(n, classes))
    y = np.argmax(logits + random.gumbel(size=(n, classes)), axis=1)
    return y, softmax(sharpness * logits).astype(dtype)


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


# Against scikit-learn


@given(problems)
@quick
def test_scores_equal_those_of_scikit_learn(problem: Problem) -> None:
    y, probabilities = problem
    p = probabilities.astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)  # scikit-learn warns about the rounding of float32
    classes = range(p.shape[1])
    assert_allclose(negative_log_likelihood(y, p), sklearn.metrics.log_loss(y, p, labels=classes), SAME_ARITHMETIC)
    expected_brier = sklearn.metrics.brier_score_loss(y, p, labels=classes, scale_by_half=False)
    assert_allclose(brier_score(y, p), expected_brier, SAME_ARITHMETIC)
    assert accuracy(y, p) == sklearn.metrics.accuracy_score(y, p.argmax(axis=1))


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
@quick
def test_binary_scores_equal_those_of_scikit_learn(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    p = random.uniform(size=n)
    y = random.integers(2, size=n)
    assert_allclose(negative_log_likelihood(y, p), sklearn.metrics.log_loss(y, p, labels=[0, 1]), SAME_ARITHMETIC)
    assert_allclose(brier_score(y, p), sklearn.metrics.brier_score_loss(y, p, labels=[0, 1]), SAME_ARITHMETIC)
    assert accuracy(y, p) == sklearn.metrics.accuracy_score(y, p > 0.5)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
@quick
def test_auroc_equals_that_of_scikit_learn_with_ties(scores_in: list[int], scores_out: list[int]) -> None:
    is_out = [0] * len(scores_in) + [1] * len(scores_out)
    expected = sklearn.metrics.roc_auc_score(is_out, scores_in + scores_out)
    assert_allclose(out_of_distribution_auroc(scores_in, scores_out), expected, atol=SAME_ARITHMETIC)


# Closed forms


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_uniform_probabilities_have_the_scores_of_ignorance(classes: int) -> None:
    y = np.arange(2 * classes) % classes
    p = np.full((2 * classes, classes), 1 / classes)
    assert_allclose(negative_log_likelihood(y, p), math.log(classes), SAME_ARITHMETIC)
    assert_allclose(brier_score(y, p), 1 - 1 / classes, SAME_ARITHMETIC)
    assert_allclose(predictive_entropy(p), math.log(classes), SAME_ARITHMETIC)
    assert accuracy(y, p) == 1 / classes
    assert_allclose(expected_calibration_error(y, p), 0, atol=SAME_ARITHMETIC)


def test_certain_and_right_is_the_best_score_of_each() -> None:
    y, p = [2, 0], np.eye(3)[[2, 0]]
    for score, best in zip(SCORES, [0, 0, 0, 1], strict=True):
        assert score(y, p) == best
    assert not np.signbit(negative_log_likelihood(y, p))  # a printed -0.0 would look like a bug
    assert not np.signbit(predictive_entropy(p)).any()


def test_certain_and_wrong_is_the_worst_score_of_each() -> None:
    y, p = [1, 1], np.eye(3)[[2, 0]]
    assert brier_score(y, p) == 2
    assert brier_score([1, 0], [0.0, 1.0]) == 1
    assert expected_calibration_error(y, p) == 1
    assert accuracy(y, p) == 0


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(np.float16, 24), (np.float32, 149), (np.float64, 1074)],
    ids=["float16", "float32", "float64"],
)
def test_probability_zero_costs_the_log_of_the_smallest_positive_float(dtype: type, exponent: int) -> None:
    p: Array = np.array([[1, 0], [0, 1]], dtype)
    assert_allclose(negative_log_likelihood([1, 1], p), exponent * math.log(2) / 2, SAME_ARITHMETIC)
    smallest: Array = np.array([[1, 2.0**-exponent]], dtype)
    assert_allclose(negative_log_likelihood([1], smallest), exponent * math.log(2), SAME_ARITHMETIC)


@pytest.mark.parametrize(("sure", "right"), [(0.8, 0.8), (0.9, 0.6), (0.55, 1.0)])
def test_calibration_error_of_one_confidence_is_its_distance_to_the_accuracy(sure: float, right: float) -> None:
    y = np.arange(10) >= round(10 * right)
    assert_allclose(expected_calibration_error(y, np.full(10, 1 - sure)), abs(sure - right), atol=SAME_ARITHMETIC)


def test_entropy_of_a_known_row() -> None:
    expected = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert_allclose(predictive_entropy([[0.5, 0.25, 0.25, 0.0]]), [expected], SAME_ARITHMETIC)


def test_auroc_of_two_known_samples() -> None:
    assert out_of_distribution_auroc([0, 1], [2, 3]) == 1
    assert out_of_distribution_auroc([2, 3], [0, 1]) == 0
    assert out_of_distribution_auroc([1, 1], [1]) == 0.5
    assert out_of_distribution_auroc([0, 1, 2, 3], [2]) == 2.5 / 4


# Properties


@given(problems)
@quick
def test_scores_stay_in_their_ranges(problem: Problem) -> None:
    y, p = problem
    assert negative_log_likelihood(y, p) >= 0
    assert 0 <= brier_score(y, p) <= 2
    assert 0 <= accuracy(y, p) <= 1
    assert all(0 <= expected_calibration_error(y, p, num_bins) <= 1 for num_bins in (1, 2, 15, 1000))
    assert all(isinstance(score(y, p), float) for score in SCORES)


@given(problems)
@quick
def test_entropy_keeps_shape_and_dtype_and_stays_between_zero_and_log_classes(problem: Problem) -> None:
    _, p = problem
    entropy = predictive_entropy(p)
    assert entropy.shape == p.shape[:1]
    assert entropy.dtype == p.dtype
    assert (entropy >= 0).all()
    # The rows sum to 1 within the rounding of each of their entries.
    assert (entropy <= math.log(p.shape[1]) + p.shape[1] * np.finfo(p.dtype).eps).all()


@given(problems, st.randoms(use_true_random=False))
@quick
def test_scores_do_not_depend_on_the_order_of_examples_or_classes(problem: Problem, random: Random) -> None:
    y, p = problem
    examples = random.sample(range(len(y)), len(y))
    classes = np.array(random.sample(range(p.shape[1]), p.shape[1]))
    new_y, new_p = np.argsort(classes)[y[examples]], p[examples][:, classes]
    for score in SCORES:
        assert_allclose(score(new_y, new_p), score(y, p), SAME_ARITHMETIC, atol=SAME_ARITHMETIC)
    assert_allclose(predictive_entropy(new_p), predictive_entropy(p)[examples], 4 * np.finfo(p.dtype).eps)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@quick
def test_binary_probabilities_mean_the_same_as_their_two_columns(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    p, y = random.uniform(size=n), random.integers(2, size=n)
    columns = np.stack([1 - p, p], axis=1)
    for score in (negative_log_likelihood, expected_calibration_error, accuracy):
        assert score(y, p) == score(y, columns)
    assert brier_score(y, p) == brier_score(y, columns) / 2
    assert (predictive_entropy(p) == predictive_entropy(columns)).all()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_labels_may_be_whole_numbers_of_any_type(score: Score, dtype: type) -> None:
    y, p = simulated(0, 50, 2)
    assert score(y.astype(dtype), p) == score(y, p)
    assert score(y.tolist(), p.tolist()) == score(y, p)


def test_arguments_are_left_as_they_were() -> None:
    y, p = simulated(0, 50, 3)
    y_before, p_before = y.copy(), p.copy()
    for score in SCORES:
        score(y, p)
    predictive_entropy(p)
    assert (y == y_before).all()
    assert (p == p_before).all()


# Simulations: labels drawn from the probabilities themselves. Seeds are fixed; 4 standard errors leave 6e-5 to chance.


def test_nll_of_calibrated_probabilities_is_their_mean_entropy() -> None:
    y, p = simulated(seed=1, n=20_000, classes=5)
    surprise_variance = np.sum(p * np.log(p) ** 2, axis=1) - predictive_entropy(p) ** 2
    standard_error = math.sqrt(surprise_variance.sum()) / len(y)
    assert abs(negative_log_likelihood(y, p) - predictive_entropy(p).mean()) < 4 * standard_error


def test_brier_score_of_calibrated_probabilities_is_their_mean_gini_impurity() -> None:
    y, p = simulated(seed=2, n=20_000, classes=5)
    # Given p_i the score is |p_i|^2 + 1 - 2 p_i[y_i], so its variance is 4 Var(p_i[y_i]) with y_i ~ p_i.
    squared_norm = np.sum(p**2, axis=1)
    standard_error = 2 * math.sqrt(np.sum(np.sum(p**3, axis=1) - squared_norm**2)) / len(y)
    assert abs(brier_score(y, p) - np.mean(1 - squared_norm)) < 4 * standard_error


def calibration_error_by_chance(p: Array, num_bins: int) -> tuple[float, float]:
    """Mean and standard deviation of the ECE when labels follow `p`: each bin's sum of `correct - c` is normal."""
    c = p.max(axis=1)
    variance = np.bincount(np.ceil(c * num_bins).astype(int), weights=c * (1 - c))
    mean = math.sqrt(2 / math.pi) * np.sum(np.sqrt(variance)) / len(c)
    return mean, math.sqrt((1 - 2 / math.pi) * variance.sum()) / len(c)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_of_calibrated_probabilities_is_what_chance_gives(seed: int) -> None:
    y, p = simulated(seed, n=20_000, classes=5)
    mean, standard_deviation = calibration_error_by_chance(p, num_bins=15)
    assert abs(expected_calibration_error(y, p) - mean) < 4 * standard_deviation


@pytest.mark.parametrize("sharpness", [0.7, 1.4])
def test_calibration_error_sees_probabilities_that_are_too_flat_or_too_sharp(sharpness: float) -> None:
    y, p = simulated(seed=3, n=20_000, classes=5, sharpness=sharpness)
    mean, standard_deviation = calibration_error_by_chance(p, num_bins=15)
    assert expected_calibration_error(y, p) > mean + 20 * standard_deviation


def test_auroc_of_two_normals_is_the_normal_distribution_function() -> None:
    n, shift = 4_000, 1.0
    random = np.random.default_rng(4)
    scores_in, scores_out = random.normal(size=n), random.normal(size=n) + shift
    expected = 0.5 * (1 + math.erf(shift / 2))  # Phi(shift / sqrt 2)
    # Birnbaum and Klose (1957) bound its variance by A (1 - A) / min(n, m) for any two ordered distributions.
    standard_error = math.sqrt(expected * (1 - expected) / n)
    assert abs(out_of_distribution_auroc(scores_in, scores_out) - expected) < 4 * standard_error


# Refusals: each names the argument, what it was and the cure

GOOD = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("y", "probabilities", "message"),
    [
        ([0, 3], GOOD, r"`y` .* from 0 to 2.* not 3 at index 1\. Subtract 1 if the labels start at 1"),
        ([-1, 0], GOOD, r"`y` .* from 0 to 2.* not -1 at index 0"),
        ([0, 2], [0.1, 0.9], r"`y` .* from 0 to 1.* not 2 at index 1"),
        ([0, 0.5], GOOD, r"`y` .* whole numbers.* not 0\.5 at index 1.*argmax"),
        ([0, np.nan], GOOD, r"`y` must be finite, not nan at index 1\."),
        (["cat", "dog"], GOOD, r"`y` .* a different name for each of the 3 classes, not 2.*class_indices"),
        (np.eye(3)[:2], GOOD, r"`y` must have shape \(n,\).*not shape \(2, 3\)\. `y\.argmax\(axis=-1\)`"),
        ([[0], [1]], GOOD, r"`y` .*not shape \(2, 1\), with .*`y\.reshape\(-1\)`"),
        ([], GOOD, r"`y` and `probabilities`.*not 0 labels and 2 rows"),
        ([0], GOOD, r"`y` and `probabilities`.*not 1 labels and 2 rows"),
        ([0, 0], 0.5, r"`probabilities` must have shape .*not shape \(\)"),
        ([0, 0], GOOD[None], r"`y` must have the shape of .*not shape \(2,\), with .* shape \(1, 2, 3\)\."),
        ([0, 0], [[0.5], [0.5]], r"`probabilities` .*shape \(2, 1\), a single column.*`probabilities\[:, 0\]`"),
        ([], np.zeros((0, 3)), r"`probabilities` must hold at least one example, not shape \(0, 3\)"),
        ([0, 0], GOOD * [[1], [np.nan]], r"`probabilities` must be finite, not nan at index \(1, 0\).*diverged"),
        ([0, 0], [0.5, np.inf], r"`probabilities` must be finite, not inf at index 1\."),
        ([0, 0], [[2.0, -1.0], [0.5, 0.5]], r"`probabilities` .*not 2\.0 at index \(0, 0\)\. .*logits.*softmax"),
        ([0, 0], [[0.5, 0.5], [1.1, -0.1]], r"not 1\.1 at index \(1, 0\)\. .*logits"),
        ([0, 0], [0.5, -3.0], r"`probabilities` .*not -3\.0 at index 1\. .*logits.*sigmoid"),
        ([0, 0], [[0.5, 0.5], [0.5, 0.6]], r"`probabilities` must sum to 1 .*a sum of 1\.1 in row 1\. Use softmax"),
        ([0, 0], GOOD.astype(str), r"`probabilities` must hold real numbers.*dtype <U.*astype\('float32'\)"),
    ],
)
def test_bad_arguments_are_refused_with_the_cure(
    score: Score, y: ArrayLike, probabilities: ArrayLike, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(y, probabilities)


def test_entropy_refuses_logits() -> None:
    with pytest.raises(ValueError, match=r"`probabilities` .* not -1\.0 at index \(0, 1\).*softmax"):
        predictive_entropy([[1.0, -1.0]])


def test_a_probability_rounded_to_just_above_one_counts_as_one() -> None:
    p = np.nextafter([[1.0, 0.0]], 2.0)
    assert p[0, 0] > 1
    for score, best in zip(SCORES, [0, 0, 0, 1], strict=True):
        assert_allclose(score([0], p), best, atol=np.finfo(float).tiny)
    assert_allclose(predictive_entropy(p), 0, atol=1e-300)


@pytest.mark.parametrize("rounded_to", [np.float16, np.float32])
def test_probabilities_rounded_to_a_narrow_type_are_accepted(rounded_to: type) -> None:
    y, p = simulated(seed=5, n=200, classes=1000)
    assert_allclose(negative_log_likelihood(y, p.astype(rounded_to)), negative_log_likelihood(y, p), rtol=0.01)


@pytest.mark.parametrize(
    ("scores_in", "scores_out", "message"),
    [
        ([], [1], r"`scores_in` must hold at least one example, not shape \(0,\)"),
        ([1], [], r"`scores_out` must hold at least one example"),
        ([1, np.nan], [1], r"`scores_in` must be finite, not nan at index 1\."),
        ([1], [[1, 2]], r"`scores_out` must have shape \(n,\).* not shape \(1, 2\)\. .*predictive_entropy"),
    ],
)
def test_bad_scores_are_refused_with_the_cure(scores_in: list[int], scores_out: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        out_of_distribution_auroc(scores_in, scores_out)
