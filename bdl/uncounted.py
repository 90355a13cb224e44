"""Notices a model that trains without the KL of its layers, and says so once.

Layers of bdl add no loss by themselves: `bdl.VariationalModel` and `bdl.ELBO` count their KL. A plain
`compile(loss=...)` would leave it out. The first moment when that can be seen is a layer's call in a training step,
whose outermost call is the compiled model's. On JAX a training step goes past that call; there Keras has evaluated the
model symbolically before, which is when it is noted.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from contextvars import ContextVar

import keras

from bdl.keras_internals import call_context, outermost_scope


class UncountedKLWarning(UserWarning):
    """A model is trained on a loss without the KL of its layers."""


_is_counted: ContextVar[bool] = ContextVar("is_counted", default=False)
_models: weakref.WeakKeyDictionary[keras.Layer, weakref.ref] = weakref.WeakKeyDictionary()
"""The plain model that a layer was last evaluated in."""
_warned: weakref.WeakSet[keras.Model] = weakref.WeakSet()
_in_loss: weakref.WeakSet[keras.Model] = weakref.WeakSet()
"""Models with a `bdl.ELBO` of their own."""
_read_in_calls: weakref.WeakSet[keras.Layer] = weakref.WeakSet()
_read: weakref.WeakSet[keras.Layer] = weakref.WeakSet()
_first_calls: weakref.WeakKeyDictionary[keras.Layer, weakref.ref | None] = weakref.WeakKeyDictionary()
"""Keras' call context of the first training step of a layer."""


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Within this context nothing is left out: in a `VariationalModel`'s step, or where a model is only measured."""
    token = _is_counted.set(True)
    try:
        yield
    finally:
        _is_counted.reset(token)


def note_objective(model: keras.Layer) -> None:
    """Notes that a `bdl.ELBO` counts a model's KL, in a loop of the user's or as a part of another loss."""
    _in_loss.add(model)


def note_reading(layer: keras.Layer) -> None:
    """Notes that a layer's KL was asked for; inside a call, of the layer or of a model, it goes to `add_loss`."""
    _read.add(layer)
    if call_context() is not None:
        _read_in_calls.add(layer)


def warn_if_uncounted(layer: keras.Layer, training: bool | None = None) -> None:
    """Warns if a layer is being called in the training step of a model whose loss leaves its KL out.

    Args:
        layer: A layer with a KL of its weights or of latent variables; it calls this in its `call`.
        training: Of the call; None takes Keras' present setting.
    """
    if _is_counted.get():
        return
    context = call_context()
    entry = getattr(context, "entry_layer", None)
    if isinstance(entry, keras.Model) and entry.compiled:
        training = context.get_value("training") if training is None else training
        if _is_plain(entry, layer):
            _models[layer] = weakref.ref(entry)
        else:
            _models.pop(layer, None)
    elif outermost_scope() is None:
        return  # no trainer of Keras: a loop or a prediction of the user's
    noted = _models.get(layer)
    model = None if noted is None or not training else noted()
    if model is None or model in _warned or model in _in_loss or _own_loss_may_count(model, layer):
        return
    _warned.add(model)
    warnings.warn(
        f"{model.name!r} is trained on a loss without the KL of its layers ({layer.name!r}, for one): their posteriors "
        "will shrink to points. Train bdl.VariationalModel(network, likelihood) in its place, or compile it with "
        "loss=bdl.ELBO(likelihood, num_examples=N, model=network).",
        UncountedKLWarning,
        stacklevel=2,
    )


def _is_plain(model: keras.Model, layer: keras.Layer) -> bool:
    """Whether a compiled model has Keras' own training step, and no loss that counts the KL."""
    own = type(model)
    if own.train_step is not keras.Model.train_step or own.compute_loss is not keras.Model.compute_loss:
        return False
    if any(getattr(loss, "counts_kl", False) for loss in keras.tree.flatten(model.loss)):
        return False
    # A `call` of the user's adds it by `add_loss`, and has been there when the model was built.
    return layer not in _read_in_calls


def _own_loss_may_count(model: keras.Model, layer: keras.Layer) -> bool:
    """Whether a loss of the user's has asked for the KL, or had no occasion yet: it comes after the layers' calls."""
    losses = [loss for loss in keras.tree.flatten(model.loss) if callable(loss)]
    if all((getattr(loss, "__module__", None) or "").startswith("keras.") for loss in losses):
        return False
    context = call_context()
    if layer not in _first_calls:
        _first_calls[layer] = None if context is None else weakref.ref(context)
    first = _first_calls[layer]
    return layer in _read or first is None or first() is context
