"""Whatever Keras' `floatx` is, divergences and log probabilities are float32."""

import contextlib

import keras
import numpy as np
import pytest

import bdl
from bdl import likelihoods

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4))
Y = np.array([0, 1, 2, 0, 1, 2])


@contextlib.contextmanager
def floats(floatx):
    """Keras' float type and the policy that follows it; on JAX with 64 bits."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    bits = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        import jax

        bits = jax.enable_x64(floatx == "float64")
    try:
        with bits:
            yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


@pytest.fixture(params=["float64", "float16"])
def floatx(request):
    with floats(request.param):
        yield request.param


def dtype_of(values):
    return keras.backend.standardize_dtype(values.dtype)


def number(value):
    return float(keras.ops.convert_to_numpy(value))


def many_layers():
    """Every estimator, factors with a prior on their weights, learned dropout and a regularizer."""
    layers = [
        bdl.layers.InputFactors(),
        bdl.layers.DenseReparameterization(4, kernel_posterior=bdl.posteriors.LowRankNormal()),
        bdl.layers.DenseLocalReparameterization(4, activation="relu", bias_regularizer="l2"),
        bdl.layers.DenseRank1(4),
        bdl.layers.ConcreteDropout(keras.layers.Dense(4)),
        bdl.layers.VariationalGaussianDropout(),
        bdl.layers.DenseFlipout(3, kernel_prior=bdl.priors.EmpiricalBayes()),
        bdl.layers.DenseReparameterization(3, kernel_prior=bdl.priors.ScaleMixture()),
    ]
    return keras.Sequential([keras.Input((4,)), *layers])


def test_the_divergence_is_the_one_of_the_same_weights_in_float32(floatx):
    network = many_layers()
    assert dtype_of(network.outputs[0]) == floatx
    found = bdl.kl_divergence(network)
    assert dtype_of(found) == "float32"
    with floats("float32"):
        twin = many_layers()
        for weight, other in zip(network.weights, twin.weights, strict=True):
            other.assign(keras.ops.convert_to_numpy(weight).astype(dtype_of(other)))
        assert number(found) == pytest.approx(number(bdl.kl_divergence(twin)), rel=1e-5)


def compiled_model():
    layers = [bdl.layers.DenseReparameterization(4, bias_regularizer="l2"), bdl.layers.DenseRank1(3)]
    model = bdl.VariationalModel(keras.Sequential([keras.Input((4,)), *layers]), likelihoods.Categorical())
    model.compile(keras.optimizers.SGD(1e-3), metrics=["accuracy"], run_eagerly=keras.backend.backend() != "jax")
    return model


def test_a_model_trains_evaluates_and_predicts(floatx):
    model = compiled_model()
    history = model.fit(X, Y, verbose=0, validation_data=(X, Y)).history
    assert np.isfinite([history["nll"], history["kl"], history["val_nll"]]).all()
    prediction = model.predict_distribution(X, 3)
    assert prediction.log_prob(Y).dtype == "float32"
    np.testing.assert_allclose(prediction.probabilities.sum(axis=-1), 1.0, rtol=1e-5)


def test_logs_hold_more_nats_than_the_greatest_float16(floatx):
    model = compiled_model()
    model.fit(X, Y, verbose=0)
    for weight in model.trainable_weights:
        if weight.path.endswith("rho"):
            weight.assign(weight - 1000.0)  # ten thousand nats for each of the random numbers
    found = model.evaluate(X, Y, verbose=0, return_dict=True)["kl"]
    assert found == pytest.approx(number(bdl.kl_divergence(model)), rel=1e-5)
    assert float(found) > 65_504.0


@pytest.mark.parametrize(
    ("likelihood", "units", "y"),
    [
        (likelihoods.Categorical, 3, Y),
        (likelihoods.Normal, 1, X[:, :1]),
        (lambda: likelihoods.Normal(heteroscedastic=True), 2, X[:, :1]),
        (likelihoods.StudentT, 1, X[:, :1]),
        (likelihoods.Bernoulli, 1, Y[:, None] % 2),
        (likelihoods.Poisson, 1, Y[:, None]),
        (likelihoods.NegativeBinomial, 1, Y[:, None]),
    ],
)
def test_log_probabilities_are_those_of_float32(floatx, likelihood, units, y):
    outputs = RNG.normal(size=(6, units)).astype(floatx)
    head = likelihood()
    found = head.nll(keras.ops.convert_to_tensor(y.astype(floatx)), keras.ops.convert_to_tensor(outputs))
    assert {dtype_of(found), dtype_of(head.penalty())} <= {"float32", "float64"}
    with floats("float32"):
        y, outputs = y.astype(floatx).astype("float32"), outputs.astype("float32")
        expected = likelihood().nll(keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(outputs))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), keras.ops.convert_to_numpy(expected), rtol=1e-6)
