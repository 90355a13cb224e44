"""Gradients of a layer's weights on any backend, and many draws of a layer in one compiled loop."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

Loss = Callable[[Any], Any]


def gradients(function: Callable[[list[Any]], Any], values: list[Any]) -> list[Any]:
    """Gradients of a scalar function of a list of tensors; zeros where it does not depend on one."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            result = function(values)
        return tape.gradient(result, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    if backend == "jax":
        import jax

        return jax.grad(function)(values)
    import torch

    with torch.enable_grad():
        values = [value.detach().requires_grad_() for value in values]
        return list(torch.autograd.grad(function(values), values, materialize_grads=True))


def weight_gradients(layer: keras.Layer, x: Any, loss: Loss, training: bool = True) -> dict[str, np.ndarray]:
    """Gradient of `loss(layer(x))`, for one draw, by the path of each trainable weight."""
    x, weights, state = (
        ops.convert_to_tensor(x),
        _values(layer.trainable_variables),
        _values(layer.non_trainable_variables),
    )

    def evaluate(values: list[Any]) -> list[Any]:
        return gradients(lambda values: loss(layer.stateless_call(values, state, x, training=training)[0]), values)

    if keras.backend.backend() == "jax":
        import jax

        evaluate = jax.jit(evaluate)
    values = map(ops.convert_to_numpy, evaluate(weights))
    return {weight.path: value for weight, value in zip(layer.trainable_variables, values, strict=True)}


def draw_gradients(layer: keras.Layer, x: Any, loss: Loss, n: int, training: bool = True) -> dict[str, np.ndarray]:
    """`n` draws of the gradient of `loss(layer(x))`, each `(n, *weight shape)`, by the path of the weight."""
    x = ops.convert_to_tensor(x)
    weights = _values(layer.trainable_variables)

    def step(state: list[Any]) -> tuple[Any, list[Any]]:
        def of_weights(values: list[Any]) -> Any:
            return loss(layer.stateless_call(values, state, x, training=training)[0])

        return gradients(of_weights, weights), layer.stateless_call(weights, state, x, training=training)[1]

    values = _repeat(step, layer, n)
    return {weight.path: value for weight, value in zip(layer.trainable_variables, values, strict=True)}


def draw(layer: keras.Layer, x: Any, n: int, training: bool = False) -> np.ndarray:
    """`n` outputs of a layer for the same input, `(n, *output shape)`."""
    x = ops.convert_to_tensor(x)
    weights = _values(layer.trainable_variables)
    return _repeat(lambda state: layer.stateless_call(weights, state, x, training=training), layer, n)


def repeated(step: Callable[[list[Any]], tuple[Any, list[Any]]], n: int) -> Callable[[list[Any]], Any]:
    """A compiled function from a state to the values of `n` steps, stacked; each gets the state from the one before."""

    def body(state: list[Any], _: Any) -> tuple[list[Any], Any]:
        value, state = step(state)
        return [ops.convert_to_tensor(entry) for entry in state], value

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True, autograph=False)
        def loop(start: list[Any]) -> Any:
            empty = keras.tree.map_structure(tf.zeros_like, step(start)[0])
            return tf.scan(lambda carry, _: body(carry[0], _), tf.range(n), initializer=(start, empty))[1]
    else:

        def loop(start: list[Any]) -> Any:
            return ops.scan(body, start, length=n)[1]

        if backend == "jax":
            import jax

            loop = jax.jit(loop)
    return lambda start: keras.tree.map_structure(ops.convert_to_numpy, loop(start))


def _repeat(step: Callable[[list[Any]], tuple[Any, list[Any]]], layer: keras.Layer, n: int) -> Any:
    """Values of `n` steps, stacked; each step gets the layer's state (its seeds) from the one before."""
    return repeated(step, n)(_values(layer.non_trainable_variables))


def _values(variables: list[keras.Variable]) -> list[Any]:
    return [ops.convert_to_tensor(ops.convert_to_numpy(variable)) for variable in variables]
