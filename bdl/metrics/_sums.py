"""Sums over batches that do not lose small terms, and the labels and probabilities of a batch as flat events."""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import ops

from bdl.calibration._validation import SUM_TOLERANCE
from bdl.keras_internals import keras_mask
from bdl.random import Tensor


class Sums:
    """Running float32 sums with compensation (Kahan 1965), so that ten million batches' terms are not rounded away.

    A float32 sum stops counting at 2^24; with the compensation its relative error stays near 1e-7 whatever the number
    of terms.

    Args:
        metric: The metric that holds the variables.
        name: Their name.
        shape: Of the sums.
    """

    def __init__(self, metric: keras.metrics.Metric, name: str, shape: tuple[int, ...] = ()) -> None:
        self._total = metric.add_variable(shape, "zeros", name=name, dtype="float32")
        self._lost = metric.add_variable(shape, "zeros", name=f"{name}_lost", dtype="float32")

    def add(self, values: Tensor) -> None:
        """Adds a batch's sums."""
        total, lost = ops.convert_to_tensor(self._total), ops.convert_to_tensor(self._lost)
        # Knuth's two-sum gives the rounding of total + values exactly, whichever is the larger.
        moved = total + values
        share = moved - total
        lost = lost + ((total - (moved - share)) + (values - share))
        self._total.assign(moved)
        self._lost.assign(lost)

    @property
    def value(self) -> Tensor:
        """The sums."""
        return ops.convert_to_tensor(self._total) + ops.convert_to_tensor(self._lost)


def standard_name(metric: keras.metrics.Metric) -> str:
    """The class's name as it stands in logs: words in lower case, joined by underscores."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(metric).__name__).lower()


def flat_events(
    y_true: Any, y_pred: Any, sample_weight: Any, from_logits: bool, sparse: bool, ignore_class: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels `(n,)` int32, probabilities `(n, classes)` float32 and weights `(n,)` float32 of a batch.

    Args:
        y_true: Class indices, one-hot rows if not `sparse`, or 0 and 1 of the shape of `y_pred` for binary labels.
        y_pred: `(..., classes)`, or binary: `(..., 1)` or the shape of `y_true`.
        sample_weight: That broadcasts to the labels, or None.
        from_logits: Whether `y_pred` are logits.
        sparse: Whether labels are indices. One-hot labels that are taken for independent ones give NaN.
        ignore_class: Label of events that get a weight of 0, as those do which a Keras mask on `y_pred` hides; None for
            no such label. Of one-hot rows, those of zeros and of this class.
    """
    p = ops.cast(y_pred, "float32")
    y = ops.convert_to_tensor(y_true)
    if len(y.shape) == len(p.shape) and y.shape[-1] == 1 and p.shape[-1] != 1:
        y = y[..., 0]
    is_binary = sparse and (p.shape[-1] == 1 or len(y.shape) == len(p.shape))
    if is_binary:
        event_shape = ops.shape(p)[:-1] if p.shape[-1] == 1 else ops.shape(p)
        p = ops.sigmoid(p) if from_logits else p
        if p.shape[-1] != 1 and len(p.shape) > 1:
            p = ops.where(_are_one_hot(y, p), float("nan"), p)
        flat = ops.reshape(p, (-1,))
        p = ops.stack([1.0 - flat, flat], axis=-1)
        y = ops.reshape(y, (-1,))
    else:
        event_shape = ops.shape(p)[:-1]
        p = ops.softmax(p, axis=-1) if from_logits else p
        p = ops.reshape(p, (-1, p.shape[-1]))
        y = ops.reshape(y, (-1,) if sparse else (-1, p.shape[-1]))
        if not sparse:
            y = ops.argmax(y, axis=-1) if ignore_class is None else _class_or(ignore_class, y)
    labels = ops.cast(y, "int32")
    weight = _masked(_flat_weights(sample_weight, event_shape), keras_mask(y_pred), event_shape)
    if ignore_class is not None:
        weight = ops.where(labels == ignore_class, 0.0, weight)
    # What does not count may hold any label; it must not be looked up, for 0 * nan is nan.
    return ops.where(weight == 0, 0, labels), p, weight


def flat_targets(y_true: Any, sample_weight: Any, mask: Any = None) -> tuple[Tensor, Tensor]:
    """Targets and weights, `(n,)` float32; what the mask hides weighs nothing, and may hold any target."""
    y = ops.cast(y_true, "float32")
    weight = _masked(_flat_weights(sample_weight, ops.shape(y)), mask, ops.shape(y))
    return ops.where(weight == 0, 0.0, ops.reshape(y, (-1,))), weight


def _are_one_hot(y: Tensor, p: Tensor) -> Tensor:
    """Whether labels are one-hot and no independent ones, which `sparse=False` should have said: a scalar.

    The NumPy functions raise here; compiled code cannot, and gives NaN.
    """
    y = ops.cast(y, "float32")
    is_one = ops.logical_and(ops.sum(y, axis=-1) == 1, ops.max(y, axis=-1) == 1)
    return ops.all(ops.logical_and(is_one, ops.abs(ops.sum(p, axis=-1) - 1.0) <= SUM_TOLERANCE))


def _class_or(ignore_class: int, one_hot: Tensor) -> Tensor:
    """Class indices of one-hot rows, and `ignore_class` of rows of zeros, as `one_hot` writes what is no class."""
    return ops.where(ops.max(one_hot, axis=-1) > 0, ops.cast(ops.argmax(one_hot, axis=-1), "int32"), ignore_class)


def _masked(weight: Tensor, mask: Any, shape: Any) -> Tensor:
    return weight if mask is None else ops.where(_flat_weights(mask, shape) > 0, weight, 0.0)


def _flat_weights(sample_weight: Any, shape: Any) -> Tensor:
    if sample_weight is None:
        return ops.reshape(ops.ones(shape, "float32"), (-1,))
    weight = ops.cast(sample_weight, "float32")
    while len(weight.shape) > len(shape):
        weight = weight[..., 0]
    while len(weight.shape) < len(shape):
        weight = weight[..., None]
    return ops.reshape(ops.broadcast_to(weight, shape), (-1,))
