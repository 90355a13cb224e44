"""A tf_keras model (Keras 2) as a Keras 3 model, so that its predictions can be judged; its KL cannot be read."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops


class AsKeras3(keras.Model):
    """A tf_keras model that is called like one of Keras 3; it has no variables of its own.

    Args:
        inner: The tf_keras model.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(name=f"{inner.name} of tf_keras")
        self._call_inner = lambda x, training: inner(x, training=training)  # Keras must not look for layers in it
        self.loss = getattr(inner, "loss", None)
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        """The inner model's outputs."""
        outputs = self._call_inner(keras.tree.map_structure(ops.convert_to_numpy, x), bool(training))
        return ops.convert_to_tensor(np.asarray(outputs))


def is_tf_keras(model: Any) -> bool:
    """Whether a model is one of tf_keras, which is not imported to find out."""
    return any(cls.__module__.startswith("tf_keras.") for cls in type(model).__mro__)


def as_keras3(model: Any) -> Any:
    """A model, or a list of them, with those of tf_keras wrapped; all others as they are."""
    if isinstance(model, (list, tuple)):
        return [as_keras3(member) for member in model]
    return AsKeras3(model) if is_tf_keras(model) else model
