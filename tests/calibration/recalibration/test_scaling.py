"""Scaling recovers what was distorted, agrees with scikit-learn, and never does harm that it need not."""

import pickle

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
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


def test_the_temperature_is_that_of_scikit_learn():
    x, y = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=500, C=10).fit(x[:600], y[:600])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(x[600:1200], y[600:1200])
    (fitted,) = theirs.calibrated_classifiers_
    ours = TemperatureScaling(from_logits=True).fit(model.decision_function(x[600:1200]), y[600:1200])
    assert_allclose(1 / ours.temperature_, fitted.calibrators[0].beta_, rtol=1e-3)


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
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2, 1], r"`y` must hold column numbers|`X` and `y` must have one row"),
        ([[0.5, 0.5], [0.5, 0.5]], [1, 1], r"`y` must hold two classes or more"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 1, 1], r"`X` and `y` must have one row an example"),
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
