"""Intervals of metrics by resampling their examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdl.calibration._events import Events, event_terms, events_of
from bdl.calibration._validation import check_share
from bdl.calibration.metrics import classification, intervals, ranking, regression


def mean_of_events(terms: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """The mean of what each event adds to a metric.

    Args:
        terms: One number per event, of any shape.
        mask: True where an event counts, of the shape of `terms`; None if all do.
    """
    return float(np.mean(terms if mask is None else terms[mask], dtype=np.float64))


# Metrics that are means: resampling needs their terms only, computed once.
_EVENT_TERMS: dict[Callable[..., float], Callable[[Events], NDArray[Any]]] = {
    classification.negative_log_likelihood: classification.log_losses,
    classification.brier_score: classification.squared_errors,
    classification.accuracy: classification.hits,
}
_TARGET_TERMS: dict[Callable[..., float], Callable[..., NDArray[Any]]] = {
    regression.normal_negative_log_likelihood: regression.normal_log_losses,
    regression.normal_crps: regression.normal_crps_terms,
    regression.sample_crps: regression.sample_crps_terms,
    intervals.pinball_loss: intervals.pinball_terms,
    intervals.interval_score: intervals.interval_score_terms,
    intervals.interval_coverage: intervals.covered,
}

# Metrics of two samples of different inputs, each of which is resampled on its own.
_OF_TWO_SAMPLES = (ranking.out_of_distribution_auroc, ranking.out_of_distribution_aupr)


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


def bootstrap_interval(
    metric: Callable[..., float],
    *arrays: Any,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Interval:
    """Return a metric with the interval that resampling its examples gives.

    Examples (rows, whole sequences) are drawn with replacement, the same ones of all arrays, from those that have an
    event under the mask; familiar and unfamiliar inputs of `out_of_distribution_auroc` and `_aupr` each on their own.
    For metrics that are means (negative log likelihood, Brier score, accuracy, CRPS, pinball loss, interval score,
    coverage) the interval is the bias-corrected and accelerated one (BCa; Efron 1987), whose error falls as `1/n`; for
    any other it is the percentile interval.

    Do not ask it for the interval of a plain expected calibration error: chance makes that error too large, resampled
    data add the same once more, and the interval lies above the truth, almost surely for a calibrated model
    (docs/explain/calibration.md). `reliability_bins(...).debiased_interval()` has one that covers.

    Args:
        metric: A function of arrays, from `bdl.calibration` or your own.
        *arrays: Its array arguments in order, each with one row per example (`samples`: on its second axis).
        level: Confidence level of the interval.
        num_resamples: Positive integer, number of bootstrap samples.
        seed: Decides the resampling; the same seed gives the same interval.
        **options: Further arguments of `metric`, passed as they are; `mask` is resampled with the rows.

    Returns:
        `Interval`.

    Raises:
        ValueError: if `level` or `num_resamples` is out of range, there are fewer than two examples, or the arrays
            are not valid for the metric.

    Example:
    >>> from bdl.calibration import accuracy, bootstrap_interval
    >>> bootstrap_interval(accuracy, [0, 1] * 50, [[0.8, 0.2], [0.3, 0.7]] * 49 + [[0.1, 0.9], [0.9, 0.1]])
    Interval(value=0.98, low=0.94, high=1.0, level=0.95)
    """
    check_share("level", level)
    if isinstance(num_resamples, bool) or not hasattr(num_resamples, "__index__") or num_resamples < 1:
        raise ValueError(f"`num_resamples` must be a positive integer, not {num_resamples!r}. Pass 1000.")
    random = np.random.default_rng(seed)
    arrays, options = _plain_events(metric, arrays, options)
    terms = _terms(metric, arrays, options)
    if terms is not None:
        return _mean_interval(terms.astype(np.float64), level, int(num_resamples), random)
    return _percentile_interval(metric, arrays, options, level, int(num_resamples), random)


def _plain_events(
    metric: Callable[..., float], arrays: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Labels and probabilities as arrays, whose rows can be drawn: class indices, with what is masked in `mask`."""
    if len(arrays) != 2 or _parameters(metric)[:2] != ["y", "probabilities"]:
        return arrays, options
    labels, p, kept, _ = events_of(*arrays, options.get("mask"))
    return (labels, p), options if kept is None else {**options, "mask": kept}


