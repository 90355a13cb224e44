"""Scores of class probabilities against labels, and of uncertainty against unfamiliar inputs.

All take NumPy arrays (or what `np.asarray` accepts), compute in float64, and serve any model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_labels_and_probabilities, check_probabilities, check_scores
from bdl.calibration.reliability import DEFAULT_NUM_BINS, reliability_bins


def negative_log_likelihood(y: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean negative log probability of the labels, in nats per example.

    `-1/n sum_i log p_i[y_i]`, the logarithmic score (Good 1952, "Rational decisions"). A probability of zero counts as
    the smallest positive float of the dtype of `probabilities`, so that one impossible label costs a large
    finite number (103.3 nats in float32, 744.4 in float64) instead of infinity, and no other probability is changed.
    `sklearn.metrics.log_loss` clips at the machine epsilon (15.9 and 36.0 nats) and so forgives more.

    Args:
        y: Class indices, shape `(n,)`.
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two.

    Returns:
        Nats per example, at least 0; `log(classes)` for uniform probabilities.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import negative_log_likelihood
    >>> negative_log_likelihood([0, 1], [[0.5, 0.5], [0.75, 0.25]])  # (log 2 + log 4) / 2
    1.0397
    """
    labels, probabilities = check_labels_and_probabilities(y, probabilities)
    of_label = np.take_along_axis(probabilities, labels[:, None], axis=1).astype(np.float64)
    smallest_positive = float(np.finfo(probabilities.dtype).smallest_subnormal)
    return abs(float(np.mean(np.log(np.maximum(of_label, smallest_positive)))))  # abs, not minus: no -0.0


def brier_score(y: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean squared distance between probabilities and labels.

    For shape `(n, classes)`: `1/n sum_i sum_k (p_ik - 1[y_i = k])^2`, from 0 to 2 (Brier 1950, "Verification of
    forecasts expressed in terms of probability", eq. 2). For shape `(n,)`: `1/n sum_i (p_i - y_i)^2`, from 0 to 1, half
    of what the two columns `1 - p` and `p` give. `sklearn.metrics.brier_score_loss` follows the same two definitions.

    Args:
        y: Class indices, shape `(n,)`.
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two.

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
    is_binary = np.ndim(probabilities) == 1
    labels, probabilities = check_labels_and_probabilities(y, probabilities)
    difference = probabilities.astype(np.float64)
    difference[np.arange(len(labels)), labels] -= 1
    score = float(np.mean(np.sum(difference**2, axis=1)))
    return score / 2 if is_binary else score


def expected_calibration_error(y: ArrayLike, probabilities: ArrayLike, num_bins: int = DEFAULT_NUM_BINS) -> float:
    """Return the mean gap between confidence and accuracy of the predicted class.

    `sum_m |B_m| / n |acc(B_m) - conf(B_m)|` over bins of equal width, closed on the right (Guo et al. 2017, "On
    calibration of modern neural networks", eq. 3). It is positive even for a calibrated model, on average up
    to about `sqrt(2 M / (pi n)) sqrt(acc (1 - acc))`, so compare it only at equal `n` and `M`.

    Args:
        y: Class indices, shape `(n,)`.
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two, whose
            confidence is `max(p, 1 - p)`.
        num_bins: Positive integer `M`.

    Returns:
        The error, from 0 to 1.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import expected_calibration_error
    >>> expected_calibration_error([0, 0, 1, 1], [0.1, 0.1, 0.1, 0.9])  # 3 of 4 right at confidence 0.9
    0.15
    """
    return reliability_bins(y, probabilities, num_bins).expected_calibration_error


def accuracy(y: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the share of examples whose most probable class is the label.

    Among equally probable classes the first is predicted; for shape `(n,)` class 1 is predicted where `p > 0.5`.

    Args:
        y: Class indices, shape `(n,)`.
        probabilities: Shape `(n, classes)`, or `(n,)` for the probability of class 1 of two.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import accuracy
    >>> accuracy([2, 0], [[0.1, 0.2, 0.7], [0.3, 0.5, 0.2]])
    0.5
    """
    labels, probabilities = check_labels_and_probabilities(y, probabilities)
    return float(np.mean(probabilities.argmax(axis=1) == labels))


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
    probabilities = check_probabilities(probabilities)
    p = probabilities.astype(np.float64)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.abs(np.sum(p * log_p, axis=1)).astype(probabilities.dtype)  # abs, not minus: no -0.0


def out_of_distribution_auroc(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Return how well a score tells unfamiliar inputs from familiar ones: the area under the ROC curve.

    The probability that a random entry of `scores_out` exceeds a random entry of `scores_in`, ties counting one
    half: the exact rank statistic of Hanley and McNeil (1982), as Hendrycks and Gimpel (2017) use it for detection.

    Args:
        scores_in: Uncertainty (higher is more uncertain) of inputs like the training data, shape `(n,)`.
        scores_out: Uncertainty of other inputs, shape `(m,)`.

    Returns:
        The area: 1 is perfect detection, 0.5 chance; below 0.5 the score is more certain on the unfamiliar.

    Raises:
        ValueError: if either is not a non-empty vector of finite numbers.

    Example:
    >>> from bdl.calibration import out_of_distribution_auroc
    >>> out_of_distribution_auroc([0.1, 0.2, 0.3], [0.3, 0.9])
    0.9167
    """
    familiar = np.sort(check_scores("scores_in", scores_in))
    unfamiliar = check_scores("scores_out", scores_out)
    num_below = np.searchsorted(familiar, unfamiliar, side="left")
    num_below_or_equal = np.searchsorted(familiar, unfamiliar, side="right")
    return float(np.sum(num_below + num_below_or_equal) / (2 * len(familiar) * len(unfamiliar)))
