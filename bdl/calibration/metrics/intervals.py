"""Scores of predicted quantiles and intervals, and whether these hold the share of targets that they promise.

Every function takes arrays of one shape, `(n,)` or any other. Scores are in the unit of the target.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_share, check_targets

_RANK_ROUNDING = 1e-12  # of a distribution function, near 1


def pinball_loss(y: ArrayLike, quantiles: ArrayLike, level: float) -> float:
    """Return the mean pinball (quantile) loss of predicted quantiles, lower is better.

    `max(level (y - q), (level - 1) (y - q))` (Koenker and Bassett 1978): its minimum is the quantile of that level.

    Args:
        y: Targets, shape `(...)`.
        quantiles: Predicted quantiles, that shape or a scalar.
        level: The quantiles' level, in (0, 1).

    Returns:
        The loss, in the unit of the target.

    Raises:
        ValueError: if shapes differ, a value is not finite or the level outside (0, 1).

    Example:
    >>> from bdl.calibration import pinball_loss
    >>> pinball_loss([1.0, 3.0], [2.0, 2.0], level=0.9)
    0.5
    """
    return float(np.mean(pinball_terms(y, quantiles, level)))


def interval_score(y: ArrayLike, lower: ArrayLike, upper: ArrayLike, coverage: float) -> float:
    """Return the mean interval (Winkler) score of central prediction intervals, lower is better.

    The width, plus `2 / (1 - coverage)` times the distance by which a target is missed (Gneiting and Raftery 2007,
    eq. 43).

    Args:
        y: Targets, shape `(...)`.
        lower: Lower ends, that shape or a scalar.
        upper: Upper ends, at least the lower ones.
        coverage: Nominal coverage of the intervals, in (0, 1).

    Returns:
        The score, in the unit of the target.

    Raises:
        ValueError: if shapes differ, a value is not finite, an interval is reversed or the coverage outside (0, 1).

    Example:
    >>> from bdl.calibration import interval_score
    >>> interval_score([0.0, 3.0], lower=[-1.0, -1.0], upper=[1.0, 2.0], coverage=0.9)  # one missed by 1
    12.5
    """
    return float(np.mean(interval_score_terms(y, lower, upper, coverage)))


def interval_coverage(y: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> float:
    """Return the share of targets inside their interval, ends included (PICP).

    Args:
        y: Targets, shape `(...)`.
        lower: Lower ends, that shape or a scalar.
        upper: Upper ends, at least the lower ones.

    Returns:
        The share, to compare with the nominal coverage.

    Raises:
        ValueError: if shapes differ, a value is not finite or an interval is reversed.

    Example:
    >>> from bdl.calibration import interval_coverage
    >>> interval_coverage([0.0, 3.0], [-1.0, -1.0], [1.0, 2.0])
    0.5
    """
    return float(np.mean(covered(y, lower, upper)))


def mean_interval_width(lower: ArrayLike, upper: ArrayLike) -> float:
    """Return the mean width of prediction intervals (MPIW), in the unit of the target.

    Args:
        lower: Lower ends, shape `(...)`.
        upper: Upper ends, at least the lower ones.

    Raises:
        ValueError: if shapes differ, a value is not finite or an interval is reversed.

    Example:
    >>> from bdl.calibration import mean_interval_width
    >>> mean_interval_width([-1.0, -1.0], [1.0, 2.0])
    2.5
    """
    low, high = check_targets(("lower", lower), ("upper", upper))
    _check_not_reversed(low, high)
    return float(np.mean(high - low))


def quantile_calibration_error(
    probability_integral_transform: ArrayLike, levels: ArrayLike | None = None, central: bool = False
) -> float:
    """Return the mean distance between the levels of quantiles and the shares of targets below them.

    `mean over levels of |share of PIT <= level - level|` (Kuleshov et al. 2018, "Accurate uncertainties", section 3.5,
    with absolute for squared distances). With `central=True` the shares inside central intervals instead: netcal's
    marginal quantile calibration error, and uncertainty-toolbox' mean absolute calibration error.

    Args:
        probability_integral_transform: Predictive probability below each target.
        levels: Levels in [0, 1]; by default 0.01, 0.02, ... 0.99.
        central: Whether levels are those of central intervals.

    Returns:
        The error, from 0 to 1.

    Raises:
        ValueError: if a value lies outside [0, 1].

    Example:
    >>> from bdl.calibration import quantile_calibration_error
    >>> quantile_calibration_error([0.1, 0.4, 0.6, 0.9], levels=[0.5, 0.75])
    0.0
    """
    shares, chosen = observed_coverage(probability_integral_transform, levels, central)
    return float(np.mean(np.abs(shares - chosen)))


def observed_coverage(
    probability_integral_transform: ArrayLike, levels: ArrayLike | None = None, central: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of targets inside central intervals (or below quantiles) of each level, and the levels.

    Args:
        probability_integral_transform: Predictive probability below each target.
        levels: Levels in [0, 1]; by default 0.01, 0.02, ... 0.99.
        central: False for shares below the quantiles.

    Returns:
        Shares and levels, each `(levels,)`.

    Raises:
        ValueError: if a value lies outside [0, 1].

    Example:
    >>> from bdl.calibration.metrics import observed_coverage
    >>> observed_coverage([0.1, 0.4, 0.6, 0.9], levels=[0.5])
    (array([0.5]), array([0.5]))
    """
    (pit,) = check_targets(("probability_integral_transform", probability_integral_transform))
    (chosen,) = check_targets(("levels", np.arange(1, 100) / 100 if levels is None else np.atleast_1d(levels)))
    for name, values in (("probability_integral_transform", pit), ("levels", chosen)):
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"`{name}` must hold probabilities, not {values.min():.4g} to {values.max():.4g}. "
                "Pass the predictive probability below each target, not the target."
            )
    ranks = np.sort((np.abs(2 * pit - 1) if central else pit).ravel())
    # The ranks carry the rounding of a distribution function, and a level itself belongs to its interval.
    return np.searchsorted(ranks, chosen + _RANK_ROUNDING, side="right") / ranks.size, chosen


# The terms whose mean is a metric.


def pinball_terms(y: ArrayLike, quantiles: ArrayLike, level: float) -> NDArray[np.float64]:
    """Loss of each target."""
    level = check_share("level", level)
    target, quantile = check_targets(("y", y), ("quantiles", quantiles))
    return np.maximum(level * (target - quantile), (level - 1) * (target - quantile))


def interval_score_terms(y: ArrayLike, lower: ArrayLike, upper: ArrayLike, coverage: float) -> NDArray[np.float64]:
    """Score of each target."""
    penalty = 2 / (1 - check_share("coverage", coverage))
    target, low, high = _check_intervals(y, lower, upper)
    return high - low + penalty * (np.maximum(low - target, 0) + np.maximum(target - high, 0))


def covered(y: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> NDArray[np.bool_]:
    """Whether each target is inside its interval."""
    target, low, high = _check_intervals(y, lower, upper)
    return (low <= target) & (target <= high)


def _check_intervals(
    y: ArrayLike, lower: ArrayLike, upper: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    target, low, high = check_targets(("y", y), ("lower", lower), ("upper", upper))
    _check_not_reversed(low, high)
    return target, low, high


def _check_not_reversed(low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    reversed_ = low > high
    if reversed_.any():
        index = tuple(int(i) for i in np.argwhere(reversed_)[0])
        raise ValueError(
            f"`lower` must be at most `upper`, not {low[index]} above {high[index]} at index {index}. "
            "Sort the two quantiles, `np.sort(np.stack([lower, upper]), axis=0)`."
        )
