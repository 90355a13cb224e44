"""Argument checks shared by the calibration functions: each refusal names the argument, what it was and the cure."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Machine epsilon of bfloat16, the coarsest type in which networks compute probabilities: rounding alone moves the sum
# of a softmax by less than this, and logits practically never sum to 1 so closely.
SUM_TOLERANCE = 2.0**-7


def check_labels_and_probabilities(y: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return labels `(n,)` as int64 and probabilities `(n, classes)`, one row an example, or say what is wrong.

    Args:
        y: Class indices, shape `(n,)`; whole numbers of any type.
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two.

    Raises:
        ValueError: if a shape, a label or a probability is not valid, or the lengths differ.
    """
    checked = check_probabilities(probabilities)
    labels = _check_labels(y, num_classes=checked.shape[1])
    if len(labels) != len(checked):
        raise ValueError(
            "`y` and `probabilities` must describe the same examples. "
            f"Received: {len(labels)} labels and {len(checked)} rows of probabilities. "
            "Predict on exactly the inputs that `y` belongs to (a data set that drops its last batch loses some)."
        )
    return labels, checked


def check_probabilities(probabilities: ArrayLike) -> NDArray[Any]:
    """Return probabilities as a floating array `(n, classes)`, their dtype kept, or say what is wrong.

    Args:
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two.

    Raises:
        ValueError: if the shape is another, or the rows are not finite, not within 0 to 1 or do not sum to 1.
    """
    array = _real_array("probabilities", probabilities)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(
            "`probabilities` must have shape (n, classes), or (n,) for the probability of class 1. "
            f"Received: shape {array.shape}. "
            "Flatten all axes but the last, `probabilities.reshape(-1, probabilities.shape[-1])`, and `y` alike."
        )
    if array.ndim == 2 and array.shape[1] == 1:
        raise ValueError(
            "`probabilities` must have a column for each class. "
            f"Received: shape {array.shape}, a single column. "
            "If it holds the probability of class 1, pass `probabilities[:, 0]`."
        )
    _check_not_empty("probabilities", array)
    _check_finite("probabilities", array)
    _check_unit_interval(array)
    if array.ndim == 1:
        array = np.stack([1 - array, array], axis=1)
    _check_rows_sum_to_one(array)
    return np.minimum(array, 1)  # a mean of rounded probabilities may exceed 1 by its rounding


def check_scores(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    """Return scores `(n,)` as float64, or say what is wrong with the argument called `name`.

    Raises:
        ValueError: if the scores are not a non-empty vector of finite numbers.
    """
    array = _real_array(name, scores).astype(np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must have shape (n,), one score an input. "
            f"Received: shape {array.shape}. "
            "Reduce each input to one number first, for example with `predictive_entropy(probabilities)`."
        )
    _check_not_empty(name, array)
    _check_finite(name, array)
    return array


def check_num_bins(num_bins: int) -> int:
    """Return `num_bins` as an int, or say that it is not a positive integer.

    Raises:
        ValueError: if `num_bins` is not a positive integer.
    """
    if isinstance(num_bins, bool) or not isinstance(num_bins, Integral) or num_bins < 1:
        raise ValueError(f"`num_bins` must be a positive integer. Received: {num_bins!r}. Pass 15, the usual choice.")
    return int(num_bins)


def _check_labels(y: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    array = _real_array("y", y)
    if array.ndim != 1:
        cure = "`y.argmax(axis=-1)` if it is one-hot, `y.reshape(-1)` if it holds class indices"
        raise ValueError(
            f"`y` must have shape (n,), one class index an example. Received: shape {array.shape}. {cure}."
        )
    _check_finite("y", array)
    fractional = array != np.floor(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    if fractional.any():
        index = int(np.argmax(fractional))
        raise ValueError(
            f"`y` must hold whole numbers, the class indices. Received: {array[index]} at index {index}. "
            "Soft labels have no class: take `argmax` over their classes first."
        )
    outside = (array < 0) | (array >= num_classes)
    if outside.any():
        index = int(np.argmax(outside))
        raise ValueError(
            f"`y` must hold class indices from 0 to {num_classes - 1}, as `probabilities` has {num_classes} classes. "
            f"Received: {array[index]} at index {index}. "
            "Subtract 1 if the labels start at 1; else encode them with `np.unique(y, return_inverse=True)[1]`."
        )
    return array.astype(np.int64)


def _real_array(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"`{name}` must hold real numbers of a NumPy type. Received: dtype {array.dtype}. "
            + (
                "Encode names as class indices with `np.unique(y, return_inverse=True)[1]`."
                if name == "y"
                else f"Convert it first, for example with `np.asarray({name}).astype('float32')`."
            )
        )
    return array


def _check_not_empty(name: str, array: NDArray[Any]) -> None:
    if array.size == 0:
        raise ValueError(f"`{name}` must hold at least one example. Received: shape {array.shape}. Check its source.")


def _check_finite(name: str, array: NDArray[Any]) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = _first(~finite)
        raise ValueError(
            f"`{name}` must be finite. Received: {array[index]} at index {_shown(index)}. "
            "Predictions that are not finite come from a diverged model or from inputs that are not finite: "
            "check both, or drop these examples."
        )


def _check_unit_interval(probabilities: NDArray[Any]) -> None:
    outside = (probabilities < 0) | (probabilities > 1 + SUM_TOLERANCE)
    if outside.any():
        index = _first(outside)
        function = "sigmoid" if probabilities.ndim == 1 else "softmax"
        raise ValueError(
            "`probabilities` must lie between 0 and 1. "
            f"Received: {probabilities[index]} at index {_shown(index)}. "
            f"They look like logits: pass their {function}, `keras.ops.{function}(logits)`."
        )


def _check_rows_sum_to_one(probabilities: NDArray[Any]) -> None:
    sums = probabilities.sum(axis=1, dtype=np.float64)
    wrong = np.abs(sums - 1) > SUM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"`probabilities` must sum to 1 in every row. Received: a sum of {sums[row]:.6g} in row {row}. "
            "Use softmax, not sigmoid, as the last activation (independent labels are one binary problem each), "
            "or divide each row by its sum."
        )


def _first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _shown(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)
