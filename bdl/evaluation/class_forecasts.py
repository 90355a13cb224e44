"""Class probabilities and logits that a model said, and the labels that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._classes import column_names, label_array, label_columns
from bdl.calibration._events import blocks_of_rows, without_mask
from bdl.calibration._validation import are_one_hot_labels, check_same_events

_LOG_OF_ZERO = float(np.log(np.finfo(np.float64).smallest_subnormal))
"""What a log probability of minus infinity counts as, so that one impossible label costs a large finite number."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as they were given.

    Attributes:
        values: Class indices, names or truth values `(...)`, or one-hot labels with an axis of classes.
        kept: False where a label does not count: of the shape of `values`, or without an axis of classes. None for all.
        names: Names of the columns of one-hot or independent labels, if they came in a table.
    """

    values: NDArray[Any]
    kept: NDArray[np.bool_] | None
    names: list[Any] | None = None

    @classmethod
    def of(cls, y: Any, mask: ArrayLike | None) -> Labels:
        """The labels that the mask, and `numpy.ma`, keep.

        Raises:
            ValueError: if the mask has another shape, or holds anything but true and false.
        """
        values, hidden = without_mask(label_array(y))
        kept = None if hidden is None else ~hidden
        if mask is not None:
            given, shape = np.asarray(mask), values.shape
            is_of_rows = len(shape) > 1 and given.shape == shape[:-1]
            if given.shape != shape and not is_of_rows:
                raise ValueError(f"`mask` must have the shape of `y`, {shape}, not shape {given.shape}.")
            if given.dtype != bool and not np.isin(given, (0, 1)).all():
                raise ValueError("`mask` must be True where an event counts, not hold values other than 0 and 1.")
            given = given.astype(bool)
            kept = given if kept is None else given & (kept.all(axis=-1) if is_of_rows else kept)
        return cls(values, kept, column_names(y))

    def rows(self) -> NDArray[np.bool_] | None:
        """Which rows of one-hot labels count, `(...)` without the axis of classes; None for all."""
        if self.kept is None or self.kept.ndim < self.values.ndim:
            return self.kept
        return np.asarray(self.kept.all(axis=-1))

    def in_order(self, names: list[Any] | None) -> Labels:
        """Independent labels with their columns in the order of the probabilities', where both have names.

        Raises:
            ValueError: if the names are others.
        """
        if self.names is None or names is None or self.names == names:
            return self
        if sorted(map(str, self.names)) != sorted(map(str, names)):
            raise ValueError(f"`y` must have the columns of the prediction, {names}, not {self.names}. Rename them.")
        order = [self.names.index(name) for name in names]
        kept = self.kept if self.kept is None or self.kept.ndim < self.values.ndim else self.kept[..., order]
        return replace(self, values=self.values[..., order], kept=kept, names=names)


@dataclass(frozen=True, eq=False)
class ClassForecast:
    """Class probabilities, and the parts of their uncertainty where samples stand behind them.

    Attributes:
        probabilities: `(..., classes)`, or the shape of the labels for the probability of label 1.
        aleatoric: Expected entropy, `(...)`, in nats, or None.
        epistemic: Mutual information, `(...)`, in nats, or None.
        is_categorical: Whether the last axis is known to hold classes, which arrays alone do not say.
        ignore_class: Label of events that do not count, or None.
        classes: The class of each column, or None; of label 0 and label 1 where these are the only ones.
        scores: Logits or log probabilities, `(..., classes)`, exact where a probability is too small for its type; of
            label 0 and label 1 where these are the only ones. None where the probabilities are all that is known.
    """

    probabilities: NDArray[Any]
    aleatoric: NDArray[Any] | None = None
    epistemic: NDArray[Any] | None = None
    is_categorical: bool = False
    ignore_class: Any = None
    classes: Sequence[Any] | None = None
    scores: NDArray[Any] | None = None

    def for_labels(self, y: Labels) -> ClassForecast:
        """This forecast: probabilities say by their shape what they mean."""
        return self

    def log_losses(self, indices: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Negative log probability of each class index, `(...)`, in nats, or None without `scores`."""
        if self.scores is None:
            return None
        scores = self.scores.reshape(-1, self.scores.shape[-1])
        labels = indices.ravel()
        losses = np.empty(labels.shape)
        for rows in blocks_of_rows(*scores.shape):
            losses[rows] = _log_losses(scores[rows].astype(np.float64), labels[rows])
        return losses.reshape(indices.shape)

    def labels(
        self, y: Labels, ignore_class: Any = None, classes: ArrayLike | None = None
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_] | None]:
        """The label of each column, class indices, and which of these count; None for all.

        Args:
            y: Class indices or names; or one-hot labels: those of the probabilities' shape, if their last axis holds
                classes.
            ignore_class: Label of events that do not count, or None.
            classes: The class of each column; None for those of the forecast.

        Raises:
            ValueError: if labels with an axis of classes are not one-hot, a label is no class, or none counts.
        """
        p, rows = self.probabilities, y.rows()
        classes = self.classes if classes is None else classes
        may_be_one_hot = y.values.shape == p.shape and p.ndim >= 2 and p.shape[-1] > 1
        if may_be_one_hot and (self.is_categorical or are_one_hot_labels(y.values, p, rows)):
            values, kept = self._of_one_hot(y, rows, ignore_class, classes)
            classes = classes if y.names is not None and classes is not None else None
        else:
            if may_be_one_hot:
                y, classes = y.in_order(_as_list(classes)), None
            values, kept = y.values, y.kept
            if kept is not None and kept.shape != values.shape:
                raise ValueError(f"`mask` must have the shape of the labels, {values.shape}, not {kept.shape}.")
            if ignore_class is not None:
                counts = _differ(values, ignore_class)
                kept = counts if kept is None else counts & kept
        is_binary = check_same_events(values, p, kept)
        if kept is not None and not kept.any():
            raise ValueError("`y` must hold a label that counts, not only labels that are masked or `ignore_class`.")
        num_classes = 2 if is_binary else p.shape[-1]
        if classes is None:
            _check_are_classes(values if kept is None else values[kept], p)
        return *label_columns(values, num_classes, classes, kept), kept

    def _of_one_hot(
        self, y: Labels, rows: NDArray[np.bool_] | None, ignore_class: Any, classes: Any
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """The class of each row, by its number, or by its name where rows and probabilities have such."""
        one_hot = y.values if rows is None else np.where(rows[..., None], y.values, 0)
        is_void = (one_hot == 0).all(axis=-1)
        void = ignore_class
        if ignore_class is not None and classes is not None and ignore_class in list(classes):
            void = list(classes).index(ignore_class)
        if isinstance(void, (int, np.integer)) and 0 <= void < one_hot.shape[-1]:
            is_void = is_void | (one_hot[..., void] == 1)
        if ignore_class is None:
            is_void = np.zeros(is_void.shape, dtype=bool) if rows is None else ~rows
        if not (np.isin(one_hot, (0, 1)).all() and (is_void | (one_hot.sum(axis=-1) == 1)).all()):
            raise ValueError(
                f"`y` must hold one-hot labels, one 1 in each row, where it has the shape of the probabilities, "
                f"{self.probabilities.shape}. Soft labels have no class to score: take y.argmax(-1), or the mean of "
                "`log_prob(y)`."
            )
        indices = one_hot.argmax(axis=-1)
        kept = ~is_void if is_void.any() else None
        if y.names is None or classes is None:
            return indices, kept
        return np.asarray(y.names)[indices], kept


@dataclass(frozen=True, eq=False)
class LogitForecast:
    """Logits of classes or of label 1: the labels say which.

    Attributes:
        logits: `(..., classes)`, or the shape of the labels, with or without a last axis of one.
        classes: The class of each column, or None.
        has_class_axis: Whether the last axis holds classes; None if the labels must tell.
        ignore_class: Label of events that do not count, or None.
    """

    logits: NDArray[Any]
    classes: Sequence[Any] | None = None
    has_class_axis: bool | None = None
    ignore_class: Any = None

    def for_labels(self, y: Labels) -> ClassForecast:
        """The probabilities: a softmax over the last axis, or of each logit the probability of label 1.

        Raises:
            ValueError: if shape and labels leave open which.
        """
        z, shape = self.logits, y.values.shape
        has_class_axis = self.has_class_axis
        if has_class_axis is None:
            has_class_axis = z.ndim > 1 and z.shape[-1] > 1 and z.shape != shape
        if self.has_class_axis is None and z.shape == shape and are_one_hot_labels(y.values, kept=y.rows()):
            raise ValueError(
                f"`y` must say what `logits` of its own shape, {z.shape}, stand for, not hold a single 1 in every row, "
                "which is a class for each row or independent labels of which one is 1. For classes pass "
                "`y.argmax(-1)`, for independent labels their probabilities; or say it by "
                "`likelihood=bdl.likelihoods.Categorical()` or `Bernoulli()`."
            )
        if not has_class_axis and z.shape == (*shape, 1):
            z = z[..., 0]
        scores = z if has_class_axis else np.stack([np.zeros_like(z), z], axis=-1)
        p = np.empty(scores.shape)
        flat_scores, flat = scores.reshape(-1, scores.shape[-1]), p.reshape(-1, scores.shape[-1])
        for rows in blocks_of_rows(*flat_scores.shape):
            flat[rows] = _softmax(flat_scores[rows].astype(np.float64))
        return ClassForecast(
            p if has_class_axis else p[..., 1],
            is_categorical=has_class_axis,
            ignore_class=self.ignore_class,
            classes=self.classes,
            scores=scores,
        )


OfClasses = ClassForecast | LogitForecast


def _check_are_classes(y: NDArray[Any], probabilities: NDArray[Any]) -> None:
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y != np.floor(y)).any():
        raise ValueError(
            "`prediction` must say how sure it is of real targets, {'mean': ..., 'scale': ...} or "
            f"{{'samples': ...}}, not be an array of shape {probabilities.shape}, which stands for class "
            "probabilities: `y` has fractions."
        )


def _as_list(classes: Any) -> list[Any] | None:
    return None if classes is None else list(classes)


def _differ(values: NDArray[Any], label: Any) -> NDArray[np.bool_]:
    """Where labels are another one; text and numbers are compared as text."""
    if values.dtype.kind == "U" and not isinstance(label, str):
        label = str(label)
    if values.dtype.kind in "buif" and isinstance(label, str):
        values = values.astype(str)
    return np.asarray(values != label, dtype=bool)


@np.errstate(invalid="ignore")  # of what a mask leaves out
def _log_losses(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    of_label = np.take_along_axis(scores, labels[:, None], axis=1)
    # Differences from the label's score, so that a loss near zero keeps its digits.
    losses = np.logaddexp.reduce(scores - of_label, axis=1)
    return np.where(of_label[:, 0] == -np.inf, -_LOG_OF_ZERO, losses)


@np.errstate(invalid="ignore")
def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import softmax

    return softmax(scores, axis=-1)
