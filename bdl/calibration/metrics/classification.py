"""Scores of class probabilities against labels, and the entropies that split their uncertainty.

All take NumPy arrays (or what `np.asarray` accepts), sum in float64, and serve any model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._events import BLOCK_SIZE, Events, event_mean
from bdl.calibration._validation import check_probabilities, real_array
from bdl.calibration.metrics.calibration_error import class_bins

_ROUNDING = 1e-15  # a part of the decomposition below this is the rounding of a zero


def negative_log_likelihood(y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return the mean negative log probability of the labels, in nats per example.

    `-1/n sum_i log p_i[y_i]`, the logarithmic score (Good 1952, "Rational decisions"). A probability of zero counts as
    the smallest positive float of the dtype of `probabilities`, so that one impossible label costs a large
    finite number (103.3 nats in float32, 744.4 in float64) instead of infinity, and no other probability is changed.
    `sklearn.metrics.log_loss` clips at the machine epsilon (15.9 and 36.0 nats) and so forgives more.

    Args:
        y: Class indices, shape `(n,)`, or any shape `(...)` of events: tokens, pixels, independent labels.
        probabilities: Shape `(..., classes)`, or that of `y` for the probability of label 1 of two.
        mask: True where an event counts, shape of `y`.

    Returns:
        Nats per example, at least 0; `log(classes)` for uniform probabilities.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import negative_log_likelihood
    >>> negative_log_likelihood([0, 1], [[0.5, 0.5], [0.75, 0.25]])  # (log 2 + log 4) / 2
    1.0397
    """
    return event_mean(log_losses, y, probabilities, mask)


