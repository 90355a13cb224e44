"""Labels and probabilities of any layout as one stream of events, block by block, so that temporary memory is bounded.

An event is one label with its probabilities: an example, a token of a sequence, a label of a multilabel example. Blocks
are checked and computed on one after the other; arrays may be memory-mapped files (`np.load(path, mmap_mode="r")`)
larger than the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._classes import are_column_numbers, column_names, label_array, label_columns
from bdl.calibration._validation import (
    SUM_TOLERANCE,
    check_labels_and_probabilities,
    check_mask,
    check_same_events,
    real_array,
)

BLOCK_SIZE = 2**20
"""Numbers in a block: a few of its temporaries fit into a processor's cache, and Python's own time does not count."""


@dataclass(frozen=True, eq=False)
class Events:
    """A block of events.

    Attributes:
        labels: Class indices `(n,)`.
        probabilities: `(n, classes)`, of the dtype given; two columns for a binary problem.
        is_binary: Whether the probabilities were given as those of class 1 alone.
        place: Where each stands among all events, `(n,)`; those that the mask leaves out are counted, too.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[Any]
    is_binary: bool
    place: NDArray[np.intp]

    @property
    def of_label(self) -> NDArray[Any]:
        """Probability of the label, `(n,)`."""
        return self.probabilities.ravel()[self._flat(self.labels)]

    @cached_property
    def predicted(self) -> NDArray[np.intp]:
        """Most probable class, `(n,)`; the first among equals."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> NDArray[Any]:
        """Probability of that class, `(n,)`."""
        return self.of_class(self.predicted)

    def of_class(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Probability of one class for each event, `(n,)`."""
        return self.probabilities.ravel()[self._flat(classes)]

    def _flat(self, classes: NDArray[Any]) -> NDArray[Any]:
        n, num_classes = self.probabilities.shape
        return np.arange(n) * num_classes + classes


def blocks_of_rows(num_rows: int, width: int) -> Iterator[slice]:
    """Rows of a table with so many columns, some at a time."""
    rows = max(1, BLOCK_SIZE // width)
    return (slice(start, start + rows) for start in range(0, num_rows, rows))


def event_blocks(y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None = None) -> Iterator[Events]:
    """Yields checked blocks of the events that the mask keeps.

    Args:
        y: Labels: the shape of `probabilities` without its last axis; or, binary or multilabel, its whole shape. Class
            indices, or what `class_indices` tells from the names of a table's columns or from the labels themselves.
        probabilities: `(..., classes)`, or of the shape of `y` the probability of label 1 of each.
        mask: True where an event counts, of the shape of `y`. Masked entries of `y` and `probabilities` do not count.

    Raises:
        ValueError: if an argument is not valid, or nothing is left under the mask.
    """
    labels, p, kept, is_binary = events_of(y, probabilities, mask)
    num_classes = 2 if is_binary else int(p.shape[-1])
    labels = labels.reshape(-1)
    kept = None if kept is None else kept.reshape(-1)
    p = p.reshape(-1) if is_binary else p.reshape(-1, num_classes)
    for part in blocks_of_rows(max(len(labels), 1), num_classes):
        block_labels, block = np.asarray(labels[part]), np.asarray(p[part])
        place = np.arange(part.start, part.start + len(block_labels))
        if kept is not None:
            block_labels, block, place = block_labels[kept[part]], block[kept[part]], place[kept[part]]
            if not len(block):
                continue
        yield Events(*_checked(block_labels, block, is_binary, (labels, p, kept)), is_binary, place)


def events_of(
    y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_] | None, bool]:
    """Labels as class indices where they count, probabilities, which events count, and whether these are of label 1.

    Raises:
        ValueError: if the shapes do not fit, or a label has no column.
    """
    names = column_names(probabilities)
    labels, is_hidden = without_mask(label_array(y))
    p, are_hidden = without_mask(np.asanyarray(probabilities))
    p = real_array("probabilities", p)
    kept = None if mask is None else check_mask(mask, labels.shape)
    is_binary = check_same_events(labels, p, kept)
    if are_hidden is not None:
        are_hidden = are_hidden if is_binary else np.asarray(are_hidden.any(axis=-1))
    for hidden in (is_hidden, are_hidden):
        if hidden is not None:
            kept = check_mask(~hidden if kept is None else kept & ~hidden, labels.shape)
    num_classes = 2 if is_binary else p.shape[-1]
    classes = None if is_binary else names  # columns of independent labels are no classes
    if num_classes > 1 and (classes is not None or not are_column_numbers(labels, num_classes, kept)):
        labels = label_columns(labels, num_classes, classes, kept)[1]
    return labels, p, kept, is_binary


def without_mask(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The data of an array, and where `numpy.ma` masks them; None where it does not."""
    if not isinstance(array, np.ma.MaskedArray):
        return array, None
    hidden = np.ma.getmaskarray(array)
    return np.asarray(array.data), hidden if hidden.any() else None


def event_mean(
    terms: Callable[[Events], NDArray[Any]], y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None = None
) -> float:
    """Mean over events of what `terms` gives for each, summed in float64."""
    total, count = 0.0, 0
    for events in event_blocks(y, probabilities, mask):
        total += float(np.sum(terms(events), dtype=np.float64))
        count += len(events.labels)
    return total / count


def _checked(
    labels: NDArray[Any], p: NDArray[Any], is_binary: bool, whole: tuple[Any, Any, Any]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The block, if it is plainly valid by two fast tests; otherwise the slow checks say what and where."""
    if not is_binary and _is_valid(labels, p):
        return labels.astype(np.int64, copy=False), np.minimum(p, 1) if p.max() > 1 else p
    try:
        return check_labels_and_probabilities(labels, p)
    except ValueError:
        all_labels, all_p, kept = whole
        if kept is None:
            check_labels_and_probabilities(all_labels, all_p)  # for the index in the whole array
        raise


def _is_valid(labels: NDArray[Any], p: NDArray[Any]) -> bool:
    """Whether labels are classes and rows are probabilities; a matrix product sums rows fastest, and keeps NaN."""
    if p.dtype not in (np.float32, np.float64) or labels.dtype.kind not in "iu" or not len(p):
        return False
    sums = p @ np.ones(p.shape[1], p.dtype)
    is_distribution = bool(np.all(np.abs(sums - 1) <= SUM_TOLERANCE)) and p.min() >= 0
    return is_distribution and labels.min() >= 0 and labels.max() < p.shape[1]
