"""What metrics of Keras take for events: weights, masks, logits, and labels that are none."""

import keras
import numpy as np
import pytest
from keras import ops
from metric_pairs import PAIRS
from numpy.testing import assert_allclose
from scipy.special import log_expit, log_softmax, softmax

import bdl
from bdl import calibration, metrics
from bdl.keras_internals import with_mask

CLASSES = 4
RANDOM = np.random.default_rng(5)
LOGITS = (1.5 * RANDOM.normal(size=(48, CLASSES))).astype("float32")
Y = np.argmax(LOGITS + RANDOM.gumbel(size=LOGITS.shape), axis=1)
P = softmax(LOGITS.astype(np.float64), axis=1).astype("float32")
KEPT = RANDOM.random(48) < 0.6
EVERY = {
    **PAIRS,
    metrics.PredictiveEntropy: lambda y, p: calibration.predictive_entropy(p).mean(),
    metrics.AreaUnderRiskCoverage: None,
}
every_metric = pytest.mark.parametrize("metric", EVERY)
EXACT = {"rtol": 2e-5, "atol": 3e-5}  # float32 sums; the debiased error is a root


def made(metric, **options):
    if metric in (metrics.TopLabelCalibrationError, metrics.ClasswiseCalibrationError):
        options = {"num_classes": CLASSES, **options}
    return metric(**options)


def value(metric, *batches):
    for batch in batches:
        metric.update_state(*batch)
    return float(ops.convert_to_numpy(metric.result()))


# Weights and masks


@pytest.mark.core
@every_metric
@pytest.mark.parametrize("label", [-100, np.nan], ids=str)
def test_what_weighs_nothing_may_be_anything(metric, label):
    expected = value(made(metric), (Y[KEPT], P[KEPT]))
    y, p = np.where(KEPT, Y, label), np.where(KEPT[:, None], P, np.nan)
    assert_allclose(value(made(metric), (y, p, KEPT.astype("float32"))), expected, **EXACT)
    masked = with_mask(ops.convert_to_tensor(p), ops.convert_to_tensor(KEPT))
    assert_allclose(value(made(metric), (y, masked)), expected, **EXACT)
    one_hot = np.where(KEPT[:, None], np.eye(CLASSES)[Y], -100)
    assert_allclose(value(made(metric, sparse=False), (one_hot, masked)), expected, **EXACT)


@pytest.mark.core
def test_a_mask_and_weights_meet():
    weight = RANDOM.integers(0, 3, 48)
    masked = with_mask(ops.convert_to_tensor(P), ops.convert_to_tensor(KEPT))
    repeated = np.repeat(np.arange(48), weight * KEPT)
    for metric in (metrics.NegativeLogLikelihood, metrics.ExpectedCalibrationError, metrics.BrierScore):
        found = value(metric(), (Y, masked, weight.astype("float32")))
        assert_allclose(found, EVERY[metric](Y[repeated], P[repeated]), **EXACT)


@pytest.mark.core
def test_independent_labels_under_a_mask_may_be_anything():
    y, p = (Y > 1).astype(float).reshape(12, 4), P[:, 0].reshape(12, 4)
    kept = KEPT.reshape(12, 4)
    found = value(metrics.NegativeLogLikelihood(), (np.where(kept, y, -100), np.where(kept, p, np.nan), kept))
    assert_allclose(found, calibration.negative_log_likelihood(y[kept], p[kept]), rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("label", [np.nan, np.inf])
def test_targets_that_weigh_nothing_may_be_anything(label):
    mean, scale, y = LOGITS[:, 0], np.exp(LOGITS[:, 1]), LOGITS[:, 2]
    prediction = np.where(KEPT[:, None], np.stack([mean, scale], axis=1), label)
    target = np.where(KEPT, y, label)
    cases = {
        metrics.NormalNegativeLogLikelihood: calibration.normal_negative_log_likelihood,
        metrics.NormalCRPS: calibration.normal_crps,
    }
    for metric, function in cases.items():
        found = value(metric(), (target, prediction, KEPT.astype("float32")))
        assert_allclose(found, function(y[KEPT], mean[KEPT], scale[KEPT]), rtol=2e-5)
    found = value(metrics.PinballLoss(0.3), (target, prediction[:, 0], KEPT.astype("float32")))
    assert_allclose(found, calibration.pinball_loss(y[KEPT], mean[KEPT], 0.3), rtol=2e-5)


TOKENS = RANDOM.integers(0, 6, size=(10, 7))
EVENTS = RANDOM.integers(0, 3, size=(10, 7))
COUNTS = TOKENS != 0
TABLE = RANDOM.normal(size=(6, 3)).astype("float32")


def sequence_network(activation):
    """Logits or probabilities of each token by a table; token 0 is masked."""
    network = keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            keras.layers.Embedding(6, 3, mask_zero=True),
            keras.layers.Dense(3, activation, use_bias=False),
        ]
    )
    network.set_weights([TABLE, np.eye(3, dtype="float32")])
    return network


