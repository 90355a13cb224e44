"""Likelihoods of labels: one of several classes, or 0 and 1."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.likelihoods.base import Likelihood, check_entries, check_shape
from bdl.random import Tensor

_PROBABILITY_FLOOR = 1e-7

_register = keras.saving.register_keras_serializable(package="bdl")


class Classifier(Likelihood):
    """A discrete label whose outputs are logits or, of a network that squashes them itself, probabilities."""

    is_classifier = True

    def __init__(self, from_logits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`p`, the outputs' shape: of each class, or of label 1."""
        return {"p": self.mean(outputs)}

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "from_logits": self.from_logits}


@_register
class Categorical(Classifier):
    """One of several classes; the network's last axis holds their logits.

    Args:
        from_logits: True for raw outputs; False for a network that ends in softmax.
        **kwargs: `name` of the layer.

    Labels: integers `(batch, ...)`, outputs `(batch, ..., classes)`.

    Example:
    >>> likelihood = Categorical()
    >>> nll = likelihood.nll(np.array([0, 1]), np.zeros((2, 4), "float32"))
    >>> bool(np.allclose(nll, np.log(4)))
    True
    """

    has_class_axis = True

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """`(batch, ...)`, in nats."""
        labels = ops.cast(y, "int32")
        return -ops.sparse_categorical_crossentropy(labels, outputs, from_logits=self.from_logits)

    def mean(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        outputs = ops.cast(outputs, "float32")
        return ops.softmax(outputs, axis=-1) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are class indices, one for each event."""
        classes = output_shape[-1]
        if y.ndim == len(output_shape) and y.shape[-1] == classes and classes != 1:
            raise ValueError(
                f"`y` looks one-hot (shape {y.shape}) but Categorical takes class indices. Use y.argmax(-1)."
            )
        check_shape(
            y, self.event_shape(output_shape), "Categorical", f"one class index for each output of {classes} logits"
        )
        if classes == 1:
            raise ValueError(
                "`likelihood` is Categorical but the network has one output. Use Bernoulli() for two classes, or "
                "Normal() for a real target."
            )
        if y.dtype.kind == "f":
            check_entries(y, y == np.floor(y), "an integer class index (Normal() is for real targets)")
        elif y.dtype.kind not in "iub":
            raise ValueError(f"`y` must hold integer class indices for Categorical, not {y.dtype}.")
        check_entries(y, (y >= 0) & (y < classes), f"a class index from 0 to {classes - 1 if classes else '?'}")


@_register
class Bernoulli(Classifier):
    """Two classes, or several independent labels; each output is the logit of label 1.

    Args:
        from_logits: True for raw outputs; False for a network that ends in a sigmoid.
        **kwargs: `name` of the layer.

    Labels: 0 or 1, `(batch,)` or the outputs' shape.

    Example:
    >>> nll = Bernoulli().nll(np.array([0, 1]), np.zeros((2, 1), "float32"))
    >>> bool(np.allclose(nll, np.log(2)))
    True
    """

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The outputs' shape, in nats."""
        y = ops.cast(y, "float32")
        if self.from_logits:
            return y * outputs - ops.softplus(outputs)
        p = ops.clip(outputs, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR)
        return y * ops.log(p) + (1.0 - y) * ops.log1p(-p)

    def mean(self, outputs: Tensor) -> Tensor:
        """Probability of label 1."""
        outputs = ops.cast(outputs, "float32")
        return ops.sigmoid(outputs) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are 0 or 1, one for each output."""
        check_shape(y, output_shape, "Bernoulli", "one label for each output")
        check_entries(y, (y == 0) | (y == 1), "0 or 1 (Categorical() is for more classes)")
