"""A layer as a pure function of its weights: what `Layer.stateless_call` gives, and what it leaves out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from bdl.keras_internals import current_value
from bdl.random import Tensor


@dataclass(frozen=True)
class Evaluation:
    """What a call of a layer with given values made.

    Attributes:
        outputs: What the layer's `call` returned.
        state: Each variable that the call assigned (statistics, seeds), with its new value.
        losses: What the call handed to `add_loss`; regularizers of weights are not among them.
    """

    outputs: Any
    state: list[tuple[keras.Variable, Tensor]]
    losses: list[Tensor]


class _OneLayer(keras.StatelessScope):
    """A scope around one layer within an evaluation of a network, and no evaluation by itself (`bdl.latents`)."""

    is_transparent = True


def call_with_values(layer: keras.Layer, values: Mapping[int, Tensor], *args: Any, **kwargs: Any) -> Evaluation:
    """Evaluates a layer with other values in the place of some of its variables, none of which changes.

    Args:
        layer: A built layer.
        values: Value of a variable by the variable's `id`. All others keep their own.
        *args: Positional arguments of the layer's `call`.
        **kwargs: Keyword arguments of the layer's `call`.

    Raises:
        ValueError: if the call assigns a trainable weight, or one whose value was given: there is no variable that
            the new value could go to.

    Example:
    >>> layer = keras.layers.Dense(1, kernel_initializer="ones")
    >>> layer.build((None, 2))
    >>> one = call_with_values(layer, {id(layer.kernel): 3.0 * np.ones((2, 1))}, np.ones((1, 2), "float32"))
    >>> float(one.outputs[0, 0]), float(layer.kernel[0, 0])
    (6.0, 1.0)
    """
    variables = layer.variables
    mapping = [(variable, values.get(id(variable), variable)) for variable in variables]
    scope = _OneLayer(state_mapping=mapping, collect_losses=True)
    before = [scope.get_current_value(variable) for variable in variables]
    call = layer.call if layer.quantization_mode is None else layer.quantized_call
    with scope:
        outputs = layer.rematerialized_call(call, *args, **kwargs)(*args, **kwargs)
    state = []
    for variable, old in zip(variables, before, strict=True):
        value = scope.get_current_value(variable)
        if value is not old:
            _check_assignable(layer, variable, values)
            state.append((variable, value))
    return Evaluation(outputs, state, list(scope.losses))


@contextlib.contextmanager
def evaluated_at(layer: keras.Layer, values: Mapping[int, Tensor]) -> Iterator[None]:
    """Within this context some variables of a layer have other values, for this thread; none of these changes.

    What calls assign to its other variables (statistics, seeds) reaches them at the end, and what they hand to
    `add_loss` is the layer's.

    Args:
        layer: A built layer.
        values: Value of a variable by the variable's `id`. All others keep their own.

    Example:
    >>> layer = keras.layers.Dense(1, kernel_initializer="ones")
    >>> layer.build((None, 2))
    >>> with evaluated_at(layer, {id(layer.kernel): 3.0 * np.ones((2, 1))}):
    ...     float(layer(np.ones((1, 2), "float32"))[0, 0])
    6.0
    >>> float(layer.kernel[0, 0])
    1.0
    """
    variables = layer.variables
    mapping = [(each, values[id(each)] if id(each) in values else current_value(each)) for each in variables]
    scope = _OneLayer(state_mapping=mapping, collect_losses=True)
    before = [scope.get_current_value(variable) for variable in variables]
    with scope:
        yield
    for variable, old in zip(variables, before, strict=True):
        value = scope.get_current_value(variable)
        if value is not old:
            _check_assignable(layer, variable, values)
            variable.assign(value)
    for loss in scope.losses:
        layer.add_loss(loss)


def computed_again(layer: keras.Layer, training: bool | None = None) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
    """A call of a built layer whose hidden values are computed again in the backward pass, from the same weights.

    `keras.remat` of the layer itself would read its weights again there. TensorFlow's graph optimizer drops the edge
    that holds the training step back until such a reading, so that now and then a gradient would be one of weights that
    were updated in part. Here the weights are read once, and are arguments of what is computed again.

    Args:
        layer: A built layer without noise and statistics.
        training: As in the layer's `call`.

    Returns:
        A function of the layer's inputs that gives its outputs, and what the call handed to `add_loss`.

    Example:
    >>> layer = keras.layers.Dense(1, kernel_initializer="ones")
    >>> layer.build((None, 2))
    >>> outputs, losses = computed_again(layer)(keras.ops.ones((1, 2)))
    >>> float(outputs[0, 0]), losses
    (2.0, [])
    """
    weights, others = layer.trainable_variables, [(each, each) for each in layer.non_trainable_variables]
    values = [current_value(weight) for weight in weights]

    def call(inputs: Tensor, *values: Tensor) -> list[Tensor]:
        scope = _OneLayer(state_mapping=[*zip(weights, values, strict=True), *others], collect_losses=True)
        with scope:
            outputs = layer(inputs, training=training)
        return [outputs, *scope.losses]

    again = keras.remat(call)

    def outputs_and_losses(inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs, *losses = again(inputs, *values)
        return outputs, losses

    return outputs_and_losses


def _check_assignable(layer: keras.Layer, variable: keras.Variable, values: Mapping[int, Tensor]) -> None:
    if variable.trainable or id(variable) in values:
        raise ValueError(
            f"`layer` must not assign its own weights while it is called, as {type(layer).__name__} {layer.name!r} "
            f"does with {variable.path!r}: this weight is sampled, or trained beside sampled ones, so the new value "
            "would be lost. Wrap the layer inside it instead, or leave it out of bdl."
        )
