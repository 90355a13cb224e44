"""Which layers of a model a conversion means."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import keras

from bdl.keras_internals import direct_layers
from bdl.layers import Variational

Selector = str | type | Callable[[keras.Layer], bool] | Iterable[Any]
"""`"all"`, `"last"`, a layer's name, a pattern such as `"block5_*"`, a layer class, a predicate, or several of them."""

# Evaluated as a whole: Keras calls the layer inside once per time step, and a weight is drawn once per sequence.
_UNITS = (keras.layers.RNN, keras.layers.TimeDistributed, Variational)


def walk(model: keras.Layer) -> list[keras.Layer]:
    """Every layer inside a model at any depth, each once, in the order of the model; units are not entered.

    Example:
    >>> model = keras.Sequential([keras.Input((2, 3)), keras.layers.LSTM(4), keras.layers.Dense(1)])
    >>> [type(layer).__name__ for layer in walk(model)]
    ['LSTM', 'Dense']
    """
    found: dict[int, keras.Layer] = {}
    for layer in direct_layers(model):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        found.setdefault(id(layer), layer)
        if not isinstance(layer, _UNITS):
            for inner in walk(layer):
                found.setdefault(id(inner), inner)
    return list(found.values())


def select(
    model: keras.Model, selector: Selector, is_candidate: Callable[[keras.Layer], bool], argument: str
) -> list[keras.Layer]:
    """The layers that a selector means, in the order of the model.

    Args:
        model: A built model.
        selector: See `Selector`.
        is_candidate: What `"all"`, `"last"`, patterns and classes choose from.
        argument: Name of the argument, for error messages.

    Raises:
        ValueError: if the selector is of the wrong kind or selects nothing; if `"last"` is not one layer.
    """
    layers = walk(model)
    candidates = [layer for layer in layers if is_candidate(layer)]
    chosen = {id(layer) for part in _parts(selector) for layer in _matches(part, model, layers, candidates, argument)}
    if not chosen:
        raise ValueError(
            f"`{argument}`={selector!r} selects no layer of {model.name!r}. Layers to choose from: "
            f"{[layer.name for layer in candidates]}."
        )
    return [layer for layer in layers if id(layer) in chosen]


def _parts(selector: Selector) -> list[Any]:
    if isinstance(selector, (str, type)) or callable(selector):
        return [selector]
    return list(selector) if isinstance(selector, Iterable) else [selector]


def _matches(
    part: Any, model: keras.Model, layers: list[keras.Layer], candidates: list[keras.Layer], argument: str
) -> list[keras.Layer]:
    if part == "all":
        return candidates
    if part == "last":
        num_outputs = len(keras.tree.flatten(getattr(model, "outputs", None) or [None]))
        if num_outputs > 1:
            raise ValueError(
                f"`{argument}`='last' is ambiguous: {model.name!r} has {num_outputs} outputs. Name the layers, one for "
                "each output."
            )
        return candidates[-1:]
    if isinstance(part, str):
        # A name is exact, so a layer that cannot be converted is found too, and the error can say why.
        return [layer for layer in layers if layer.name == part] or [
            layer for layer in candidates if fnmatch.fnmatch(layer.name, part)
        ]
    if isinstance(part, type):
        return [layer for layer in layers if isinstance(layer, part)]
    if isinstance(part, keras.Layer):
        return [layer for layer in layers if layer is part]
    if callable(part):
        return [layer for layer in layers if part(layer)]
    raise ValueError(
        f"`{argument}` must be 'all', 'last', a layer's name or a pattern, a layer class, a predicate, or a list of "
        f"these, not {part!r}."
    )
