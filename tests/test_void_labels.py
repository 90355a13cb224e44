"""Labels that do not count, labels with an axis of classes, and weights of single events."""

import keras
import numpy as np
import pytest
from gradients import gradients
from numpy.testing import assert_allclose
from scipy import special, stats

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Mixture, Normal
from bdl.likelihoods.mixture import MIXTURE, pack
from bdl.prediction import ClassificationPrediction

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 3, 5, 6)).astype("float32")  # images of 3 x 5 pixels and 6 classes
Y = RNG.integers(0, 6, size=(4, 3, 5))
IS_VOID = RNG.random((4, 3, 5)) < 0.3
IS_VOID[0] = True  # an image without any label
VOID = np.where(IS_VOID, 255, Y)
LOG_P = special.log_softmax(LOGITS, axis=-1)
EVENT_NLL = -np.take_along_axis(LOG_P, Y[..., None], axis=-1)[..., 0]
ONE_HOT = np.eye(6, dtype="float32")[Y]
SOFT = RNG.dirichlet(np.ones(6), size=Y.shape).astype("float32")


def array(values):
    return keras.ops.convert_to_numpy(values)


def summed(events):
    return events.reshape(4, -1).sum(axis=-1)


@pytest.mark.core
@pytest.mark.parametrize("likelihood", [Categorical(ignore_class=255), Mixture(Categorical(ignore_class=255))], ids=str)
def test_void_labels_add_nothing_to_the_sum_over_events(likelihood):
    outputs = LOGITS
    if isinstance(likelihood, Mixture):
        outputs = pack(LOGITS[..., None, :], np.zeros((*Y.shape, 1)), MIXTURE)  # of one alignment
    expected = summed(np.where(IS_VOID, 0.0, EVENT_NLL))
    assert_allclose(array(likelihood.nll(VOID, outputs)), expected, rtol=1e-5)
    assert_allclose(array(likelihood.nll(VOID[..., None], outputs)), expected, rtol=1e-5)
    assert expected[0] == 0.0


@pytest.mark.core
def test_a_void_label_has_no_gradient_and_spoils_none():
    likelihood = Categorical(ignore_class=255)
    logits = keras.ops.convert_to_tensor(LOGITS)
    (found,) = gradients(lambda values: keras.ops.sum(likelihood.nll(VOID, values[0])), [logits])
    expected = np.where(IS_VOID[..., None], 0.0, np.exp(LOG_P) - ONE_HOT)
    assert_allclose(array(found), expected, atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("from_logits", [True, False])
def test_labels_with_an_axis_of_classes_are_told_by_their_shape(from_logits):
    likelihood = Categorical(from_logits=from_logits)
    outputs = LOGITS if from_logits else np.exp(LOG_P)
    assert_allclose(array(likelihood.nll(ONE_HOT, outputs)), summed(EVENT_NLL), rtol=1e-5)
    cross_entropy = summed(-np.sum(SOFT * LOG_P, axis=-1))
    assert_allclose(array(likelihood.nll(SOFT, outputs)), cross_entropy, rtol=1e-5)
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=from_logits, reduction="none")
    assert_allclose(cross_entropy, summed(array(keras_loss(SOFT, outputs))), rtol=1e-5)
    likelihood.check_labels(SOFT, (None, *LOGITS.shape[1:]))


@pytest.mark.core
def test_a_one_hot_class_of_probability_zero_does_not_spoil_the_others():
    outputs = np.array([[0.0, 1.0, -np.inf]], "float32")
    likelihood = Categorical()
    assert_allclose(array(likelihood.nll(np.eye(3)[:1], outputs)), [np.log1p(np.e)], rtol=1e-6)
    assert np.isnan(array(likelihood.nll(np.ones((1, 3)), outputs)))  # no distribution


