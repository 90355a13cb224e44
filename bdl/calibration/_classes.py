"""Which class is which: labels of any kind as columns of probabilities, by one rule for the whole of bdl.

Classes have names where somebody knows them: the `classes_` of a classifier, the columns of a table, or `classes=`. A
label then belongs to the column of its name: of the same value, or written the same (1 and "1"), or the same but for a
prefix that all names share ("cat" and "p_cat", 1 and "p1"). Column numbers may stand for names in sorted order: an
encoder of labels gives the same.

Without names, labels are column numbers; or as many different labels as there are columns, in their sorted order, as
everywhere in scikit-learn. Numbers count as such only if they cannot be meant otherwise: -1 and 1, 1 to K, or numbers
none of which is a column. {0, 1, 255} may well be two classes and a mark for events without a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_class_numbers

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_NUMBER_AT_END = re.compile(r"[+-]?\d*$")
_AFTER_SEPARATOR = re.compile(r"[^\W_]*$")
_CURE = (
    "Name the class of each column, in order, by `classes` where there is such an argument, or pass "
    "`bdl.calibration.class_indices(y, classes)` for `y`."
)


def class_indices(y: ArrayLike, classes: ArrayLike) -> NDArray[np.int64]:
    """Return the column of each label, for any kind of labels.

    Args:
        y: Labels of any shape: numbers, text, truth values.
        classes: The class of each column of the probabilities, in order: a classifier's `classes_`, or the names of the
            columns. A label belongs to the name of its value, or that is written the same, be it after a prefix that
            all names share.

    Returns:
        Column numbers, of the shape of `y`.

    Raises:
        ValueError: if a label is none of the classes, or two classes have one name.

    Example:
    >>> from bdl.calibration import class_indices
    >>> class_indices(["dog", "cat", "dog"], classes=["cat", "dog", "emu"])
    array([1, 0, 1])
    >>> class_indices([10, 2], classes=["p1", "p2", "p10"])
    array([2, 1])
    """
    labels = label_array(y)
    return label_columns(labels, len(np.atleast_1d(np.asarray(classes))), classes)[1]


def label_columns(
    labels: NDArray[Any], num_classes: int, classes: ArrayLike | None = None, kept: NDArray[np.bool_] | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The label of each column, `(classes,)`, and the column of each label, of their shape.

    Args:
        labels: Array of numbers, truth values, text or objects.
        num_classes: Number of columns.
        classes: Names of the columns, or None.
        kept: False where a label does not count: it is not read, and column 0 stands for it. None if all count.

    Raises:
        ValueError: if a label has no column, or it is not certain which.
    """
    if classes is None and are_column_numbers(labels, num_classes, kept):
        numbers = labels if kept is None else np.where(kept, labels, 0)
        return np.arange(num_classes), numbers.astype(np.int64, copy=False)
    counted = _plain(labels.ravel() if kept is None else labels[kept])
    found, inverse = np.unique(counted, return_inverse=True)
    if classes is None:
        names, columns = _without_names(found, counted, num_classes)
    else:
        names, columns = _by_name(found, _checked(classes, num_classes))
    indices = np.zeros(labels.shape, np.int64)
    np.place(indices, np.ones(labels.shape, bool) if kept is None else kept, columns[inverse.ravel()])
    return names, indices


def label_array(y: Any) -> NDArray[Any]:
    """Labels as an array, of whatever kind; what is masked or missing is left to those who know which labels count.

    Raises:
        ValueError: if they are dates, complex numbers or the like.
    """
    array = np.asanyarray(y)  # keeps a memory-mapped file one
    if array.dtype.kind not in "buifUSOT":
        raise ValueError(
            f"`y` must hold class indices or names, not dtype {array.dtype}. Pass text with `y.astype(str)`."
        )
    return array.astype(str) if array.dtype.kind in "ST" else array


def column_names(table: Any) -> list[Any] | None:
    """Names of a table's columns (pandas, polars, pyarrow); None for an array, or where they only number the columns.

    Example:
    >>> column_names(np.ones((2, 2))) is None
    True
    """
    names = getattr(table, "columns", None)
    if callable(names) or names is None or isinstance(table, np.ndarray) or hasattr(table, "column_names"):
        names = getattr(table, "column_names", None)
    if names is None or callable(names):
        return None
    listed = list(names)
    return None if listed == list(range(len(listed))) else listed


def are_column_numbers(labels: NDArray[Any], num_classes: int, kept: NDArray[np.bool_] | None) -> bool:
    """Whether all labels that count are whole numbers from 0 to `num_classes - 1`."""
    counted = labels if kept is None else labels[kept]
    if not counted.size or labels.dtype.kind not in "buif":
        return not counted.size
    is_within = counted.min() >= 0 and counted.max() < num_classes
    return bool(is_within and (labels.dtype.kind != "f" or np.all(counted == np.floor(counted))))


