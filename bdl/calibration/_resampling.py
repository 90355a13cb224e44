"""Intervals of metrics from how often each example was drawn: nothing is read again for a resample but sums.

Counts of draws serve every metric of the same examples at once. A mean is their product with one number for each
example, a ranking keeps its order, and bins are sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdl.calibration._events import Events


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval.

    Attributes:
        value: The metric of the data as they are.
        low: Lower end.
        high: Upper end.
        level: Confidence level: how often such an interval holds the figure of infinitely many data.
    """

    value: float
    low: float
    high: float
    level: float


@dataclass(frozen=True, eq=False)
class Statistic:
    """A metric of examples that can be resampled.

    Attributes:
        value: Of the data as they are.
        of_counts: Its value where each example was drawn that many times, `(n,)`; of metrics of two samples, a vector
            for each. None where it is not resampled.
        terms: One number for each example, `(n,)`, if the metric is their mean, else None.
    """

    value: float
    of_counts: Callable[..., float] | None = None
    terms: NDArray[np.float64] | None = None

    @classmethod
    def mean(cls, totals: NDArray[Any], sizes: NDArray[Any] | None = None, value: float | None = None) -> Statistic:
        """The mean over the events of all examples.

        Args:
            totals: Sum over the events of each example, `(n,)`.
            sizes: Number of events of each example, `(n,)`; None for one.
            value: The mean, if it is known already.
        """
        totals = totals.astype(np.float64, copy=False)
        if sizes is not None and (sizes != sizes[0]).any():
            value = float(totals.sum() / sizes.sum()) if value is None else value
            return cls(value, lambda counts: float(counts @ totals) / float(counts @ sizes))
        size = 1.0 if sizes is None else float(sizes[0])
        num_events = size * len(totals)
        value = float(np.sum(totals)) / num_events if value is None else value
        # Divided after the sum, so that equal means of hits are equal numbers.
        return cls(value, lambda counts: float(counts @ totals) / num_events, totals / size)

    @classmethod
    def mean_of_rows(cls, terms: NDArray[Any]) -> Statistic:
        """The mean of terms `(n, ...)`, a row of them for each example."""
        return cls.mean(terms) if terms.ndim == 1 else cls.mean(terms.reshape(len(terms), -1).mean(axis=1))

    def root(self) -> Statistic:
        """The square root of this one."""
        of_counts = self.of_counts
        if of_counts is None:
            return Statistic(math.sqrt(self.value))
        return Statistic(math.sqrt(self.value), lambda *counts: math.sqrt(of_counts(*counts)))


class Examples:
    """Which events belong to which example: rows of labels, of those that have an event under the mask.

    Args:
        shape: Shape of the labels, with an axis of examples at least.
        kept: Which labels count, of this shape, or None for all.
    """

    def __init__(self, shape: tuple[int, ...], kept: NDArray[np.bool_] | None = None) -> None:
        self._events_a_row = math.prod(shape[1:])
        exists = None if kept is None else kept.reshape(shape[0], -1).any(axis=1)
        self._number = None if exists is None else np.cumsum(exists) - 1
        self.count = shape[0] if exists is None else int(exists.sum())
        self.are_events = len(shape) == 1

    def of(self, place: NDArray[np.intp]) -> NDArray[np.intp]:
        """Number of the example of each event, from its place among all labels."""
        row = place if self.are_events else place // self._events_a_row
        return row if self._number is None else self._number[row]


