"""Recalibration of predictive Normals: one factor on their scales, or a monotone map of their quantiles.

What another model said is `X`, `(n, 2)`: mean and scale of each target.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_is_fitted, validate_data

from bdl.calibration._validation import check_positive, check_targets
from bdl.calibration.recalibration._base import check_sample_weight, of_those_kept


class _NormalCalibrator(RegressorMixin, BaseEstimator):
    """Checks of predictive Normals."""

    def _checked(self, X: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and scales, for a fitted estimator."""
        return self._normals(self._said(X, reset=False))

    def _said(self, X: ArrayLike, reset: bool) -> NDArray[np.float64]:
        """The two columns of X, their values not yet looked at."""
        said = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite=False)
        if said.shape[1] != 2:
            raise ValueError(
                f"`X` must have two columns, mean and scale, not shape {said.shape}. "
                "Stack them, `np.stack([mean, scale], axis=1)`."
            )
        return said

    def _normals(self, said: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert_all_finite(said, input_name="X", estimator_name=type(self).__name__)
        check_positive("X[:, 1]", said[:, 1])
        return said[:, 0], said[:, 1]

    def _standardized(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`(y - mean) / scale` of the targets that count, and how often each does."""
        said = self._said(X, reset=True)
        counts = check_sample_weight(sample_weight, len(said))
        kept = counts > 0
        mean, scale = self._normals(said[kept])
        (target,) = check_targets(("y", of_those_kept(y, kept)))
        if target.shape != mean.shape:
            raise ValueError(
                f"`X` and `y` must have one row a target, not inconsistent numbers of samples, shapes "
                f"{(len(mean), 2)} and {target.shape}. Predict on exactly the inputs of `y`."
            )
        return (target - mean) / scale, counts[kept]


class VarianceScaling(_NormalCalibrator):
    """One factor for all scales, which minimises the NLL: the root mean square of `(y - mean) / scale`.

    Laves et al. 2020, "Well-calibrated regression uncertainty in medical imaging", eq. 13.

    Attributes:
        factor_: Above 1 the uncertainty was too small.

    Example:
    >>> import numpy as np
    >>> from bdl.calibration import VarianceScaling
    >>> scaling = VarianceScaling().fit([[0.0, 1.0], [0.0, 1.0]], [2.0, -2.0])
    >>> scaling.transform([[5.0, 0.5]])  # the scale was half of what it should be
    array([[5., 1.]])
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learns the factor.

        Args:
            X: Means and scales, `(n, 2)`.
            y: Targets, `(n,)`.
            sample_weight: How often each target counts, `(n,)`, at least 0; None for once. What weighs nothing is as
                if it were not there.

        Raises:
            ValueError: if shapes do not fit, a value is not finite, a scale not positive, a weight negative, or every
                mean is its target.
        """
        z, counts = self._standardized(X, y, sample_weight)
        self.factor_ = float(np.sqrt(counts @ z**2 / counts.sum()))
        if self.factor_ == 0:
            raise ValueError("`y` must differ from the means, not be without any error. Calibrate on held-out data.")
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Means and calibrated scales, `(n, 2)`.

        Args:
            X: Means and scales, `(n, 2)`.
        """
        return np.stack([self.predict(X), self.predict_scale(X)], axis=1)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """The means, `(n,)`, which stay as they are.

        Args:
            X: Means and scales, `(n, 2)`.
        """
        check_is_fitted(self)
        return self._checked(X)[0]

    def predict_scale(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated standard deviations, `(n,)`.

        Args:
            X: Means and scales, `(n, 2)`.
        """
        check_is_fitted(self)
        return self.factor_ * self._checked(X)[1]


class QuantileCalibration(_NormalCalibrator):
    """A monotone map of quantiles' levels, after which the share of targets below a quantile equals its level.

    With `F` the predictive distribution function, isotonic regression of the ranks of `F(y)` on `F(y)` gives `R`, and
    `R(F(y))` is the calibrated distribution function (Kuleshov et al. 2018, "Accurate uncertainties for deep learning
    using calibrated regression", algorithm 1). It mends any shape that all targets share, and needs some hundred of
    them; beyond the most extreme one of these it knows nothing, and keeps to it.

    Attributes:
        quantiles_: `(y - mean) / scale` of the targets, different and sorted.
        shares_: `R` of each.

    Example:
    >>> import numpy as np
    >>> from bdl.calibration import QuantileCalibration
    >>> y = np.linspace(-2, 2, 9)
    >>> calibration = QuantileCalibration().fit(np.tile([0.0, 1.0], (9, 1)), y)
    >>> calibration.predict_quantile([[0.0, 1.0]], 0.2)  # a fifth of ten intervals between targets
    array([-1.5])
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learns the map.

        Args:
            X: Means and scales, `(n, 2)`.
            y: Targets, `(n,)`.
            sample_weight: How often each target counts, `(n,)`, at least 0; None for once. What weighs nothing is as
                if it were not there.

        Raises:
            ValueError: if shapes do not fit, a value is not finite, a scale not positive or a weight negative.
        """
        z, counts = self._standardized(X, y, sample_weight)
        # The order of z is that of F(y), without its rounding to 0 and 1. Ranks grow with it, so isotonic regression
        # does no more than give equal values their mean rank.
        self.quantiles_, index = np.unique(z, return_inverse=True)
        held = np.bincount(index, weights=counts)
        self.shares_ = (np.cumsum(held) - held + (held + 1) / 2) / (held.sum() + 1)
        return self

    def transform_levels(self, levels: ArrayLike) -> NDArray[np.float64]:
        """Predictive levels of calibrated ones: the inverse of `R`.

        Args:
            levels: Levels in (0, 1), any shape.

        Raises:
            ValueError: if a level is outside.
        """
        from scipy.special import ndtr

        return ndtr(self._standard_quantiles(levels))

    def transform_probabilities(self, probabilities: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities of predictive ones, `R`: maps probability integral transforms to uniform ones.

        Args:
            probabilities: Predictive probabilities below a target, any shape.
        """
        from scipy.special import ndtri

        check_is_fitted(self)
        return np.interp(ndtri(np.asarray(probabilities, dtype=np.float64)), self.quantiles_, self.shares_)

    def predict_quantile(self, X: ArrayLike, levels: ArrayLike) -> NDArray[np.float64]:
        """Calibrated quantiles.

        Args:
            X: Means and scales, `(n, 2)`.
            levels: A level in (0, 1), or several.

        Returns:
            `(n,)`, or `(levels, n)` for several.
        """
        z = self._standard_quantiles(levels)
        mean, scale = self._checked(X)
        return mean + scale * z[..., None] if z.ndim else mean + scale * z

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated medians, `(n,)`.

        Args:
            X: Means and scales, `(n, 2)`.
        """
        return self.predict_quantile(X, 0.5)

    def _standard_quantiles(self, levels: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        wanted = np.asarray(levels, dtype=np.float64)
        if not np.all((wanted > 0) & (wanted < 1)):
            raise ValueError(f"`levels` must be between 0 and 1, both excluded, not {levels!r}.")
        return np.asarray(np.interp(wanted, self.shares_, self.quantiles_))