def _plain(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels without objects: numbers or text, as they are.

    Raises:
        ValueError: if one is missing, or their kinds are mixed.
    """
    if labels.dtype.kind != "O":
        return labels
    values = labels.tolist()
    for index, value in enumerate(values):
        if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
            raise ValueError(
                f"`y` must have a label for every event that counts, not {value!r} at index {index} of these. "
                "Leave out events without a label with `mask`."
            )
    are_text = {isinstance(value, (str, bytes)) for value in values}
    array = np.array(values)
    if len(are_text) > 1 or array.dtype.kind not in "buifUS" or array.ndim != 1:
        raise ValueError(
            "`y` must hold labels of one kind, numbers or text, not both or others. Convert them with `y.astype(str)`."
        )
    return array.astype(str) if array.dtype.kind == "S" else array


def _without_names(
    found: NDArray[Any], labels: NDArray[Any], num_classes: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The label of each column, and the column of each different label, where nothing else can be meant."""
    if found.dtype.kind == "U":
        if all(_NUMBER.fullmatch(name) for name in found):
            names, columns = label_columns(found.astype(float), num_classes)
            return names.astype(int).astype(str), columns
        if len(found) != num_classes:
            raise ValueError(
                f"`y` must hold class indices, or a different name for each of the {num_classes} classes, not "
                f"{len(found)} different names, from {str(found[0])!r} to {str(found[-1])!r}. {_CURE}"
            )
        return found, np.arange(num_classes)
    are_signs = num_classes == 2 and np.array_equal(found, [-1, 1])
    are_counted = np.array_equal(found, np.arange(1, num_classes + 1))
    are_whole = bool(np.all(np.isfinite(found)) and np.all(found == np.floor(found)))
    is_none_a_column = are_whole and not np.any((found >= 0) & (found < num_classes))
    if not are_signs and not are_counted and not (is_none_a_column and len(found) == num_classes):
        check_class_numbers(labels, num_classes)
    return found.astype(np.int64), np.arange(num_classes)


def _checked(classes: ArrayLike, num_classes: int) -> list[Any]:
    names = classes if isinstance(classes, list) else np.atleast_1d(np.asarray(classes)).ravel().tolist()
    if len(names) != num_classes:
        raise ValueError(
            f"`classes` must name each of the {num_classes} classes, in the order of their columns, not "
            f"{len(names)}: {_shown(names)}."
        )
    return [name.item() if isinstance(name, np.generic) else name for name in names]


def _by_name(found: NDArray[Any], names: list[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The label of each column, and the column of each different label."""
    labels = found.tolist()
    for variant in _variants(names):
        columns = _lookup(variant)
        places = [_place(label, columns) for label in labels]
        if None not in places:
            of_columns = dict(zip(places, labels, strict=True))
            named = [of_columns.get(column, name) for column, name in enumerate(variant)]
            return _as_labels(named, found.dtype), np.array(places, np.intp)
    # Names in sorted order, none of them a number: the column's number is the number that an encoder of labels gives.
    is_no_number = all(_number(name) is None for variant in _variants(names) for name in variant)
    if are_column_numbers(found, len(names), None) and is_no_number and _are_sorted(names):
        return np.arange(len(names)), found.astype(np.intp)
    unknown = labels[next(i for i, place in enumerate(places) if place is None)]
    raise ValueError(
        f"`y` must hold the classes {_shown(names)}, not {unknown!r}. {_CURE} "
        f"If these are column numbers, the classes are 0 to {len(names) - 1}. "
        "Leave out what does not count with `mask`."
    )


def _lookup(names: Sequence[Any]) -> dict[Any, int]:
    """Column by name, and by the number that a name writes."""
    columns: dict[Any, int] = {}
    for column, name in enumerate(names):
        if name in columns:
            raise ValueError(f"`classes` must be different, not {name!r} twice.")
        columns[name] = column
    for column, name in enumerate(names):
        number = _number(name)
        if number is not None and columns.setdefault(number, column) != column:
            raise ValueError(f"`classes` must be different, not {number:g} twice, in {_shown(names)}.")
    return columns


def _place(label: Any, columns: dict[Any, int]) -> int | None:
    for alias in (label, str(label), _number(label)):
        if alias is not None and alias in columns:
            return columns[alias]
    return None


def _number(name: Any) -> float | None:
    """The number that text writes."""
    return float(name) if isinstance(name, str) and _NUMBER.fullmatch(name) else None


def _are_sorted(names: list[Any]) -> bool:
    return all(isinstance(name, str) for name in names) and names == sorted(names)


def _variants(names: list[Any]) -> Iterator[list[Any]]:
    """The names, and what is left of them without their common prefix: numbers, or what follows its last separator."""
    yield names
    if all(isinstance(name, str) for name in names):
        first, last = min(names), max(names)  # what these two begin with, all do
        prefix = first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), None)]
        numbers = [name[len(_NUMBER_AT_END.sub("", prefix)) :] for name in names]
        if all(_NUMBER.fullmatch(name) for name in numbers):
            yield numbers
        yield [name[len(_AFTER_SEPARATOR.sub("", prefix)) :] for name in names]


def _as_labels(names: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Names of columns as labels of the kind of those that were found."""
    if dtype.kind == "U":
        return np.array([str(name) for name in names])
    numbers = [_number(name) if isinstance(name, str) else name for name in names]
    if any(number is None for number in numbers):
        return np.array(names, dtype=object)
    array = np.array(numbers)
    return array.astype(int) if array.dtype.kind == "f" and np.array_equal(array, np.floor(array)) else array


def _shown(names: Sequence[Any]) -> str:
    listed = [str(name) if isinstance(name, np.generic) else name for name in names]
    return str(listed) if len(listed) <= 6 else f"[{', '.join(map(repr, listed[:5]))}, ..., {listed[-1]!r}]"
