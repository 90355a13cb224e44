"""Networks that evaluate some of their layers differently: the mechanism under every conversion.

A conversion neither copies nor rebuilds a network. It holds it, and for the moment of a call gives some of its layers
another `call` (an attribute of the instance, taken away afterwards). So it works for Functional, Sequential and
subclassed models, nested ones and shared layers alike; weights are shared by construction, and the network that was
converted is as it was whenever the conversion is not being called.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from bdl.keras_internals import flatten_layers

_ABSENT = object()


@dataclass(frozen=True)
class Replacement:
    """Another value for an attribute of one object, for the moment of a call."""

    owner: Any
    name: str
    value: Any


@contextlib.contextmanager
def replaced(replacements: Iterable[Replacement]) -> Iterator[None]:
    """Within this context the attributes have the given values; afterwards they are as before.

    Example:
    >>> layer = keras.layers.Dropout(0.5)
    >>> with replaced([Replacement(layer, "call", lambda inputs, training=False: inputs + 1.0)]):
    ...     float(layer(np.zeros((1, 1), "float32"))[0, 0])
    1.0
    >>> "call" in vars(layer)
    False
    """
    before = []
    try:
        for replacement in replacements:
            before.append((replacement, vars(replacement.owner).get(replacement.name, _ABSENT)))
            setattr(replacement.owner, replacement.name, replacement.value)
        yield
    finally:
        for replacement, value in reversed(before):
            if value is _ABSENT:
                delattr(replacement.owner, replacement.name)
            else:
                setattr(replacement.owner, replacement.name, value)


class ConvertedModel(keras.Model):
    """A network and what is done differently in it. Base of the conversions; called like the network.

    Args:
        network: A built Keras model. Its weights are shared, not copied.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: if the network is not a built Keras model, or holds a Lambda layer.
    """

    def __init__(self, network: keras.Model, **kwargs: Any) -> None:
        check_network(network)
        super().__init__(**kwargs)
        self._accepts = set(inspect.signature(network.call).parameters)

    def replacements(self) -> list[Replacement]:
        """What is different in this call."""
        raise NotImplementedError

    def build(self, input_shape: Any = None) -> None:
        """Nothing to do: the network is built."""
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Evaluates the network with its replacements in force."""
        offered = {"training": training, "mask": mask}
        kwargs = {name: value for name, value in offered.items() if name in self._accepts and value is not None}
        with replaced(self.replacements()):
            return self.network(inputs, **kwargs)


def check_network(network: Any) -> None:
    """Raises ValueError unless this is a built Keras model all of whose layers can be seen."""
    if not isinstance(network, keras.Model):
        raise ValueError(f"`model` must be a keras.Model, not {network!r}.")
    if not network.built:
        raise ValueError(
            f"`model` {network.name!r} is not built, so its layers have no weights yet: call it once on an example, or "
            "call model.build(input_shape)."
        )
    hidden = [layer.name for layer in flatten_layers(network) if isinstance(layer, keras.layers.Lambda)]
    if hidden:
        raise ValueError(
            f"`model` holds Lambda layers {hidden}: what happens inside them cannot be seen (nor saved safely). "
            "Replace each by a registered keras.Layer subclass."
        )


def original_call(layer: keras.Layer) -> Callable[..., Any]:
    """The layer's own call, whatever replaces it at the moment."""
    return type(layer).call.__get__(layer)
