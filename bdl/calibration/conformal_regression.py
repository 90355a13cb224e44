"""Prediction intervals for regression: between them lies the target with a probability chosen by the user."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from bdl.calibration._conformal_quantile import check_calibration_size, conformal_quantile
from bdl.calibration._validation import check_positive, check_share, check_targets

# What `prediction` holds for each method: its shape, and how to make it of what a model gives.
SHAPES = {
    "absolute": ("(n,), the predicted means", "`mean.reshape(-1)`"),
    "normalized": ("(n, 2), the predicted means and scales", "`np.stack([mean, scale], axis=1)`"),
    "cqr": ("(n, 2), the predicted lower and upper quantiles", "`np.stack([lower, upper], axis=1)`"),
}


class SplitConformalRegressor(BaseEstimator):
    """Prediction intervals that contain the target with a probability chosen by the user, whatever the model.

    `fit` scores the targets of a calibration set that the model has not seen; `predict_interval` returns all values
    that score at most `q`, the `k`-th smallest of these `n` scores with `k = ceil((n + 1) coverage)`, which is their
    quantile at `k / n`. If calibration and new examples are exchangeable,

        P(y in interval) >= coverage,    and    P(y in interval) <= coverage + 1 / (n + 1)    without equal scores,

    the probability being over calibration set and new example together. Scores and intervals are:

    - `"absolute"`, `s = |y - mean|`, interval `mean -+ q`, of one width everywhere (Lei, G'Sell, Rinaldo, Tibshirani
      and Wasserman 2018, "Distribution-free predictive inference for regression", algorithm 2).
    - `"normalized"`, `s = |y - mean| / scale`, interval `mean -+ q scale`, wide where the model is unsure
      (Papadopoulos, Gammerman and Vovk 2008, "Normalized nonconformity measures for regression conformal
      prediction"). The mean and standard deviation of a Bayesian prediction, epistemic and aleatoric, fit well.
    - `"cqr"`, `s = max(lower - y, y - upper)`, interval `[lower - q, upper + q]` (Romano, Patterson and Candes 2019,
      "Conformalized quantile regression", eqs. 6 and 7), for any two predicted quantiles. `q` is negative where they
      cover too much; an interval that then crosses itself is mended to its midpoint, `lower = upper`, which keeps the
      guarantee, as the empty interval holds no target.

    If not `symmetric`, the two sides have thresholds of their own (Romano et al. 2019, theorem 2): from the scores
    without absolute value or maximum, `mean - y` (over the scale) or `lower - y` below and their negatives above, each
    at `(1 + coverage) / 2`. Each side then misses at most `(1 - coverage) / 2` of the targets: at least the coverage,
    and without ties and crossings at most `coverage + 2 / (n + 1)`. Intervals follow skewed errors, often wider.

    Args:
        method: Score, `"absolute"`, `"normalized"` or `"cqr"`.
        symmetric: Whether both sides share one threshold.

    Attributes:
        scores_: Scores of the calibration targets, `(1, n)`; or `(2, n)`, below and above, if not `symmetric`.

    Raises:
        ValueError: in `fit` and `predict_interval`, if an argument is not valid, or the calibration set too small.

    Example:
    >>> from bdl.calibration.conformal import SplitConformalRegressor
    >>> conformal = SplitConformalRegressor().fit([1.0, 2.0, 3.0, 4.0], y=[1.1, 1.8, 3.4, 4.3])
    >>> conformal.predict_interval([10.0, 20.0], coverage=0.6)  # q is the 3rd smallest residual, 0.3
    array([[ 9.7, 10.3],
           [19.7, 20.3]])
    >>> mean_and_scale = np.array([[1.0, 0.1], [2.0, 0.2], [3.0, 0.2], [4.0, 0.1]])
    >>> conformal = SplitConformalRegressor("normalized").fit(mean_and_scale, y=[1.1, 1.8, 3.4, 4.3])
    >>> conformal.predict_interval([[10.0, 0.1], [20.0, 0.5]], coverage=0.6)
    array([[ 9.8, 10.2],
           [19. , 21. ]])
    """

    def __init__(self, method: Literal["absolute", "normalized", "cqr"] = "absolute", symmetric: bool = True) -> None:
        self.method = method
        self.symmetric = symmetric

    def fit(self, prediction: ArrayLike, y: ArrayLike) -> Self:
        """Score the targets of a calibration set.

        Args:
            prediction: For `"absolute"` the mean, shape `(n,)`; for `"normalized"` mean and scale, for `"cqr"` lower
                and upper quantile, shape `(n, 2)`. Of examples that the model was not trained, tuned or selected on.
            y: Targets, shape `(n,)`.

        Returns:
            The estimator itself.

        Raises:
            ValueError: if an argument, of this method or of the estimator, is not valid.
        """
        self._check_parameters()
        lower, upper, unit = self._bounds_and_unit(prediction)
        target = check_targets(("y", y))[0]
        if target.shape != lower.shape:
            raise ValueError(
                f"`y` must have shape {lower.shape}, one target for each row of `prediction`, "
                f"not shape {target.shape}. Squeeze an axis of size 1, and predict on the inputs of `y` alone."
            )
        sides = np.stack([lower - target, target - upper]) / unit
        self.scores_ = sides.max(axis=0, keepdims=True) if self.symmetric else sides
        return self

    def predict_interval(self, prediction: ArrayLike, coverage: float = 0.9) -> NDArray[np.float64]:
        """Return the lower and upper ends of the intervals.

        Args:
            prediction: As in `fit`, for the inputs to predict on.
            coverage: Probability, between 0 and 1, with which an interval is to contain the target.

        Returns:
            Array `(n, 2)`, lower and upper end, both included.

        Raises:
            ValueError: if an argument is not valid, the estimator is not fitted, or the calibration set is smaller
                than `c / (1 - c)` with `c` the coverage, `(1 + coverage) / 2` if not `symmetric`.
        """
        check_is_fitted(self, "scores_", msg="This %(name)s is not fitted. Call `fit(prediction, y)` before.")
        share = check_share("coverage", coverage)
        lower, upper, unit = self._bounds_and_unit(prediction)
        num_tails, num_examples = self.scores_.shape
        check_calibration_size(num_examples, share, num_tails)
        thresholds = [conformal_quantile(scores, 1 - (1 - share) / num_tails) for scores in self.scores_]
        intervals = np.stack([lower - thresholds[0] * unit, upper + thresholds[-1] * unit], axis=1)
        crossed = intervals[:, 0] > intervals[:, 1]
        intervals[crossed] = intervals[crossed].mean(axis=1, keepdims=True)
        return intervals

    def _bounds_and_unit(
        self, prediction: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper bound before calibration, and the unit of the scores, each `(n,)`.

        The three methods are one: an interval `[lower - q unit, upper + q unit]`, of no width before calibration
        where only a mean is predicted.
        """
        array = check_targets(("prediction", prediction))[0]
        if array.ndim != (1 if self.method == "absolute" else 2) or array.shape[1:] not in ((), (2,)):
            shape, cure = SHAPES[self.method]
            raise ValueError(
                f"`prediction` must have shape {shape}, for the method {self.method!r}, "
                f"not shape {array.shape}. Pass {cure}."
            )
        if self.method == "absolute":
            return array, array, np.ones_like(array)
        first, second = array.T
        if self.method == "normalized":
            check_positive("prediction[:, 1]", second)
            return first, first, second
        _check_ordered(first, second)
        return first, second, np.ones_like(first)

    def _check_parameters(self) -> None:
        if self.method not in SHAPES:
            raise ValueError(f"`method` must be one of {', '.join(map(repr, SHAPES))}, not {self.method!r}.")
        if not isinstance(self.symmetric, bool | np.bool_):
            raise ValueError(f"`symmetric` must be True or False, not {self.symmetric!r}.")


def _check_ordered(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
    crossed = lower > upper
    if crossed.any():
        index = int(np.argmax(crossed))
        raise ValueError(
            "`prediction[:, 0]`, the lower quantile, must be at most `prediction[:, 1]`, the upper one, "
            f"not {lower[index]} and {upper[index]} at index {index}. "
            "`np.sort(prediction, axis=1)` mends quantiles that cross now and then; else swap the columns."
        )
