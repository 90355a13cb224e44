"""Keras metrics of predictive Normals and of quantiles: those of `bdl.calibration`, summed over batches.

Predictions hold mean and scale on their last axis, `(..., 2)`; with `scale` given they are means of the targets' shape.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import keras_mask
from bdl.metrics._sums import Sums, flat_targets, standard_name
from bdl.random import Tensor

_SERIALIZABLE = keras.saving.register_keras_serializable(package="bdl")
_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


class _NormalMetric(keras.metrics.Metric):
    """Takes targets, means and scales; subclasses write `_update` and `result`."""

    def __init__(self, scale: float | None, name: str | None, dtype: Any) -> None:
        super().__init__(name=name or standard_name(self), dtype=dtype)
        if scale is not None and (isinstance(scale, bool) or not np.isreal(scale) or not 0 < scale < np.inf):
            raise ValueError(
                f"`scale` must be a positive number, or None for predictions of mean and scale, not {scale!r}."
            )
        self.scale = None if scale is None else float(scale)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Targets `(...)`.
            y_pred: Means and scales `(..., 2)`; with `scale` given, means `(...)`.
            sample_weight: Weights of the targets. Those that a Keras mask on `y_pred` hides have none.

        Raises:
            ValueError: if the last axis is not of size 2 where it should be, or there is not one target for each mean.
        """
        prediction = ops.cast(y_pred, "float32")
        if self.scale is None:
            if prediction.shape[-1] != 2:
                raise ValueError(
                    "`y_pred` must hold mean and scale on its last axis, of size 2, "
                    f"not shape {tuple(prediction.shape)}. Stack them, or give a fixed `scale`."
                )
            mean, scale = prediction[..., 0], prediction[..., 1]
        else:
            mean, scale = prediction, self.scale * ops.ones_like(prediction)
        self._update(*flat_targets(y_true, [mean, scale], sample_weight, mean.shape, keras_mask(y_pred)))

    def _update(self, target: Tensor, mean: Tensor, scale: Tensor, weight: Tensor) -> None:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "scale": self.scale}


