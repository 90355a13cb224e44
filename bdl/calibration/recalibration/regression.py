"""Recalibration of predictive Normals: one factor on their scales, or a monotone map of their quantiles.

What another model said is `X`, `(n, 2)`: mean and scale of each target.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.isotonic import IsotonicRegression
from sklearn.utils.validation import check_is_fitted, validate_data

from bdl.calibration._validation import check_positive, check_targets


class _NormalCalibrator(RegressorMixin, BaseEstimator):
    """Checks of predictive Normals."""

    def _checked(self, X: ArrayLike, reset: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        checked = validate_data(self, X, reset=reset, dtype=np.float64)
        if checked.shape[1] != 2:
            raise ValueError(
                f"`X` must have two columns, mean and scale, not shape {checked.shape}. "
                "Stack them, `np.stack([mean, scale], axis=1)`."
            )
        check_positive("X[:, 1]", checked[:, 1])
        return checked[:, 0], checked[:, 1]

    def _standardized(self, X: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        mean, scale = self._checked(X, reset=True)
        (target,) = check_targets(("y", y))
        if target.shape != mean.shape:
            raise ValueError(
                f"`X` and `y` must have one row a target, not inconsistent numbers of samples, shapes "
                f"{(len(mean), 2)} and {target.shape}. Predict on exactly the inputs of `y`."
            )
        return (target - mean) / scale


class VarianceScaling(_NormalCalibrator):
    """One factor on all scales, that of least negative log likelihood: the root mean square of `(y - mean) / scale`.

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

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learns the factor.

        Args:
            X: Means and scales, `(n, 2)`.
            y: Targets, `(n,)`.

        Raises:
            ValueError: if shapes do not fit, a value is not finite, a scale not positive, or every mean is its target.
        """
        z = self._standardized(X, y)
        self.factor_ = float(np.sqrt(np.mean(z**2)))
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
        return self._checked(X, reset=False)[0]

    def predict_scale(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated standard deviations, `(n,)`.

        Args:
            X: Means and scales, `(n, 2)`.
        """
        check_is_fitted(self)
        return self.factor_ * self._checked(X, reset=False)[1]


class QuantileCalibration(_NormalCalibrator):
    """A monotone map of quantiles' levels, so that the share of targets below each is what it says.

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

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learns the map.

        Args:
            X: Means and scales, `(n, 2)`.
            y: Targets, `(n,)`.

        Raises:
            ValueError: if shapes do not fit, a value is not finite or a scale not positive.
        """
        z = np.sort(self._standardized(X, y))  # their order is that of F(y), without its rounding to 0 and 1
        ranks = np.arange(1, len(z) + 1) / (len(z) + 1)
        shares = IsotonicRegression(y_min=0, y_max=1).fit(z, ranks).predict(z)
        self.quantiles_, first = np.unique(z, return_index=True)
        self.shares_ = shares[first]
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
        mean, scale = self._checked(X, reset=False)
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
