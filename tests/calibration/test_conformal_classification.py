"""Prediction sets against cases by hand, their definition and the coverage theorem; and the measures of sets."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from standard_errors import assert_within_standard_errors

from bdl.calibration.conformal import (
    SplitConformalClassifier,
    class_conditional_coverage,
    conformal_quantile,
    coverage_of_sets,
    mean_set_size,
)

Array = NDArray[Any]

COVERAGE = 0.8
SIMULATIONS, NUM_CALIBRATION, NUM_TEST, NUM_CLASSES = 1_000, 42, 30, 8  # 43 * 0.8 is no whole number
ALL_METHODS = [("lac", True), ("aps", True), ("aps", False), ("raps", True), ("raps", False)]

quick = settings(max_examples=40, deadline=None, derandomize=True)


def overconfident_predictions(n: int, seed: int = 0, num_classes: int = NUM_CLASSES) -> tuple[Array, Array]:
    """Probabilities `(n, classes)` of a model twice as sure as it should be, and labels `(n,)`."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, num_classes))
    noise = random.gumbel(size=logits.shape)
    return softmax(2 * logits), (logits + noise).argmax(axis=1)


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def coverage_moments(n: int, num_test: int) -> tuple[float, float]:
    """Mean and variance of the share covered of `num_test` examples, without ties, by sets from `n` examples.

    The coverage is `Beta(k, n + 1 - k)` (Vovk 2012), the number covered is binomial given it.
    """
    k = int(np.ceil((n + 1) * COVERAGE))
    mean = k / (n + 1)
    variance_of_coverage = mean * (1 - mean) / (n + 2)
    return mean, variance_of_coverage + (mean * (1 - mean) - variance_of_coverage) / num_test


# Sets by hand


def test_lac_keeps_the_classes_as_probable_as_the_threshold() -> None:
    p = [[0.9, 0.05, 0.05], [0.2, 0.8, 0.0], [0.3, 0.0, 0.7], [0.4, 0.6, 0.0]]
    conformal = SplitConformalClassifier("lac").fit(p, [0, 1, 2, 0])  # of their labels: 0.9, 0.8, 0.7, 0.4
    new = [[0.7, 0.3, 0.0], [0.4, 0.5, 0.1], [0.35, 0.33, 0.32]]
    assert_array_equal(conformal.predict_set(new, 0.6), [[1, 0, 0], [0, 0, 0], [0, 0, 0]])  # third of four: 0.7
    assert_array_equal(conformal.predict_set(new, 0.8), [[1, 0, 0], [1, 1, 0], [0, 0, 0]])  # fourth: 0.4


