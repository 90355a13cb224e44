"""Scaling recovers what was distorted, agrees with scikit-learn, and never does harm that it need not."""

import pickle

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bdl.calibration import (
    DirichletCalibration,
    MatrixScaling,
    TemperatureScaling,
    VectorScaling,
    brier_score,
    negative_log_likelihood,
)
from bdl.calibration.recalibration import BetaCalibration, HistogramBinning, IsotonicCalibration, PlattScaling

CALIBRATORS = [
    TemperatureScaling,
    VectorScaling,
    MatrixScaling,
    DirichletCalibration,
    PlattScaling,
    BetaCalibration,
    IsotonicCalibration,
    HistogramBinning,
]
AFFINE = [VectorScaling, MatrixScaling, DirichletCalibration]
every_calibrator = pytest.mark.parametrize("calibrator", CALIBRATORS)


def classified(seed, n, classes):
    """Logits, and labels drawn from their softmax."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(n, classes))
    return logits, np.argmax(logits + random.gumbel(size=logits.shape), axis=1)


def nll(calibrator, x, y):
    return negative_log_likelihood(y, calibrator.predict_proba(x))


# What scaling finds


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_scaling_recovers_the_temperature(temperature):
    logits, y = classified(0, 20_000, 4)
    found = TemperatureScaling(from_logits=True).fit(temperature * logits, y).temperature_
    # Fisher's information of the inverse temperature at the truth is the variance of the logits under the softmax.
    p = softmax(logits, axis=1)
    information = np.sum(np.sum(p * logits**2, axis=1) - np.sum(p * logits, axis=1) ** 2)
    assert abs(found / temperature - 1) < 4 / np.sqrt(information)


@pytest.mark.parametrize("weights", [None, 1 + np.arange(600) % 3])
@pytest.mark.filterwarnings("ignore:Since FrozenEstimator")  # weights are for the calibration alone, as meant
def test_the_temperature_is_that_of_scikit_learn(weights):
    x, y = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=500, C=10).fit(x[:600], y[:600])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature")
    (fitted,) = theirs.fit(x[600:1200], y[600:1200], sample_weight=weights).calibrated_classifiers_
    logits = model.decision_function(x[600:1200])
    ours = TemperatureScaling(from_logits=True).fit(logits, y[600:1200], sample_weight=weights)
    assert_allclose(1 / ours.temperature_, fitted.calibrators[0].beta_, rtol=1e-6)


def test_a_free_matrix_with_weights_is_scikit_learns_logistic_regression():
    logits, y = classified(16, 300, 3)
    weights = 1 + np.arange(300) % 3
    expected = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(logits, y, sample_weight=weights)
    free = MatrixScaling(from_logits=True, regularization=0.0)
    assert_allclose(free.fit(logits, y, weights).predict_proba(logits), expected.predict_proba(logits), atol=1e-6)
    assert np.abs(free.fit(logits, y).predict_proba(logits) - expected.predict_proba(logits)).max() > 1e-3


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.05, 20))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_temperature_scaling_never_changes_a_prediction(seed, classes, sharpness):
    logits, y = classified(seed, 40, classes)
    y[:2] = (0, 1)
    scaling = TemperatureScaling(from_logits=True).fit(sharpness * logits, y)
    assert np.array_equal(scaling.predict(sharpness * logits), logits.argmax(axis=1))
    p = softmax(sharpness * logits, axis=1)
    assert np.array_equal(TemperatureScaling().fit(p, y).predict(p), p.argmax(axis=1))


def test_separable_and_contrary_scores_reach_the_ends_of_the_temperature():
    certain = TemperatureScaling(from_logits=True).fit([[5.0, -5.0], [-5.0, 5.0]], [0, 1])
    contrary = TemperatureScaling(from_logits=True).fit([[5.0, -5.0], [-5.0, 5.0]], [1, 0])
    assert_allclose([certain.temperature_, contrary.temperature_], [np.exp(-10), np.exp(10)])


@pytest.mark.parametrize("calibrator", AFFINE)
def test_affine_scaling_recovers_a_distortion(calibrator):
    logits, y = classified(1, 4000, 3)
    distorted = log_softmax(2.5 * logits + np.array([1.0, -1.0, 0.0]), axis=1)
    fitted = calibrator(from_logits=True, regularization=0.0).fit(distorted, y)
    truth = -float(np.mean(log_softmax(logits, axis=1)[np.arange(len(y)), y]))
    # Twice the log likelihood ratio to the truth is chi-square with as many degrees of freedom as free parameters.
    gain = 2 * len(y) * (truth - nll(fitted, distorted, y))
    assert 0 <= gain < 40


@pytest.mark.parametrize("calibrator", AFFINE)
def test_affine_scaling_is_at_a_minimum(calibrator):
    logits, y = classified(2, 300, 3)
    fitted = calibrator(from_logits=True, regularization=20).fit(logits, y)
    z = log_softmax(logits, axis=1) if calibrator is DirichletCalibration else logits
    off_diagonal = ~np.eye(3, dtype=bool)

    def objective(weights, intercepts):
        log_p = log_softmax(z @ weights.T + intercepts, axis=1)
        penalty = np.sum(weights[off_diagonal] ** 2) + np.sum(intercepts**2)
        return -np.sum(log_p[np.arange(len(y)), y]) + 0.5 * 20 * penalty

    best = objective(fitted.weights_, fitted.intercepts_)
    random = np.random.default_rng(0)
    free = np.eye(3, dtype=bool) if calibrator is VectorScaling else np.ones((3, 3), bool)
    for _ in range(50):
        step = 1e-2 * random.normal(size=(3, 3)) * free
        assert objective(fitted.weights_ + step, fitted.intercepts_ + 1e-2 * random.normal(size=3)) > best


# A richer calibrator is never worse on its own data


def one_hot_rows():
    """Rows of a classifier that is always sure, and of class 1 once wrong in twenty."""
    p, y = np.eye(3)[[0, 1, 2, 0] * 20], np.array([0, 1, 2, 0] * 20)
    y[5] = 2
    return p, y


def forest_on_digits(last=800):
    """Shares of 25 trees: most are exactly 0, some of a label that is true."""
    x, y = load_digits(return_X_y=True)
    forest = RandomForestClassifier(25, random_state=0).fit(x[:500], y[:500])
    return forest.predict_proba(x[500:last]), y[500:last]


def softmax_rows():
    logits, y = classified(12, 200, 4)
    return softmax(3 * logits, axis=1), y


@pytest.mark.parametrize("regularization", [0.0, None])
@pytest.mark.parametrize("rows", [one_hot_rows, forest_on_digits, softmax_rows])
def test_a_richer_map_is_never_worse_than_the_poorer_one_it_contains(rows, regularization):
    p, y = rows()
    temperature = nll(TemperatureScaling().fit(p, y), p, y)
    vector = nll(VectorScaling(regularization=regularization).fit(p, y), p, y)
    rounding = 1e-12
    assert vector <= temperature + rounding
    for matrix in (MatrixScaling, DirichletCalibration) if rows is softmax_rows else (MatrixScaling,):
        assert nll(matrix(regularization=regularization).fit(p, y), p, y) <= vector + rounding


def test_vector_scaling_of_certain_rows_finds_the_shares_of_the_labels():
    p, y = one_hot_rows()
    # Nothing is lost on classes 0 and 2; of class 1 one label in twenty is another's.
    least = 20 / 80 * stats.entropy([0.05, 0.95])
    for calibrator in (VectorScaling, MatrixScaling, DirichletCalibration):
        assert_allclose(nll(calibrator(regularization=0.0).fit(p, y), p, y), least, rtol=1e-6)


@pytest.mark.parametrize("calibrator", AFFINE)
def test_the_fit_of_a_forest_is_at_its_minimum(calibrator):
    p, y = forest_on_digits(1100)
    fitted = calibrator(regularization=1.0).fit(p, y)
    z = np.log(np.maximum(p, np.finfo(float).tiny))
    residual = fitted.predict_proba(p) - np.eye(10)[y]
    off_diagonal = 1 - np.eye(10)
    slope = residual.T @ z + off_diagonal * fitted.weights_
    if calibrator is VectorScaling:
        slope = np.diag(slope)
    # The loss of all 600 examples, by W times the scores' scale.
    assert np.abs(slope).max() / z.std() < 1e-5
    assert np.abs(residual.sum(axis=0) + fitted.intercepts_).max() < 1e-5
    assert fitted.n_iter_ < 60


def test_of_two_classes_beta_calibration_is_better_than_the_temperature_and_isotonic_calibration_than_both():
    logits, y = classified(13, 300, 2)
    p = softmax(3 * logits + [0.5, 0], axis=1)
    losses = [nll(each().fit(p, y), p, y) for each in (TemperatureScaling, BetaCalibration, IsotonicCalibration)]
    assert losses[0] > losses[1] > losses[2]
    sure = (p > 0.5).astype(float)
    for labels in (y, p.argmax(axis=1)):  # rows of 0 and 1, and classes that are separable
        for said in (p, sure):
            losses = [nll(each().fit(said, labels), said, labels) for each in (TemperatureScaling, BetaCalibration)]
            assert losses[1] <= losses[0] + 1e-12


# Weights


@every_calibrator
def test_a_weight_is_a_repetition(calibrator):
    logits, y = classified(14, 120, 3)
    p = softmax(2 * logits, axis=1)
    weights = np.arange(120) % 4
    options = {"regularization": 1.0} if calibrator in AFFINE else {}
    expected = calibrator(**options).fit(np.repeat(p, weights, axis=0), np.repeat(y, weights)).predict_proba(p)
    assert_allclose(calibrator(**options).fit(p, y, sample_weight=weights).predict_proba(p), expected, atol=1e-6)
    assert np.abs(expected - calibrator(**options).fit(p, y).predict_proba(p)).max() > 1e-3


@every_calibrator
def test_what_weighs_nothing_is_not_read(calibrator):
    logits, y = classified(15, 90, 3)
    p, weights = softmax(logits, axis=1), np.ones(90)
    expected = calibrator().fit(p[10:], y[10:]).predict_proba(p)
    spoiled, labels = p.copy(), y.copy()
    spoiled[:5], spoiled[5:10], labels[:10], weights[:10] = np.nan, 7.0, -100, 0
    assert_allclose(calibrator().fit(spoiled, labels, sample_weight=weights).predict_proba(p), expected, rtol=1e-12)


@every_calibrator
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0, 1.0], r"`sample_weight` must have one weight per example, shape \(4,\), not shape \(3,\)"),
        ([1.0, -1.0, 1.0, 1.0], r"`sample_weight` must be finite and at least 0, not -1\.0 at index 1"),
        ([1.0, 1.0, np.nan, 1.0], r"`sample_weight` must be finite and at least 0, not nan at index 2"),
        ([0, 0, 0, 0], r"`sample_weight` must keep at least one example"),
    ],
)
def test_bad_weights_are_refused(calibrator, weights, message):
    with pytest.raises(ValueError, match=message):
        calibrator().fit([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1, 0], sample_weight=weights)


def test_matrix_scaling_overfits_many_classes_and_regularization_holds_it_back():
    logits, y = classified(3, 300, 40)
    held_out, y_held_out = classified(4, 4000, 40)
    temperature = nll(TemperatureScaling(from_logits=True).fit(2 * logits, y), 2 * held_out, y_held_out)
    free = nll(MatrixScaling(True, regularization=0.0).fit(2 * logits, y), 2 * held_out, y_held_out)
    regularized = nll(MatrixScaling(True).fit(2 * logits, y), 2 * held_out, y_held_out)
    assert free > temperature + 1.0
    assert regularized < temperature + 0.3


def test_the_layer_divides_by_the_same_temperature():
    logits, y = classified(5, 200, 3)
    scaling = TemperatureScaling(from_logits=True).fit(3 * logits, y)
    scaled = keras.ops.convert_to_numpy(keras.ops.softmax(scaling.to_layer()(logits.astype("float32"))))
    assert_allclose(scaled, scaling.predict_proba(logits), rtol=1e-4)


# What holds of every calibrator


@every_calibrator
def test_calibration_lowers_the_score_of_overconfident_probabilities(calibrator):
    logits, y = classified(6, 3000, 3)
    p = softmax(4 * logits, axis=1)
    held_out, y_held_out = classified(7, 3000, 3)
    before = brier_score(y_held_out, softmax(4 * held_out, axis=1))
    fitted = calibrator().fit(p, y)
    after = brier_score(y_held_out, fitted.predict_proba(softmax(4 * held_out, axis=1)))  # isotonic maps say 0
    assert after < before - 0.05
    assert_allclose(fitted.predict_proba(p).sum(axis=1), 1.0)


@every_calibrator
def test_binary_probabilities_may_have_one_column(calibrator):
    logits, y = classified(8, 400, 2)
    p = softmax(logits, axis=1)
    one = calibrator().fit(p[:, 1], y).predict_proba(p[:, 1])
    assert_allclose(one, calibrator().fit(p, y).predict_proba(p), rtol=1e-5, atol=1e-7)


@every_calibrator
def test_labels_may_be_names_in_sorted_order(calibrator):
    logits, y = classified(9, 200, 3)
    p, names = softmax(logits, axis=1), np.array(["cat", "dog", "fox"])
    fitted = calibrator().fit(p, names[y])
    assert list(fitted.classes_) == list(names)
    assert np.array_equal(fitted.predict(p), names[calibrator().fit(p, y).predict(p)])


@every_calibrator
def test_it_clones_pickles_and_ends_a_pipeline(calibrator):
    logits, y = classified(10, 200, 3)
    p = softmax(logits, axis=1)
    fitted = clone(calibrator()).fit(p, y)
    assert_allclose(pickle.loads(pickle.dumps(fitted)).predict_proba(p), fitted.predict_proba(p))
    assert_allclose(make_pipeline("passthrough", calibrator()).fit(p, y).predict_proba(p), fitted.predict_proba(p))


@every_calibrator
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[0.5, 0.6], [0.5, 0.5]], [0, 1], r"must sum to 1"),
        ([[2.0, -1.0], [0.5, 0.5]], [0, 1], r"must lie between 0 and 1"),
        ([[np.nan, 1.0], [0.5, 0.5]], [0, 1], r"NaN"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2, 1], r"`y` must hold class indices|`X` and `y` must have one row"),
        ([[0.5, 0.5], [0.5, 0.5]], [1, 1], r"`y` must hold two classes or more"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 1, 1], r"`X` and `y` must have one row per example"),
        ([[0.5, 0.5], [0.5, 0.5]], [[0, 1], [1, 0]], r"y should be a 1d array"),
        ([[0.5, 0.5], [0.5, 0.5]], None, r"`y` must hold the labels"),
        (np.zeros((0, 2)), [], r"minimum of 1 is required"),
    ],
)
def test_bad_input_is_refused(calibrator, x, y, message):
    with pytest.raises(ValueError, match=message):
        calibrator().fit(x, y)


@pytest.mark.parametrize("calibrator", AFFINE)
def test_a_negative_regularization_is_refused(calibrator):
    with pytest.raises(ValueError, match=r"`regularization` must be a number of at least 0, or None, not -1"):
        calibrator(regularization=-1).fit([[0.5, 0.5], [0.2, 0.8]], [0, 1])
