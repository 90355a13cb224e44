"""What predictions use of a frozen scipy.stats distribution, and a weighted mixture that offers the same.

Several targets of one event are mixed each by itself: their common alignment is summed out for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

_Function = Callable[[np.ndarray], np.ndarray]

_STEPS = 200  # each halves its length or the interval: they end sooner
_PRECISION = 1e-14
"""Of the probability below a quantile, as a share of its level."""


class FrozenDistribution(Protocol):
    """A scipy.stats distribution with its parameters; one with `pmf` in its `dist` is of counts."""

    dist: Any

    def mean(self) -> Any:
        """Mean."""

    def var(self) -> Any:
        """Variance."""

    def cdf(self, y: Any) -> Any:
        """Probability of at most `y`."""

    def logpdf(self, y: Any) -> Any:
        """Log density."""

    def logpmf(self, y: Any) -> Any:
        """Log probability of counts."""

    def ppf(self, level: float) -> Any:
        """Quantile."""

    def rvs(self, size: Any = None, random_state: Any = None) -> Any:
        """Draws."""


class FrozenMixture:
    """A mixture along one axis of a frozen scipy.stats distribution.

    Args:
        components: The frozen distribution of all components.
        log_weight: Their log weights, broadcastable to the components' shape; they sum to 1 along the axis.
        axis: The components' axis, negative.

    Example:
    >>> from scipy import stats
    >>> mixture = FrozenMixture(stats.norm([0.0, 2.0], 1.0), np.log([0.5, 0.5]), axis=-1)
    >>> float(mixture.mean()), float(mixture.var()), round(float(mixture.ppf(0.5)), 6)
    (1.0, 2.0, 1.0)
    """

    def __init__(self, components: FrozenDistribution, log_weight: np.ndarray, axis: int) -> None:
        self._components, self._axis = components, axis
        self._log_weight = np.broadcast_to(log_weight, components.mean().shape)
        self.dist = components.dist

    def mean(self) -> Any:
        """Mean."""
        return self._average(self._components.mean())

    def var(self) -> Any:
        """Variance: that of the components and that of their means."""
        mean = self._components.mean()
        return self._average(self._components.var() + (mean - self._spread(self.mean())) ** 2)

    def cdf(self, y: Any) -> Any:
        """Probability of at most `y`."""
        return self._average(self._components.cdf(self._spread(y)))

    def logpdf(self, y: Any) -> Any:
        """Log density."""
        return self._log_average(self._components.logpdf(self._spread(y)))

    def logpmf(self, y: Any) -> Any:
        """Log probability of counts."""
        return self._log_average(self._components.logpmf(self._spread(y)))

    def ppf(self, level: float) -> Any:
        """Quantile; of counts the least that reaches the level."""
        is_count = hasattr(self.dist, "pmf")
        return mixture_quantile(self.cdf, self.logpdf, self._components.ppf(level), level, self._axis, is_count)

    def rvs(self, size: Any = None, random_state: Any = None) -> Any:
        """Draws: a component by its weight, then a value of it."""
        random = np.random.default_rng(random_state)
        noise = random.gumbel(size=self._log_weight.shape)
        chosen = np.argmax(self._log_weight + noise, axis=self._axis, keepdims=True)
        values = self._components.rvs(size=self._log_weight.shape, random_state=random)
        return np.take_along_axis(values, chosen, axis=self._axis).squeeze(self._axis)

    def _spread(self, y: Any) -> np.ndarray:
        return np.expand_dims(np.asarray(y), self._axis)

    def _average(self, values: Any) -> Any:
        return np.sum(np.exp(self._log_weight) * values, axis=self._axis)

    def _log_average(self, values: Any) -> Any:
        with np.errstate(invalid="ignore"):  # of a missing target
            return np.logaddexp.reduce(self._log_weight + values, axis=self._axis)


def mixture_quantile(
    cdf: _Function, logpdf: _Function, ends: np.ndarray, level: float, axis: int, is_count: bool
) -> np.ndarray:
    """Quantile of a mixture: it lies between the least and the greatest of its components'.

    Args:
        cdf: Of the mixture.
        logpdf: Of the mixture; not used of counts.
        ends: The components' quantiles of that level.
        level: Between 0 and 1.
        axis: The components' axis.
        is_count: Whether values are whole numbers; then the least is found that reaches the level.
    """
    low, high = ends.min(axis=axis), ends.max(axis=axis)
    if is_count:
        return _least(cdf, low - 1.0, high, level)
    return _crossing(cdf, logpdf, low, high, ends.mean(axis=axis), level)


def _least(cdf: _Function, low: np.ndarray, high: np.ndarray, level: float) -> np.ndarray:
    """The least whole number that reaches a level, by bisection: `cdf(low) < level <= cdf(high)`."""
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        reached = cdf(middle) >= level
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


def _crossing(
    cdf: _Function, logpdf: _Function, low: np.ndarray, high: np.ndarray, start: np.ndarray, level: float
) -> np.ndarray:
    """Where a distribution reaches a level between two ends: Newton's method, and bisection where it is not faster."""
    found, length = np.clip(start, low, high), high - low
    is_open = ~np.isnan(found)
    for _ in range(_STEPS):
        above = cdf(found) - level
        is_open &= np.abs(above) > _PRECISION * level
        if not is_open.any():
            break
        low, high = np.where(above >= 0, low, found), np.where(above >= 0, found, high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # of no density
            moved = found - above * np.exp(-logpdf(found))
        is_fast = (moved >= low) & (moved <= high) & (np.abs(moved - found) <= length / 2)
        moved = np.where(is_fast, moved, (low + high) / 2)
        length = np.abs(moved - found)
        is_open &= length > 0
        found = np.where(is_open, moved, found)
    return found
