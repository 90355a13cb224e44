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
    """Return labels `(n,)` as int64 and probabilities `(n, classes)`, one row per example, or say what is wrong.

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
            "`y` and `probabilities` must describe the same examples, "
            f"not {len(labels)} labels and {len(checked)} rows of probabilities. "
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
    array = real_array("probabilities", probabilities)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(
            "`probabilities` must have shape (n, classes), or (n,) for the probability of class 1, "
            f"not shape {array.shape}. "
            "Flatten all axes but the last, `probabilities.reshape(-1, probabilities.shape[-1])`, and `y` alike."
        )
    if array.ndim == 2 and array.shape[1] == 1:
        raise ValueError(
            "`probabilities` must have a column for each class, "
            f"not shape {array.shape}, a single column. "
            "If it holds the probability of class 1, pass `probabilities[:, 0]`."
        )
    check_not_empty("probabilities", array)
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
    array = real_array(name, scores).astype(np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must have shape (n,), one score an input, "
            f"not shape {array.shape}. "
            "Reduce each input to one number first, for example with `predictive_entropy(probabilities)`."
        )
    check_not_empty(name, array)
    _check_finite(name, array)
    return array


def check_num_bins(num_bins: int) -> int:
    """Return `num_bins` as an int, or say that it is not a positive integer.

    Raises:
        ValueError: if `num_bins` is not a positive integer.
    """
    if isinstance(num_bins, bool) or not isinstance(num_bins, Integral) or num_bins < 1:
        raise ValueError(f"`num_bins` must be a positive integer, not {num_bins!r}. Pass 15, the usual choice.")
    return int(num_bins)


def check_same_events(y: NDArray[Any], probabilities: NDArray[Any], kept: NDArray[np.bool_] | None = None) -> bool:
    """Return whether the probabilities are those of label 1 alone, one for each label, or say what does not fit.

    Args:
        y: Labels.
        probabilities: Of their shape, or with a last axis of classes.
        kept: False where a label does not count and is not read, of the shape of `y`; None if all count.

    Raises:
        ValueError: if the shapes belong to different events.
    """
    check_not_empty("probabilities", probabilities)
    if probabilities.ndim == 0:
        raise ValueError(
            "`probabilities` must have shape (..., classes), or that of `y` for the probability of label 1, "
            "not shape (). Wrap a single probability in a list."
        )
    if y.shape == probabilities.shape:
        if are_one_hot_labels(y, probabilities, kept):
            raise ValueError(
                f"`y` must have shape (n,), one class index per example, not shape {y.shape}. "
                "`y.argmax(axis=-1)` if it is one-hot. (Independent labels, several of which may be 1, are allowed.)"
            )
        return True
    if y.shape == probabilities.shape[:-1] and probabilities.ndim >= 2:
        return False
    if y.ndim == 1 and probabilities.ndim <= 2:
        raise ValueError(
            "`y` and `probabilities` must describe the same examples, "
            f"not {len(y)} labels and {len(probabilities)} rows of probabilities. "
            "Predict on exactly the inputs that `y` belongs to (a data set that drops its last batch loses some)."
        )
    raise ValueError(
        "`y` must have the shape of `probabilities` without its last axis (classes), or its whole shape (independent "
        f"labels), not shape {y.shape}, with probabilities of shape {probabilities.shape}. "
        "`y.argmax(axis=-1)` if it is one-hot, `y.reshape(-1)` if it holds class indices."
    )


def check_mask(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the mask as booleans of that shape, at least one of them True, or say what is wrong.

    Raises:
        ValueError: if the shape is another, a value is neither true nor false, or nothing is kept.
    """
    array = np.asarray(mask)
    if array.shape != shape:
        raise ValueError(
            f"`mask` must have the shape of `y`, {shape}, not shape {array.shape}. Give one truth value per event."
        )
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError("`mask` must be True where an event counts, not hold values other than 0 and 1. Compare it.")
    if not array.any():
        raise ValueError("`mask` must keep at least one event, not be all False. True means that an event counts.")
    return array.astype(bool)


