"""Scores of predictive distributions of counts, given as `scipy.stats` distributions or as a `RegressionPrediction`.

A distribution here has `cdf(k)` and `logpmf(k)` for counts of the shape of `y`, as frozen discrete distributions of
`scipy.stats` have.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_num_bins, check_positive, check_targets

_TAIL = 1e-12  # ranked probability scores leave out what is less probable than this beyond the last count
_MAX_COUNT = 10_000_000


class CountDistribution(Protocol):
    """What is asked of a predictive distribution of counts."""

    def cdf(self, k: Any, /) -> Any:
        """Probability of at most `k`."""

    def logpmf(self, k: Any, /) -> Any:
        """Log probability of `k`, in nats."""


def count_negative_log_likelihood(y: ArrayLike, distribution: CountDistribution) -> float:
    """Return the mean negative log probability of counts, in nats per count.

    Args:
        y: Counts, shape `(...)`.
        distribution: Predictive distribution of that shape.

    Returns:
        Nats per count, at least 0; infinite where a count was held impossible.

    Raises:
        ValueError: if `y` is not of whole numbers of at least 0.

    Example:
    >>> from scipy import stats
    >>> from bdl.calibration import count_negative_log_likelihood
    >>> count_negative_log_likelihood([0, 1], stats.poisson([1.0, 1.0]))
    1.0
    """
    return float(np.mean(-np.asarray(distribution.logpmf(_check_counts(y)))))


def ranked_probability_score(y: ArrayLike, distribution: CountDistribution) -> float:
    """Return the mean ranked probability score of counts, lower is better: the CRPS on whole numbers.

    `sum_k (F(k) - 1[y <= k])^2` (Epstein 1969; Czado et al. 2009, "Predictive model assessment for count data").

    Args:
        y: Counts, shape `(...)`.
        distribution: Predictive distribution of that shape.

    Returns:
        The score, in counts.

    Raises:
        ValueError: if `y` is not of whole numbers of at least 0, or the distribution has no end within ten million.

    Example:
    >>> from scipy import stats
    >>> from bdl.calibration import ranked_probability_score
    >>> ranked_probability_score([0, 1], stats.poisson([1.0, 1.0]))
    0.3441
    """
    counts = _check_counts(y)
    score = np.zeros(counts.shape)
    k, last = 0, int(counts.max())
    while True:
        probability = np.asarray(distribution.cdf(np.full(counts.shape, k)), dtype=np.float64)
        score += (probability - (counts <= k)) ** 2
        if k >= last and bool(np.all(probability >= 1 - _TAIL)):
            return float(np.mean(score))
        if k >= _MAX_COUNT:
            raise ValueError(f"`distribution` must reach probability 1, not {probability.min()} at {k:,}. Check it.")
        k += 1


def dawid_sebastiani_score(y: ArrayLike, mean: ArrayLike, scale: ArrayLike) -> float:
    """Return the mean Dawid-Sebastiani score, a proper score of mean and scale alone, lower is better.

    `((y - mean) / scale)^2 + 2 log scale` (Dawid and Sebastiani 1999; Czado et al. 2009, eq. 3.5).

    Args:
        y: Counts or real targets, shape `(...)`.
        mean: Predictive means, that shape or a scalar.
        scale: Predictive standard deviations, positive, that shape or a scalar.

    Returns:
        The score.

    Raises:
        ValueError: if shapes differ, a value is not finite or a scale not positive.

    Example:
    >>> from bdl.calibration import dawid_sebastiani_score
    >>> dawid_sebastiani_score([0, 2], [1.0, 1.0], 1.0)
    1.0
    """
    target, center, sigma = check_targets(("y", y), ("mean", mean), ("scale", scale))
    check_positive("scale", sigma)
    return float(np.mean(((target - center) / sigma) ** 2 + 2 * np.log(sigma)))


def count_probability_integral_transform(
    y: ArrayLike, distribution: CountDistribution
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the interval `F(y - 1)` to `F(y)` of each count, within which its PIT is uniform if calibrated.

    Args:
        y: Counts, shape `(...)`.
        distribution: Predictive distribution of that shape.

    Returns:
        Lower and upper ends, each of the shape of `y`; for `pit_histogram`.

    Raises:
        ValueError: if `y` is not of whole numbers of at least 0.

    Example:
    >>> from scipy import stats
    >>> from bdl.calibration import count_probability_integral_transform
    >>> count_probability_integral_transform([0, 1], stats.poisson([1.0, 1.0]))
    (array([0.    , 0.3679]), array([0.3679, 0.7358]))
    """
    counts = _check_counts(y)
    lower = np.where(counts > 0, distribution.cdf(np.maximum(counts - 1, 0)), 0.0)
    return lower, np.asarray(distribution.cdf(counts), dtype=np.float64)


def pit_histogram(lower: ArrayLike, upper: ArrayLike | None = None, num_bins: int = 10) -> NDArray[np.float64]:
    """Return the share of probability integral transforms in each bin, spread over the interval of each count.

    Without randomisation (Czado et al. 2009, eq. 2): a count's unit of mass is spread evenly from `F(y - 1)` to `F(y)`.

    Args:
        lower: Transforms of real targets; or the lower ends for counts.
        upper: Upper ends for counts; None for real targets.
        num_bins: Number of bins from 0 to 1.

    Returns:
        Shares, shape `(num_bins,)`, which sum to 1; each is `1 / num_bins` for a calibrated model but for chance.

    Raises:
        ValueError: if a value lies outside [0, 1], or an interval is reversed.

    Example:
    >>> from bdl.calibration import pit_histogram
    >>> pit_histogram([0.0, 0.5], [0.5, 1.0], num_bins=4)
    array([0.25, 0.25, 0.25, 0.25])
    """
    edges = np.arange(check_num_bins(num_bins) + 1) / num_bins
    (low,) = check_targets(("lower", lower))
    high = low if upper is None else check_targets(("lower", lower), ("upper", upper))[1]
    if low.min() < 0 or high.max() > 1 or (low > high).any():
        raise ValueError(
            "`lower` and `upper` must be probabilities, the lower first, "
            f"not {low.min():.4g} to {high.max():.4g}. Pass F(y - 1) and F(y)."
        )
    low, high = low.ravel(), high.ravel()
    width = high - low
    is_point = width == 0
    heights = np.histogram(low[is_point], bins=edges)[0].astype(np.float64)
    low, width = low[~is_point], width[~is_point]
    for number, (left, right) in enumerate(itertools.pairwise(edges)):
        overlap = np.minimum(low + width, right) - np.maximum(low, left)
        heights[number] += np.sum(np.maximum(overlap, 0) / width)
    return heights / (len(low) + is_point.sum())


def _check_counts(y: ArrayLike) -> NDArray[np.int64]:
    (counts,) = check_targets(("y", y))
    wrong = (counts < 0) | (counts != np.floor(counts))
    if wrong.any():
        raise ValueError(
            f"`y` must hold counts, whole numbers of at least 0, not {counts[wrong][0]}. "
            "Score real targets with `normal_crps` or `sample_crps`."
        )
    return counts.astype(np.int64)