def test_one_hot_rows_of_zeros_and_of_the_ignored_class_are_void():
    rows = np.where(IS_VOID[..., None], 0.0, ONE_HOT)
    expected = summed(np.where(IS_VOID, 0.0, EVENT_NLL))
    assert_allclose(array(Categorical(ignore_class=255).nll(rows, LOGITS)), expected, rtol=1e-5)
    without = summed(np.where(Y == 2, 0.0, EVENT_NLL))
    assert_allclose(array(Categorical(ignore_class=2).nll(ONE_HOT, LOGITS)), without, rtol=1e-5)
    assert_allclose(array(Categorical(ignore_class=2).nll(Y, LOGITS)), without, rtol=1e-5)


@pytest.mark.core
def test_a_weight_of_an_event_is_how_often_it_was_observed():
    counts = RNG.integers(0, 3, size=Y.shape)
    expected = summed(counts * EVENT_NLL)
    y = np.where(counts == 0, -100, Y)  # of weight 0: any label
    assert_allclose(array(Categorical().nll(y, LOGITS, event_weight=counts)), expected, rtol=1e-5)
    assert_allclose(array(Categorical().nll(y, LOGITS, event_weight=counts[..., None])), expected, rtol=1e-5)
    mask = RNG.random(Y.shape) < 0.5
    expected = summed(np.where(mask, counts * EVENT_NLL, 0.0))
    assert_allclose(array(Categorical().nll(y, LOGITS, mask, counts)), expected, rtol=1e-5)


def test_weights_of_the_first_axes_serve_the_others():
    y, mean, weight = RNG.normal(size=(4, 3, 2)), RNG.normal(size=(4, 3, 2)), RNG.uniform(size=(4, 3))
    expected = np.sum(weight[..., None] * -stats.norm.logpdf(y, mean), axis=(1, 2))
    assert_allclose(array(Normal(scale=1.0).nll(y, mean.astype("float32"), event_weight=weight)), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"`sample_weight` must have .* not shape \(4, 2\)"):
        Normal(scale=1.0).nll(y, mean.astype("float32"), event_weight=weight[:, :2])


@pytest.mark.parametrize(
    ("likelihood", "y", "message"),
    [
        (Categorical(ignore_class=255), np.array([0, 254, 255]), r"0 to 2, or 255 \(`ignore_class`\); y\[1\] is 254"),
        (Categorical(), np.array([0, 255, 1]), r"y\[1\] is 255\. .*ignore_class=.*sample_weight.*mask"),
        (Categorical(), np.array([[1, 0, 0], [1, 1, 0]]), r"sum to 1; row 1 sums to 2\. Use Bernoulli"),
        (Categorical(), np.array([[1, 0, 0], [0, 0, 0]]), r"row 1 sums to 0\..*ignore_class=-1"),
        (Categorical(), np.array([[1.5, -0.5, 0]]), r"no negative number .* y\[0, 1\] is -0.5"),
    ],
)
def test_labels_that_are_none_are_named(likelihood, y, message):
    with pytest.raises(ValueError, match=message):
        likelihood.check_labels(y, (None, 3))
    Categorical(ignore_class=-1).check_labels(np.array([[1, 0, 0], [0, 0, 0]]), (None, 3))


@pytest.mark.parametrize("ignore_class", [True, 1.5, "void"])
def test_the_ignored_class_is_an_integer(ignore_class):
    with pytest.raises(ValueError, match="`ignore_class` must be None or an integer"):
        Categorical(ignore_class=ignore_class)


