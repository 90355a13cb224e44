"""Reliability bins: how often the predictions of each confidence come true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_labels_and_probabilities, check_num_bins

# The number of bins in Guo et al. (2017), which later papers kept.
DEFAULT_NUM_BINS = 15


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """Confidence and accuracy of the top label in bins of equal width.

    Attributes:
        edges: Bin edges from 0 to 1, shape `(bins + 1,)`. Bin `m` is `(edges[m], edges[m + 1]]`; the first holds 0 too.
        confidence: Mean probability of the predicted class in each bin, shape `(bins,)`; NaN where the bin is empty.
        accuracy: Share of right predictions in each bin, shape `(bins,)`; NaN where the bin is empty.
        count: Number of examples in each bin, shape `(bins,)`.
    """

    edges: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance between accuracy and confidence, weighted by the bins' counts; between 0 and 1."""
        filled = self.count > 0
        gap = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.sum(self.count[filled] * gap) / np.sum(self.count))


def reliability_bins(y: ArrayLike, probabilities: ArrayLike, num_bins: int = DEFAULT_NUM_BINS) -> ReliabilityBins:
    """Sort examples by the confidence of their predicted class and compare it with the accuracy.

    With confidence `c_i = max_k p_ik` and bins `B_m = {i: (m - 1) / M < c_i <= m / M}`,
    `conf(B_m) = mean of c_i` and `acc(B_m) = mean of 1[argmax_k p_ik = y_i]` over `B_m`
    (Guo et al. 2017, "On calibration of modern neural networks", section 2).
    The edges are rounded to the dtype of `probabilities`, so that a float32 0.2 counts as 0.2.

    Args:
        y: Class indices, shape `(n,)`.
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two, which means the
            same as the two columns `1 - p` and `p`.
        num_bins: Positive integer `M`.

    Returns:
        `ReliabilityBins`, with `num_bins` bins.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import reliability_bins
    >>> bins = reliability_bins([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], num_bins=2)
    >>> bins.count
    array([0, 3])
    >>> bins.accuracy
    array([   nan, 0.6667])
    """
    num_bins = check_num_bins(num_bins)
    labels, probabilities = check_labels_and_probabilities(y, probabilities)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels

    edges = np.arange(num_bins + 1) / num_bins
    inner_edges = edges[1:-1].astype(confidence.dtype)
    bin_index = np.searchsorted(inner_edges, confidence, side="left")

    count = np.bincount(bin_index, minlength=num_bins)
    confidence_sum = np.bincount(bin_index, weights=confidence.astype(np.float64), minlength=num_bins)
    correct_sum = np.bincount(bin_index, weights=correct.astype(np.float64), minlength=num_bins)
    return ReliabilityBins(
        edges=edges,
        confidence=_divide_or_nan(confidence_sum, count),
        accuracy=_divide_or_nan(correct_sum, count),
        count=count.astype(np.int64),
    )


def _divide_or_nan(total: ArrayLike, count: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
