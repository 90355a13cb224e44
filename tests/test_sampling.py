"""The engine of Monte Carlo prediction."""

import keras
import numpy as np
import pytest

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Normal
from bdl.sampling import Sampler, batches, check_output_activation, label_entropy

pytestmark = pytest.mark.core

X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")


def test_batches_cover_the_inputs_and_have_one_size():
    parts = list(batches({"a": X}, 3))
    assert [size for _, size in parts] == [3, 3, 1]
    assert all(part["a"].shape == (3, 4) for part, _ in parts)
    np.testing.assert_array_equal(np.concatenate([part["a"][:size] for part, size in parts]), X)
    assert [size for _, size in batches(X, 100)] == [7]


def test_label_entropy_in_nats():
    uniform = keras.ops.convert_to_numpy(label_entropy(Categorical(), np.full((2, 4), 0.25, "float32")))
    np.testing.assert_allclose(uniform, np.log(4), rtol=1e-6)
    fair = keras.ops.convert_to_numpy(label_entropy(Bernoulli(), np.full((2, 1), 0.5, "float32")))
    np.testing.assert_allclose(fair, np.log(2), rtol=1e-6)


def test_functions_are_compiled_once_for_each_kind_of_call():
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    sampler = Sampler(network, Categorical())
    for _ in range(2):
        sampler.sample(X, 2, 3, consistent=False, seed=None, keep_outputs=False)
    assert len(sampler._compiled) == 1
    sampler.sample(X, 2, 3, consistent=True, seed=None, keep_outputs=False)
    assert len(sampler._compiled) == 2


def test_prediction_leaves_everything_but_the_seeds_as_it_was():
    network = keras.Sequential(
        [keras.Input((4,)), bdl.layers.DenseFlipout(3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    )
    before = {variable.path: keras.ops.convert_to_numpy(variable) for variable in network.variables}
    Sampler(network, Categorical()).sample(X, 3, 3, consistent=False, seed=None, keep_outputs=False)
    changed = {
        variable.path.rsplit("/", 1)[-1]
        for variable in network.variables
        if np.any(before[variable.path] != keras.ops.convert_to_numpy(variable))
    }
    assert changed == {"seed_generator_state"}


def test_several_inputs_in_a_list_or_a_dict():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    outputs = bdl.layers.DenseReparameterization(1)(keras.layers.Add()([first, second]))
    for inputs, x in (([first, second], [X, X]), ({"first": first, "second": second}, {"first": X, "second": X})):
        prediction = bdl.predict_distribution(keras.Model(inputs, outputs), x, Normal(scale=1.0), num_samples=2)
        assert prediction.mean.shape == (7,)


def test_a_subclassed_network_without_a_training_argument():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = bdl.layers.DenseFlipout(2)

        def call(self, x):
            return self.head(x)

    assert bdl.predict_distribution(Network(), X, Categorical(), num_samples=2).probabilities.shape == (7, 2)


def test_activations_are_found_through_wrappers_and_nested_models():
    inner = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3, activation="softmax")])
    for network in (
        inner,
        keras.Sequential([keras.Input((4,)), inner]),
        keras.Sequential([inner, keras.layers.Softmax()]),
    ):
        with pytest.raises(ValueError, match="ends in softmax"):
            check_output_activation(network, Categorical())
    check_output_activation(inner, Categorical(from_logits=False))
    check_output_activation(inner, Normal())


def test_no_inputs_and_plain_lists_get_a_clear_error():
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    with pytest.raises(ValueError, match="`x` holds no examples"):
        bdl.predict_distribution(network, X[:0], Categorical())
    with pytest.raises(ValueError, match="`x` must hold arrays"):
        bdl.predict_distribution(network, [[0.0, 1.0, 2.0, 3.0]], Categorical())
