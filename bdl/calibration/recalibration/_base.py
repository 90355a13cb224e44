"""What all recalibrators of class probabilities share: scikit-learn's contract, and the checks of what goes in."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from bdl.calibration._classes import column_names, label_array, label_columns
from bdl.calibration._validation import check_probabilities, real_array

SMALLEST = np.finfo(np.float64).tiny
"""What a probability of zero counts as where its logarithm is taken."""


class ProbabilityCalibrator(ClassifierMixin, BaseEstimator):
    """A classifier whose features are what another classifier said: one column for each class.

    Subclasses write `_fit(log_probabilities, labels, counts)` and `_calibrate(log_probabilities)`.
    """

    from_logits: bool

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Self:
        """Learns the map from what was said to what was true.

        Args:
            X: Probabilities `(n, classes)`, or `(n,)` or `(n, 1)` for those of the second class; logits if
                `from_logits`.
            y: Labels `(n,)`; those that `numpy.ma` masks are left out.
            sample_weight: How often each example counts, `(n,)`, at least 0; None for once. What weighs nothing is
                as if it were not there, whatever its row and label hold.
            classes: The class of each column, in order, such as a classifier's `classes_`. None takes the names of a
                table's columns, or labels as `bdl.evaluate` takes them: column numbers, or as many different ones as
                columns in their sorted order.

        Returns:
            The estimator.

        Raises:
            ValueError: if a row is no distribution, a value is not finite, the lengths differ, a label is unknown or a
                weight negative.
        """
        said = self._said(X, reset=True)
        counts = check_sample_weight(sample_weight, len(said))
        if isinstance(y, np.ma.MaskedArray) and y.shape == counts.shape:
            counts = np.where(np.ma.getmaskarray(y), 0.0, counts)
        kept = counts > 0
        scores = self._scores_of(said[kept])
        classes = _column_names(X) if classes is None else classes
        self.classes_, labels = _columns_of(of_those_kept(y, kept), scores.shape[1], classes)
        if len(labels) != len(scores):
            raise ValueError(
                "`X` and `y` must have one row per example, not inconsistent numbers of samples, "
                f"{len(scores)} rows and {len(labels)} labels. Predict on exactly the inputs of `y`."
            )
        self._fit(scores, labels, counts[kept])
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities, `(n, classes)`.

        Args:
            X: As for `fit`, of the same number of columns.
        """
        check_is_fitted(self)
        return self._calibrate(self._scores(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class, `(n,)`.

        Args:
            X: As for `fit`, of the same number of columns.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def _fit(self, scores: NDArray[np.float64], labels: NDArray[np.intp], counts: NDArray[np.float64]) -> None:
        raise NotImplementedError

    def _calibrate(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError

    def _scores(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logits, or log probabilities, `(n, classes)` in float64, for a fitted estimator."""
        return self._scores_of(self._said(X, reset=False))

    def _said(self, X: ArrayLike, reset: bool) -> NDArray[np.float64]:
        """The columns of X, their values not yet looked at."""
        is_vector = isinstance(X, (list, np.ndarray)) and np.ndim(X) == 1 and np.asarray(X).dtype.kind in "fiu"
        if is_vector and (reset or self.n_features_in_ == 1):
            X = np.asarray(X)[:, None]  # the probability of the second class
        return validate_data(self, X, reset=reset, dtype=np.float64, ensure_min_features=1, ensure_all_finite=False)

    def _scores_of(self, said: NDArray[np.float64]) -> NDArray[np.float64]:
        assert_all_finite(said, input_name="X", estimator_name=type(self).__name__)
        if self.from_logits:
            return np.concatenate([np.zeros_like(said), said], axis=1) if said.shape[1] == 1 else said
        p = check_probabilities(said[:, 0] if said.shape[1] == 1 else said)
        return np.log(np.maximum(p, SMALLEST))


def check_sample_weight(sample_weight: ArrayLike | None, num_examples: int) -> NDArray[np.float64]:
    """How often each example counts, `(n,)` in float64: once if None.

    Raises:
        ValueError: if there is not one weight per example, a weight is negative or not finite, or all are 0.
    """
    if sample_weight is None:
        return np.ones(num_examples)
    weights = real_array("sample_weight", sample_weight).astype(np.float64)
    if weights.shape != (num_examples,):
        raise ValueError(
            f"`sample_weight` must have one weight per example, shape {(num_examples,)}, not shape {weights.shape}. "
            "Give each row of `X` its weight."
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise ValueError(
            f"`sample_weight` must be finite and at least 0, not {weights[index]} at index {index}. "
            "Give an example that does not count the weight 0."
        )
    if not weights.any():
        raise ValueError(
            "`sample_weight` must keep at least one example, not be zero for all. Pass None for equal weights."
        )
    return weights


def of_those_kept(y: ArrayLike, kept: NDArray[np.bool_]) -> ArrayLike:
    """The labels or targets of a mask; as they are if all are kept, or if they do not fit, which is found later."""
    return y if kept.all() or y is None or np.shape(y)[:1] != kept.shape else np.asarray(y)[kept]


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of rows of scores."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log probabilities of rows of scores."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _columns_of(y: ArrayLike, num_classes: int, classes: ArrayLike | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes in the order of the columns, and each label's column."""
    if y is None:
        raise ValueError("`y` must hold the labels: fit requires y to be passed, but the target y is None.")
    labels = column_or_1d(y, warn=True)
    check_classification_targets(labels)
    found = np.unique(labels)
    if len(found) == 1 and len(labels) > 0:
        raise ValueError(
            f"`y` must hold two classes or more, not one class, {found[0]!r} alone. Calibrate on data where the "
            "others occur, or their probabilities cannot be judged."
        )
    return label_columns(label_array(labels), num_classes, classes)


def _column_names(X: ArrayLike) -> list[Any] | None:
    """Names of the columns, if each is of a class."""
    names = column_names(X)
    return names if names is not None and len(names) > 1 else None