class _NormalMean(_NormalMetric):
    """The weighted mean of `_terms`."""

    def __init__(self, scale: float | None = None, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(scale, name, dtype)
        self._sum = Sums(self, "sum")
        self._weight = Sums(self, "weight")

    def _terms(self, target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        raise NotImplementedError

    def _update(self, target: Tensor, mean: Tensor, scale: Tensor, weight: Tensor) -> None:
        self._sum.add(ops.sum(weight * self._terms(target, mean, scale)))
        self._weight.add(ops.sum(weight))

    def result(self) -> Tensor:
        """The mean; 0 before any batch."""
        return ops.divide_no_nan(self._sum.value, self._weight.value)


@_SERIALIZABLE
class NormalNegativeLogLikelihood(_NormalMean):
    """Mean negative log density, in nats per target: `bdl.calibration.normal_negative_log_likelihood`.

    Args:
        scale: One standard deviation for all predictions, which are then means; None reads it from them.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.

    Example:
    >>> import numpy as np
    >>> metric = NormalNegativeLogLikelihood()
    >>> metric.update_state(np.array([0.0, 1.0]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    >>> float(metric.result())
    1.1689
    """

    def _terms(self, target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return 0.5 * ((target - mean) / scale) ** 2 + ops.log(scale) + _LOG_SQRT_TWO_PI


@_SERIALIZABLE
class NormalCRPS(_NormalMean):
    """Mean continuous ranked probability score, in the target's unit: `bdl.calibration.normal_crps`.

    Args:
        scale: One standard deviation for all predictions, which are then means; None reads it from them.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.

    Example:
    >>> import numpy as np
    >>> metric = NormalCRPS()
    >>> metric.update_state(np.array([0.0, 1.0]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    >>> float(metric.result())
    0.4181
    """

    def _terms(self, target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        z = (target - mean) / scale
        density = ops.exp(-0.5 * z**2 - _LOG_SQRT_TWO_PI)
        return scale * (z * ops.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


class _IntervalMetric(_NormalMean):
    """A metric of central intervals that should hold a share of the targets."""

    def __init__(
        self, coverage: float = 0.9, scale: float | None = None, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(scale, name, dtype)
        if isinstance(coverage, bool) or not 0 < coverage < 1:
            raise ValueError(f"`coverage` must be between 0 and 1, both excluded, not {coverage!r}. Pass 0.9.")
        self.coverage = float(coverage)
        # The half-width in standard deviations; erfinv needs no SciPy.
        self._half = float(ops.convert_to_numpy(ops.erfinv(ops.convert_to_tensor(self.coverage, "float32"))))
        self._half *= math.sqrt(2)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "coverage": self.coverage}


@_SERIALIZABLE
class IntervalCoverage(_IntervalMetric):
    """Share of targets inside their central interval (PICP): `bdl.calibration.interval_coverage`.

    Args:
        coverage: Nominal coverage of the intervals.
        scale: One standard deviation for all predictions, which are then means; None reads it from them.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.

    Example:
    >>> import numpy as np
    >>> metric = IntervalCoverage(0.9)
    >>> metric.update_state(np.array([0.0, 2.0]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    >>> float(metric.result())
    0.5
    """

    def _terms(self, target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return ops.cast(ops.abs(target - mean) <= self._half * scale, "float32")


@_SERIALIZABLE
class MeanIntervalWidth(_IntervalMetric):
    """Mean width of central intervals (MPIW): `bdl.calibration.mean_interval_width`.

    Args:
        coverage: Nominal coverage of the intervals.
        scale: One standard deviation for all predictions, which are then means; None reads it from them.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.

    Example:
    >>> import numpy as np
    >>> metric = MeanIntervalWidth(0.9)
    >>> metric.update_state(np.array([0.0]), np.array([[0.0, 1.0]]))
    >>> float(metric.result())
    3.2897
    """

    def _terms(self, target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return 2 * self._half * scale


@_SERIALIZABLE
class Sharpness(_NormalMean):
    """Root mean square predictive scale: `bdl.calibration.sharpness`.

    Args:
        scale: One standard deviation for all predictions, which are then means; None reads it from them.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.

    Example:
    >>> import numpy as np
    >>> metric = Sharpness()
    >>> metric.update_state(np.zeros(2), np.array([[0.0, 3.0], [0.0, 4.0]]))
    >>> float(metric.result())
    3.5355
    """

    def _terms(self, target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return scale**2

    def result(self) -> Tensor:
        """The root of the mean; 0 before any batch."""
        return ops.sqrt(super().result())


@_SERIALIZABLE
class QuantileCalibrationError(_NormalMetric):
    """Mean gap between quantiles' levels and the share below them: `bdl.calibration.quantile_calibration_error`.

    At the levels 0.01, 0.02, ... 0.99, counted exactly.

    Args:
        central: Whether levels are those of central intervals.
        scale: One standard deviation for all predictions, which are then means; None reads it from them.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.

    Example:
    >>> import numpy as np
    >>> metric = QuantileCalibrationError()
    >>> metric.update_state(np.zeros(1), np.array([[0.0, 1.0]]))  # half of all levels lie above the only target
    >>> float(metric.result())
    0.25
    """

    def __init__(
        self, central: bool = False, scale: float | None = None, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(scale, name, dtype)
        self.central = bool(central)
        self._levels = (np.arange(1, 100) / 100).astype("float32")
        self._below = Sums(self, "below", (99,))
        self._weight = Sums(self, "weight")

    def _update(self, target: Tensor, mean: Tensor, scale: Tensor, weight: Tensor) -> None:
        central = ops.erf((target - mean) / (scale * math.sqrt(2)))
        rank = ops.abs(central) if self.central else 0.5 + 0.5 * central
        below = ops.cast(rank[:, None] <= ops.convert_to_tensor(self._levels), "float32")
        self._below.add(ops.sum(weight[:, None] * below, axis=0))
        self._weight.add(ops.sum(weight))

    def result(self) -> Tensor:
        """The error; before any batch the mean level."""
        shares = ops.divide_no_nan(self._below.value, self._weight.value)
        return ops.mean(ops.abs(shares - ops.convert_to_tensor(self._levels)))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "central": self.central}


@_SERIALIZABLE
class PinballLoss(keras.metrics.Metric):
    """Mean pinball loss of predicted quantiles, of the targets' shape: `bdl.calibration.pinball_loss`.

    Args:
        level: The quantiles' level, in (0, 1).
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.

    Raises:
        ValueError: if `level` is outside.

    Example:
    >>> import numpy as np
    >>> metric = PinballLoss(0.9)
    >>> metric.update_state(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    >>> float(metric.result())
    0.5
    """

    def __init__(self, level: float = 0.5, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name or standard_name(self), dtype=dtype)
        if isinstance(level, bool) or not 0 < level < 1:
            raise ValueError(f"`level` must be between 0 and 1, both excluded, not {level!r}. Pass 0.9.")
        self.level = float(level)
        self._sum = Sums(self, "sum")
        self._weight = Sums(self, "weight")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch of targets and quantiles, with weights of the targets."""
        quantile = ops.cast(y_pred, "float32")
        target, quantile, weight = flat_targets(y_true, [quantile], sample_weight, quantile.shape, keras_mask(y_pred))
        over = target - quantile
        self._sum.add(ops.sum(weight * ops.maximum(self.level * over, (self.level - 1) * over)))
        self._weight.add(ops.sum(weight))

    def result(self) -> Tensor:
        """The mean; 0 before any batch."""
        return ops.divide_no_nan(self._sum.value, self._weight.value)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "level": self.level}
