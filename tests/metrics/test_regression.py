"""Keras metrics of predictive Normals equal the NumPy functions."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy.stats import norm

from bdl import calibration, metrics

RANDOM = np.random.default_rng(0)
MEAN = RANDOM.normal(size=90).astype("float32")
SCALE = RANDOM.uniform(0.5, 2, size=90).astype("float32")
Y = (MEAN + SCALE * RANDOM.normal(size=90)).astype("float32")
LOW, HIGH = norm(MEAN, SCALE).interval(0.8)


def pit(y, mean, scale):
    return calibration.normal_probability_integral_transform(y, mean, scale)


CASES = {
    "nll": (metrics.NormalNegativeLogLikelihood, {}, calibration.normal_negative_log_likelihood),
    "crps": (metrics.NormalCRPS, {}, calibration.normal_crps),
    "coverage": (
        metrics.IntervalCoverage,
        {"coverage": 0.8},
        lambda y, m, s: calibration.interval_coverage(y, *norm(m, s).interval(0.8)),
    ),
    "width": (
        metrics.MeanIntervalWidth,
        {"coverage": 0.8},
        lambda y, m, s: calibration.mean_interval_width(*norm(m, s).interval(0.8)),
    ),
    "sharpness": (metrics.Sharpness, {}, lambda y, m, s: calibration.sharpness(s)),
    "qce": (
        metrics.QuantileCalibrationError,
        {},
        lambda y, m, s: calibration.quantile_calibration_error(pit(y, m, s)),
    ),
    "central qce": (
        metrics.QuantileCalibrationError,
        {"central": True},
        lambda y, m, s: calibration.quantile_calibration_error(pit(y, m, s), central=True),
    ),
}
every_metric = pytest.mark.parametrize(("metric", "options", "function"), CASES.values(), ids=CASES)


def value(metric):
    return float(ops.convert_to_numpy(metric.result()))


@pytest.mark.core
@every_metric
def test_batches_merge_to_the_whole(metric, options, function):
    filled = metric(**options)
    for part in np.array_split(np.arange(90), 4):
        filled.update_state(Y[part], np.stack([MEAN, SCALE], axis=1)[part])
    assert_allclose(value(filled), function(Y, MEAN, SCALE), rtol=2e-5, atol=1e-6)


@every_metric
def test_masks_and_weights_and_fixed_scales(metric, options, function):
    mask = np.arange(90) % 4 > 0
    filled = metric(**options)
    filled.update_state(
        Y.reshape(9, 10), np.stack([MEAN, SCALE], axis=1).reshape(9, 10, 2), sample_weight=mask.reshape(9, 10)
    )
    assert_allclose(value(filled), function(Y[mask], MEAN[mask], SCALE[mask]), rtol=2e-5, atol=1e-6)
    fixed = metric(scale=1.5, **options)
    fixed.update_state(Y[:, None], MEAN[:, None])
    assert_allclose(value(fixed), function(Y, MEAN, np.full(90, 1.5)), rtol=2e-5, atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_pinball_loss(level):
    filled = metrics.PinballLoss(level)
    filled.update_state(Y[:30], MEAN[:30])
    filled.update_state(Y[30:], MEAN[30:])
    assert_allclose(value(filled), calibration.pinball_loss(Y, MEAN, level), rtol=1e-5)


@pytest.mark.core
def test_they_work_in_compile_and_survive_saving(tmp_path):
    x = np.stack([MEAN, SCALE], axis=1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
    watched = [metric(name=name.replace(" ", "_"), **options) for name, (metric, options, _) in CASES.items()]
    model.compile(loss="mse", metrics=watched, jit_compile=keras.backend.backend() != "torch")
    found = model.evaluate(x, Y[:, None], batch_size=40, verbose=0, return_dict=True)
    for name, (_, _, function) in CASES.items():
        assert_allclose(found[name.replace(" ", "_")], function(Y, MEAN, SCALE), rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").evaluate(x, Y[:, None], verbose=0, return_dict=True)
    assert_allclose([again[name] for name in found], list(found.values()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.NormalCRPS(scale=0.0), r"`scale` must be a positive number"),
        (lambda: metrics.IntervalCoverage(coverage=90), r"`coverage` must be between 0 and 1"),
        (lambda: metrics.PinballLoss(level=1), r"`level` must be between 0 and 1"),
        (lambda: metrics.NormalCRPS().update_state(Y, MEAN), r"`y_pred` must hold mean and scale on its last axis"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
