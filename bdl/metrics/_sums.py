"""Sums over batches that do not lose small terms, and the labels and probabilities of a batch as flat events."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.calibration._validation import SUM_TOLERANCE
from bdl.keras_internals import is_concrete, keras_mask
from bdl.random import Tensor

_SMALLEST = float(np.finfo(np.float32).tiny)
"""What a probability of zero counts as where its logarithm is taken: 87.3 nats. Logits have no such end."""


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


@dataclass(frozen=True)
class Events:
    """The events of a batch; those that do not count have a weight of 0, label 0 and equal probabilities.

    Attributes:
        labels: Class indices `(n,)`, int32.
        p: Probabilities `(n, classes)`, float32; NaN where the label is no class.
        log_p: Their logarithms, in nats, of logits without a detour over the probabilities.
        weight: `(n,)`, float32.
    """

    labels: Tensor
    p: Tensor
    log_p: Tensor
    weight: Tensor


def flat_events(
    y_true: Any,
    y_pred: Any,
    sample_weight: Any,
    from_logits: bool,
    sparse: bool,
    ignore_class: int | None = None,
    reads_labels: bool = True,
) -> Events:
    """The events of a batch.

    Args:
        y_true: Class indices, one-hot rows if not `sparse`, or 0 and 1 of the shape of `y_pred` for binary labels.
        y_pred: `(..., classes)`, or binary: `(..., 1)` or the shape of `y_true`.
        sample_weight: That broadcasts to the labels, or None.
        from_logits: Whether `y_pred` are logits.
        sparse: Whether labels are indices.
        ignore_class: Label of events that get a weight of 0, as those do which a Keras mask on `y_pred` hides; None for
            no such label. Of one-hot rows, those of zeros and of this class.
        reads_labels: Whether labels must be classes.

    Raises:
        ValueError: if there is not one label for each event, or, where values can be read, if a label that counts is no
            class. Compiled code cannot raise: there the probabilities become NaN, and every metric with them.
    """
    outputs, y = ops.cast(y_pred, "float32"), ops.convert_to_tensor(y_true)
    if len(y.shape) == len(outputs.shape) and y.shape[-1] == 1 and outputs.shape[-1] != 1:
        y = y[..., 0]
    is_column = sparse and outputs.shape[-1] == 1
    is_independent = sparse and not is_column and len(y.shape) == len(outputs.shape)
    event_axes = len(outputs.shape) - (not is_independent)
    event_shape = ops.shape(outputs)[:event_axes]
    _check_labels_fit(y.shape, outputs.shape, outputs.shape[:event_axes], sparse)
    if sparse:
        numbers = ops.reshape(ops.reshape(y, event_shape), (-1,))  # also where sizes are known only when it runs
    else:
        one_hot = ops.reshape(y, (-1, outputs.shape[-1]))
        numbers = ops.argmax(one_hot, axis=-1) if ignore_class is None else _class_or(ignore_class, one_hot)
    labels = ops.cast(numbers, "int32")
    weight = _masked(_flat_weights(sample_weight, event_shape), keras_mask(y_pred), event_shape)
    if ignore_class is not None:
        weight = ops.where(labels == ignore_class, 0.0, weight)
    if is_column or is_independent:
        p, log_p = _of_label_1(ops.reshape(outputs, (-1,)), from_logits)
    else:
        p, log_p = _of_classes(ops.reshape(outputs, (-1, outputs.shape[-1])), from_logits)
    counts = weight != 0
    is_class = _are_classes(numbers, labels, p.shape[-1]) | ~counts if reads_labels else ops.ones_like(counts)
    is_class = _asserted(is_class, f"`y_true` must hold class indices from 0 to {p.shape[-1] - 1}, not another number")
    if is_independent and len(outputs.shape) > 1:
        shape = ops.shape(outputs)
        one_hot = _are_one_hot(ops.reshape(numbers, shape), ops.reshape(p[:, 1], shape), ops.reshape(counts, shape))
        is_class = is_class & _asserted(
            ~one_hot,
            "`y_true` must hold class indices, or independent labels of 0 and 1, not one-hot labels, which are those "
            "of `sparse=False`",
        )
    # What does not count may be anything. It must not be looked up, and 0 * nan is nan.
    uniform = 1 / p.shape[-1]
    p = ops.where(counts[:, None], ops.where(is_class[:, None], p, float("nan")), uniform)
    log_p = ops.where(counts[:, None], ops.where(is_class[:, None], log_p, float("nan")), math.log(uniform))
    return Events(ops.where(counts & is_class, labels, 0) if reads_labels else ops.zeros_like(labels), p, log_p, weight)


def flat_targets(y_true: Any, y_pred: Any, sample_weight: Any, shape: Any, mask: Any = None) -> list[Tensor]:
    """Targets, each prediction and the weights, `(n,)` float32; what weighs nothing may be anything, and becomes 1.

    Args:
        y_true: Targets.
        y_pred: Predictions of the targets' shape, in a list.
        sample_weight: That broadcasts to the targets, or None.
        shape: Of the targets that belong to the predictions.
        mask: True where a target counts, or None.

    Raises:
        ValueError: if there is not one target for each prediction.
    """
    y = ops.cast(y_true, "float32")
    _check_labels_fit(y.shape, shape, shape, sparse=True)
    weight = _masked(_flat_weights(sample_weight, ops.shape(y)), mask, ops.shape(y))
    flat = [ops.reshape(ops.reshape(y, ops.shape(y_pred[0])), (-1,)), *(ops.reshape(each, (-1,)) for each in y_pred)]
    return [*(ops.where(weight == 0, 1.0, each) for each in flat), weight]


def _of_classes(outputs: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms, `(n, classes)`."""
    if from_logits:
        return ops.softmax(outputs, axis=-1), ops.log_softmax(outputs, axis=-1)
    return outputs, ops.log(ops.maximum(outputs, _SMALLEST))


