"""Prediction sets for classifiers, the classes that cannot be ruled out at a coverage, and measures of such sets."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from bdl.calibration._classes import column_names, label_array, label_columns
from bdl.calibration._conformal_quantile import calibration_size_needed, conformal_quantile, highest_coverage
from bdl.calibration._events import BLOCK_SIZE, without_mask
from bdl.calibration._validation import (
    check_labels_and_probabilities,
    check_not_empty,
    check_probabilities,
    check_share,
    real_array,
)

METHODS = ("lac", "aps", "raps")

# Calibration and prediction need independent uniforms: these tell their two streams apart under one seed.
CALIBRATION_STREAM, PREDICTION_STREAM = 0, 1


class SplitConformalClassifier(BaseEstimator):
    """Prediction sets that contain the true class with a probability chosen by the user, whatever the model.

    `fit` scores the labels of a calibration set that the model has not seen; `predict_set` returns all classes that
    score at most `q`, the `k`-th smallest of these `n` scores with `k = ceil((n + 1) coverage)`, which is their
    quantile at `k / n`. If calibration and new examples are exchangeable,

        P(y in set) >= coverage,    and    P(y in set) <= coverage + 1 / (n + 1)    if no two scores are equal,

    the probability being over calibration set, new example and uniforms together. With `p_(1) >= p_(2) >= ...` the
    sorted probabilities of an input, `r` the rank of class `y` among them and `U` a uniform number, one per example,
    the scores are:

    - `"lac"`, `s = 1 - p(y)` (Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued classifiers with bounded
      error levels"): the smallest sets on average; on hard inputs they cover too rarely and may be empty.
    - `"aps"`, `s = p_(1) + ... + p_(r-1) + U p_(r)` (Romano, Sesia and Candes 2020, "Classification with valid and
      adaptive coverage", section 2, with `1 - U` for `U`): larger sets where the model is unsure.
    - `"raps"`, `s = s_aps + penalty max(r - regularized_rank, 0)` (Angelopoulos, Bates, Malik and Jordan 2021,
      "Uncertainty sets for image classifiers using conformal prediction", eq. 4): without the long tail of `"aps"`.

    `class_conditional` compares each class with a threshold from the calibration examples of that class alone, a
    Mondrian predictor (Vovk 2012, "Conditional validity of inductive conformal predictors"). Then the guarantee holds
    for each class, `P(y in set | y = c) >= coverage`, with `n_c` in place of `n`.

    A set may be empty: no class conforms. Adding the most probable class there keeps the guarantee and only raises
    the coverage. Among equal probabilities the first class ranks first.

    Args:
        method: Score, `"lac"`, `"aps"` or `"raps"`.
        class_conditional: Whether the coverage holds for each class, and not only over all of them.
        randomized: Whether `"aps"` and `"raps"` draw `U`, which makes sets as small as the coverage allows. If False
            `U` is 1: the sets need no random numbers, nest likewise, and are usually larger. `"lac"` draws none.
        penalty: Of `"raps"`, added to the score for each rank beyond `regularized_rank`; at least 0. To tune it, take
            examples that are not used to calibrate.
        regularized_rank: Of `"raps"`, the rank up to which classes are free of penalty; 0 or a positive integer. Of
            so many classes or fewer, `"raps"` is `"aps"`.
        seed: Seeds the uniforms; the same in every call, so that sets repeat and grow with the coverage. Two calls on
            single inputs thus share one `U`: predict on all inputs in one call, or pass None for new ones in each.

    Attributes:
        scores_: Scores of the calibration labels, `(n,)`; for `"lac"` held as `-p(y)`, which rounding leaves apart
            where `1 - p(y)` would be 1 for every unlikely label.
        labels_: Columns of the calibration labels, `(n,)`.
        classes_: The class of each column, `(classes,)`.
        num_classes_: Number of classes.

    Raises:
        ValueError: in `fit` and `predict_set`, if an argument is not valid, or the calibration set too small.

    Example:
    >>> from bdl.calibration.conformal import SplitConformalClassifier
    >>> probabilities = [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1]]
    >>> conformal = SplitConformalClassifier().fit(probabilities, y=[0, 1, 2, 1])
    >>> conformal.predict_set([[0.5, 0.45, 0.05], [0.1, 0.1, 0.8]], coverage=0.8)  # classes with p >= 0.4
    array([[ True,  True, False],
           [False, False,  True]])
    """

    def __init__(
        self,
        method: Literal["lac", "aps", "raps"] = "lac",
        class_conditional: bool = False,
        randomized: bool = True,
        penalty: float = 0.01,
        regularized_rank: int = 5,
        seed: int | None = 0,
    ) -> None:
        self.method = method
        self.class_conditional = class_conditional
        self.randomized = randomized
        self.penalty = penalty
        self.regularized_rank = regularized_rank
        self.seed = seed

    def fit(self, probabilities: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Score the labels of a calibration set.

        Args:
            probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two; of examples that
                the model was not trained, tuned or selected on.
            y: Labels, shape `(n,)`; those that `numpy.ma` masks are left out.
            classes: The class of each column, in order, such as a classifier's `classes_`. None takes the names of a
                table's columns, or labels as `bdl.evaluate` takes them: column numbers, or as many different ones as
                columns in their sorted order.

        Returns:
            The estimator itself.

        Raises:
            ValueError: if an argument, of this method or of the estimator, is not valid.
        """
        self._check_parameters()
        self.column_names_ = column_names(probabilities)
        self.classes_, labels, p = _columns_of(y, probabilities, self.column_names_ if classes is None else classes)
        blocks = self._score_blocks(p, CALIBRATION_STREAM)
        self.scores_ = np.concatenate([scores[np.arange(len(scores)), labels[rows]] for rows, scores in blocks])
        self.labels_ = labels
        self.num_classes_ = p.shape[1]
        return self

    def predict_set(self, probabilities: ArrayLike, coverage: float = 0.9) -> NDArray[np.bool_]:
        """Return which classes cannot be ruled out.

        Args:
            probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two.
            coverage: Probability, between 0 and 1, with which a set is to contain the true class.

        Returns:
            Booleans `(n, classes)`, True where a class is in the set.

        Raises:
            ValueError: if an argument is not valid, the estimator is not fitted, or the calibration set (or, if
                `class_conditional`, that of a class) is smaller than `coverage / (1 - coverage)`.
        """
        check_is_fitted(self, "scores_", msg="This %(name)s is not fitted. Call `fit(probabilities, y)` before.")
        thresholds = self._thresholds(check_share("coverage", coverage))
        p, names = check_probabilities(probabilities), column_names(probabilities)
        if names is not None and self.column_names_ is not None and names != self.column_names_:
            raise ValueError(
                f"`probabilities` must have the columns of `fit`, {self.column_names_}, not {names}. Reorder them."
            )
        if p.shape[1] != self.num_classes_:
            raise ValueError(
                f"`probabilities` must have {self.num_classes_} classes, as in `fit`, not {p.shape[1]}. "
                "Calibrate and predict with one model."
            )
        sets = np.empty(p.shape, bool)
        for rows, scores in self._score_blocks(p, PREDICTION_STREAM):
            sets[rows] = scores <= thresholds
        return sets

    def _thresholds(self, coverage: float) -> NDArray[np.float64]:
        """The highest score in a set, for each class, `(classes,)`."""
        if not self.class_conditional:
            return np.full(self.num_classes_, conformal_quantile(self.scores_, coverage))
        self._check_class_counts(coverage)
        of_class = [self.scores_[self.labels_ == c] for c in range(self.num_classes_)]
        return np.array([conformal_quantile(scores, coverage) for scores in of_class])

    def _score_blocks(self, p: NDArray[np.floating], stream: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Rows, and the scores of all their classes; block by block, so that temporary memory is bounded."""
        uniforms = self._uniforms(len(p), stream)
        block = max(1, BLOCK_SIZE // p.shape[1])
        for start in range(0, len(p), block):
            rows = slice(start, start + block)
            wide = p[rows].astype(np.float64)
            yield rows, -wide if self.method == "lac" else self._cumulative_scores(wide, uniforms[rows])

    def _cumulative_scores(self, p: NDArray[np.float64], uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of APS and RAPS for all classes, `(n, classes)`."""
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=1)
        ranked_scores = np.cumsum(ranked, axis=1) - (1 - uniforms[:, None]) * ranked
        if self.method == "raps":
            rank = np.arange(1, p.shape[1] + 1)
            ranked_scores += self.penalty * np.maximum(rank - self.regularized_rank, 0)
        scores = np.empty_like(p)
        np.put_along_axis(scores, order, ranked_scores, axis=1)
        return scores

    def _uniforms(self, num_examples: int, stream: int) -> NDArray[np.float64]:
        if self.method == "lac" or not self.randomized:
            return np.ones(num_examples)
        entropy = None if self.seed is None else [self.seed, stream]
        return np.random.default_rng(entropy).uniform(size=num_examples)

    def _check_class_counts(self, coverage: float) -> None:
        count = np.bincount(self.labels_, minlength=self.num_classes_)
        needed = calibration_size_needed(coverage)
        short = np.flatnonzero(count < needed)
        if len(short):
            shown = ", ".join(f"{count[c]} of class {c}" for c in short[:3]) + (", ..." if len(short) > 3 else "")
            highest = highest_coverage(int(count.min()))
            lower = f"ask for a coverage of at most {highest:g}, " if highest else ""
            raise ValueError(
                f"`coverage` of {coverage} needs at least {needed} calibration examples of each class, "
                f"not {shown}. Calibrate on more examples of {'it' if len(short) == 1 else 'these'}, {lower}"
                "or share one threshold, `class_conditional=False`."
            )

    def _check_parameters(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, not {self.method!r}.")
        for name in ("class_conditional", "randomized"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"`{name}` must be True or False, not {getattr(self, name)!r}.")
        penalty = self.penalty
        if isinstance(penalty, bool) or not isinstance(penalty, Real) or not 0 <= penalty < np.inf:
            raise ValueError(f"`penalty` must be a finite number, at least 0, not {penalty!r}. 0.01 is usual.")
        if not _is_count(self.regularized_rank):
            raise ValueError(
                f"`regularized_rank` must be 0 or a positive integer, not {self.regularized_rank!r}. 5 is usual."
            )
        if self.seed is not None and not _is_count(self.seed):
            raise ValueError(
                f"`seed` must be 0, a positive integer, or None, not {self.seed!r}. None draws anew in each call."
            )


def coverage_of_sets(y: ArrayLike, sets: ArrayLike, classes: ArrayLike | None = None) -> float:
    """Return the share of examples whose label is in their prediction set.

    `1/n sum_i 1[y_i in C_i]`, to compare with the coverage asked for. On `m` test examples it scatters around the
    coverage of the calibration set at hand by `sqrt(coverage (1 - coverage) / m)`.

    Args:
        y: Labels, shape `(n,)`.
        sets: True where a class is in the set, shape `(n, classes)`.
        classes: The class of each column, in order; None where labels are column numbers, or as many different ones as
            columns in their sorted order.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration.conformal import coverage_of_sets
    >>> coverage_of_sets([0, 1, 2, 0], [[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 1]])
    0.75
    """
    labels, members = _check_labels_and_sets(y, sets, classes)
    return float(members[np.arange(len(labels)), labels].mean())


def class_conditional_coverage(y: ArrayLike, sets: ArrayLike, classes: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return for each class the share of its examples whose label is in their prediction set.

    `1/n_c sum_{i: y_i = c} 1[c in C_i]` for class `c` with `n_c` examples. Sets calibrated over all classes together
    keep the coverage on average and may miss it on rare or hard classes; `class_conditional=True` keeps it on each.

    Args:
        y: Labels, shape `(n,)`.
        sets: True where a class is in the set, shape `(n, classes)`.
        classes: The class of each column, in order; None where labels are column numbers, or as many different ones as
            columns in their sorted order.

    Returns:
        Array `(classes,)`, from 0 to 1; NaN for a class without examples.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration.conformal import class_conditional_coverage
    >>> class_conditional_coverage([0, 1, 1, 0], [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    array([1. , 0.5, nan])
    """
    labels, members = _check_labels_and_sets(y, sets, classes)
    num_classes = members.shape[1]
    covered = np.bincount(labels, weights=members[np.arange(len(labels)), labels], minlength=num_classes)
    count = np.bincount(labels, minlength=num_classes)
    return np.divide(covered, count, out=np.full(num_classes, np.nan), where=count > 0)


def mean_set_size(sets: ArrayLike) -> float:
    """Return the mean number of classes in a prediction set; at equal coverage smaller sets are better.

    Args:
        sets: True where a class is in the set, shape `(n, classes)`.

    Returns:
        Mean number, from 0 to the number of classes.

    Raises:
        ValueError: if `sets` is not valid.

    Example:
    >>> from bdl.calibration.conformal import mean_set_size
    >>> mean_set_size([[True, False, False], [True, True, False]])
    1.5
    """
    return float(_check_sets(sets).sum(axis=1).mean())


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _check_sets(sets: ArrayLike) -> NDArray[np.bool_]:
    array = real_array("sets", sets)
    if array.ndim != 2:
        raise ValueError(
            f"`sets` must have shape (n, classes), one row per example, not shape {array.shape}. "
            "Pass what `predict_set` returned; one set alone needs `sets[None]`."
        )
    check_not_empty("sets", array)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(
            "`sets` must be True where a class is in the set, not hold values other than 0 and 1. "
            "Pass what `predict_set` returned, not probabilities."
        )
    return array.astype(bool)


def _columns_of(
    y: ArrayLike, probabilities: ArrayLike, classes: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
    """The class of each column, the columns of the labels, and the probabilities, without masked labels."""
    p = check_probabilities(probabilities)
    labels, hidden = without_mask(label_array(y))
    if labels.shape != p.shape[:1]:
        check_labels_and_probabilities(np.zeros(labels.shape, int), p)  # says what is wrong
    kept = None if hidden is None else ~hidden
    names, columns = label_columns(labels, p.shape[1], classes, kept)
    if kept is None:
        return names, columns, p
    check_not_empty("y", columns[kept])
    return names, columns[kept], p[kept]


def _check_labels_and_sets(
    y: ArrayLike, sets: ArrayLike, classes: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    members = _check_sets(sets)
    labels, hidden = without_mask(label_array(y))
    if labels.shape != members.shape[:1]:
        raise ValueError(
            f"`y` must have shape ({len(members)},), one class index for each row of `sets`, "
            f"not shape {labels.shape}. `y.argmax(axis=-1)` if it is one-hot."
        )
    kept = np.ones(len(labels), bool) if hidden is None else ~hidden
    return label_columns(labels, members.shape[1], classes, kept)[1][kept], members[kept]
