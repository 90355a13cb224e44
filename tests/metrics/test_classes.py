"""Keras metrics equal the NumPy functions, however the data are split into batches, on every backend."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from metric_pairs import PAIRS
from numpy.testing import assert_allclose

from bdl import calibration, metrics
from bdl.keras_internals import with_mask

CLASSES = 4
every_metric = pytest.mark.parametrize(("metric", "function"), PAIRS.items())


def made(metric, **options):
    if metric in (metrics.TopLabelCalibrationError, metrics.ClasswiseCalibrationError):
        options["num_classes"] = CLASSES
    return metric(**options)


def problem(seed, n):
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(n, CLASSES))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.argmax(logits + random.gumbel(size=logits.shape), axis=1), p.astype("float32"), logits.astype("float32")


def value(metric):
    return float(ops.convert_to_numpy(metric.result()))


@pytest.mark.core
@every_metric
def test_void_and_masked_labels_are_left_out(metric, function):
    y, p, _ = problem(3, 60)
    random = np.random.default_rng(4)
    is_void, kept = random.random(60) < 0.3, random.random(60) < 0.7
    found, of_one_hot = made(metric, ignore_class=255), made(metric, ignore_class=255, sparse=False)
    for start in range(0, 60, 20):
        part = slice(start, start + 20)
        probabilities = with_mask(ops.convert_to_tensor(p[part]), ops.convert_to_tensor(kept[part]))
        found.update_state(np.where(is_void, 255, y)[part], probabilities)
        of_one_hot.update_state(np.where(is_void[:, None], 0.0, np.eye(CLASSES)[y])[part], probabilities)
    expected = function(y[kept & ~is_void], p[kept & ~is_void])
    assert_allclose([value(found), value(of_one_hot)], expected, rtol=1e-5, atol=1e-6)
    assert metric.from_config(found.get_config()).ignore_class == 255


@pytest.mark.core
def test_one_hot_labels_are_not_taken_for_independent_ones():
    y, p, _ = problem(5, 20)
    with pytest.raises(ValueError, match="not one-hot labels"):
        metrics.BrierScore().update_state(np.eye(CLASSES)[y], p)
    independent = metrics.BrierScore()
    independent.update_state(np.eye(CLASSES)[y], p / 2)
    assert np.isfinite(value(independent))


@pytest.mark.core
@every_metric
def test_batches_of_any_size_merge_to_the_whole(metric, function):
    y, p, _ = problem(0, 101)
    filled = made(metric)
    for start, stop in ((0, 1), (1, 40), (40, 101)):
        filled.update_state(y[start:stop], p[start:stop])
    # The debiased error is a root: its rounding is the root of that of its square.
    assert_allclose(value(filled), function(y, p), rtol=2e-5, atol=3e-5)
    filled.reset_state()
    assert value(filled) == 0


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), cut=st.floats(0, 1))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_any_split_of_any_problem(seed, n, cut):
    y, p, _ = problem(seed, n)
    stop = 1 + int(cut * (n - 2))
    for metric, function in PAIRS.items():
        filled = made(metric)
        filled.update_state(y[:stop], p[:stop])
        filled.update_state(y[stop:], p[stop:])
        assert_allclose(value(filled), function(y, p), rtol=1e-4, atol=5e-4, err_msg=metric.__name__)


@pytest.mark.core
@every_metric
def test_weights_are_repetitions_and_masks_drop_events(metric, function):
    y, p, _ = problem(1, 50)
    weight = np.arange(50) % 3
    filled = made(metric)
    filled.update_state(y.reshape(5, 10), p.reshape(5, 10, CLASSES), sample_weight=(weight > 0).reshape(5, 10))
    assert_allclose(value(filled), function(y[weight > 0], p[weight > 0]), rtol=2e-5, atol=3e-5)
    if metric is not metrics.DebiasedCalibrationError:
        filled = made(metric)
        filled.update_state(y, p, sample_weight=weight)
        repeated = np.repeat(np.arange(50), weight)
        assert_allclose(value(filled), function(y[repeated], p[repeated]), rtol=2e-5, atol=3e-5)


@pytest.mark.parametrize("metric", PAIRS)
def test_logits_one_hot_labels_and_a_last_axis_of_one(metric):
    y, p, logits = problem(2, 60)
    expected = made(metric)
    expected.update_state(y, p)
    for options, labels, prediction in (
        ({"from_logits": True}, y, logits),
        ({"sparse": False}, np.eye(CLASSES)[y], p),
        ({}, y[:, None], p),
    ):
        filled = made(metric, **options)
        filled.update_state(labels, prediction)
        assert_allclose(value(filled), value(expected), rtol=1e-4, atol=1e-4)


def test_binary_probabilities_in_either_shape():
    random = np.random.default_rng(3)
    p = random.uniform(size=80).astype("float32")
    y = (random.uniform(size=80) < p).astype(int)
    for shape in ((80,), (80, 1)):
        filled = metrics.ExpectedCalibrationError()
        filled.update_state(y, p.reshape(shape))
        assert_allclose(value(filled), calibration.expected_calibration_error(y, p), rtol=1e-5)
    labels = metrics.BrierScore()
    labels.update_state(y.reshape(20, 4), p.reshape(20, 4))
    assert_allclose(value(labels), 2 * calibration.brier_score(y, p), rtol=1e-5)


def test_confidences_on_edges_fall_as_in_numpy():
    p = (np.arange(1, 15) / 15).astype("float32")
    y = np.arange(14) % 2
    filled = metrics.MaximumCalibrationError()
    filled.update_state(y, p)
    assert_allclose(value(filled), calibration.maximum_calibration_error(y, p), rtol=1e-5)


@pytest.mark.core
def test_the_area_under_risk_coverage_approaches_the_ranked_one():
    y, p, _ = problem(4, 5000)
    errors, doubt = p.argmax(axis=1) != y, 1 - p.max(axis=1)
    filled = metrics.AreaUnderRiskCoverage()
    for part in np.array_split(np.arange(5000), 7):
        filled.update_state(y[part], p[part])
    # Equal confidences within a bin are exact but for the shares, of which the integral has infinitely many.
    binned = calibration.area_under_risk_coverage(errors, -np.ceil((1 - doubt) * 1000))
    assert abs(value(filled) - binned) < 1 / 5000
    assert abs(value(filled) - calibration.area_under_risk_coverage(errors, doubt)) < 2e-3


def test_names_are_those_of_the_classes():
    assert metrics.NegativeLogLikelihood().name == "negative_log_likelihood"
    assert metrics.NormalCRPS().name == "normal_crps"
    assert metrics.BrierScore(name="brier").name == "brier"


def test_the_mean_entropy():
    y, p, _ = problem(5, 30)
    filled = metrics.PredictiveEntropy()
    filled.update_state(y, p)
    assert_allclose(value(filled), calibration.predictive_entropy(p).mean(), rtol=1e-5)


def test_counts_go_on_beyond_what_a_float32_can_count():
    y, p, _ = problem(6, 200)
    filled = metrics.ExpectedCalibrationError()
    filled.update_state(y, p, sample_weight=np.full(200, 2.0**20))  # 2^27 in all
    wrong = (p.argmax(axis=1) != y).astype(float)
    for _ in range(300):
        filled.update_state(y[:1], p[:1], sample_weight=[1.0])  # each below the resolution of the sums
    weights = np.full(200, 2.0**20)
    weights[0] += 300
    confidence = p.max(axis=1).astype(float)
    index = np.ceil(confidence * 15).astype(int)
    gaps = [abs(np.sum((weights * (1 - wrong - confidence))[index == m])) for m in np.unique(index)]
    assert_allclose(value(filled), sum(gaps) / weights.sum(), rtol=1e-5)
    assert_allclose(float(ops.convert_to_numpy(ops.sum(filled._sums._lost[0]))), 300, atol=8)


@pytest.mark.core
def test_they_work_in_compile_and_survive_saving(tmp_path):
    y, _, logits = problem(7, 64)
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Dense(CLASSES, use_bias=False)])
    model.layers[0].set_weights([np.eye(CLASSES)])
    watched = [made(metric, from_logits=True) for metric in PAIRS]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Torch compiles by a C++ compiler, which users need not have.
    jit_compile = keras.backend.backend() != "torch"
    model.compile("sgd", loss, metrics=watched, jit_compile=jit_compile)
    found = model.evaluate(logits, y, batch_size=24, verbose=0, return_dict=True)
    p = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    for metric, function in PAIRS.items():
        assert_allclose(found[made(metric).name], function(y, p), rtol=1e-3, atol=1e-4)
    model.fit(logits, y, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.evaluate(logits, y, verbose=0, return_dict=True)
    again = loaded.evaluate(logits, y, verbose=0, return_dict=True)
    assert_allclose([again[name] for name in found], [expected[name] for name in found], rtol=1e-4, atol=1e-5)


def test_half_precision_predictions_are_summed_in_single():
    y, p, _ = problem(8, 40)
    half = ops.cast(p, "bfloat16")
    filled = metrics.NegativeLogLikelihood()
    filled.update_state(y, half)
    rounded = ops.convert_to_numpy(ops.cast(half, "float32"))
    expected = -np.log(np.take_along_axis(rounded, y[:, None], axis=1)).mean()
    assert_allclose(value(filled), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.ExpectedCalibrationError(num_bins=0), r"`num_bins` must be a positive integer"),
        (lambda: metrics.ClasswiseCalibrationError(num_classes=1), r"`num_classes` must be an integer of at least 2"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
