"""What a mask leaves out is never read: every metric of events has the value that it has without these events."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bdl import calibration
from bdl.calibration import bootstrap_interval, sharpness

RANDOM = np.random.default_rng(1)
N = 60
LOGITS = 1.5 * RANDOM.normal(size=(N, 4))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
Y = np.argmax(LOGITS + RANDOM.gumbel(size=LOGITS.shape), axis=1)
KEPT = RANDOM.random(N) < 0.6
METRICS = [
    calibration.accuracy,
    calibration.adaptive_calibration_error,
    calibration.brier_score,
    calibration.classwise_calibration_error,
    calibration.debiased_calibration_error,
    calibration.expected_calibration_error,
    calibration.maximum_calibration_error,
    calibration.negative_log_likelihood,
    calibration.root_mean_square_calibration_error,
    calibration.top_label_calibration_error,
    lambda y, probabilities, mask=None: calibration.brier_decomposition(y, probabilities, mask=mask).reliability,
    lambda y, probabilities, mask=None: calibration.brier_decomposition(y, probabilities, mask=mask).uncertainty,
]
every_metric = pytest.mark.parametrize("metric", METRICS)


def padded(y, p, kept, label):
    """Labels and probabilities with what no network says where nothing counts."""
    return np.where(kept, y, label), np.where(kept.reshape(kept.shape + (1,) * (p.ndim - kept.ndim)), p, np.nan)


@every_metric
@pytest.mark.parametrize("label", [-100, 255, np.nan], ids=str)
@pytest.mark.parametrize("shape", ["classes", "binary", "sequences", "independent"])
def test_padding_may_be_anything(metric, label, shape):
    y, p, kept = Y, P, KEPT
    if shape == "binary":
        y, p = (Y > 1).astype(int), P[:, 2:].sum(axis=1)
    elif shape == "sequences":
        y, p, kept = Y.reshape(6, 10), P.reshape(6, 10, 4), KEPT.reshape(6, 10)
    elif shape == "independent":
        y, p, kept = (Y > 1).astype(int).reshape(6, 10), P[:, 2:].sum(axis=1).reshape(6, 10), KEPT.reshape(6, 10)
    expected = metric(y[kept], p[kept])
    void, nan = padded(y, p, kept, label)
    assert metric(void, nan, mask=kept) == expected
    assert metric(np.ma.array(void, mask=~kept), nan) == expected
    half = RANDOM.random(kept.shape) < 0.5
    assert metric(np.ma.array(void, mask=~kept & half), nan, mask=kept | half) == expected


@every_metric
def test_masked_probabilities_do_not_count(metric):
    p = np.ma.array(P, mask=np.repeat(~KEPT[:, None], 4, axis=1))
    assert metric(Y, p) == metric(Y[KEPT], P[KEPT])


def test_one_hot_labels_are_told_by_the_rows_that_count():
    one_hot = np.where(KEPT[:, None], np.eye(4)[Y], 9)
    with pytest.raises(ValueError, match=r"`y\.argmax\(axis=-1\)` if it is one-hot"):
        calibration.brier_score(one_hot, P, mask=np.repeat(KEPT[:, None], 4, axis=1))


def test_other_functions_refuse_what_is_masked():
    with pytest.raises(ValueError, match=r"`scale` must hold no masked entries here, not 1 of them"):
        sharpness(np.ma.array([1.0, 2.0], mask=[False, True]))
    assert sharpness(np.ma.array([2.0, 2.0])) == 2.0


# Resampling


def test_padding_is_no_example_to_draw():
    """Sequences of padding alone: most resamples of the rows as they are would hold nothing but these."""
    y, p, kept = np.full((40, 3), -100), np.full((40, 3, 4), np.nan), np.zeros((40, 3), bool)
    y[:3], p[:3], kept[:3] = Y[:9].reshape(3, 3), P[:9].reshape(3, 3, 4), True
    for metric in (calibration.accuracy, calibration.maximum_calibration_error):
        found = bootstrap_interval(metric, y, p, mask=kept, num_resamples=100)
        assert found == bootstrap_interval(metric, y[:3], p[:3], num_resamples=100)
        assert found == bootstrap_interval(metric, np.ma.array(y, mask=~kept), p, num_resamples=100)


@pytest.mark.parametrize("metric", [calibration.negative_log_likelihood, calibration.expected_calibration_error])
def test_an_interval_is_that_of_the_events_alone(metric):
    void, nan = padded(Y, P, KEPT, -100)
    expected = bootstrap_interval(metric, Y[KEPT], P[KEPT], num_resamples=60)
    for found in (
        bootstrap_interval(metric, void, nan, mask=KEPT, num_resamples=60),
        bootstrap_interval(metric, np.ma.array(void, mask=~KEPT), nan, num_resamples=60),
    ):
        assert_allclose([found.value, found.low, found.high], [expected.value, expected.low, expected.high], rtol=1e-14)
