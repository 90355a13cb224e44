"""The best constant of each likelihood: what a model that ignores its inputs can reach on given labels.

Each function returns the NLL of every example, `(n,)`, in nats, summed over its events. A constant is one for each
output (the last axis of the labels), the same at every place (the axes before it); parameters that a likelihood shares
between its outputs are shared here, too. All are maximum likelihood, in float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

_LEAST_SCALE = 1e-4  # as `MIN_LIKELIHOOD_SCALE`: a constant target has no finite density otherwise
_LEAST_MEAN = 1e-12  # of counts that are all zero
_EM_STEPS = 500
_TOLERANCE = 1e-10


def frequencies(y: ArrayLike, void: int | None = None) -> np.ndarray:
    """Returns `-log` of the mean frequency of each class, from class numbers or distributions over classes.

    Args:
        y: Class numbers `(n, ...)`, or soft labels `(n, ..., classes)`, told by fractions among them.
        void: Class number of events that do not count.

    Example:
    >>> frequencies([0, 1, 0, 1]).round(4).tolist()
    [0.6931, 0.6931, 0.6931, 0.6931]
    """
    y = np.asarray(y)
    if y.dtype.kind == "f" and y.ndim > 1 and np.any(y != np.floor(y)):
        shares = y.reshape(-1, y.shape[-1]).mean(axis=0, dtype="float64")
        log_share = np.log(np.where(shares > 0, shares, 1.0))
        return _sum(-(y * log_share).sum(axis=-1))
    counts = y != void if void is not None else np.ones(y.shape, bool)
    labels, place, sizes = np.unique(y, return_inverse=True, return_counts=True)
    sizes = np.where(labels == void, 0, sizes) if void is not None else sizes
    log_share = np.log(np.maximum(sizes, 1) / max(sizes.sum(), 1))
    return _sum(np.where(counts, -log_share[place.reshape(y.shape)], 0.0))


def bernoulli(y: ArrayLike) -> np.ndarray:
    """Labels of 0 or 1, each output with a probability of its own."""
    from scipy.special import xlog1py, xlogy

    labels = _columns(y)
    p = labels.mean(axis=0)
    return _sum(-xlogy(labels, p) - xlog1py(1.0 - labels, -p), y)


def gaussian(y: ArrayLike, scale: float | None = None, is_shared: bool = False) -> np.ndarray:
    """Real targets under a Gaussian.

    Args:
        y: Targets.
        scale: Standard deviation where it is fixed; None fits it. Draws of a network that ignores its inputs may
            differ, and their mixture is then wider than this: it is the least one.
        is_shared: Whether a fitted one is the same for all outputs.

    Example:
    >>> round(float(gaussian([-1.0, 1.0]).mean()), 4)  # log(2 pi e) / 2
    1.4189
    """
    targets = _columns(y)
    squares = (targets - targets.mean(axis=0)) ** 2
    s = np.maximum(np.sqrt(squares.mean(axis=None if is_shared else 0)), scale or _LEAST_SCALE)
    return _sum(0.5 * squares / s**2 + np.log(s) + 0.5 * math.log(2 * math.pi), y)


def student_t(y: ArrayLike, df: float, scale: float | None = None, is_shared: bool = False) -> np.ndarray:
    """Real targets under Student's t, fitted by expectation maximisation (Lange et al. 1989).

    Args:
        y: Targets.
        df: Degrees of freedom.
        scale: As of `gaussian`.
        is_shared: Whether a fitted one is the same for all outputs.
    """
    targets = _columns(y)
    axis = None if is_shared else 0
    location = np.median(targets, axis=0)
    least = scale or _LEAST_SCALE
    s = np.maximum(targets.std(axis=axis), least)
    for _ in range(_EM_STEPS):
        weight = (df + 1) / (df + ((targets - location) / s) ** 2)
        before = location, s
        location = (weight * targets).sum(axis=0) / weight.sum(axis=0)
        s = np.maximum(np.sqrt((weight * (targets - location) ** 2).mean(axis=axis)), least)
        moved = np.abs(location - before[0]) / s + np.abs(s / before[1] - 1.0)
        if np.max(moved) < _TOLERANCE:
            break
    constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    z = (targets - location) / s
    return _sum(0.5 * (df + 1) * np.log1p(z**2 / df) + np.log(s) - constant, y)


def poisson(y: ArrayLike) -> np.ndarray:
    """Counts, each output with a rate of its own: their mean."""
    from scipy.special import gammaln

    counts = _columns(y)
    rate = np.maximum(counts.mean(axis=0), _LEAST_MEAN)
    return _sum(rate - counts * np.log(rate) + gammaln(counts + 1.0), y)


def negative_binomial(y: ArrayLike, total_count: float | None = None) -> np.ndarray:
    """Counts of a greater variance: the means are the counts', whatever the total count, which all outputs share.

    Args:
        y: Counts.
        total_count: None fits it.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import gammaln

    counts = _columns(y)
    mean = np.maximum(counts.mean(axis=0), _LEAST_MEAN)

    def nll(log_total: float) -> np.ndarray:
        total = math.exp(log_total)
        log_sum = np.log(total + mean)
        normaliser = gammaln(counts + total) - math.lgamma(total) - gammaln(counts + 1.0)
        return -(normaliser + total * (log_total - log_sum) + counts * (np.log(mean) - log_sum))

    if total_count is None:
        bounds = (math.log(1e-4), math.log(1e8))
        best = minimize_scalar(lambda value: nll(value).mean(), bounds=bounds, options={"xatol": 1e-8}).x
        return _sum(nll(best), y)
    return _sum(nll(math.log(total_count)), y)


def _columns(y: ArrayLike) -> np.ndarray:
    """Events by output, `(n * places, outputs)`, in float64."""
    y = np.asarray(y, "float64")
    return y.reshape(-1, y.shape[-1] if y.ndim > 1 else 1)


def _sum(events: np.ndarray, y: ArrayLike | None = None) -> np.ndarray:
    """Sum over the events of each example."""
    return events.reshape(len(events) if y is None else len(np.asarray(y)), -1).sum(axis=1)
