"""What differs between backends outside of Keras' trainer: compilers and derivatives of functions of tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import compiled
from bdl.random import Tensor

Function = Callable[[Tensor], Tensor]
"""From a vector to a scalar."""


def in_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, compiled by JAX, a graph on TensorFlow, and as it is on Torch.

    What it reads of variables is theirs at its first call on JAX: make it anew once they have changed.

    Example:
    >>> float(in_graph(lambda x: 2.0 * x)(ops.ones(())))
    2.0
    """
    if keras.backend.backend() != "tensorflow":
        return compiled(function)
    import tensorflow as tf

    return tf.function(function, autograph=False, reduce_retracing=True)


class Kept:
    """Functions that were compiled, kept for further calls with arrays of the same shapes.

    Example:
    >>> kept = Kept()
    >>> [float(kept("twice", lambda x: 2.0 * x, ops.convert_to_tensor(each))) for each in (1.0, 2.0)]
    [2.0, 4.0]
    """

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {}

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result.

        Args:
            name: Of the function: under one name it must always do the same. It may read no variables.
            function: Of the arguments.
            *arguments: Tensors in any structure.
        """
        shapes = keras.tree.map_structure(lambda leaf: f"{leaf.dtype}{tuple(leaf.shape)}", arguments)
        kept = name, repr(shapes)
        if kept not in self._functions:
            # Of each shape one function, whose sizes are known. A partial, for TensorFlow counts the traces of a code
            # object, and warns at the fifth.
            self._functions[kept] = in_graph(functools.partial(function))
        return self._functions[kept](*arguments)


def values_and_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values of a function by row, and the gradient of each in its row, wherever this is called.

    That may be within a compiled step and within a gradient, which does not go through the result.

    Args:
        function: From `(rows, size)` to `(rows,)`; no row depends on another.
        x: `(rows, size)`.

    Returns:
        `(rows,)` and `(rows, size)`.

    Example:
    >>> values, gradient = values_and_gradient(lambda x: ops.sum(x**2, axis=-1), ops.ones((3, 2)))
    >>> float(values[0]), float(gradient[0, 0])
    (2.0, 2.0)
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        values, pull = jax.vjp(function, x)
        (gradient,) = pull(ops.ones_like(values))
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            values = function(x)
        gradient = tape.gradient(values, x, unconnected_gradients="zero")
    else:
        import torch

        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = function(x)
            (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True, materialize_grads=True)
    return ops.stop_gradient(values), ops.stop_gradient(gradient)


def value_and_gradient(function: Function, dtype: str) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """A function with its gradient, from and to NumPy arrays in float64, as SciPy takes them.

    Args:
        function: From a vector to a scalar.
        dtype: In which it computes.

    Example:
    >>> value, gradient = value_and_gradient(lambda x: ops.sum(x**2), "float32")(np.array([1.0, 2.0]))
    >>> float(value), gradient
    (5.0, array([2., 4.]))
    """
    evaluate = _differentiated(function)

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(ops.convert_to_tensor(x, dtype=dtype))
        return float(ops.convert_to_numpy(value)), ops.convert_to_numpy(gradient).astype("float64")

    return both


def hessian(function: Function, dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """The matrix of second derivatives of a function, by the backend.

    Example:
    >>> hessian(lambda x: x[0] * x[1], "float32")(np.zeros(2))
    array([[0., 1.],
           [1., 0.]])
    """
    evaluate = _twice_differentiated(function)
    return lambda x: ops.convert_to_numpy(evaluate(ops.convert_to_tensor(x, dtype=dtype))).astype("float64")


class Differentiable:
    """A function from a vector to a scalar with its first two derivatives, each of them compiled once.

    Args:
        function: The function.
        dtype: In which it computes.

    Attributes:
        value_and_gradient: See `value_and_gradient`.
        hessian: See `hessian`.

    Example:
    >>> square = Differentiable(lambda x: ops.sum(x**2), "float32")
    >>> square.value_and_gradient(np.array([1.0, 2.0]))[1], square.hessian(np.array([1.0]))
    (array([2., 4.]), array([[2.]]))
    """

    def __init__(self, function: Function, dtype: str) -> None:
        self.value_and_gradient = value_and_gradient(function, dtype)
        self.hessian = hessian(function, dtype)


def _differentiated(function: Function) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(jax.value_and_grad(function))
    if backend == "tensorflow":
        import tensorflow as tf

        def with_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x)
            return value, tape.gradient(value, x, unconnected_gradients="zero")

        return _by_xla_or_graph(with_gradient)
    import torch

    def with_torch(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = function(x)
        return value.detach(), torch.autograd.grad(value, x)[0]

    return with_torch


def _twice_differentiated(function: Function) -> Function:
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(jax.hessian(function))
    if backend == "tensorflow":
        import tensorflow as tf

        def second(x: Tensor) -> Tensor:
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    value = function(x)
                gradient = inner.gradient(value, x, unconnected_gradients="zero")
            # Row by row: TensorFlow's vectorized rows fail in stories with a loop or a condition.
            return outer.jacobian(gradient, x, unconnected_gradients="zero", experimental_use_pfor=False)

        return _by_xla_or_graph(second)
    import torch

    return lambda x: torch.autograd.functional.hessian(function, x)


def _by_xla_or_graph(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A function compiled by XLA, several times faster where a story loops; a graph where XLA cannot compile it.

    That is so for the derivatives of loops whose length XLA is not told, such as `keras.ops.scan`, and for Python
    functions.
    """
    import tensorflow as tf

    by_xla = tf.function(function, autograph=False, jit_compile=True)
    by_graph = tf.function(function, autograph=False)
    chosen: list[Callable[[Tensor], Any]] = []

    def evaluate(x: Tensor) -> Any:
        if chosen:
            return chosen[0](x)
        try:
            result = by_xla(x)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            chosen.append(by_graph)
            return by_graph(x)
        chosen.append(by_xla)
        return result

    return evaluate
