"""Keras metrics of class probabilities: those of `bdl.calibration`, summed over batches."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl.metrics._sums import Events, Sums, flat_events, standard_name
from bdl.random import Tensor

SERIALIZABLE = keras.saving.register_keras_serializable(package="bdl")


class ClassMetric(keras.metrics.Metric):
    """Takes class probabilities; subclasses write `_update` and `result`."""

    reads_labels = True

    def __init__(
        self, from_logits: bool, sparse: bool, name: str | None, dtype: Any, ignore_class: int | None = None
    ) -> None:
        super().__init__(name=name or standard_name(self), dtype=dtype)
        self.from_logits = bool(from_logits)
        self.sparse = bool(sparse)
        self.ignore_class = ignore_class

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Class indices `(...)` or `(..., 1)`; with `sparse=False` one-hot `(..., classes)`.
            y_pred: Probabilities or logits `(..., classes)`; binary: `(..., 1)`, or the shape of `y_true`.
            sample_weight: Weights of the labels. Events that a Keras mask on `y_pred` hides, or whose label is
                `ignore_class`, have none; what has no weight may be anything.

        Raises:
            ValueError: if there is not one label for each event, or one that counts is no class. Where the update is
                compiled, as in `fit`, the result is NaN instead for a label that is no class.
        """
        settings = (self.from_logits, self.sparse, self.ignore_class, self.reads_labels)
        self._update(flat_events(y_true, y_pred, sample_weight, *settings))

    def _update(self, events: Events) -> None:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        settings = {"from_logits": self.from_logits, "sparse": self.sparse, "ignore_class": self.ignore_class}
        return {**super().get_config(), **settings}


class _MeanMetric(ClassMetric):
    """The weighted mean of `_terms`."""

    def __init__(
        self,
        from_logits: bool = False,
        sparse: bool = True,
        name: str | None = None,
        dtype: Any = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(from_logits, sparse, name, dtype, ignore_class)
        self._sum = Sums(self, "sum")
        self._weight = Sums(self, "weight")

    def _terms(self, events: Events) -> Tensor:
        raise NotImplementedError

    def _update(self, events: Events) -> None:
        self._sum.add(ops.sum(events.weight * self._terms(events)))
        self._weight.add(ops.sum(events.weight))

    def result(self) -> Tensor:
        """The mean; 0 before any batch."""
        return ops.divide_no_nan(self._sum.value, self._weight.value)


@SERIALIZABLE
class NegativeLogLikelihood(_MeanMetric):
    """Mean negative log probability of the labels, in nats per label: `bdl.calibration.negative_log_likelihood`.

    Of logits it is exact, however small the probability. A given probability of zero counts as the smallest normal
    float32, 87.3 nats.

    Args:
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = NegativeLogLikelihood()
    >>> metric.update_state(np.array([0, 1]), np.array([[0.5, 0.5], [0.75, 0.25]]))
    >>> float(metric.result())
    1.0397
    """

    def _terms(self, events: Events) -> Tensor:
        return -ops.take_along_axis(events.log_p, events.labels[:, None], axis=-1)[:, 0]


@SERIALIZABLE
class BrierScore(_MeanMetric):
    """Mean squared distance between probabilities and labels: `bdl.calibration.brier_score` of all classes.

    Summed over classes, also of a binary problem, whose score is then twice `(p - y)^2`.

    Args:
        from_logits: Whether predictions are logits.
        sparse: Whether labels are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = BrierScore()
    >>> metric.update_state(np.array([1, 0]), np.array([[0.2, 0.8], [0.6, 0.4]]))
    >>> float(metric.result())
    0.2
    """

    def _terms(self, events: Events) -> Tensor:
        truth = ops.one_hot(events.labels, events.p.shape[-1], dtype="float32")
        return ops.sum((events.p - truth) ** 2, axis=-1)


@SERIALIZABLE
class PredictiveEntropy(_MeanMetric):
    """Mean entropy of the probabilities, in nats: `bdl.calibration.predictive_entropy`, averaged.

    Args:
        from_logits: Whether predictions are logits.
        sparse: Whether labels, of which only the shape counts, are class indices; else one-hot.
        name: Name of the metric; the default is that of the class, in lower case.
        dtype: Type of the result; sums are float32.
        ignore_class: Label of events that do not count, such as 255, as in Keras' losses; None for no such label.

    Example:
    >>> import numpy as np
    >>> metric = PredictiveEntropy()
    >>> metric.update_state(np.array([0]), np.array([[0.5, 0.5]]))
    >>> float(metric.result())
    0.6931
    """

    reads_labels = False

    def _terms(self, events: Events) -> Tensor:
        return -ops.sum(ops.where(events.p == 0, 0.0, events.p * events.log_p), axis=-1)
