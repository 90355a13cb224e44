"""Networks that evaluate some of their layers differently: the mechanism under every conversion.

A conversion neither copies nor rebuilds a network. It holds it, and for the moment of a call gives some of its layers
another `call`. So it works for Functional, Sequential and subclassed models, nested ones and shared layers alike, and
weights are shared by construction.

The other call is in force in one thread (or task) only: a context variable says which layers have one. While any
conversion is being called, its layers carry a `call` that looks there, and otherwise does what the layer did before;
afterwards they are as before. So the network that was converted, and every other conversion of it, may be used by other
threads at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import keras

from bdl.keras_internals import flatten_layers, input_signature_of
from bdl.report import exporting
from bdl.training.saving import SavesWhole

Calls = Mapping[keras.Layer, Callable[..., Any]]
"""Layers, and what evaluates each of them instead of its own `call`."""

_calls_in_force: ContextVar[Calls] = ContextVar("calls_in_force", default=MappingProxyType({}))
_lock = threading.Lock()


class _Dispatch:
    """What stands as `call` in a layer while any thread replaces it: the call in force in this thread, or its own."""

    def __init__(self, layer: keras.Layer) -> None:
        self.own = layer.call
        self._layer = layer
        self._is_of_instance = "call" in vars(layer)
        self.users = 0
        functools.update_wrapper(self, self.own, updated=())  # whoever reads the signature sees the layer's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _calls_in_force.get().get(self._layer, self.own)(*args, **kwargs)

    @classmethod
    def acquire(cls, layer: keras.Layer) -> _Dispatch:
        """Makes the layer dispatch; with the lock held."""
        found = vars(layer).get("call")
        if not isinstance(found, _Dispatch):
            # Not by setattr: to Keras and its backends this is no attribute to be tracked.
            found = vars(layer)["call"] = cls(layer)
        found.users += 1
        return found

    def release(self) -> None:
        """Gives the layer its own call back if nobody else needs this; with the lock held."""
        self.users -= 1
        if self.users == 0 and self._is_of_instance:
            vars(self._layer)["call"] = self.own
        elif self.users == 0:
            del vars(self._layer)["call"]


@contextlib.contextmanager
def calls_replaced(calls: Calls) -> Iterator[None]:
    """Within this context these layers are evaluated by the given calls, in this thread alone.

    Example:
    >>> layer = keras.layers.Dropout(0.5)
    >>> with calls_replaced({layer: lambda inputs, training=False: inputs + 1.0}):
    ...     float(layer(np.zeros((1, 1), "float32"))[0, 0])
    1.0
    >>> "call" in vars(layer)
    False
    """
    with _lock:
        dispatches = [_Dispatch.acquire(layer) for layer in calls]
    token = _calls_in_force.set({**_calls_in_force.get(), **calls})
    try:
        yield
    finally:
        _calls_in_force.reset(token)
        with _lock:
            for dispatch in dispatches:
                dispatch.release()


def call_in_force(layer: keras.Layer) -> Callable[..., Any]:
    """What evaluates a layer at the moment in this thread: its own call, or that of a conversion around.

    A conversion inside another one builds its own calls around these.
    """
    call = layer.call
    own = call.own if isinstance(call, _Dispatch) else call
    return _calls_in_force.get().get(layer, own)


class ConvertedModel(SavesWhole, keras.Model):
    """A network and what is done differently in it. Base of the conversions; called like the network.

    Args:
        network: A built Keras model. Its weights are shared, not copied.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: if the network is not a built Keras model, or holds a Lambda layer.
    """

    network: keras.Model
    is_called_like_network = True  # which `bdl.keras_internals` asks for

    def __init__(self, network: keras.Model, **kwargs: Any) -> None:
        check_network(network)
        super().__init__(**kwargs)
        self._accepts = set(inspect.signature(network.call).parameters)

    def replacements(self) -> Calls:
        """What is different in this call."""
        raise NotImplementedError

    def build(self, input_shape: Any = None) -> None:
        """Nothing to do: the network is built."""
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Evaluates the network with its replacements in force."""
        offered = {"training": training, "mask": mask}
        kwargs = {name: value for name, value in offered.items() if name in self._accepts and value is not None}
        replacements = self.replacements()
        _check_not_quantized(replacements)
        with calls_replaced(replacements):
            return self.network(inputs, **kwargs)

    def export(self, filepath: Any, format: str = "tf_saved_model", *args: Any, **kwargs: Any) -> Any:
        """Exports as `keras.Model.export` does: raw outputs, with a new draw at each call.

        `bdl.export_distribution` exports means and uncertainties, in other formats too. The inputs are the network's,
        which Keras does not see.

        Raises:
            ValueError: if the format cannot hold a draw, or nothing tells what the inputs are.
        """
        if format != "tf_saved_model" or keras.backend.backend() == "torch":
            raise ValueError(
                f"`format` must be 'tf_saved_model', on TensorFlow or JAX, not {format!r} on "
                f"{keras.backend.backend()}: no other holds a seed that moves on from draw to draw. Export means and "
                "uncertainties by bdl.export_distribution, or the network without noise by "
                "bdl.convert.to_deterministic(model)."
            )
        if kwargs.get("input_signature") is None and len(args) < 2:
            kwargs["input_signature"] = input_signature_of(self)
        with exporting(filepath) as draft:
            return super().export(draft, format, *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refused: Keras evaluates a quantized layer by another method, which no conversion reaches.

        Raises:
            ValueError: always, before anything is changed.
        """
        raise ValueError(
            f"A {type(self).__name__} must not be quantized, as {self.name!r} would be: its layers would lose their "
            "noise. Quantize a copy of bdl.convert.to_deterministic(model), the plain model, which shares its weights "
            "with this one (save it and load it)."
        )


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


def is_quantized(layer: Any) -> bool:
    """Whether Keras evaluates a layer by its `quantized_call`, which no conversion replaces.

    Example:
    >>> is_quantized(keras.layers.Dense(2))
    False
    """
    return getattr(layer, "quantization_mode", None) is not None


def _check_not_quantized(layers: Calls) -> None:
    quantized = [layer.name for layer in layers if is_quantized(layer)]
    if quantized:
        raise ValueError(
            f"Layers {quantized} must not be quantized, as they were after the conversion: they would be evaluated "
            "without their noise. Convert a model whose layers are not quantized."
        )
