"""Does the uncertainty rank? Detection of unfamiliar inputs, and errors left when the least certain are set aside.

Ranks need all scores in memory, sorted: n log n time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_scores


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
    unfamiliar = np.sort(check_scores("scores_out", scores_out))  # sorted, the search below walks the memory in order
    num_below = np.searchsorted(familiar, unfamiliar, side="left")
    num_below_or_equal = np.searchsorted(familiar, unfamiliar, side="right")
    return float(np.sum(num_below + num_below_or_equal) / (2 * len(familiar) * len(unfamiliar)))


def out_of_distribution_aupr(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Return the average precision with which a score finds unfamiliar inputs: the area under precision and recall.

    Unlike the AUROC it depends on how many of the inputs are unfamiliar: chance is `m / (n + m)`. Computed by
    `sklearn.metrics.average_precision_score`, without interpolation (Davis and Goadrich 2006).

    Args:
        scores_in: Uncertainty (higher is more uncertain) of inputs like the training data, shape `(n,)`.
        scores_out: Uncertainty of other inputs, shape `(m,)`.

    Returns:
        The area, from 0 to 1.

    Raises:
        ValueError: if either is not a non-empty vector of finite numbers.

    Example:
    >>> from bdl.calibration import out_of_distribution_aupr
    >>> out_of_distribution_aupr([0.1, 0.2, 0.3], [0.3, 0.9])
    0.8333
    """
    from sklearn.metrics import average_precision_score

    familiar, unfamiliar = check_scores("scores_in", scores_in), check_scores("scores_out", scores_out)
    is_out = np.repeat([0, 1], [len(familiar), len(unfamiliar)])
    return float(average_precision_score(is_out, np.concatenate([familiar, unfamiliar])))


@dataclass(frozen=True, eq=False)
class RiskCoverageCurve:
    """Mean loss of the most certain predictions, for every share of them.

    Attributes:
        coverage: Shares kept, `1/n` to 1, shape `(n,)`.
        risk: Mean loss of those kept, shape `(n,)`.
        best_risk: The same if the uncertainty ranked the losses perfectly.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    best_risk: NDArray[np.float64]

    @property
    def area(self) -> float:
        """AURC: mean risk over all coverages; lower is better."""
        return float(np.mean(self.risk))

    @property
    def excess_area(self) -> float:
        """E-AURC: the area above that of a perfect ranking of the same losses; 0 is perfect."""
        return float(np.mean(self.risk - self.best_risk))


def risk_coverage_curve(losses: ArrayLike, uncertainty: ArrayLike) -> RiskCoverageCurve:
    """Return the risk among the most certain predictions against the share of predictions that are kept.

    Geifman and El-Yaniv 2017, "Selective classification for deep neural networks"; Geifman et al. 2019,
    "Bias-reduced uncertainty estimation", for the excess. Among equal uncertainties the order is random, and the risk
    is its expectation, so that the result does not depend on the order of the examples.

    Args:
        losses: Loss of each prediction, shape `(n,)`: 0 and 1 for right and wrong, or a squared error.
        uncertainty: Uncertainty of each (higher is more uncertain), shape `(n,)`: `1 - max p`, an entropy, a variance.

    Returns:
        `RiskCoverageCurve`.

    Raises:
        ValueError: if either is not a non-empty vector of finite numbers, or their lengths differ.

    Example:
    >>> from bdl.calibration import risk_coverage_curve
    >>> risk_coverage_curve([0, 0, 1, 0], [0.1, 0.2, 0.9, 0.4]).risk
    array([0.  , 0.  , 0.  , 0.25])
    """
    loss, doubt = check_scores("losses", losses), check_scores("uncertainty", uncertainty)
    if len(loss) != len(doubt):
        raise ValueError(
            "`losses` and `uncertainty` must describe the same predictions, "
            f"not {len(loss)} losses and {len(doubt)} uncertainties. Compute both from the same rows."
        )
    kept = np.arange(1, len(loss) + 1)
    order = np.argsort(doubt, kind="stable")
    sorted_doubt, cumulative = doubt[order], np.concatenate([[0.0], np.cumsum(loss[order])])
    # A tie of uncertainties from `first` to `last` adds its mean loss with each prediction that is kept of it.
    first = np.searchsorted(sorted_doubt, sorted_doubt, side="left")
    last = np.searchsorted(sorted_doubt, sorted_doubt, side="right")
    tie_mean = (cumulative[last] - cumulative[first]) / (last - first)
    risk = (cumulative[first] + (kept - first) * tie_mean) / kept
    return RiskCoverageCurve(kept / len(loss), risk, np.cumsum(np.sort(loss)) / kept)


def area_under_risk_coverage(losses: ArrayLike, uncertainty: ArrayLike) -> float:
    """Return the mean risk over all coverages (AURC; Geifman et al. 2019), lower is better.

    Args:
        losses: Loss of each prediction, shape `(n,)`.
        uncertainty: Uncertainty of each, shape `(n,)`.

    Returns:
        The area, in units of the loss.

    Raises:
        ValueError: as `risk_coverage_curve`.

    Example:
    >>> from bdl.calibration import area_under_risk_coverage
    >>> area_under_risk_coverage([0, 0, 1, 0], [0.1, 0.2, 0.9, 0.4])
    0.0625
    """
    return risk_coverage_curve(losses, uncertainty).area


def excess_area_under_risk_coverage(losses: ArrayLike, uncertainty: ArrayLike) -> float:
    """Return how far the ranking is from a perfect one (E-AURC; Geifman et al. 2019), 0 is perfect.

    The area of the perfect ranking is the exact one of these losses, for which Geifman et al. take
    `r + (1 - r) log(1 - r)`, its limit for many zero-one losses of mean `r`.

    Args:
        losses: Loss of each prediction, shape `(n,)`.
        uncertainty: Uncertainty of each, shape `(n,)`.

    Returns:
        The excess, in units of the loss, at least 0.

    Raises:
        ValueError: as `risk_coverage_curve`.

    Example:
    >>> from bdl.calibration import excess_area_under_risk_coverage
    >>> excess_area_under_risk_coverage([0, 0, 1, 0], [0.1, 0.2, 0.9, 0.4])
    0.0
    """
    return risk_coverage_curve(losses, uncertainty).excess_area
