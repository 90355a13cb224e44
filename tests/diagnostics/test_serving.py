"""What is measured is measured aside: a thread that predicts with the same model, and its owner, see nothing of it."""

import contextlib
import threading

import keras
import numpy as np
import pytest
from foreign_layers import ForeignDense

import bdl
from bdl.diagnostics import TrainingHealth, diagnose
from bdl.diagnostics.weights import aside

N = 96
CATEGORICAL = bdl.likelihoods.Categorical()


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(N, 6)).astype("float32")
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).astype(int)


@pytest.fixture(scope="module")
def trained(data):
    keras.utils.set_random_seed(0)
    layers = [
        bdl.layers.DenseReparameterization(16, kernel_prior="fan_in_normal"),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        bdl.layers.MCDropout(0.1),
        bdl.layers.DenseReparameterization(2, kernel_prior="fan_in_normal"),
    ]
    model = bdl.VariationalModel(keras.Sequential([keras.Input((6,)), *layers]), CATEGORICAL)
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    model.fit(*data, epochs=2, verbose=0)
    return model


def state(model):
    """Every number that a model holds: weights, seeds, counters, metrics, and its optimizer's."""
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    return [keras.ops.convert_to_numpy(value) for value in (*model.variables, *metrics, *model.optimizer.variables)]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@contextlib.contextmanager
def serving(model, x):
    """A thread that predicts without a pause; what it predicted, in the list."""
    predictions, is_over = [], threading.Event()

    def serve():
        while not is_over.is_set():
            predictions.append(model.predict_distribution(x, num_samples=2, seed=1).mean)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield predictions
    finally:
        is_over.set()
        thread.join()


def diagnosed(model, data):
    diagnose(model, *data, num_samples=2)


def watched(model, data):
    """What the callback measures before, during and after a training, without the training."""
    health = TrainingHealth(data, data, on_verdict="record", max_cost=1.0)
    health.set_model(model)
    health.set_params({"epochs": 2, "steps": 3})
    health.on_train_begin()
    for epoch in range(2):
        health.on_epoch_end(epoch, {"loss": 1.0, "nll": 1.0, "kl": 1.0, "elbo": -1.0})
    health.on_train_end()
    assert health.quantities.validation is not None


@pytest.mark.core
@pytest.mark.parametrize("measure", [diagnosed, watched])
def test_a_thread_that_predicts_sees_the_same_model_all_the_time(measure, trained, data):
    expected = trained.predict_distribution(data[0], num_samples=2, seed=1).mean
    before = state(trained)
    with serving(trained, data[0]) as predictions:
        while len(predictions) < 5:  # a busy machine may leave a thread waiting
            measure(trained, data)
    for prediction in predictions:
        np.testing.assert_array_equal(prediction, expected)
    assert_equal(before, state(trained))


@pytest.mark.core
@pytest.mark.parametrize("number", range(3))
def test_an_error_in_the_middle_leaves_the_model_as_it_was(number, trained, data, monkeypatch):
    before = state(trained)
    place = ["accounting.total_divergence", "probe.fit_of", "measure.with_gradients"][number]

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bdl.diagnostics.{place}", fail)
    with pytest.raises(KeyboardInterrupt):
        diagnosed(trained, data)
    assert_equal(before, state(trained))


@pytest.mark.core
def test_a_plain_model_with_losses_of_its_own_is_as_it_was(data):
    network = keras.Sequential([keras.Input((6,)), ForeignDense(4, 1 / N), keras.layers.ReLU(), ForeignDense(2, 1 / N)])
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    network.fit(*data, epochs=1, verbose=0)
    before = state(network)
    diagnosed(network, data)
    assert_equal(before, state(network))


@pytest.mark.core
def test_contexts_nest_and_losses_stay_inside(data):
    layer = ForeignDense(2, 1.0)
    layer.build((None, 6))
    mu = keras.ops.convert_to_numpy(layer.mu)

    def value():
        return float(keras.ops.convert_to_numpy(layer.mu)[0, 0])

    with aside(layer):
        layer.mu.assign(keras.ops.full((6, 2), 3.0))
        with aside(layer):
            assert value() == 3.0
            layer.mu.assign(keras.ops.full((6, 2), 4.0))
            layer(data[0])
            assert len(layer.losses) == 1
            assert value() == 4.0
        assert value() == 3.0
        assert layer.losses == []
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.mu), mu)