@pytest.mark.core
@pytest.mark.filterwarnings("ignore:.*no variational layer")
@pytest.mark.parametrize("kind", ["keras", "variational"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mask_of_an_embedding_reaches_the_metrics_of_compile(kind, weighted):
    watched = [
        metrics.NegativeLogLikelihood(name="ours"),
        metrics.ExpectedCalibrationError(name="ece"),
        keras.metrics.SparseCategoricalCrossentropy(name="theirs"),
    ]
    options = {"weighted_metrics" if weighted else "metrics": watched, "jit_compile": False}
    if kind == "keras":
        model = sequence_network("softmax")
        model.compile("sgd", "sparse_categorical_crossentropy", **options)
    else:
        model = bdl.VariationalModel(sequence_network(None), bdl.likelihoods.Categorical(), num_examples=10)
        model.compile("sgd", **options)
    weight = RANDOM.integers(0, 3, size=(10, 7)).astype("float32") if weighted else None
    y = np.where(COUNTS, EVENTS, 0)  # Keras' own losses and metrics read labels under a mask
    # Keras' loss multiplies weights by a batch's mask in place on Torch, before metrics see them: one batch there.
    size = 10 if keras.backend.backend() == "torch" else 4
    found = model.evaluate(TOKENS, y, batch_size=size, sample_weight=weight, verbose=0, return_dict=True)
    p = softmax(TABLE[TOKENS].astype(np.float64), axis=-1)
    rows = np.repeat(np.arange(70), (COUNTS * (1 if weight is None else weight)).ravel().astype(int))
    labels, p = y.ravel()[rows], p.reshape(70, 3)[rows]
    expected = calibration.negative_log_likelihood(labels, p)
    assert_allclose([found["ours"], found["theirs"]], expected, rtol=1e-5)
    assert_allclose(found["ece"], calibration.expected_calibration_error(labels, p), rtol=1e-4)


# Logits


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("gap", [0.0, 18.0, 500.0])
def test_the_loss_of_logits_is_exact_however_large_they_are(dtype, gap):
    small, large = np.log1p(np.exp(-gap)), np.log1p(np.exp(-gap)) + gap
    for y, expected in ((1, small), (0, large)):
        for logits in ([[0.0, gap]], [[gap]], [gap]):
            metric = metrics.NegativeLogLikelihood(from_logits=True)
            assert_allclose(value(metric, (np.array([y]), np.array(logits, dtype))), expected, rtol=1e-6, atol=6e-8)
    entropy = metrics.PredictiveEntropy(from_logits=True)
    p = np.exp(log_expit([-gap, gap]))
    found = value(entropy, (np.array([0]), np.array([[0.0, gap]], dtype)))
    assert_allclose(found, -np.sum(p * log_expit([-gap, gap])), rtol=1e-5, atol=6e-8)


@pytest.mark.core
def test_logits_that_rule_a_class_out_have_an_entropy():
    logits = np.array([[0.0, 0.0, -np.inf]], "float32")
    assert_allclose(value(metrics.PredictiveEntropy(from_logits=True), (np.array([0]), logits)), np.log(2), rtol=1e-6)


@pytest.mark.core
@every_metric
def test_logits_have_the_metrics_of_their_softmax(metric):
    found = value(made(metric, from_logits=True), (Y, LOGITS))
    assert_allclose(found, value(made(metric), (Y, P)), **EXACT)
    if EVERY[metric] is not None:
        assert_allclose(found, EVERY[metric](Y, P), **EXACT)
    if metric is metrics.NegativeLogLikelihood:
        assert_allclose(found, -log_softmax(LOGITS.astype(float), axis=1)[np.arange(48), Y].mean(), rtol=1e-6)


# What is no figure


@pytest.mark.core
@pytest.mark.parametrize(
    ("metric", "batch", "message"),
    [
        (metrics.BrierScore(), ([1], P), r"`y_true` must hold one label for each event of `y_pred`, shape \(48,\)"),
        (metrics.BrierScore(), (Y[:, None, None].repeat(2, 1), P), r"one label for each event"),
        (metrics.BrierScore(), (Y, P[:, :1]), r"`y_true` must hold class indices from 0 to 1"),
        (metrics.BrierScore(sparse=False), (Y, P), r"`y_true` must hold one-hot labels, as `sparse=False` says"),
        (metrics.BrierScore(sparse=False), (Y[:, None], P[:, :1]), r"`y_pred` must have a column for each class"),
        (metrics.BrierScore(), (np.eye(4)[Y], P), r"not one-hot labels, which are those of `sparse=False`"),
        (metrics.BrierScore(), (Y + 1, P), r"`y_true` must hold class indices from 0 to 3"),
        (metrics.BrierScore(), (Y - 100, P), r"`y_true` must hold class indices from 0 to 3"),
        (metrics.BrierScore(), (Y + 0.5, P), r"`y_true` must hold class indices from 0 to 3"),
        (metrics.BrierScore(), (np.full(48, np.nan), P), r"`y_true` must hold class indices from 0 to 3"),
        (metrics.ExpectedCalibrationError(), (2 * (Y > 1) - 1, P[:, 0]), r"class indices from 0 to 1"),
        (
            metrics.TopLabelCalibrationError(3),
            (Y, P),
            r"`num_classes` must be the number of classes of `y_pred`, 4, not",
        ),
        (metrics.ClasswiseCalibrationError(5), (Y, P), r"`num_classes` must be .*, 4, not 5"),
        (metrics.ClasswiseCalibrationError(4), (Y > 1, P[:, 0]), r"`num_classes` must be .*, 2, not 4"),
        (metrics.NormalCRPS(), ([1.0], P[:, :2]), r"`y_true` must hold one label for each event"),
        (metrics.PinballLoss(), (P, P[:, 0]), r"`y_true` must hold one label for each event"),
    ],
)
def test_what_would_broadcast_or_is_no_class_is_refused(metric, batch, message):
    with pytest.raises(ValueError, match=message):
        metric.update_state(*batch)


@pytest.mark.core
@pytest.mark.parametrize("fault", ["one-hot", "outside"])
def test_compiled_code_gives_nan_where_it_cannot_raise(fault):
    network = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Softmax()])
    loss = "categorical_crossentropy" if fault == "one-hot" else lambda y, p: ops.mean(p, axis=-1)
    y = np.eye(CLASSES)[Y] if fault == "one-hot" else Y + 1
    watched = [metrics.BrierScore(), metrics.MaximumCalibrationError(), metrics.AreaUnderRiskCoverage()]
    network.compile(loss=loss, metrics=watched, jit_compile=keras.backend.backend() == "jax")
    if keras.backend.backend() == "torch":  # which runs step by step
        with pytest.raises(ValueError, match="`y_true` must hold class indices"):
            network.evaluate(LOGITS, y, verbose=0)
        return
    found = network.evaluate(LOGITS, y, verbose=0, return_dict=True)
    assert all(np.isnan(found[metric.name]) for metric in watched), found
