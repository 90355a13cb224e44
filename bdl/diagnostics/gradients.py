"""Gradients of the two halves of the ELBO, layer by layer: does the likelihood steer, or the KL (Q16)?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.diagnostics.quantities import LayerHealth
from bdl.diagnostics.weights import WeightPosterior
from bdl.elbo import kl_divergence
from bdl.keras_internals import current_value
from bdl.latents import without_local_kl
from bdl.likelihoods import Likelihood

_EXAMPLES = 512  # that the gradient of the NLL is a mean over at most


def with_gradients(
    layers: tuple[LayerHealth, ...],
    posteriors: list[WeightPosterior],
    network: keras.Model,
    x: Any,
    y: Any,
    likelihood: Likelihood,
    num_examples: int,
) -> tuple[LayerHealth, ...]:
    """Layers with the norms' ratio and the cosine of the gradients of KL / N and of the mean NLL.

    With respect to means and untransformed scales, for one draw of the noise. Layers of other libraries, whose KL is
    known to their own loss only, are returned as they are.
    """
    x = keras.tree.map_structure(lambda leaf: ops.convert_to_tensor(np.asarray(leaf)[:_EXAMPLES]), x)
    y = ops.convert_to_tensor(np.asarray(y)[:_EXAMPLES])
    variables = list(network.trainable_variables)
    nll = _gradients(lambda: ops.mean(likelihood.nll(y, network(x, training=True))), variables)
    kl = _gradients(lambda: kl_divergence(network) / num_examples, variables)
    index = {id(variable): number for number, variable in enumerate(variables)}

    def of(layer: LayerHealth) -> LayerHealth:
        parts = [part for part in posteriors if part.layer == layer.name]
        numbers = [index[id(variable)] for part in parts for variable in part.variables if id(variable) in index]
        if not numbers:
            return layer
        a, b = (np.concatenate([side[number].ravel() for number in numbers]) for side in (kl, nll))
        norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        if not norms[0]:
            return layer
        cosine = float(a @ b / (norms[0] * norms[1])) if norms[1] else 0.0
        return dataclasses.replace(layer, gradient_ratio=norms[0] / max(norms[1], 1e-12), gradient_cosine=cosine)

    return tuple(of(layer) for layer in layers)


def _gradients(value: Callable[[], Any], variables: list[keras.Variable]) -> list[np.ndarray]:
    """Gradient of a scalar with respect to variables; zeros where it does not depend on one.

    The scalar is computed in a scope of its own: other threads see nothing of it, and seeds are as before after it.
    """

    def of_values(values: list[Any]) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))), without_local_kl():
            return value()

    found = gradient_of(of_values, is_repeated=False)([current_value(variable) for variable in variables])
    return [ops.convert_to_numpy(gradient) for gradient in found]


def gradient_of(function: Callable[..., Any], is_repeated: bool = True) -> Callable[..., list[Any]]:
    """The gradient of a function in its first argument.

    Args:
        function: From a list of tensors, and more arguments, to a scalar. It reads no variables.
        is_repeated: Whether the gradient is wanted several times, so that TensorFlow makes a graph of it, as JAX, which
            would compile each operation of each shape by itself, always does.

    Returns:
        A function of the same arguments that gives a list of tensors, with zeros where the scalar does not depend on
        one. Arguments of new shapes are compiled anew.

    Example:
    >>> one, other = gradient_of(lambda values, factor: factor * values[0] ** 2)([ops.ones(()), ops.ones(())], 3.0)
    >>> float(one), float(other)
    (6.0, 0.0)
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def with_tape(values: list[Any], *others: Any) -> list[Any]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                result = function(values, *others)
            found = tape.gradient(result, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return [tf.convert_to_tensor(gradient) for gradient in found]  # those of lookups are sparse

        return tf.function(with_tape, autograph=False) if is_repeated else with_tape
    if backend == "jax":
        import jax

        return jax.jit(jax.grad(function))
    import torch

    def with_torch(values: list[Any], *others: Any) -> list[Any]:
        values = [value.detach().requires_grad_() for value in values]
        with torch.enable_grad():
            result = function(values, *others)
            if not result.requires_grad:  # it depends on none
                return [torch.zeros_like(value) for value in values]
            found = torch.autograd.grad(result, values, materialize_grads=True)
        return [gradient.detach() for gradient in found]

    return with_torch