class EventMeans:
    """Means over events, and what each example adds to them, from one pass over blocks of events.

    Args:
        terms: For each name, what the mean is of.
        examples: Of which example an event is, to resample them; None to keep nothing of each.
    """

    def __init__(self, terms: Mapping[str, Callable[[Events], NDArray[Any]]], examples: Examples | None) -> None:
        self._terms = terms
        self._examples = examples
        self._sums = dict.fromkeys(terms, 0.0)
        self._num_events = 0
        n = 0 if examples is None else examples.count
        self._sizes = np.zeros(n)
        self._totals = {name: np.zeros(n) for name in terms}

    def add(self, events: Events) -> None:
        """Adds a block."""
        row = None if self._examples is None else self._examples.of(events.place)
        self._num_events += len(events.labels)
        if row is not None:
            self._add_by_example(self._sizes, row, None)
        for name, terms in self._terms.items():
            values = terms(events)
            self._sums[name] += float(np.sum(values, dtype=np.float64))
            if row is not None:
                self._add_by_example(self._totals[name], row, values)

    def statistics(self) -> dict[str, Statistic]:
        """The means."""
        values = {name: total / self._num_events for name, total in self._sums.items()}
        if self._examples is None:
            return {name: Statistic(value) for name, value in values.items()}
        return {name: Statistic.mean(self._totals[name], self._sizes, value) for name, value in values.items()}

    @staticmethod
    def _add_by_example(totals: NDArray[np.float64], row: NDArray[np.intp], values: NDArray[Any] | None) -> None:
        """Adds what the events of a block add; their rows ascend, and few examples reach over a block's end."""
        first, last = int(row[0]), int(row[-1])
        totals[first : last + 1] += np.bincount(row - first, weights=values)


def intervals(
    statistics: Mapping[str, Statistic],
    sizes: Sequence[int],
    level: float,
    num_resamples: int,
    random: np.random.Generator,
) -> dict[str, Interval]:
    """Bootstrap intervals of metrics of the same examples: of means BCa, of others percentiles.

    Args:
        statistics: Metrics by name; those that are not resampled get NaN for an interval.
        sizes: Number of examples; of metrics of several samples, of each.
        level: Confidence level.
        num_resamples: Number of resamples.
        random: What draws them.

    Raises:
        ValueError: if a sample has fewer than two examples.
    """
    if min(sizes) < 2:
        raise ValueError(f"`arrays` must hold at least two examples to resample, not {min(sizes)}. Collect more.")
    # One event of infinite loss, however rare, makes the mean over all events infinite for certain.
    drawn = {
        name: (each.of_counts, np.empty(num_resamples))
        for name, each in statistics.items()
        if each.of_counts is not None and not np.isinf(each.value)
    }
    for number in range(num_resamples):
        counts = [np.bincount(random.integers(0, n, size=n), minlength=n).astype(np.float64) for n in sizes]
        for of_counts, values in drawn.values():
            values[number] = of_counts(*counts)
    found = {}
    for name, each in statistics.items():
        ends = (each.value, each.value) if each.of_counts is not None else (math.nan, math.nan)
        if name in drawn:
            ends = _ends(each, drawn[name][1], level)
        found[name] = Interval(each.value, *ends, level)
    return found


def _ends(statistic: Statistic, values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The interval's ends from the metric of each resample."""
    levels = np.array([(1 - level) / 2, (1 + level) / 2])
    if statistic.terms is not None:
        residual = statistic.terms - statistic.value
        largest = float(np.max(np.abs(residual)))
        if largest <= 1e-14 * max(abs(statistic.value), np.finfo(float).tiny):
            return statistic.value, statistic.value
        residual /= largest  # whose powers are no longer too large for a float
        levels = _accelerated(levels, statistic.value, values, residual)
    low, high = np.quantile(values, levels)
    return float(low), float(high)


def _accelerated(
    levels: NDArray[np.float64], value: float, means: NDArray[np.float64], residual: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Levels of the quantiles that are the BCa interval's ends, of a mean.

    The acceleration of a mean is its skewness over `6 sqrt(n)` (Efron 1987, eq. 6.6).
    """
    from scipy.special import ndtr, ndtri

    num_resamples = len(means)
    acceleration = float(np.mean(residual**3) / np.mean(residual**2) ** 1.5) / (6 * np.sqrt(len(residual)))
    # The rank of the value among the means; equal means, which discrete terms have many of, count one half.
    below = np.mean(means < value) + 0.5 * np.mean(means == value)
    bias = float(ndtri(np.clip(below, 1 / (num_resamples + 1), num_resamples / (num_resamples + 1))))
    ends = bias + ndtri(levels)
    return ndtr(bias + ends / (1 - acceleration * ends))
