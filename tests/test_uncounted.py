"""A model that trains without the KL of its layers says so, once; one that counts it does not."""

import warnings

import keras
import numpy as np
import pytest

import bdl
from bdl.uncounted import UncountedKLWarning

pytestmark = pytest.mark.core

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.arange(16) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Code(keras.layers.Layer):
    def call(self, x):
        bdl.layers.add_local_kl(self, keras.ops.sum(x**2, axis=-1))
        return x


def network(*layers):
    layers = layers or (bdl.layers.DenseFlipout(8), bdl.layers.DenseRank1(3))
    return keras.Sequential([keras.Input((4,)), *layers])


def functional():
    inputs = keras.Input((4,))
    inner = network(bdl.layers.DenseFlipout(3))
    return keras.Model(inputs, inner(inputs))


def complaints(act):
    """What is said of an uncounted KL; third parties' own warnings are not our business here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught if warning.category is UncountedKLWarning]


@pytest.mark.parametrize(
    "model",
    [
        network,
        functional,
        lambda: network(bdl.layers.ConcreteDropout(keras.layers.Dense(3))),
        lambda: network(bdl.layers.VariationalGaussianDropout(), keras.layers.Dense(3)),
        lambda: bdl.convert.to_variational(network(keras.layers.Dense(3))),
    ],
)
def test_a_plain_compile_warns_once_in_its_first_training_step(model):
    model = model()
    model.compile("sgd", LOSS)
    assert complaints(lambda: model.evaluate(X, Y, verbose=0)) == []
    assert complaints(lambda: model.predict(X, verbose=0)) == []
    (complaint,) = complaints(lambda: model.fit(X, Y, epochs=2, batch_size=6, verbose=0))
    assert f"{model.name!r} is trained on a loss without the KL" in complaint
    assert "VariationalModel(network, likelihood)" in complaint
    assert "bdl.ELBO(likelihood, num_examples=N, model=network)" in complaint
    assert complaints(lambda: model.fit(X[:12], Y[:12], verbose=0)) == []


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="on JAX a local KL alone is not seen in a training step")
def test_a_local_kl_is_noticed_too():
    model = network(Code(), keras.layers.Dense(3))
    model.compile("sgd", LOSS)
    assert len(complaints(lambda: model.fit(X, Y, verbose=0))) == 1


def test_models_that_count_the_kl_do_not_warn():
    plain = network()
    plain.compile("sgd", bdl.ELBO(bdl.likelihoods.Categorical(), 16, model=plain))
    assert complaints(lambda: plain.fit(X, Y, verbose=0)) == []

    inside = network()
    inside.compile("sgd", LOSS)
    assert complaints(lambda: inside.evaluate(X, Y, verbose=0)) == []
    model = bdl.VariationalModel(inside, bdl.likelihoods.Categorical())
    model.compile("sgd")
    assert complaints(lambda: model.fit(X, Y, verbose=0)) == []


class AddsItsKL(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = bdl.layers.DenseFlipout(3)

    def call(self, x):
        outputs = self.hidden(x)
        self.add_loss(bdl.kl_divergence(self.hidden) / 16)
        return outputs


def test_a_model_whose_call_adds_the_kl_does_not_warn():
    model = AddsItsKL()
    model.compile("sgd", LOSS)
    assert complaints(lambda: model.fit(X, Y, verbose=0)) == []


def test_a_loss_of_ones_own_that_counts_the_kl_does_not_warn():
    model = network()
    model.compile("sgd", lambda y, outputs: LOSS(y, outputs) + bdl.kl_divergence(model) / 16)
    assert complaints(lambda: model.fit(X, Y, epochs=2, batch_size=6, verbose=0)) == []


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="compiled steps are traced once, before the loss is run")
def test_a_loss_of_ones_own_that_leaves_it_out_is_seen_at_the_second_step():
    model = network()
    model.compile("sgd", lambda y, outputs: LOSS(y, outputs))
    assert complaints(lambda: model.train_on_batch(X, Y)) == []
    assert len(complaints(lambda: model.train_on_batch(X, Y))) == 1


def test_a_loop_of_ones_own_with_an_elbo_does_not_warn_after_a_plain_evaluation():
    model = network()
    model.compile("sgd", LOSS)
    model.evaluate(X, Y, verbose=0)
    elbo = bdl.ELBO(bdl.likelihoods.Categorical(), 16, model=model)
    state = (model.trainable_variables, model.non_trainable_variables)
    assert complaints(lambda: elbo.parts(Y, model.stateless_call(*state, X, training=True)[0])) == []