def _of_label_1(outputs: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Probabilities of label 0 and label 1 and their logarithms, `(n, 2)`."""
    if from_logits:
        log_p = ops.stack([-ops.softplus(outputs), -ops.softplus(-outputs)], axis=-1)
        return ops.stack([ops.sigmoid(-outputs), ops.sigmoid(outputs)], axis=-1), log_p
    return _of_classes(ops.stack([1.0 - outputs, outputs], axis=-1), False)


def _are_classes(numbers: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Which labels are class indices: whole and within the classes."""
    is_whole = ops.cast(numbers, "float32") == ops.cast(labels, "float32")
    return (labels >= 0) & (labels < num_classes) & is_whole


def _check_labels_fit(y_shape: Any, output_shape: Any, event_shape: Any, sparse: bool) -> None:
    """Refuses labels of another number than the events, which would broadcast to a figure of nothing in particular."""
    wanted = tuple(event_shape) if sparse else tuple(output_shape)
    if sparse and None not in (*y_shape, *wanted):
        fits = math.prod(y_shape) == math.prod(wanted)
    else:
        pairs = list(zip(y_shape, wanted, strict=False))
        fits = len(y_shape) == len(wanted) or sparse
        fits = fits and (len(y_shape) != len(wanted) or all(a == b or None in (a, b) for a, b in pairs))
    if not sparse and output_shape[-1] == 1:
        raise ValueError("`y_pred` must have a column for each class where `sparse=False`, not a last axis of size 1.")
    if not fits:
        kind = "one label for each event" if sparse else "one-hot labels, as `sparse=False` says,"
        raise ValueError(f"`y_true` must hold {kind} of `y_pred`, shape {wanted}, not shape {tuple(y_shape)}.")


def _asserted(is_right: Tensor, message: str) -> Tensor:
    """The same truth values, if they cannot be read now or are all true.

    Raises:
        ValueError: if one is false.
    """
    if is_concrete(is_right) and not bool(np.all(ops.convert_to_numpy(is_right))):
        raise ValueError(f"{message}. Events without a label need a weight of 0, a mask or `ignore_class`.")
    return is_right


def _are_one_hot(y: Tensor, p: Tensor, counts: Tensor) -> Tensor:
    """Whether labels are one-hot and no independent ones, which `sparse=False` should have said: a scalar."""
    y = ops.cast(y, "float32")
    is_row = ops.any(counts, axis=-1)
    is_one = (ops.sum(y, axis=-1) == 1) & (ops.max(y, axis=-1) == 1) & (ops.min(y, axis=-1) == 0)
    is_distribution = ops.abs(ops.sum(p, axis=-1) - 1.0) <= SUM_TOLERANCE
    return ops.any(is_row) & ops.all((is_one & is_distribution) | ~is_row)


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
