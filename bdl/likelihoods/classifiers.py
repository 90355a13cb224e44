"""Likelihoods of labels: one of several classes, or 0 and 1."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.likelihoods.base import Likelihood, check_entries, check_numbers, check_shape, density_of_labels
from bdl.random import Tensor

_PROBABILITY_FLOOR = 1e-7
"""Of given probabilities in training, as Keras' own losses have it: log 0 has no finite gradient."""

_register = keras.saving.register_keras_serializable(package="bdl")


class Classifier(Likelihood):
    """A discrete label whose outputs are logits or, of a network that squashes them itself, probabilities.

    `log_prob` is for training: with `from_logits=False` it takes a probability below 1e-7 as 1e-7, so that its gradient
    is finite. `log_probabilities`, on which predictions rest, has no floor.
    """

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
        """`(batch, ...)`, in nats; NaN where the label is no class index."""
        y = ops.cast(self._align(ops.convert_to_tensor(y), outputs), "float32")
        is_class = (y >= 0) & (y < outputs.shape[-1]) & (y == ops.floor(y))

        def density(labels: Tensor) -> Tensor:
            return -ops.sparse_categorical_crossentropy(ops.cast(labels, "int32"), outputs, self.from_logits)

        return density_of_labels(y, is_class, density)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probability of each class, the outputs' shape, in nats."""
        if not self.from_logits:
            return super().log_probabilities(outputs)
        return ops.log_softmax(ops.cast(outputs, "float32"), axis=-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        outputs = ops.cast(outputs, "float32")
        return ops.softmax(outputs, axis=-1) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are class indices, one for each event."""
        classes = output_shape[-1]
        if y.ndim == len(output_shape) and y.shape[-1] == classes and classes != 1:
            raise ValueError(
                f"`y` must hold class indices for Categorical, not one-hot labels, as its shape {y.shape} looks like. "
                "Use y.argmax(-1)."
            )
        check_shape(
            y, self.event_shape(output_shape), "Categorical", f"one class index for each output of {classes} logits"
        )
        if classes == 1:
            raise ValueError(
                "`likelihood` must fit a network of one output, not be Categorical. Use Bernoulli() for two classes, "
                "or Normal() for a real target."
            )
        check_numbers(y, "integer class indices for Categorical")
        if y.dtype.kind == "f":
            check_entries(y, y == np.floor(y), "an integer class index (Normal() is for real targets)")
        wanted = f"a class index from 0 to {classes - 1 if classes else '?'}"
        check_entries(y, y >= 0, wanted, " Where an event has no label, write any class and let a Keras mask hide it.")
        check_entries(y, y < (classes or np.inf), wanted)


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
        """The outputs' shape, in nats; NaN where the label is neither 0 nor 1."""
        y = ops.cast(y, "float32")

        def density(labels: Tensor) -> Tensor:
            if self.from_logits:
                return -ops.softplus(ops.where(labels == 1, -outputs, outputs))
            p = ops.clip(outputs, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR)
            return ops.where(labels == 1, ops.log(p), ops.log1p(-p))

        return density_of_labels(y, (y == 0) | (y == 1), density)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probabilities of label 0 and label 1, the outputs' shape with one more axis of two, in nats."""
        if not self.from_logits:
            return super().log_probabilities(outputs)
        outputs = ops.cast(outputs, "float32")
        return -ops.softplus(ops.stack([outputs, -outputs], axis=-1))

    def mean(self, outputs: Tensor) -> Tensor:
        """Probability of label 1."""
        outputs = ops.cast(outputs, "float32")
        return ops.sigmoid(outputs) if self.from_logits else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are 0 or 1, one for each output."""
        check_shape(y, output_shape, "Bernoulli", "one label for each output")
        check_numbers(y, "0 or 1 for Bernoulli")
        check_entries(y, (y == 0) | (y == 1), "0 or 1 (Categorical() is for more classes)")