def test_log_prob_of_a_prediction_takes_the_same_labels():
    total = np.zeros(Y.shape)
    likelihood = Categorical(ignore_class=255)
    prediction = ClassificationPrediction(likelihood, np.exp(LOG_P), total, total, 1, log_probabilities=LOG_P)
    assert_allclose(prediction.log_prob(VOID), np.where(IS_VOID, np.nan, -EVENT_NLL), rtol=1e-6)
    rows = np.where(IS_VOID[..., None], 0.0, ONE_HOT)
    assert_allclose(prediction.log_prob(rows), np.where(IS_VOID, np.nan, -EVENT_NLL), rtol=1e-6)
    assert_allclose(prediction.log_prob(SOFT), np.sum(SOFT * LOG_P, axis=-1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"or NaN or 255 \(`ignore_class`\) for an event .* is 254"):
        prediction.log_prob(np.where(IS_VOID, 254, Y))


def segmentation(likelihood, **kwargs):
    """A network that gives each pixel its logits."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((3, 5, 6)), bdl.layers.Conv2DReparameterization(6, 1)])
    model = bdl.VariationalModel(network, likelihood, num_examples=4, kl_weight=1.0)
    model.compile("adam", metrics=["accuracy", bdl.metrics.BrierScore()], **kwargs)
    return model


@pytest.mark.core
def test_a_model_trains_on_void_labels_and_its_metrics_leave_them_out():
    model = segmentation(Categorical(ignore_class=255))
    model.fit(LOGITS, VOID.astype("uint8"), batch_size=3, verbose=0)
    with bdl.mean_weights(model):
        logs = model.evaluate(LOGITS, VOID, batch_size=3, verbose=0, return_dict=True)
        log_p = special.log_softmax(array(model.network(LOGITS)), axis=-1)
    nll = -np.take_along_axis(log_p, Y[..., None], axis=-1)[..., 0]
    assert_allclose(logs["nll"], np.mean(summed(np.where(IS_VOID, 0.0, nll))), rtol=1e-5)
    assert_allclose(logs["accuracy"], np.mean((log_p.argmax(-1) == Y)[~IS_VOID]), rtol=1e-5)
    squares = np.sum((np.exp(log_p) - ONE_HOT) ** 2, axis=-1)
    assert_allclose(logs["brier_score"], np.mean(squares[~IS_VOID]), rtol=1e-5)


@pytest.mark.core
def test_weights_of_pixels_and_one_hot_labels_train():
    model = segmentation(Categorical())
    model.compile("adam", weighted_metrics=[bdl.metrics.BrierScore()], run_eagerly=True)
    weight = RNG.uniform(size=Y.shape).astype("float32") * ~IS_VOID
    with bdl.mean_weights(model):
        logs = model.evaluate(LOGITS, VOID, sample_weight=weight, verbose=0, return_dict=True)
        log_p = special.log_softmax(array(model.network(LOGITS)), axis=-1)
        model.compile("adam", metrics=["accuracy"], run_eagerly=True)
        of_one_hot = model.evaluate(LOGITS, ONE_HOT, verbose=0, return_dict=True)
    nll = -np.take_along_axis(log_p, Y[..., None], axis=-1)[..., 0]
    assert_allclose(logs["nll"], np.mean(summed(weight * nll)), rtol=1e-5)
    assert_allclose(of_one_hot["nll"], np.mean(summed(nll)), rtol=1e-5)
    assert_allclose(of_one_hot["accuracy"], np.mean(log_p.argmax(-1) == Y), rtol=1e-5)
    squares = np.sum((np.exp(log_p) - ONE_HOT) ** 2, axis=-1)
    assert_allclose(logs["brier_score"], np.sum(weight * squares) / np.sum(weight), rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize(("likelihood", "hidden"), [(Categorical(), -100), (Bernoulli(), 7)], ids=str)
def test_labels_behind_a_mask_may_be_any_and_others_may_not(likelihood, hidden):
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    units = 4 if isinstance(likelihood, Categorical) else 1
    y = np.where(tokens == 0, hidden, 1)
    network = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(5, 2, mask_zero=True), bdl.layers.DenseReparameterization(units)]
    )
    model = bdl.VariationalModel(network, likelihood, num_examples=2)
    model.compile("sgd")
    assert np.isfinite(model.evaluate(tokens, y, verbose=0, return_dict=True)["nll"])
    y[1, 0] = hidden
    with pytest.raises(ValueError, match=rf"y\[1, 0.*\] is {hidden}"):
        model.evaluate(tokens, y, verbose=0)


def test_an_example_of_weight_zero_may_have_any_label():
    y, weight = np.array([0, 9]), np.array([2.0, 0.0])
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseReparameterization(3)])
    parts = bdl.ELBO(Categorical(), 2, model=network).parts(y, network(np.ones((2, 4))), weight)
    assert np.isfinite(array(parts.loss))
