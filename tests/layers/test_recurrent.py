"""Recurrent layers: one draw of the weights for all time steps, states, masks, and Keras' wrappers around them."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from gradients import weight_gradients
from keras import layers, ops
from layer_contract import array, reset_noise
from numpy.testing import assert_allclose, assert_array_equal
from sampled_twins import sampled_twin

import bdl
from bdl.estimators.weights import Noise
from bdl.keras_internals import flatten_layers
from bdl.layers import (
    DenseReparameterization,
    GRUReparameterization,
    LSTMReparameterization,
    SimpleRNNReparameterization,
    Variational,
)

KINDS = [LSTMReparameterization, GRUReparameterization, SimpleRNNReparameterization]
X = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
DIRECTIONS = ("forward_lstm/lstm_cell", "backward_lstm/lstm_cell")


def bidirectional_lstm(**arguments: Any) -> Variational:
    weights = [f"{cell}/{name}" for cell in DIRECTIONS for name in ("kernel", "recurrent_kernel")]
    inner = layers.Bidirectional(layers.LSTM(3, name="lstm", **arguments), name="both")
    return Variational(inner, weights=weights, prior="normal", seed=0)


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_one_draw_of_the_weights_serves_every_step_of_every_sequence(kind: Any, training: bool):
    layer = kind(4, return_sequences=True, bias_prior="normal", seed=0)
    layer.build(X.shape)
    assert list(layer.sampled_weights) == ["kernel", "recurrent_kernel", "bias"]
    twin = sampled_twin(layer, X.shape)
    assert_allclose(array(layer(X, training=training)), array(twin(X)), rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_the_same_input_at_each_step_meets_the_same_kernel():
    layer = SimpleRNNReparameterization(4, return_sequences=True)
    layer.build(X.shape)
    recurrent = layer.sampled_weights["recurrent_kernel"]
    recurrent.mean.assign(np.zeros((4, 4)))
    recurrent.variables["rho"].assign(np.full((4, 4), -5.0))  # a scale of exp(-50): no feedback
    outputs = array(layer(np.repeat(X[:, :1], 5, axis=1)))
    assert_allclose(outputs, np.repeat(outputs[:, :1], 5, axis=1), rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_the_result(kind: Any):
    layer = kind(4, seed=0)
    layer.build(X.shape)
    reset_noise(layer, 3)
    short = array(layer(X[:, :3]))
    padded = np.concatenate([X[:, :3], np.full((3, 2, 2), 7.0, "float32")], axis=1)
    mask = np.arange(5)[None] < np.full((3, 1), 3)
    reset_noise(layer, 3)
    assert_allclose(array(layer(padded, mask=mask)), short, rtol=1e-5, atol=1e-6)
    reset_noise(layer, 3)
    assert not np.allclose(array(layer(padded)), short)


@pytest.mark.core
def test_masks_of_an_embedding_reach_the_layer():
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])
    embedding, layer = layers.Embedding(5, 2, mask_zero=True), LSTMReparameterization(3, seed=0)
    model = keras.Sequential([keras.Input((None,)), embedding, layer])
    reset_noise(model, 3)
    padded = array(model(tokens))
    reset_noise(model, 3)
    assert_allclose(array(model(tokens[:1, :2])), padded[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_states_go_in_and_come_out():
    layer = LSTMReparameterization(4, return_state=True, return_sequences=True, seed=0)
    layer.build(X.shape)
    reset_noise(layer, 3)
    whole, *last = layer(X)
    reset_noise(layer, 3)
    first, *states = layer(X[:, :2])
    reset_noise(layer, 3)
    second, *end = layer(X[:, 2:], initial_state=states)
    assert_allclose(np.concatenate([array(first), array(second)], axis=1), array(whole), rtol=1e-5, atol=1e-6)
    for one, other in zip(last, end, strict=True):
        assert_allclose(array(one), array(other), rtol=1e-5, atol=1e-6)


def test_symbolic_states_and_shapes():
    inputs, h, c = keras.Input((None, 2)), keras.Input((4,)), keras.Input((4,))
    layer = LSTMReparameterization(4, return_state=True, return_sequences=True)
    outputs = layer(inputs, initial_state=[h, c])
    assert [tensor.shape for tensor in outputs] == [(None, None, 4), (None, 4), (None, 4)]
    assert layer.compute_output_shape((3, 5, 2)) == ((3, 5, 4), (3, 4), (3, 4))
    model = keras.Model([inputs, h, c], list(outputs))
    zeros = np.zeros((3, 4), "float32")
    assert [tuple(tensor.shape) for tensor in model([X, zeros, zeros])] == [(3, 5, 4), (3, 4), (3, 4)]


def test_a_state_saved_with_its_model_is_built_again(tmp_path: Path):
    inputs, h, c = keras.Input((5, 2)), keras.Input((4,)), keras.Input((4,))
    model = keras.Model([inputs, h, c], LSTMReparameterization(4)(inputs, initial_state=[h, c]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    arrays = [X, np.ones((3, 4), "float32"), np.ones((3, 4), "float32")]
    assert_array_equal(array(loaded(arrays)), array(model(arrays)))


def test_stateful_layers_are_refused():
    for make in (
        lambda: LSTMReparameterization(3, stateful=True),
        lambda: Variational(layers.Bidirectional(layers.GRU(3, stateful=True))),
    ):
        with pytest.raises(ValueError, match="`layer` must not be stateful: every call draws new weights"):
            make()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_and_noise_repeat_from_one_seed(kind: Any):
    one, other = (kind(3, dropout=0.5, recurrent_dropout=0.5, seed=5) for _ in range(2))
    one.build(X.shape)
    other.build(X.shape)
    other.set_weights(one.get_weights())
    assert_array_equal(array(one(X, training=True)), array(other(X, training=True)))
    assert not np.allclose(array(one(X, training=True)), array(one(X, training=True)))


def test_regularizers_of_recurrent_kernels_are_refused_by_their_name():
    for layer in (
        LSTMReparameterization(3, recurrent_regularizer="l2"),
        Variational(layers.LSTM(3, recurrent_regularizer="l2"), weights=("recurrent_kernel",)),
    ):
        with pytest.raises(ValueError, match=r"`recurrent_regularizer` of layer lstm_cell .* would count twice"):
            layer.build(X.shape)


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_bidirectional_gives_each_direction_its_own_posterior_and_noise(kind: Any):
    layer = layers.Bidirectional(kind(3, return_sequences=True, kernel_prior="normal", seed=4))
    assert layer(X).shape == (3, 5, 6)
    directions = [layer.forward_layer, layer.backward_layer]
    assert [inner.go_backwards for inner in directions] == [False, True]
    assert {weight.path for weight in layer.trainable_weights if weight.path.endswith("rho")} == {
        f"{layer.name}/{inner.name}/{name}_rho" for inner in directions for name in ("kernel", "recurrent_kernel")
    }
    seeds = [array(inner.seed_generator.state) for inner in directions]
    assert not np.array_equal(*seeds)
    forward, backward = (inner.sampled_weights["kernel"] for inner in directions)
    draws = [
        array(Noise(bdl.random.draw_key(inner.seed_generator), ops.ones(())).perturbation(weight))
        for inner, weight in zip(directions, (forward, backward), strict=True)
    ]
    assert abs(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1]) < 0.9
    with bdl.mean_weights(layer):
        keras_layer = layers.Bidirectional(type(forward_layer := directions[0].layer)(3, return_sequences=True))
        keras_layer.build(X.shape)
        keras_layer.set_weights([*forward_layer.get_weights(), *directions[1].layer.get_weights()])
        assert_allclose(array(layer(X)), array(keras_layer(X)), rtol=1e-5, atol=1e-6)


def test_divergence_of_both_directions_enters_the_objective():
    network = keras.Sequential(
        [keras.Input((5, 2)), layers.Bidirectional(LSTMReparameterization(3)), DenseReparameterization(1)]
    )
    found = [layer for layer in flatten_layers(network) if isinstance(layer, Variational)]
    assert len(found) == 3
    expected = sum(array(layer.kl_divergence()) for layer in found)
    assert_allclose(array(bdl.elbo.kl_divergence(network)), expected, rtol=1e-6)


@pytest.mark.parametrize("merge_mode", ["concat", None])
def test_bidirectional_is_saved_with_its_noise(merge_mode: str | None, tmp_path: Path):
    inputs = keras.Input((5, 2))
    outputs = layers.Bidirectional(LSTMReparameterization(3, kernel_prior="normal", seed=4), merge_mode)(inputs)
    model = keras.Model(inputs, outputs if merge_mode else list(outputs))
    model(X)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    first, again, second = (keras.tree.map_structure(array, network(X)) for network in (model, loaded, loaded))
    keras.tree.map_structure(assert_array_equal, again, first)
    assert not np.allclose(second[0], first[0])


@pytest.mark.core
def test_variational_around_bidirectional_draws_once():
    layer = bidirectional_lstm(return_sequences=True)
    layer.build(X.shape)
    assert [weight.input_axes for weight in layer.sampled_weights.values()] == [(0,)] * 4
    twin = sampled_twin(layer, X.shape)
    assert_allclose(array(layer(X)), array(twin(X)), rtol=1e-5, atol=1e-6)
    mask = np.arange(5)[None] < np.array([[5], [3], [4]])
    twin = sampled_twin(layer, X.shape)
    assert_allclose(array(layer(X, mask=mask)), array(twin(X, mask=mask)), rtol=1e-5, atol=1e-6)
    assert np.array_equal(layer.compute_mask(X, mask), mask)


def test_variational_around_bidirectional_round_trips(tmp_path: Path):
    model = keras.Sequential([keras.Input((5, 2)), bidirectional_lstm()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert list(loaded.layers[0].sampled_weights) == list(model.layers[0].sampled_weights)
    assert_array_equal(array(loaded(X)), array(model(X)))


@pytest.mark.core
def test_time_distributed_inside_draws_once_and_outside_at_each_step():
    repeated = np.repeat(X[:, :1], 5, axis=1)
    inside = Variational(layers.TimeDistributed(layers.Dense(3)))
    outputs = array(inside(repeated))
    assert_allclose(outputs, np.repeat(outputs[:, :1], 5, axis=1), rtol=1e-6)
    outside = layers.TimeDistributed(DenseReparameterization(3))
    outputs = array(outside(repeated))
    assert np.all(np.abs(np.diff(outputs, axis=1)).max(axis=(0, 2)) > 1e-4)
    with bdl.mean_weights(outside):
        assert_allclose(array(outside(X)), array(outside.layer.layer(X)), rtol=1e-5, atol=1e-6)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore::bdl.uncounted.UncountedKLWarning")  # trained plainly on purpose
def test_time_distributed_layers_are_trained_and_saved(tmp_path: Path):
    inputs = keras.Input((5, 2))
    outputs = layers.TimeDistributed(DenseReparameterization(1))(inputs)
    model = keras.Model(inputs, Variational(layers.TimeDistributed(layers.Dense(1)))(outputs))
    assert sum(weight.path.endswith("rho") for weight in model.trainable_weights) == 2
    before = [array(weight) for weight in model.trainable_weights]
    model.compile("sgd", "mse")
    model.fit(X, np.ones((3, 5, 1)), verbose=0)
    assert all(np.any(array(weight) != old) for weight, old in zip(model.trainable_weights, before, strict=True))
    model.save(tmp_path / "model.keras")
    assert_array_equal(array(keras.saving.load_model(tmp_path / "model.keras")(X)), array(model(X)))


@pytest.mark.core
def test_gradients_of_both_directions_are_finite():
    found = {}
    for layer in (bidirectional_lstm(), layers.Bidirectional(GRUReparameterization(3))):
        layer.build(X.shape)
        found |= weight_gradients(layer, X, lambda y: ops.sum(ops.square(y - 1.0)))
    assert sum(path.endswith("rho") for path in found) == 8
    for path, gradient in found.items():
        assert np.all(np.isfinite(gradient)), path
        assert np.any(gradient != 0), path