def brier_score(y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return the mean squared distance between probabilities and labels.

    For shape `(n, classes)`: `1/n sum_i sum_k (p_ik - 1[y_i = k])^2`, from 0 to 2 (Brier 1950, "Verification of
    forecasts expressed in terms of probability", eq. 2). For shape `(n,)`: `1/n sum_i (p_i - y_i)^2`, from 0 to 1, half
    of what the two columns `1 - p` and `p` give. `sklearn.metrics.brier_score_loss` follows the same two definitions.

    Args:
        y: Class indices, shape `(n,)`, or any shape `(...)` of events: tokens, pixels, independent labels.
        probabilities: Shape `(..., classes)`, or that of `y` for the probability of label 1 of two.
        mask: True where an event counts, shape of `y`.

    Returns:
        The score, without unit; lower is better.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import brier_score
    >>> brier_score([1, 0], [[0.2, 0.8], [0.6, 0.4]])
    0.2
    >>> brier_score([1, 0], [0.8, 0.4])
    0.1
    """
    return event_mean(squared_errors, y, probabilities, mask)


def accuracy(y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return the share of examples whose most probable class is the label.

    Among equally probable classes the first is predicted; for shape `(n,)` class 1 is predicted where `p > 0.5`.

    Args:
        y: Class indices, shape `(n,)`, or any shape `(...)` of events: tokens, pixels, independent labels.
        probabilities: Shape `(..., classes)`, or that of `y` for the probability of label 1 of two.
        mask: True where an event counts, shape of `y`.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import accuracy
    >>> accuracy([2, 0], [[0.1, 0.2, 0.7], [0.3, 0.5, 0.2]])
    0.5
    """
    return event_mean(hits, y, probabilities, mask)


def predictive_entropy(probabilities: ArrayLike) -> NDArray[Any]:
    """Return the entropy of each row of probabilities, in nats.

    `H_i = -sum_k p_ik log p_ik`, with `0 log 0 = 0` (Shannon 1948): the total uncertainty of a prediction when
    `probabilities` are the mean over weight samples (Depeweg et al. 2018).

    Args:
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two (so one row of
            class probabilities needs `probabilities[None]`).

    Returns:
        Array `(n,)` of the dtype of `probabilities`, each from 0 to `log(classes)`.

    Raises:
        ValueError: if `probabilities` are not valid; the message says why, and the cure.

    Example:
    >>> from bdl.calibration import predictive_entropy
    >>> predictive_entropy([[0.5, 0.5], [1.0, 0.0]])
    array([0.6931, 0.    ])
    """
    p = check_probabilities(probabilities)
    rows = max(1, BLOCK_SIZE // p.shape[1])
    blocks = [_entropy(p[start : start + rows]) for start in range(0, len(p), rows)]
    return np.concatenate(blocks).astype(p.dtype)


def expected_entropy(samples: ArrayLike) -> NDArray[np.float64]:
    """Return the mean over samples of the entropy of each prediction: the aleatoric uncertainty, in nats.

    Args:
        samples: Class probabilities of each sample, shape `(samples, n, classes)`.

    Returns:
        Array `(n,)`, each from 0 to `log(classes)`.

    Raises:
        ValueError: if the shape is another, or a sample's rows are no probabilities.

    Example:
    >>> from bdl.calibration import expected_entropy
    >>> expected_entropy([[[1.0, 0.0]], [[0.0, 1.0]]])  # two samples, each sure, of different classes
    array([0.])
    """
    return np.mean([_entropy(sample) for sample in _checked_samples(samples)], axis=0)


def mutual_information(samples: ArrayLike) -> NDArray[np.float64]:
    """Return how much the samples disagree: the epistemic uncertainty, in nats.

    `I_i = H[mean_s p_is] - mean_s H[p_is]` (Depeweg et al. 2018, "Decomposition of uncertainty", eq. 3;
    Houlsby et al. 2011, BALD, eq. 2).

    Args:
        samples: Class probabilities of each sample, shape `(samples, n, classes)`.

    Returns:
        Array `(n,)`, each from 0 to `log(classes)`.

    Raises:
        ValueError: if the shape is another, or a sample's rows are no probabilities.

    Example:
    >>> from bdl.calibration import mutual_information
    >>> mutual_information([[[1.0, 0.0]], [[0.0, 1.0]]])
    array([0.6931])
    """
    checked = _checked_samples(samples)
    mean = np.asarray(np.mean(checked, axis=0, dtype=np.float64))
    return np.maximum(_entropy(mean) - expected_entropy(checked), 0.0)


@dataclass(frozen=True)
class BrierDecomposition:
    """The Brier score in parts: `score = reliability - resolution + uncertainty + within_bin`, exactly.

    Attributes:
        reliability: Squared gap between forecast and frequency in each bin; lower is better calibrated.
        resolution: Squared distance of the bins' frequencies from the base rates; higher tells events apart better.
        uncertainty: Variance of the labels, which no forecast can change.
        within_bin: What forecasts that differ within a bin add; near 0 with bins narrow and full.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bin: float

    @property
    def score(self) -> float:
        """The Brier score."""
        return self.reliability - self.resolution + self.uncertainty + self.within_bin


def brier_decomposition(
    y: ArrayLike, probabilities: ArrayLike, num_bins: int = 15, mask: ArrayLike | None = None
) -> BrierDecomposition:
    """Return the reliability, resolution and uncertainty of the Brier score, summed over classes.

    Murphy 1973, "A new vector partition of the probability score"; the term within bins is that of Stephenson et al.
    2008, "Two extra components in the Brier score decomposition", both of whose parts it holds.

    Args:
        y: Class indices, shape `(n,)`, or any shape `(...)` of events.
        probabilities: Shape `(..., classes)`, or that of `y` for the probability of label 1 of two.
        num_bins: Bins of equal width of each class's probability.
        mask: True where an event counts, shape of `y`.

    Returns:
        `BrierDecomposition`, whose `score` is `brier_score(y, probabilities)`.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import brier_decomposition
    >>> brier_decomposition([1, 0, 1, 1], [0.9, 0.1, 0.9, 0.1])
    BrierDecomposition(reliability=0.085, resolution=0.0625, uncertainty=0.1875, within_bin=0.0)
    """
    parts = np.zeros(4)
    for bins in class_bins(y, probabilities, num_bins, mask=mask):
        frequency = np.nan_to_num(bins.accuracy)
        base_rate = np.sum(bins.share * frequency)
        reliability = np.sum(bins.share * bins.gap**2)
        resolution = np.sum(bins.share * (frequency - base_rate) ** 2)
        uncertainty = base_rate * (1 - base_rate)
        score = np.sum(bins.share * np.nan_to_num(bins.squared_residual))
        parts += (reliability, resolution, uncertainty, score - reliability + resolution - uncertainty)
    return BrierDecomposition(*(float(part) if abs(part) > _ROUNDING else 0.0 for part in parts))


# The terms whose mean is a metric, for blocks of events.


def log_losses(events: Events) -> NDArray[np.float64]:
    """Negative log probability of each label, finite."""
    smallest_positive = np.finfo(events.probabilities.dtype).smallest_subnormal
    of_label = np.maximum(events.of_label, smallest_positive).astype(np.float64)
    return np.abs(np.log(of_label))  # abs, not minus: no -0.0


def squared_errors(events: Events) -> NDArray[np.float64]:
    """Squared distance of each row from its label; half of it for a binary problem."""
    p = events.probabilities.astype(np.float64)
    # |p - e_y|^2 would lose digits as |p|^2 - 2 p_y + 1 where p is nearly e_y.
    p[np.arange(len(p)), events.labels] -= 1
    distances = np.einsum("ij,ij->i", p, p)
    return distances / 2 if events.is_binary else distances


def hits(events: Events) -> NDArray[np.bool_]:
    """Whether the most probable class is the label."""
    return events.predicted == events.labels


def _entropy(p: NDArray[Any]) -> NDArray[np.float64]:
    p = p.astype(np.float64)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.abs(np.einsum("ij,ij->i", p, log_p))  # abs, not minus: no -0.0


def _checked_samples(samples: ArrayLike) -> NDArray[Any]:
    array = real_array("samples", samples)
    if array.ndim != 3:
        raise ValueError(
            f"`samples` must have shape (samples, n, classes), not shape {array.shape}. "
            "Add the axis of one sample with `samples[None]`; flatten the axes of events."
        )
    return np.stack([check_probabilities(sample) for sample in array])