def are_one_hot_labels(
    y: NDArray[Any], probabilities: NDArray[Any] | None = None, kept: NDArray[np.bool_] | None = None
) -> bool:
    """Whether labels of the probabilities' shape are one-hot, and not independent labels of 0 or 1.

    Args:
        y: Labels.
        probabilities: What tells one from the other, as rows that sum to 1 are of classes; None if it is not known.
        kept: Labels, of the shape of `y`, or rows that are read; None for all.
    """
    if y.ndim < 2 or y.shape[-1] < 2 or y.dtype.kind not in "buif":
        return False
    if kept is not None:
        rows = kept if kept.ndim < y.ndim else kept.all(axis=-1)
        y, probabilities = y[rows], None if probabilities is None else probabilities[rows]
    is_one_hot = bool(y.size and np.isin(y, (0, 1)).all() and (y.sum(axis=-1) == 1).all())
    return is_one_hot and (probabilities is None or _sum_to_one(probabilities))


def _sum_to_one(probabilities: NDArray[Any]) -> bool:
    return bool(np.all(np.abs(probabilities.sum(axis=-1, dtype=np.float64) - 1) <= SUM_TOLERANCE))


def check_targets(*names_and_values: tuple[str, ArrayLike]) -> list[NDArray[np.float64]]:
    """Return finite float64 arrays of one shape, the first's, or say which differs.

    Scalars are broadcast.

    Raises:
        ValueError: if an array is empty, not finite, or of another shape than the first.
    """
    arrays: list[NDArray[np.float64]] = []
    for name, values in names_and_values:
        array = np.asarray(real_array(name, values), dtype=np.float64)
        check_not_empty(name, array)
        _check_finite(name, array)
        if arrays and array.ndim and array.shape != arrays[0].shape:
            raise ValueError(
                f"`{name}` must have the shape of `{names_and_values[0][0]}`, {arrays[0].shape}, "
                f"not shape {array.shape}. Squeeze an axis of size 1, or broadcast on purpose."
            )
        arrays.append(np.broadcast_to(array, arrays[0].shape) if arrays else array)
    return arrays


def check_positive(name: str, array: NDArray[np.float64]) -> None:
    """Say where an array is not positive.

    Raises:
        ValueError: if a value is zero or negative.
    """
    if not (array > 0).all():
        index = _first(~(array > 0))
        raise ValueError(
            f"`{name}` must be positive, not {array[index]} at index {_shown(index)}. "
            "Pass standard deviations, not their logarithms; a scale of zero claims certainty."
        )


def check_not_negative(name: str, array: NDArray[np.float64]) -> None:
    """Say where an array is negative.

    Raises:
        ValueError: if a value is below zero.
    """
    if (array < 0).any():
        index = _first(array < 0)
        raise ValueError(
            f"`{name}` must be at least 0, not {array[index]} at index {_shown(index)}. "
            "Pass standard deviations, not their logarithms."
        )


