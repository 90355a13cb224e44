"""How a network ends: what can be seen of it, and what a likelihood makes of it."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from numpy.testing import assert_allclose

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Mixture, Normal
from bdl.likelihoods.endings import endings_of
from bdl.likelihoods.heads import Heads

X = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")


def functional(*after):
    inputs = outputs = keras.Input((4,))
    for layer in after:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def nested():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, [layers.Dense(3, "softmax", name="kind")(inputs), layers.Dense(1, name="size")(inputs)])
    outer = keras.Input((4,))
    return keras.Model(outer, bdl.convert.to_variational(inner)(outer))


class Squashing(keras.Model):
    """Ends in an activation that nobody sees, or in none."""

    def __init__(self, activation):
        super().__init__()
        self.dense, self.activation = layers.Dense(3), activation

    def call(self, x):
        return self.activation(self.dense(x))


@pytest.mark.core
@pytest.mark.parametrize(
    ("network", "activation"),
    [
        (functional(layers.Dense(3, "softmax")), "softmax"),
        (functional(layers.Dense(3), layers.Softmax()), "softmax"),
        (functional(layers.Dense(3), ops.softmax), "softmax"),
        (functional(layers.Dense(3, "sigmoid"), layers.Activation("linear", dtype="float32")), "sigmoid"),
        (functional(layers.Dense(6, "softmax"), layers.Reshape((1, 6))), "softmax"),
        (functional(layers.Reshape((2, 2)), layers.TimeDistributed(layers.Dense(3, "softmax"))), "softmax"),
        (functional(bdl.layers.DenseFlipout(3, activation="softmax")), "softmax"),
        (functional(layers.Dense(3, "softmax"), layers.Dense(3)), None),
        (keras.Sequential([layers.Dense(3, "softmax")]), "softmax"),
        (keras.Sequential([functional(layers.Dense(3, "sigmoid"))]), "sigmoid"),
    ],
    ids=str,
)
def test_the_last_activation_is_seen(network, activation):
    ending = endings_of(network)
    assert (ending.activation, ending.is_seen) == (activation, True)


@pytest.mark.parametrize("network", [functional(layers.Dense(3, "softmax"), layers.Dropout(0.1)), Squashing(ops.relu)])
def test_what_is_not_known_is_not_seen(network):
    assert not endings_of(network).is_seen


def test_outputs_behind_a_conversion_have_their_own_names():
    assert [(ending.name, ending.activation) for ending in endings_of(nested())] == [
        ("kind", "softmax"),
        ("size", None),
    ]


@pytest.mark.core
@pytest.mark.parametrize(("activation", "kind"), [("softmax", Categorical), ("sigmoid", Bernoulli)])
def test_a_likelihood_that_is_left_open_follows_the_network(activation, kind):
    raw = functional(layers.Dense(3, name="last"))
    squashed = keras.Model(raw.inputs[0], layers.Activation(activation)(raw.outputs[0]))
    expected = bdl.predict_distribution(raw, X, kind(), num_samples=1)
    found = bdl.predict_distribution(squashed, X, kind(), num_samples=1)
    assert found.likelihood.from_logits is False
    assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)
    assert bdl.predict_distribution(squashed, X, kind(from_logits=False), num_samples=1).num_samples == 1
    with pytest.raises(ValueError, match=rf"must be {kind.__name__}\(\) or .*ends in {activation}, not .*True"):
        bdl.predict_distribution(squashed, X, kind(from_logits=True))


def test_a_model_says_what_its_likelihood_became_and_loads_it(tmp_path):
    model = bdl.VariationalModel(functional(bdl.layers.DenseFlipout(3, activation="softmax")), Categorical())
    assert model.likelihood.from_logits is False
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").likelihood.from_logits is False
    assert Categorical.from_config(Categorical().get_config()).follows_network


def test_one_likelihood_follows_each_of_several_outputs():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"a": layers.Dense(3, "softmax")(inputs), "b": layers.Dense(3)(inputs)})
    found = Heads(Categorical(), model).likelihood
    assert (found["a"].from_logits, found["b"].from_logits) == (False, True)


@pytest.mark.parametrize(
    ("network", "likelihood", "message"),
    [
        (
            functional(layers.Dense(3, "sigmoid")),
            Categorical(),
            r"must be Bernoulli\(\) for .* sigmoid, not Categorical",
        ),
        (functional(layers.Dense(2, "softmax")), Bernoulli(), r"must be Categorical\(\) for .* softmax, not Bernoulli"),
        (functional(layers.Dense(3, "sigmoid")), Categorical(from_logits=False), r"must be Bernoulli\(\)"),
    ],
)
def test_an_activation_of_another_likelihood_is_refused(network, likelihood, message):
    with pytest.raises(ValueError, match=message):
        Heads(likelihood, network)


@pytest.mark.core
def test_an_activation_that_nobody_sees_is_found_in_the_outputs():
    network = Squashing(ops.softmax)
    with pytest.raises(
        ValueError, match=r"must be Categorical\(from_logits=False\) for outputs that are probabilities"
    ):
        bdl.predict_distribution(network, X, Categorical(), num_samples=1)
    found = bdl.predict_distribution(network, X, Categorical(from_logits=False), num_samples=1)
    assert_allclose(found.probabilities, keras.ops.convert_to_numpy(network(X)), rtol=1e-5)


@pytest.mark.parametrize("likelihood", [Categorical(from_logits=False), Bernoulli(from_logits=False)], ids=str)
def test_logits_are_not_taken_for_probabilities(likelihood):
    with pytest.raises(ValueError, match=r"\(\) for outputs that are logits, not .*from_logits=False.*Or end"):
        bdl.predict_distribution(functional(layers.Dense(3)), X, likelihood, num_samples=1)


def test_a_guess_is_not_followed_in_silence():
    class Gated(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.gate = layers.Dense(3), layers.Dense(3, "softmax")

        def call(self, x):
            return self.dense(x) * self.gate(x)

    with pytest.raises(
        ValueError, match=r"must say what the outputs are, .*from_logits=False.* softmax, but its `call`"
    ):
        bdl.predict_distribution(Gated(), X, Categorical())
    found = bdl.predict_distribution(Gated(), X, Categorical(from_logits=True), num_samples=1)
    assert_allclose(found.probabilities.sum(axis=-1), 1.0, rtol=1e-5)


def test_other_likelihoods_follow_nothing():
    network = functional(layers.Dense(3, "softmax"))
    for likelihood in (Normal(), Mixture(Normal())):
        assert Heads(likelihood, network).likelihood is likelihood