def test_aps_and_raps_scores_sum_the_probabilities_down_to_the_label() -> None:
    p = [[0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]
    y = [0, 0, 1]  # ranks 3, 1, and 3: of equals the first class ranks first
    aps = SplitConformalClassifier("aps", randomized=False).fit(p, y)
    assert_allclose(aps.scores_, [1, 0.5, 1])
    raps = SplitConformalClassifier("raps", randomized=False, penalty=0.25, regularized_rank=1).fit(p, y)
    assert_allclose(raps.scores_, [1.5, 0.5, 1.5])
    sets = raps.predict_set([[0.6, 0.3, 0.1], [0.45, 0.5, 0.05]], coverage=0.25)  # the first of three, 0.5
    assert_array_equal(sets, [[0, 0, 0], [0, 1, 0]])


def test_randomized_scores_count_a_uniform_part_of_the_label() -> None:
    p, y = overconfident_predictions(2_000)
    whole = SplitConformalClassifier("aps", randomized=False).fit(p, y).scores_
    part = (whole - SplitConformalClassifier("aps").fit(p, y).scores_) / p[np.arange(len(y)), y]
    assert part.min() >= -1e-9
    assert part.max() <= 1 + 1e-9
    assert_within_standard_errors(part.mean(), 1 / 2, np.sqrt(1 / 12 / len(y)))
    assert_within_standard_errors(np.square(part).mean(), 1 / 3, np.sqrt(4 / 45 / len(y)))


@pytest.mark.parametrize(("method", "randomized"), ALL_METHODS)
def test_sets_are_those_of_the_definition(method: Any, randomized: bool) -> None:
    """A loop over labels, with the sum and the rank of the papers, on the scores of the estimator's own uniforms."""
    penalty, free_ranks = 0.07, 2
    p, y = overconfident_predictions(150)
    new, _ = overconfident_predictions(60, seed=1)
    conformal = SplitConformalClassifier(method, randomized=randomized, penalty=penalty, regularized_rank=free_ranks)
    threshold = conformal_quantile(conformal.fit(p, y).scores_, COVERAGE)
    uniforms = conformal._uniforms(len(new), stream=1)
    expected = np.zeros(new.shape, bool)
    for i, row in enumerate(new):
        for label in range(NUM_CLASSES):
            above = row > row[label]
            score = row[above].sum() + uniforms[i] * row[label]
            if method == "raps":
                score += penalty * max(above.sum() + 1 - free_ranks, 0)
            expected[i, label] = (-row[label] if method == "lac" else score) <= threshold
    assert_array_equal(conformal.predict_set(new, COVERAGE), expected)


def test_class_conditional_thresholds_are_those_of_each_class_alone() -> None:
    p, y = overconfident_predictions(400, num_classes=3)
    new, _ = overconfident_predictions(50, seed=1, num_classes=3)
    sets = SplitConformalClassifier("lac", class_conditional=True).fit(p, y).predict_set(new, COVERAGE)
    for label in range(3):
        of_class = y == label
        alone = SplitConformalClassifier("lac").fit(p[of_class], y[of_class])
        assert_array_equal(sets[:, label], alone.predict_set(new, COVERAGE)[:, label])


# The theorem


def simulated_coverage(conformal: SplitConformalClassifier, decimals: int | None = None) -> Array:
    total = NUM_CALIBRATION + NUM_TEST
    all_p, all_y = overconfident_predictions(SIMULATIONS * total, seed=7)
    if decimals is not None:
        all_p = softmax(np.round(np.log(all_p), decimals))
    shares = np.empty(SIMULATIONS)
    for i in range(SIMULATIONS):
        p, y = all_p[i * total : (i + 1) * total], all_y[i * total : (i + 1) * total]
        conformal.set_params(seed=i).fit(p[:NUM_CALIBRATION], y[:NUM_CALIBRATION])
        shares[i] = coverage_of_sets(y[NUM_CALIBRATION:], conformal.predict_set(p[NUM_CALIBRATION:], COVERAGE))
    return shares


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_coverage_is_that_of_the_theorem_without_ties(method: Any) -> None:
    conformal = SplitConformalClassifier(method, penalty=0.1, regularized_rank=2)
    mean, variance = coverage_moments(NUM_CALIBRATION, NUM_TEST)
    assert COVERAGE <= mean <= COVERAGE + 1 / (NUM_CALIBRATION + 1)
    assert_within_standard_errors(simulated_coverage(conformal).mean(), mean, np.sqrt(variance / SIMULATIONS), k=4)


@pytest.mark.parametrize(("method", "decimals"), [("lac", 0), ("aps", None), ("raps", None)])
def test_coverage_is_at_least_that_of_the_theorem_with_ties_or_without_random_numbers(
    method: Any, decimals: int | None
) -> None:
    conformal = SplitConformalClassifier(method, randomized=False, penalty=0.1, regularized_rank=2)
    mean, variance = coverage_moments(NUM_CALIBRATION, NUM_TEST)
    assert simulated_coverage(conformal, decimals).mean() >= mean - 4 * np.sqrt(variance / SIMULATIONS)


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_class_conditional_coverage_is_that_of_the_theorem_in_each_class(method: Any) -> None:
    num_calibration, num_test, num_classes = 11, 20, 3  # of each class
    total = num_calibration + num_test
    y = np.tile(np.arange(num_classes), total)
    random = np.random.default_rng(5)
    clarity = np.array([0.5, 1.5, 3.0])  # classes are not equally hard: one threshold would cover them unequally
    shares = np.empty((SIMULATIONS, num_classes))
    split = num_calibration * num_classes
    for i in range(SIMULATIONS):
        p = softmax(random.normal(size=(len(y), num_classes)) + clarity[y, None] * np.eye(num_classes)[y])
        conformal = SplitConformalClassifier(method, class_conditional=True, seed=i).fit(p[:split], y[:split])
        shares[i] = class_conditional_coverage(y[split:], conformal.predict_set(p[split:], COVERAGE))
    mean, variance = coverage_moments(num_calibration, num_test)
    assert_within_standard_errors(shares.mean(axis=0), mean, np.sqrt(variance / SIMULATIONS), k=4)


@given(st.integers(0, 2**32 - 1), st.sampled_from(ALL_METHODS), st.booleans(), st.data())
@quick
def test_sets_grow_with_coverage(seed: int, method: Any, class_conditional: bool, data: st.DataObject) -> None:
    p, y = overconfident_predictions(300, seed, num_classes=4)
    conformal = SplitConformalClassifier(method[0], class_conditional, method[1], penalty=0.1, regularized_rank=1)
    conformal.fit(p[:200], y[:200])
    highest = min(np.bincount(y[:200], minlength=4).min() / 50, 0.9)
    lower, upper = sorted(data.draw(st.tuples(*[st.floats(0.001, max(highest, 0.002))] * 2)))
    small, large = conformal.predict_set(p[200:], lower), conformal.predict_set(p[200:], upper)
    assert (small <= large).all()


# Seeds and blocks


def test_uniforms_repeat_by_seed_and_differ_between_calibration_and_prediction() -> None:
    p, y = overconfident_predictions(200)
    first, again = (SplitConformalClassifier("aps", seed=3).fit(p, y) for _ in range(2))
    assert_array_equal(first.scores_, again.scores_)
    assert_array_equal(first.predict_set(p), again.predict_set(p))
    assert_array_equal(first.predict_set(p), first.predict_set(p))
    assert (SplitConformalClassifier("aps", seed=4).fit(p, y).scores_ != first.scores_).all()
    assert (first._uniforms(200, 0) != first._uniforms(200, 1)).all()
    fresh = SplitConformalClassifier("aps", seed=None).fit(p, y)
    assert (fresh.predict_set(p) != fresh.predict_set(p)).any()


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_blocks_do_not_change_the_sets(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = overconfident_predictions(101)
    whole = SplitConformalClassifier(method).fit(p, y)
    sets = whole.predict_set(p)
    monkeypatch.setattr("bdl.calibration.conformal_classification.BLOCK_SIZE", 70)
    blocks = SplitConformalClassifier(method).fit(p, y)
    assert_array_equal(blocks.scores_, whole.scores_)
    assert_array_equal(blocks.predict_set(p), sets)


def test_lac_tells_improbable_labels_apart() -> None:
    p = np.array([[1 - 1e-20, 1e-20], [1 - 1e-30, 1e-30]])
    sets = SplitConformalClassifier("lac").fit(p, [1, 1]).predict_set(p, coverage=0.3)
    assert_array_equal(sets, [[True, True], [True, False]])


def test_probabilities_of_class_one_make_two_columns() -> None:
    y = [1, 0, 1, 1]
    one = SplitConformalClassifier().fit([0.9, 0.2, 0.6, 0.7], y).predict_set([0.5, 0.95], 0.5)
    two = SplitConformalClassifier().fit([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]], y)
    assert_array_equal(one, two.predict_set([[0.5, 0.5], [0.05, 0.95]], 0.5))


def test_estimator_clones_with_its_parameters() -> None:
    parameters = {"method": "raps", "class_conditional": True, "randomized": False, "penalty": 0.5}
    conformal = SplitConformalClassifier(**parameters, regularized_rank=2, seed=9)  # type: ignore[arg-type]
    assert clone(conformal).get_params() == {**parameters, "regularized_rank": 2, "seed": 9}


# Measures


def test_measures_count_by_hand() -> None:
    sets = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    y = [0, 1, 1, 2]
    assert coverage_of_sets(y, sets) == 0.75
    assert mean_set_size(sets) == 1.5
    assert_array_equal(class_conditional_coverage(y, sets.astype(bool)), [1, 0.5, 1, np.nan])


@pytest.mark.parametrize(
    ("y", "sets", "message"),
    [
        ([0, 1], np.ones(2), r"`sets` must have shape \(n, classes\).*shape \(2,\)"),
        ([0, 1], np.ones((0, 3)), "`sets` must hold at least one example"),
        ([0, 1], [[0.5, 0.5], [1, 0]], "`sets` must be True where.*other than 0 and 1"),
        ([0, 1], [[1, np.nan], [1, 0]], "`sets` must be True where"),
        ([0, 1, 1], np.ones((2, 3)), r"`y` must have shape \(2,\).*not shape \(3,\)"),
        ([[1, 0], [0, 1]], np.ones((2, 2)), "argmax"),
        ([0, 3], np.ones((2, 3)), "`y` must hold class indices from 0 to 2.*not 3 at index 1"),
        ([np.nan, 1], np.ones((2, 3)), "not nan at index 0"),
        ([0, 0.5], np.ones((2, 3)), "not 0.5 at index 1"),
        (["a", "b"], np.ones((2, 3)), "`y` must hold .* a different name for each of the 3 classes, not 2"),
    ],
)
def test_measures_refuse(y: Any, sets: Any, message: str) -> None:
    for measure in (coverage_of_sets, class_conditional_coverage):
        with pytest.raises(ValueError, match=message):
            measure(y, sets)


# Refusals


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "thr"}, "`method` must be one of 'lac', 'aps', 'raps', not 'thr'"),
        ({"class_conditional": "yes"}, "`class_conditional` must be True or False"),
        ({"randomized": None}, "`randomized` must be True or False"),
        ({"penalty": -0.1}, "`penalty` must be a finite number, at least 0, not -0.1"),
        ({"penalty": np.nan}, "`penalty`"),
        ({"penalty": "big"}, "`penalty`"),
        ({"regularized_rank": 1.5}, "`regularized_rank` must be 0 or a positive integer, not 1.5"),
        ({"seed": -1}, "`seed` must be 0, a positive integer, or None, not -1"),
    ],
)
def test_fit_refuses_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConformalClassifier(**parameters).fit([[0.5, 0.5]], [0])


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[0.5, 0.5], [np.nan, 1]], [0, 1], "`probabilities` must be finite"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 1], "sum to 1"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2], "class indices from 0 to 1"),
        ([[0.5, 0.5]], [0, 1], "same examples"),
        (np.ones((0, 2)), [], "at least one example"),
        (np.ones((2, 2, 2)) / 2, [0, 1], "shape"),
    ],
)
def test_fit_refuses_data(p: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConformalClassifier().fit(p, y)


def test_predict_set_refuses() -> None:
    with pytest.raises(NotFittedError, match=r"SplitConformalClassifier is not fitted. Call `fit"):
        SplitConformalClassifier().predict_set([[0.5, 0.5]])
    p, y = overconfident_predictions(50)
    conformal = SplitConformalClassifier().fit(p, y)
    for coverage in (0, 1, 90, np.nan, "0.9", True):
        with pytest.raises(ValueError, match="`coverage` must be between 0 and 1"):
            conformal.predict_set(p, coverage)
    with pytest.raises(ValueError, match=r"must have 8 classes, as in `fit`, not 2"):
        conformal.predict_set([[0.5, 0.5]])
    with pytest.raises(ValueError, match="sum to 1"):
        conformal.predict_set(p / 2)
    with pytest.raises(ValueError, match=r"0.99 needs at least 99 .*not 50. .* at most 0.98039"):
        conformal.predict_set(p, 0.99)


def test_class_conditional_sets_refuse_too_few_examples_of_a_class() -> None:
    y = np.repeat([0, 1, 2], [20, 4, 10])
    conformal = SplitConformalClassifier(class_conditional=True).fit(np.full((34, 3), 1 / 3), y)
    message = r"of 0.9 needs at least 9 .* each class, not 4 of class 1. .* of it, ask .* at most 0\.8, or share"
    with pytest.raises(ValueError, match=message):
        conformal.predict_set(np.full((1, 3), 1 / 3))
    assert conformal.predict_set(np.full((1, 3), 1 / 3), 0.8).all()
    none_of_last = SplitConformalClassifier(class_conditional=True).fit(np.full((20, 3), 1 / 3), y[:20])
    with pytest.raises(ValueError, match=r"0 of class 1, 0 of class 2. Calibrate on more examples of these, or share"):
        none_of_last.predict_set(np.full((1, 3), 1 / 3))
