"""Keras metrics of calibration, and of ranking by bins: sums in bins of the confidence, which merge exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from bdl.metrics._sums import Events, Sums
from bdl.metrics.classification import SERIALIZABLE, ClassMetric
from bdl.random import Tensor

_DEFAULT_NUM_BINS = 15


class _BinMetric(ClassMetric):
    """Sums of forecasts, outcomes and squared residuals in bins of equal width, one row of bins a group."""

    def __init__(
        self,
        num_bins: int,
        num_groups: int,
        from_logits: bool,
        sparse: bool,
        name: str | None,
        dtype: Any,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(from_logits, sparse, name, dtype, ignore_class)
        if isinstance(num_bins, bool) or not hasattr(num_bins, "__index__") or num_bins < 1:
            raise ValueError(f"`num_bins` must be a positive integer, not {num_bins!r}. Pass 15.")
        self.num_bins = int(num_bins)
        self._num_groups = num_groups
        # One segment more takes what belongs to no group.
        self._sums = Sums(self, "sums", (4, num_groups * self.num_bins + 1))

    def _add_pairs(self, groups: Tensor | int, forecasts: Tensor, outcomes: Tensor, weight: Tensor) -> None:
        """Adds a batch of events `(n,)`."""
        # What is no number, as where a label is no class, has no outcome either.
        outcomes = ops.where(ops.isnan(forecasts), float("nan"), ops.cast(outcomes, "float32"))
        inner = (np.arange(1, self.num_bins) / self.num_bins).astype("float32")
        bins = ops.sum(ops.cast(forecasts[:, None] > ops.convert_to_tensor(inner), "int32"), axis=-1)
        index = bins + groups * self.num_bins
        index = ops.where((index >= 0) & (index < self._num_groups * self.num_bins), index, self._sums_length - 1)
        values = ops.stack([ops.ones_like(forecasts), forecasts, outcomes, (outcomes - forecasts) ** 2], axis=-1)
        sums = ops.segment_sum(weight[:, None] * values, index, num_segments=self._sums_length)
        self._sums.add(ops.transpose(sums))

    @property
    def _sums_length(self) -> int:
        return self._num_groups * self.num_bins + 1

    def _bins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, gap and mean squared residual of each bin, `(groups, bins)`."""
        sums = ops.reshape(self._sums.value[:, :-1], (4, self._num_groups, self.num_bins))
        weight = sums[0]
        return weight, ops.divide_no_nan(sums[2] - sums[1], weight), ops.divide_no_nan(sums[3], weight)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "num_bins": self.num_bins}


class _ConfidenceMetric(_BinMetric):
    """Bins of the predicted class's probability."""

    def __init__(
        self,
        num_bins: int = _DEFAULT_NUM_BINS,
        from_logits: bool = False,
        sparse: bool = True,
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(num_bins, 1, from_logits, sparse, name, dtype, ignore_class)

    def _update(self, events: Events) -> None:
        predicted = ops.cast(ops.argmax(events.p, axis=-1), "int32")
        self._add_pairs(0, ops.max(events.p, axis=-1), predicted == events.labels, events.weight)


@SERIALIZABLE
class ExpectedCalibrationError(_ConfidenceMetric):
    """Mean gap between confidence and accuracy in bins: `bdl.calibration.expected_calibration_error`, exactly merged.

    Args:
        num_bins: Bins of equal width.
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = ExpectedCalibrationError()
    >>> metric.update_state(np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.9]))
    >>> float(metric.result())
    0.15
    """

    def result(self) -> Tensor:
        """The error; 0 before any batch."""
        weight, gap, _ = self._bins()
        return ops.divide_no_nan(ops.sum(weight * ops.abs(gap)), ops.sum(weight))


@SERIALIZABLE
class MaximumCalibrationError(_ConfidenceMetric):
    """Largest gap between confidence and accuracy in a bin: `bdl.calibration.maximum_calibration_error`.

    Args:
        num_bins: Bins of equal width.
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = MaximumCalibrationError()
    >>> metric.update_state(np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.6]))
    >>> float(metric.result())
    0.4
    """

    def result(self) -> Tensor:
        """The error; 0 before any batch."""
        return ops.max(ops.abs(self._bins()[1]))


@SERIALIZABLE
class RootMeanSquareCalibrationError(_ConfidenceMetric):
    """Root mean square gap in bins: `bdl.calibration.root_mean_square_calibration_error`.

    Args:
        num_bins: Bins of equal width.
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = RootMeanSquareCalibrationError()
    >>> metric.update_state(np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.9]))
    >>> float(metric.result())
    0.15
    """

    def result(self) -> Tensor:
        """The error; 0 before any batch."""
        weight, gap, _ = self._bins()
        return ops.sqrt(ops.divide_no_nan(ops.sum(weight * gap**2), ops.sum(weight)))


@SERIALIZABLE
class DebiasedCalibrationError(_ConfidenceMetric):
    """The root mean square calibration error without the part of chance: `bdl.calibration.debiased_calibration_error`.

    Weights count as repetitions: use weights of 0 and 1 (a mask), for others the part of chance is not the true one.

    Args:
        num_bins: Bins of equal width.
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = DebiasedCalibrationError()
    >>> metric.update_state(np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.9]))
    >>> float(metric.result())
    -0.2
    """

    def result(self) -> Tensor:
        """The signed error; 0 before any batch."""
        weight, gap, second = self._bins()
        # n (g^2 - s / n) / (n - 1): of the form that loses no digits for large n.
        unbiased = ops.where(weight > 1, (weight * gap**2 - second) / ops.maximum(weight - 1, 1e-6), 0.0)
        square = ops.divide_no_nan(ops.sum(weight * unbiased), ops.sum(weight))
        return ops.sign(square) * ops.sqrt(ops.abs(square))


class _GroupMetric(_BinMetric):
    """Bins of their own for each class."""

    def __init__(
        self,
        num_classes: int,
        num_bins: int = _DEFAULT_NUM_BINS,
        from_logits: bool = False,
        sparse: bool = True,
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
    ) -> None:
        if isinstance(num_classes, bool) or not hasattr(num_classes, "__index__") or num_classes < 2:
            raise ValueError(
                f"`num_classes` must be an integer of at least 2, not {num_classes!r}. Pass the size of the "
                "network's output, 2 for one of size 1."
            )
        self.num_classes = int(num_classes)
        super().__init__(num_bins, self.num_classes, from_logits, sparse, name, dtype, ignore_class)

    def _check_num_classes(self, events: Events) -> None:
        if events.p.shape[-1] != self.num_classes:
            raise ValueError(
                f"`num_classes` must be the number of classes of `y_pred`, {events.p.shape[-1]}, not "
                f"{self.num_classes}. It is the size of the network's output, 2 for one of size 1."
            )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "num_classes": self.num_classes}


