"""Calibration errors: how far stated probabilities are from observed frequencies, in bins.

All are functions of `bdl.calibration.reliability_bins`; they differ in what is binned, how, and how gaps are averaged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bdl.calibration._events import event_blocks
from bdl.calibration.reliability import (
    DEFAULT_NUM_BINS,
    Binning,
    ReliabilityBins,
    class_pairs,
    grouped_bins,
    reliability_bins,
    top_label_pairs,
)


def expected_calibration_error(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> float:
    """Return the mean gap between confidence and accuracy of the predicted class.

    `sum_m |B_m| / n |acc(B_m) - conf(B_m)|` over bins closed on the right (Guo et al. 2017, "On
    calibration of modern neural networks", eq. 3). It is positive even for a calibrated model, on average up
    to about `sqrt(2 M / (pi n)) sqrt(acc (1 - acc))`, so compare it only at equal `n` and `M`, or use
    `debiased_calibration_error`.

    Args:
        y: Class indices, shape `(n,)` or `(...)`.
        probabilities: Shape `(..., classes)`, or that of `y` for the probability of label 1 of two, whose
            confidence is `max(p, 1 - p)`.
        num_bins: Positive integer `M`.
        binning: `"width"`, or `"mass"` for bins of equally many events.
        mask: True where an event counts, shape of `y`.

    Returns:
        The error, from 0 to 1.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import expected_calibration_error
    >>> expected_calibration_error([0, 0, 1, 1], [0.1, 0.1, 0.1, 0.9])  # 3 of 4 right at confidence 0.9
    0.15
    """
    return reliability_bins(y, probabilities, num_bins, binning, mask).expected_calibration_error


def maximum_calibration_error(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> float:
    """Return the largest gap between confidence and accuracy in any bin (Guo et al. 2017, eq. 5).

    A bin of a few events decides it as often as a real fault: read it beside the counts, or with `binning="mass"`.

    Args:
        y: As for `expected_calibration_error`.
        probabilities: As there.
        num_bins: As there.
        binning: As there.
        mask: As there.

    Returns:
        The error, from 0 to 1.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import maximum_calibration_error
    >>> maximum_calibration_error([0, 0, 1, 1], [0.1, 0.1, 0.1, 0.6])
    0.4
    """
    return reliability_bins(y, probabilities, num_bins, binning, mask).maximum_calibration_error


def root_mean_square_calibration_error(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> float:
    """Return the root mean square gap between confidence and accuracy (Hendrycks et al. 2019, RMS-CE).

    Args:
        y: As for `expected_calibration_error`.
        probabilities: As there.
        num_bins: As there.
        binning: As there.
        mask: As there.

    Returns:
        The error, from 0 to 1; at least the expected calibration error.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import root_mean_square_calibration_error
    >>> root_mean_square_calibration_error([0, 0, 1, 1], [0.1, 0.1, 0.1, 0.9])
    0.15
    """
    return reliability_bins(y, probabilities, num_bins, binning, mask).root_mean_square_calibration_error


def debiased_calibration_error(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> float:
    """Return the root mean square calibration error without the part that chance alone produces.

    With residuals `r_i = 1[right] - c_i`, the mean of `r_i r_j` over all pairs of different events of a bin estimates
    its squared gap without bias; their mean, weighted by the bins' counts, is zero on average for a calibrated model,
    and may be negative. Returned is its signed square root, in units of probability: compare it with
    `root_mean_square_calibration_error`, not with `expected_calibration_error`, which is at most as large.
    `reliability_bins(...).debiased_interval()` gives its interval. (Kumar et al. 2019, "Verified uncertainty
    calibration", section 5, with the variance of the residuals for that of the labels; Lee et al. 2023, T-Cal, eq. 5.)

    Args:
        y: As for `expected_calibration_error`.
        probabilities: As there.
        num_bins: As there.
        binning: As there.
        mask: As there.

    Returns:
        The error, from -1 to 1; around 0 for a calibrated model, whatever `n` and `num_bins`.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import debiased_calibration_error
    >>> debiased_calibration_error([0, 0, 1, 1], [0.1, 0.1, 0.1, 0.9])  # chance would show more than this 0.15
    -0.2
    """
    return reliability_bins(y, probabilities, num_bins, binning, mask).debiased_calibration_error


def top_label_calibration_error(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> float:
    """Return the expected calibration error with bins of their own for each predicted class.

    A forecaster may be too sure of one class and too modest of another, and look calibrated on average; this error
    sees it (Gupta and Ramdas 2022, "Top-label calibration and multiclass-to-binary reductions", eq. 2).

    Args:
        y: As for `expected_calibration_error`.
        probabilities: As there.
        num_bins: Bins of each class.
        binning: As there.
        mask: As there.

    Returns:
        The error, from 0 to 1; at least the expected calibration error of the same bins.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import expected_calibration_error, top_label_calibration_error
    >>> y, p = [1, 1, 0, 0], [0.75, 0.75, 0.75, 0.25]
    >>> expected_calibration_error(y, p), top_label_calibration_error(y, p)
    (0.0, 0.125)
    """
    groups = _num_classes(y, probabilities, mask)
    bins = grouped_bins(top_label_pairs, y, probabilities, num_bins, binning, mask, groups)
    total = sum(int(each.count.sum()) for each in bins)
    return float(sum(np.sum(each.count * np.abs(each.gap)) for each in bins) / total)


def classwise_calibration_error(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> float:
    """Return the mean over classes of the calibration error of each class's probability.

    For every class `k`, `p_ik` is binned and compared with the share of `y_i = k` (Kull et al. 2019, "Beyond
    temperature scaling", eq. 4; Nixon et al. 2019, static calibration error). For probabilities of label 1 alone it
    is the error of those: what torchmetrics and netcal call the calibration error of a binary problem.

    Args:
        y: As for `expected_calibration_error`.
        probabilities: As there.
        num_bins: Bins of each class.
        binning: As there.
        mask: As there.

    Returns:
        The error, from 0 to 1. It shrinks with the number of classes, as most of their probabilities are tiny.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import classwise_calibration_error
    >>> classwise_calibration_error([0, 0, 1, 1], [0.1, 0.1, 0.1, 0.9])
    0.2
    """
    bins = class_bins(y, probabilities, num_bins, binning, mask)
    return float(np.mean([each.expected_calibration_error for each in bins]))


def adaptive_calibration_error(
    y: ArrayLike, probabilities: ArrayLike, num_bins: int = DEFAULT_NUM_BINS, mask: ArrayLike | None = None
) -> float:
    """Return the classwise calibration error in bins of equal mass (Nixon et al. 2019, ACE, section 3.1).

    Nixon et al. weigh all bins alike; here they weigh by their counts, which is the same without ties, and does not
    depend on the order of the events with them. For a calibrated model it is not zero: see
    `expected_calibration_error`.

    Args:
        y: As for `expected_calibration_error`.
        probabilities: As there.
        num_bins: Bins of each class.
        mask: As there.

    Returns:
        The error, from 0 to 1.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import adaptive_calibration_error
    >>> adaptive_calibration_error([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], num_bins=2)
    0.175
    """
    return classwise_calibration_error(y, probabilities, num_bins, "mass", mask)


def class_bins(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> list[ReliabilityBins]:
    """Return the reliability bins of each class's probability; of label 1 alone where only that is given.

    Args:
        y: As for `expected_calibration_error`.
        probabilities: As there.
        num_bins: Bins of each class.
        binning: As there.
        mask: As there.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration.metrics import class_bins
    >>> [int(bins.count.sum()) for bins in class_bins([0, 2], [[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])]
    [2, 2, 2]
    """
    is_binary = np.shape(y) == np.shape(probabilities)
    groups = 1 if is_binary else _num_classes(y, probabilities, mask)
    return grouped_bins(class_pairs, y, probabilities, num_bins, binning, mask, groups)


def _num_classes(y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None) -> int:
    return next(event_blocks(y, probabilities, mask)).probabilities.shape[1]