def check_share(name: str, value: float) -> float:
    """Return a number strictly between 0 and 1, or say that it is not.

    Raises:
        ValueError: if it is outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 < value < 1:
        raise ValueError(f"`{name}` must be between 0 and 1, both excluded, not {value!r}. Pass 0.9, for example.")
    return float(value)


def _check_labels(y: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    array = real_array("y", y)
    if array.ndim != 1:
        cure = "`y.argmax(axis=-1)` if it is one-hot, `y.reshape(-1)` if it holds class indices"
        raise ValueError(f"`y` must have shape (n,), one class index per example, not shape {array.shape}. {cure}.")
    check_class_numbers(array, num_classes)
    return array.astype(np.int64)


def check_class_numbers(array: NDArray[Any], num_classes: int) -> None:
    """Say where a vector of numbers holds one that is no class index.

    Raises:
        ValueError: if a number is not finite, not whole or outside of the classes.
    """
    _check_finite("y", array)
    fractional = array != np.floor(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    if fractional.any():
        index = int(np.argmax(fractional))
        raise ValueError(
            f"`y` must hold whole numbers, the class indices, not {array[index]} at index {index}. "
            "Soft labels have no class: take `argmax` over their classes first."
        )
    outside = (array < 0) | (array >= num_classes)
    if outside.any():
        index = int(np.argmax(outside))
        raise ValueError(
            f"`y` must hold class indices from 0 to {num_classes - 1}, as there are {num_classes} classes, "
            f"not {array[index]} at index {index}. "
            f"Subtract 1 if the labels start at 1, pass mask=(y != {array[index]}) if it marks events without a label; "
            "else say which class each column is, `bdl.calibration.class_indices(y, classes)`."
        )


def real_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return an array of real numbers, not copied if it is one already, or say what it is instead."""
    array = np.asanyarray(values)  # keeps a memory-mapped file one
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.getmaskarray(array).any():
            raise ValueError(
                f"`{name}` must hold no masked entries here, not {np.ma.count_masked(array)} of them. "
                "Leave out the examples they belong to, in all arrays alike."
            )
        array = array.data
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"`{name}` must hold real numbers of a NumPy type, not dtype {array.dtype}. "
            + (
                "Encode names as class indices with `bdl.calibration.class_indices(y, classes)`."
                if name == "y"
                else f"Convert it first, for example with `np.asarray({name}).astype('float32')`."
            )
        )
    return array


def check_not_empty(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError for an array without entries."""
    if array.size == 0:
        raise ValueError(f"`{name}` must hold at least one example, not shape {array.shape}. Check its source.")


def _check_finite(name: str, array: NDArray[Any]) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = _first(~finite)
        raise ValueError(
            f"`{name}` must be finite, not {array[index]} at index {_shown(index)}. "
            "Predictions that are not finite come from a diverged model or from inputs that are not finite: "
            "check both, or drop these examples."
        )


def _check_unit_interval(probabilities: NDArray[Any]) -> None:
    outside = (probabilities < 0) | (probabilities > 1 + SUM_TOLERANCE)
    if outside.any():
        index = _first(outside)
        raise ValueError(
            "`probabilities` must lie between 0 and 1, "
            f"not {probabilities[index]} at index {_shown(index)}. {_cure_of_scores(probabilities)}"
        )


def _cure_of_scores(scores: NDArray[Any]) -> str:
    """What numbers outside [0, 1] seem to be: logits only if some are negative, or their rows differ in their sums."""
    function = "sigmoid" if scores.ndim == 1 else "softmax"
    if scores.min() < 0:
        return f"They look like logits: pass their {function}, `keras.ops.{function}(logits)`."
    if scores.ndim == 1:
        return (
            "None is negative: divide percentages by 100, or any other scale by its largest possible value; pass the "
            "sigmoid of logits."
        )
    sums = scores.sum(axis=1, dtype=np.float64)
    total = float(np.median(sums))
    if np.all(np.abs(sums - total) <= SUM_TOLERANCE * total):
        return f"Every row sums to {total:.4g}: they are probabilities times that. Divide each row by its sum."
    return (
        f"None is negative, and rows sum to between {sums.min():.4g} and {sums.max():.4g}: divide each row by its sum "
        "if they are counts or votes; pass the softmax of logits."
    )


def _check_rows_sum_to_one(probabilities: NDArray[Any]) -> None:
    sums = probabilities.sum(axis=1, dtype=np.float64)
    wrong = np.abs(sums - 1) > SUM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"`probabilities` must sum to 1 in every row, not a sum of {sums[row]:.6g} in row {row}. "
            "Use softmax, not sigmoid, as the last activation (independent labels are one binary problem each), "
            "or divide each row by its sum."
        )


def _first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _shown(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)
