"""A layer as a function of its weights: against Keras' own `stateless_call`, and what only ours tells."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal

from bdl.estimators.stateless import call_with_values, computed_again

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


class AssignsItsWeight(layers.Layer):
    """Halves its weight whenever it is called, and counts its calls."""

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1],), initializer="ones")
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)

    def call(self, inputs: Any, halves: bool = True) -> Any:
        self.calls.assign_add(1.0)
        if halves:
            self.kernel.assign(self.kernel / 2.0)
        return inputs * self.kernel


@pytest.mark.core
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_outputs_and_state_are_those_of_keras(policy: str):
    layer = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, dtype=policy), layers.BatchNormalization(), layers.Dropout(0.5, seed=0)]
    )
    values = [np.full(weight.shape, 0.5, "float32") for weight in layer.trainable_variables]
    expected, state = layer.stateless_call(values, layer.non_trainable_variables, X, training=True)
    known = {id(variable): value for variable, value in zip(layer.trainable_variables, values, strict=True)}
    before = [array(variable) for variable in layer.variables]
    found = call_with_values(layer, known, X, training=True)
    assert_array_equal(array(found.outputs), array(expected))
    changed = {id(variable): array(value) for variable, value in found.state}
    assert len(changed) == 3, "two moving statistics and a seed"
    for variable, value in zip(layer.non_trainable_variables, state, strict=True):
        assert_array_equal(changed.get(id(variable), array(variable)), array(value))
    for variable, value in zip(layer.variables, before, strict=True):
        assert_array_equal(array(variable), value)


@pytest.mark.core
def test_losses_are_those_of_the_call_and_no_regularizers():
    layer = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2(1.0))]
    )
    found = call_with_values(layer, {}, X)
    assert len(found.losses) == 1
    assert_allclose(array(found.losses[0]), np.sum(array(found.outputs) ** 2) / len(X), rtol=1e-5)


@pytest.mark.core
def test_a_layer_that_assigns_its_own_weight_is_refused_by_name():
    layer = AssignsItsWeight(name="halver")
    layer.build((None, 3))
    with pytest.raises(ValueError, match=r"must not assign its own weights .* 'halver' does with .*kernel"):
        call_with_values(layer, {}, X)
    layer.trainable = False  # then it is state like any other, unless it is sampled
    found = call_with_values(layer, {}, X)
    assert [variable.path for variable, _ in found.state] == [layer.kernel.path, layer.calls.path]
    assert_allclose(array(found.outputs), X / 2)
    with pytest.raises(ValueError, match="must not assign its own weights"):
        call_with_values(layer, {id(layer.kernel): ops.ones((3,))}, X)
    assert [array(layer.calls), *array(layer.kernel)] == [0.0, 1.0, 1.0, 1.0]
    layer.trainable = True
    assert [variable for variable, _ in call_with_values(layer, {}, X, halves=False).state] == [layer.calls]


def test_quantized_layers_and_recomputed_ones_are_evaluated_as_keras_does():
    with keras.RematScope(mode="full"):
        recomputed = layers.Dense(2, activation="relu")
    quantized = layers.Dense(2, kernel_initializer="random_normal")
    for layer in (recomputed, quantized):
        layer.build((None, 3))
    quantized.quantize("int8")
    for layer in (recomputed, quantized):
        assert_allclose(array(call_with_values(layer, {}, X).outputs), array(layer(X)), rtol=1e-6)


def number_of_readings(function: Any) -> int:
    """How often the graph of a function of `X` reads a variable."""
    import tensorflow as tf

    graph = tf.function(function).get_concrete_function(tf.constant(X)).graph
    return sum(operation.type == "ReadVariableOp" for operation in graph.get_operations())


def test_what_is_computed_again_does_not_read_its_weights_again():
    """A reading in the backward pass may come after the training step has moved the weight."""
    import tensorflow as tf

    layer = keras.Sequential([keras.Input((3,)), layers.Dense(2, activation="tanh"), layers.Dense(1)])
    weights = [weight.value for weight in layer.trainable_variables]

    def gradients(x: Any, call: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = call(x)
        return tape.gradient(outputs, weights)

    def again(x: Any) -> Any:
        return computed_again(layer)(x)[0]

    assert number_of_readings(again) == number_of_readings(lambda x: gradients(x, again)) == len(weights)
    for found, expected in zip(gradients(X, again), gradients(X, layer), strict=True):
        assert_allclose(array(found), array(expected), rtol=1e-5)
    remat = keras.remat(lambda x: layer(x))
    assert number_of_readings(lambda x: gradients(x, remat)) > len(weights), "keras.remat would do"