@SERIALIZABLE
class TopLabelCalibrationError(_GroupMetric):
    """Calibration error given the predicted class: `bdl.calibration.top_label_calibration_error`.

    Args:
        num_classes: Number of classes.
        num_bins: Bins of equal width of each class.
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = TopLabelCalibrationError(num_classes=2)
    >>> metric.update_state(np.array([1, 1, 0, 0]), np.array([0.75, 0.75, 0.75, 0.25]))
    >>> float(metric.result())
    0.125
    """

    def _update(self, events: Events) -> None:
        self._check_num_classes(events)
        predicted = ops.cast(ops.argmax(events.p, axis=-1), "int32")
        self._add_pairs(predicted, ops.max(events.p, axis=-1), predicted == events.labels, events.weight)

    def result(self) -> Tensor:
        """The error; 0 before any batch."""
        weight, gap, _ = self._bins()
        return ops.divide_no_nan(ops.sum(weight * ops.abs(gap)), ops.sum(weight))


@SERIALIZABLE
class ClasswiseCalibrationError(_GroupMetric):
    """Mean over classes of the error of each class's probability: `bdl.calibration.classwise_calibration_error`.

    Of a binary problem both classes are averaged; with probabilities on the edges of bins this differs a little from
    the error of class 1 alone, which the NumPy function gives for probabilities `(n,)`.

    Args:
        num_classes: Number of classes.
        num_bins: Bins of equal width of each class.
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = ClasswiseCalibrationError(num_classes=2)
    >>> metric.update_state(np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.9]))
    >>> float(metric.result())
    0.2
    """

    def _update(self, events: Events) -> None:
        self._check_num_classes(events)
        shape = ops.shape(events.p)
        is_class = ops.one_hot(events.labels, self.num_classes, dtype="float32")
        groups = ops.broadcast_to(ops.arange(self.num_classes, dtype="int32"), shape)
        weights = ops.broadcast_to(events.weight[:, None], shape)
        flat = [ops.reshape(each, (-1,)) for each in (groups, events.p, is_class, weights)]
        self._add_pairs(*flat)

    def result(self) -> Tensor:
        """The error; 0 before any batch."""
        weight, gap, _ = self._bins()
        errors = ops.divide_no_nan(ops.sum(weight * ops.abs(gap), axis=-1), ops.sum(weight, axis=-1))
        return ops.mean(errors)


@SERIALIZABLE
class AreaUnderRiskCoverage(_ConfidenceMetric):
    """Mean error rate over all shares of the most confident predictions: AURC, by bins of the confidence.

    `bdl.calibration.area_under_risk_coverage(errors, 1 - confidence)` ranks all predictions; here confidences within a
    bin of width `1 / num_thresholds` count as equal, and their order as random. The mean over shares is an integral, as
    for infinitely many predictions. Batches merge exactly. The area approaches the ranked one as bins become narrow; if
    all confidences lie in one bin, it is the error rate.

    Args:
        num_thresholds: Number of bins.
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = AreaUnderRiskCoverage()
    >>> metric.update_state(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.4, 0.9]))
    >>> 0 < float(metric.result()) < 0.1
    True
    """

    def __init__(
        self,
        num_thresholds: int = 1000,
        from_logits: bool = False,
        sparse: bool = True,
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(num_thresholds, from_logits, sparse, name, dtype, ignore_class)

    def result(self) -> Tensor:
        """The area; 0 before any batch."""
        weight, _, _ = self._bins()
        errors = ops.flip(weight[0] - self._sums.value[2, :-1])
        weight = ops.flip(weight[0])  # the most confident first
        kept, wrong = ops.cumsum(weight), ops.cumsum(errors)
        before, wrong_before = kept - weight, wrong - errors
        # Within a bin of m errors among w, risk(t) = (e + m t / w) / (k + t): its integral over t from 0 to w.
        rate = ops.divide_no_nan(errors, weight)
        logarithm = ops.log(ops.divide_no_nan(kept, before) + ops.cast(before <= 0, "float32"))
        area = rate * weight + (wrong_before - rate * before) * logarithm
        return ops.divide_no_nan(ops.sum(area), kept[-1])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = super().get_config()
        config["num_thresholds"] = config.pop("num_bins")
        return config