def _terms(metric: Callable[..., float], arrays: tuple[Any, ...], options: dict[str, Any]) -> NDArray[Any] | None:
    """Values of independent examples whose mean the metric is; None if there are none."""
    is_flat = len(arrays) > 0 and np.ndim(arrays[0]) == 1  # events of one sequence are not independent
    if not is_flat:
        return None
    if metric is mean_of_events:
        return arrays[0] if options.get("mask") is None else arrays[0][options["mask"]]
    if metric in _EVENT_TERMS:
        return event_terms(_EVENT_TERMS[metric], *arrays, **options)
    if metric in _TARGET_TERMS:
        return _TARGET_TERMS[metric](*arrays, **options)
    return None


def _mean_interval(
    terms: NDArray[np.float64], level: float, num_resamples: int, random: np.random.Generator
) -> Interval:
    """BCa interval of a mean: the acceleration of a mean is its skewness over `6 sqrt(n)` (Efron 1987, eq. 6.6)."""
    from scipy.special import ndtr, ndtri

    n, value = len(terms), float(np.mean(terms))
    _check_enough(n)
    if np.isinf(value):
        return _infinite(value, level)
    means = np.array([np.mean(terms[index]) for index in _resampled(n, num_resamples, random)])
    residual = terms - value
    largest = float(np.max(np.abs(residual)))
    if largest <= 1e-14 * max(abs(value), np.finfo(float).tiny):
        return Interval(value, value, value, level)
    residual /= largest  # whose powers are no longer too large for a float
    acceleration = float(np.mean(residual**3) / np.mean(residual**2) ** 1.5) / (6 * np.sqrt(n))
    # The rank of the value among the means; equal means, which discrete terms have many of, count one half.
    below = np.mean(means < value) + 0.5 * np.mean(means == value)
    bias = float(ndtri(np.clip(below, 1 / (num_resamples + 1), num_resamples / (num_resamples + 1))))
    ends = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(means, ndtr(bias + ends / (1 - acceleration * ends)))
    return Interval(value, float(low), float(high), level)


def _percentile_interval(
    metric: Callable[..., float],
    arrays: tuple[Any, ...],
    options: dict[str, Any],
    level: float,
    num_resamples: int,
    random: np.random.Generator,
) -> Interval:
    rows = [np.asarray(array) for array in arrays]
    named = {name: np.asarray(value) for name, value in options.items() if name == "mask" and value is not None}
    others = {name: value for name, value in options.items() if name not in named}
    axes = [_example_axis(metric, number) for number in range(len(rows))]
    value = float(metric(*rows, **named, **others))
    if "mask" in named:  # padding is no example: a sample of it alone would have no event
        exists = named["mask"].reshape(len(named["mask"]), -1).any(axis=1)
        rows = [
            np.compress(exists, row, axis) if row.ndim > axis else row for row, axis in zip(rows, axes, strict=True)
        ]
        named = {"mask": named["mask"][exists]}
    if np.isinf(value):
        return _infinite(value, level)
    sizes = [row.shape[axis] for row, axis in zip(rows, axes, strict=True) if row.ndim > axis]
    _check_enough(min(sizes))
    draws: Iterable[Sequence[NDArray[np.int64]]]
    if metric in _OF_TWO_SAMPLES:
        draws = zip(*(_resampled(size, num_resamples, random) for size in sizes), strict=True)
    elif len(set(sizes)) == 1:
        draws = ([index] * len(rows) for index in _resampled(sizes[0], num_resamples, random))
    else:
        raise ValueError(
            f"`arrays` must have one row for each example, not {sizes} rows. "
            "Resample a metric of several samples by hand."
        )
    found = []
    for indices in draws:
        drawn = [
            np.take(row, index, axis) if row.ndim > axis else row
            for row, index, axis in zip(rows, indices, axes, strict=True)
        ]
        found.append(metric(*drawn, **{name: mask[indices[0]] for name, mask in named.items()}, **others))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def _infinite(value: float, level: float) -> Interval:
    """One event of infinite loss, however rare, makes the mean over all events infinite for certain."""
    return Interval(value, value, value, level)


def _example_axis(metric: Callable[..., float], number: int) -> int:
    """0, but 1 for `samples`, whose first axis are the samples."""
    names = _parameters(metric)
    return int(number < len(names) and names[number] == "samples")


def _parameters(metric: Callable[..., float]) -> list[str]:
    """Names of a function's arguments, if it has a signature."""
    try:
        return list(inspect.signature(metric).parameters)
    except (TypeError, ValueError):
        return []


def _resampled(n: int, num_resamples: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Row indices `(n,)` of each resample."""
    for _ in range(num_resamples):
        yield random.integers(0, n, size=n)


def _check_enough(n: int) -> None:
    if n < 2:
        raise ValueError(f"`arrays` must hold at least two examples to resample, not {n}. Collect more.")
