"""Scores of predictive distributions of real targets: of a Normal and of samples.

Every function takes arrays of one shape, `(n,)` or any other; `samples` have one axis before it. Scores are in the unit
of the target, densities in nats.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_not_negative, check_num_bins, check_positive, check_targets

_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


def normal_negative_log_likelihood(y: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> float:
    """Return the mean negative log density of targets under `N(mean, scale^2)`, in nats per target.

    Args:
        y: Targets, shape `(...)`.
        mean: Predictive means, that shape or a scalar.
        scale: Predictive standard deviations, positive, that shape or a scalar.

    Returns:
        Nats per target; it changes by `log c` when the unit of the target does by `c`.

    Raises:
        ValueError: if shapes differ, a value is not finite or a scale not positive.

    Example:
    >>> from bdl.calibration import normal_negative_log_likelihood
    >>> normal_negative_log_likelihood([0.0, 1.0], [0.0, 0.0], 1.0)
    1.1689
    """
    return float(np.mean(normal_log_losses(y, mean, scale)))


def normal_crps(y: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> float:
    """Return the mean continuous ranked probability score of `N(mean, scale^2)`, lower is better.

    `scale (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))` with `z = (y - mean) / scale` (Gneiting and Raftery 2007,
    "Strictly proper scoring rules", eq. 21); for a scale towards zero it becomes the absolute error.

    Args:
        y: Targets, shape `(...)`.
        mean: Predictive means, that shape or a scalar.
        scale: Predictive standard deviations, positive, that shape or a scalar.

    Returns:
        The score, in the unit of the target.

    Raises:
        ValueError: if shapes differ, a value is not finite or a scale not positive.

    Example:
    >>> from bdl.calibration import normal_crps
    >>> normal_crps([0.0, 1.0], [0.0, 0.0], 1.0)
    0.4181
    """
    return float(np.mean(normal_crps_terms(y, mean, scale)))


def sample_crps(y: ArrayLike, samples: ArrayLike, fair: bool = False) -> float:
    """Return the mean continuous ranked probability score of predictive samples, lower is better.

    `mean_s |x_s - y| - 1/2 mean_st |x_s - x_t|` (Gneiting and Raftery 2007, eq. 20), computed from the sorted samples.

    Args:
        y: Targets, shape `(...)`.
        samples: Draws from the predictive distribution (noise included), shape `(samples, ...)`.
        fair: True to average the second term over pairs of different samples, which makes the score of few samples
            unbiased for that of their distribution (Ferro 2014); it needs two samples.

    Returns:
        The score, in the unit of the target.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, or `fair` has one sample.

    Example:
    >>> from bdl.calibration import sample_crps
    >>> sample_crps([0.0], [[-1.0], [1.0]])
    0.5
    """
    return float(np.mean(sample_crps_terms(y, samples, fair)))


def root_mean_square_error(y: ArrayLike, mean: ArrayLike) -> float:
    """Return the root mean square distance between targets and predictive means, in the unit of the target.

    Args:
        y: Targets, shape `(...)`.
        mean: Predictive means, that shape.

    Raises:
        ValueError: if shapes differ or a value is not finite.

    Example:
    >>> from bdl.calibration import root_mean_square_error
    >>> root_mean_square_error([0.0, 1.0], [0.0, 0.0])
    0.7071
    """
    return float(np.sqrt(np.mean(squared_error_terms(y, mean))))


def sharpness(scale: ArrayLike) -> float:
    """Return the root mean square of predictive standard deviations: how much is claimed to be known.

    Smaller is better at equal calibration, and means nothing without it (Kuleshov et al. 2018; Gneiting et al. 2007).

    Args:
        scale: Predictive standard deviations; 0 where samples are all equal.

    Returns:
        In the unit of the target.

    Raises:
        ValueError: if a value is not finite or negative.

    Example:
    >>> from bdl.calibration import sharpness
    >>> sharpness([3.0, 4.0])
    3.5355
    """
    (checked,) = check_targets(("scale", scale))
    check_not_negative("scale", checked)
    return float(np.sqrt(np.mean(checked**2)))


def normal_probability_integral_transform(y: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> NDArray[np.float64]:
    """Return the predictive probability below each target under `N(mean, scale^2)`: uniform for a calibrated model.

    Dawid 1984; Gneiting et al. 2007, "Probabilistic forecasts, calibration and sharpness".

    Args:
        y: Targets, shape `(...)`.
        mean: Predictive means, that shape or a scalar.
        scale: Predictive standard deviations, positive, that shape or a scalar.

    Returns:
        Probabilities, shape of `y`.

    Raises:
        ValueError: if shapes differ, a value is not finite or a scale not positive.

    Example:
    >>> from bdl.calibration import normal_probability_integral_transform
    >>> normal_probability_integral_transform([0.0, 1.0], [0.0, 0.0], 1.0)
    array([0.5   , 0.8413])
    """
    from scipy.special import ndtr

    return ndtr(_standardized(y, mean, scale)[0])


def sample_probability_integral_transform(y: ArrayLike, samples: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """Return the rank of each target among predictive samples, as a probability: uniform for a calibrated model.

    The rank is put at a random place between its neighbours, `(number below + U) / (samples + 1)`, which is uniform
    exactly, however few the samples (Hamill 2001, rank histograms).

    Args:
        y: Targets, shape `(...)`.
        samples: Draws from the predictive distribution (noise included), shape `(samples, ...)`.
        seed: Decides the random places, also among equal values.

    Returns:
        Probabilities, shape of `y`.

    Raises:
        ValueError: if shapes do not fit or a value is not finite.

    Example:
    >>> from bdl.calibration import sample_probability_integral_transform
    >>> ranks = sample_probability_integral_transform([0.5], [[0.0], [1.0], [2.0]])
    >>> bool(0.25 <= ranks[0] <= 0.5)
    True
    """
    target, draws = _check_samples(y, samples)
    below, ties = np.sum(draws < target, axis=0), np.sum(draws == target, axis=0)
    place = np.random.default_rng(seed).uniform(size=target.shape)
    return (below + place * (ties + 1)) / (len(draws) + 1)


def expected_normalized_calibration_error(
    y: ArrayLike, mean: ArrayLike, scale: ArrayLike, num_bins: int = 10, binning: str = "mass"
) -> float:
    """Return the mean relative gap between predicted and observed root mean square error, in bins of the scale (ENCE).

    `mean over bins of |RMV - RMSE| / RMV`, RMV the root mean predicted variance of the bin (Levi et al. 2022,
    "Evaluating and calibrating uncertainty prediction in regression tasks", eq. 8).

    Args:
        y: Targets, shape `(...)`.
        mean: Predictive means, that shape or a scalar.
        scale: Predictive standard deviations, positive, that shape or a scalar.
        num_bins: Number of bins.
        binning: `"mass"`, bins of equally many targets as in the paper; or `"width"` between the smallest and largest
            scale, as netcal has it. Empty bins do not count.

    Returns:
        The error, without unit; 0 is calibrated, and it has no upper bound.

    Raises:
        ValueError: if shapes differ, a value is not finite, a scale is not positive, or `binning` is unknown.

    Example:
    >>> from bdl.calibration import expected_normalized_calibration_error
    >>> expected_normalized_calibration_error([1.0, -1.0, 2.0, -2.0], 0.0, [1.0, 1.0, 4.0, 4.0], num_bins=2)
    0.25
    """
    z, sigma = _standardized(y, mean, scale)
    z, sigma = z.ravel(), sigma.ravel()
    num_bins = check_num_bins(num_bins)
    if binning not in ("width", "mass"):
        raise ValueError(f"`binning` must be 'width' or 'mass', not {binning!r}. 'mass' is the paper's.")
    if binning == "mass":
        bins = np.array_split(np.argsort(sigma, kind="stable"), num_bins)
    else:
        edges = np.linspace(sigma.min(), sigma.max(), num_bins + 1)[1:-1]
        index = np.searchsorted(edges, sigma, side="left")
        bins = [np.flatnonzero(index == number) for number in range(num_bins)]
    errors = []
    for members in bins:
        if len(members):
            predicted = np.sqrt(np.mean(sigma[members] ** 2))
            observed = np.sqrt(np.mean((z[members] * sigma[members]) ** 2))
            errors.append(abs(predicted - observed) / predicted)
    return float(np.mean(errors))


# The terms whose mean is a metric.


def squared_error_terms(y: ArrayLike, mean: ArrayLike) -> NDArray[np.float64]:
    """Squared error of each target, whose mean's root is a metric."""
    target, center = check_targets(("y", y), ("mean", mean))
    return (target - center) ** 2


