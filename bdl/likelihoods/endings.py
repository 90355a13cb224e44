"""What can be seen of how a network ends: the name and the last activation of each of its outputs.

A Functional or Sequential network shows it, also behind wrappers, nested networks, conversions and layers that move
values about and change none. The `call` of a subclassed network shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from bdl.keras_internals import output_structure, producer
from bdl.protocols import AroundNetwork, HasLocalLatents

# They keep each vector of the last axis as it is. By name, for there are layers and operations of these names.
_MOVES = ("ActivityRegularization", "Cast", "Identity", "Reshape")


@dataclass(frozen=True)
class Ending:
    """What can be seen of one output.

    Args:
        name: Of the layer or operation that makes it, the name of the output in Keras; None where it cannot be seen.
        activation: Name of its last activation, or None where there is none.
        is_seen: Whether the activation is known; otherwise it is that of the layer that was made last, a guess.
        alignments: Name of the layer whose decoder gives it, one value for each alignment, or None.
    """

    name: str | None = None
    activation: str | None = None
    is_seen: bool = False
    alignments: str | None = None


def endings_of(network: Any) -> Any:
    """The ending of each output, in the structure of the outputs; of a subclassed network one that is not seen.

    Example:
    >>> inputs = keras.Input((4,))
    >>> network = keras.Model(inputs, [keras.layers.Dense(3, "softmax", name="kind")(inputs)])
    >>> endings_of(network)
    [Ending(name='kind', activation='softmax', is_seen=True, alignments=None)]
    """
    while isinstance(network, AroundNetwork):
        network = network.network
    outputs = output_structure(network)
    if outputs is not None:
        return keras.tree.map_structure(_of_tensor, outputs)
    layers = list(getattr(network, "layers", None) or [])
    if isinstance(network, keras.Sequential):
        return _of_chain(layers)
    if isinstance(network, keras.Model):
        last = _of_chain(layers[-1:])
        return Ending(None, last.activation, is_seen=False, alignments=last.alignments)
    return _of_chain([network])


def _of_tensor(tensor: Any) -> Ending:
    operation, index, inputs = producer(tensor)
    if operation is None or isinstance(operation, keras.layers.InputLayer):
        return Ending(getattr(operation, "name", None))
    if isinstance(operation, keras.Model):
        inner = keras.tree.flatten(endings_of(operation))
        ending = inner[index] if index < len(inner) else Ending()
        # Of several outputs of one network Keras knows no names of their own.
        return ending if len(inner) > 1 else _named(ending, operation.name)
    if _moves(operation) and len(inputs) == 1:
        return _named(_of_tensor(inputs[0]), operation.name)
    return _named(_of_layer(operation), operation.name)


def _of_chain(layers: Sequence[Any]) -> Ending:
    """The ending of layers that follow each other."""
    for layer in reversed(layers):
        if isinstance(layer, keras.Model):
            inner = endings_of(layer)
            return inner if isinstance(inner, Ending) else Ending()
        if not _moves(layer):
            return _of_layer(layer)
    return Ending()


def _of_layer(layer: Any) -> Ending:
    """The ending of one layer or operation; where it has no activation of its own, what it gives is not known."""
    while isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    if isinstance(layer, HasLocalLatents) and layer.decoder is not None:
        inner = _of_chain([layer.decoder])
        return Ending(layer.name, inner.activation, inner.is_seen, alignments=layer.name)
    if type(layer).__name__ in ("Softmax", "Sigmoid"):
        return Ending(layer.name, type(layer).__name__.lower(), is_seen=True)
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    return Ending(getattr(layer, "name", None), None if name == "linear" else name, is_seen=activation is not None)


def _moves(layer: Any) -> bool:
    is_linear = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    return is_linear or type(layer).__name__ in _MOVES


def _named(ending: Ending, name: str | None) -> Ending:
    return Ending(name, ending.activation, ending.is_seen, ending.alignments)