def normal_log_losses(y: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> NDArray[np.float64]:
    """Negative log density of each target."""
    z, sigma = _standardized(y, mean, scale)
    return 0.5 * z**2 + np.log(sigma) + _LOG_SQRT_TWO_PI


def normal_crps_terms(y: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> NDArray[np.float64]:
    """Score of each target under its Normal."""
    from scipy.special import ndtr

    z, sigma = _standardized(y, mean, scale)
    density = np.exp(-0.5 * z**2 - _LOG_SQRT_TWO_PI)
    return sigma * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))


def sample_crps_terms(y: ArrayLike, samples: ArrayLike, fair: bool = False) -> NDArray[np.float64]:
    """Score of each target under its samples."""
    target, draws = _check_samples(y, samples)
    count = len(draws)
    if fair and count < 2:
        raise ValueError("`samples` must hold at least two for a fair score, not 1. Draw more, or fair=False.")
    ordered = np.sort(draws, axis=0)
    # Of sorted samples, sum_{s<t} (x_t - x_s) weighs each by how many lie below it less how many above.
    weights = 2 * np.arange(count) - (count - 1)
    half_spread = np.tensordot(weights, ordered, axes=1) / (count * (count - 1 if fair else count))
    return np.mean(np.abs(draws - target), axis=0) - half_spread


def _standardized(y: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    target, center, sigma = check_targets(("y", y), ("mean", mean), ("scale", scale))
    check_positive("scale", sigma)
    return (target - center) / sigma, sigma


def _check_samples(y: ArrayLike, samples: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    (target,), (draws,) = check_targets(("y", y)), check_targets(("samples", samples))
    if draws.shape[1:] != target.shape or draws.ndim != target.ndim + 1:
        raise ValueError(
            f"`samples` must have shape (samples, *{target.shape}), that of `y` after an axis of samples, "
            f"not shape {draws.shape}. Move the axis of samples first, `np.moveaxis(samples, -1, 0)`."
        )
    return target, draws
