"""Intervals of metrics by resampling their examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdl.calibration._events import Events, event_blocks, events_of
from bdl.calibration._resampling import EventMeans, Examples, Interval, Statistic, intervals
from bdl.calibration._validation import check_num_bins, check_share
from bdl.calibration.metrics import calibration_error, classification, ranking, regression
from bdl.calibration.metrics import intervals as prediction_intervals
from bdl.calibration.reliability import DEFAULT_NUM_BINS, BinSums, top_pairs, uniform_edges

# Metrics that are means, or the root of one: resampling needs their terms only, computed once.
_EVENT_TERMS: dict[Callable[..., float], Callable[[Events], NDArray[Any]]] = {
    classification.negative_log_likelihood: classification.log_losses,
    classification.brier_score: classification.squared_errors,
    classification.accuracy: classification.hits,
}
_TARGET_TERMS: dict[Callable[..., float], Callable[..., NDArray[Any]]] = {
    regression.normal_negative_log_likelihood: regression.normal_log_losses,
    regression.normal_crps: regression.normal_crps_terms,
    regression.sample_crps: regression.sample_crps_terms,
    regression.root_mean_square_error: regression.squared_error_terms,
    prediction_intervals.pinball_loss: prediction_intervals.pinball_terms,
    prediction_intervals.interval_score: prediction_intervals.interval_score_terms,
    prediction_intervals.interval_coverage: prediction_intervals.covered,
}
_ROOTS = (regression.root_mean_square_error,)

# Metrics of reliability bins, by their names there: resampling needs sums of the bins.
_OF_BINS: dict[Callable[..., float], str] = {
    getattr(calibration_error, name): name
    for name in (
        "expected_calibration_error",
        "maximum_calibration_error",
        "root_mean_square_calibration_error",
        "debiased_calibration_error",
    )
}

# Metrics of ranks: resampling needs one sort.
_OF_RANKS: dict[Callable[..., float], Callable[..., Callable[..., float]]] = {
    ranking.area_under_risk_coverage: ranking.resampled_area,
    ranking.excess_area_under_risk_coverage: ranking.resampled_excess_area,
    ranking.out_of_distribution_auroc: ranking.resampled_auroc,
}

# Metrics of two samples of different inputs, each of which is resampled on its own.
_OF_TWO_SAMPLES = (ranking.out_of_distribution_auroc, ranking.out_of_distribution_aupr)


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
    any other, and for sequences of different lengths, it is the percentile interval.

    The table of predictions is read once for means, for the root mean square error, for calibration errors of the
    predicted class in bins of equal width, and for `out_of_distribution_auroc`, `area_under_risk_coverage` and its
    excess: a resample costs some milliseconds per 200,000 examples. Any other metric, also your own, is called with the
    rows of each resample, and takes `num_resamples` times as long as one call.

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
    arrays, options = _plain_events(metric, arrays, options)
    statistic, sizes = _statistic(metric, arrays, options)
    random = np.random.default_rng(seed)
    return intervals({"": statistic}, sizes, level, int(num_resamples), random)[""]


def _plain_events(
    metric: Callable[..., float], arrays: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Labels and probabilities as arrays, whose rows can be drawn: class indices, with what is masked in `mask`."""
    if len(arrays) != 2 or _parameters(metric)[:2] != ["y", "probabilities"]:
        return arrays, options
    labels, p, kept, _ = events_of(*arrays, options.get("mask"))
    return (labels, p), options if kept is None else {**options, "mask": kept}


def _statistic(
    metric: Callable[..., float], arrays: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Statistic, list[int]]:
    """The metric as a function of how often each example is drawn; and the number of examples, of each sample."""
    has_rows = len(arrays) > 0 and np.ndim(arrays[0]) > 0
    if metric in _EVENT_TERMS and has_rows:
        mask = options.get("mask")
        examples = Examples(np.shape(arrays[0]), None if mask is None else np.asarray(mask, dtype=bool))
        means = EventMeans({"": _EVENT_TERMS[metric]}, examples)
        for events in event_blocks(*arrays, **options):
            means.add(events)
        return means.statistics()[""], [examples.count]
    if metric in _TARGET_TERMS and has_rows:
        mean = Statistic.mean_of_rows(_TARGET_TERMS[metric](*arrays, **options))
        return mean.root() if metric in _ROOTS else mean, [len(arrays[0])]
    if metric in _OF_BINS and has_rows and options.get("binning", "width") == "width" and len(arrays) == 2:
        return _of_bins(metric, arrays, **{name: value for name, value in options.items() if name != "binning"})
    if metric in _OF_RANKS and len(arrays) == 2:
        value = metric(*arrays, **options)
        sizes = [len(array) for array in arrays]
        return Statistic(value, _OF_RANKS[metric](*arrays)), sizes if metric in _OF_TWO_SAMPLES else sizes[:1]
    return _of_rows(metric, arrays, options)


def _of_bins(
    metric: Callable[..., float],
    arrays: tuple[Any, ...],
    num_bins: int = DEFAULT_NUM_BINS,
    mask: NDArray[np.bool_] | None = None,
) -> tuple[Statistic, list[int]]:
    """A metric of the reliability bins, of whose sums each event is a part as often as its example was drawn."""
    y, probabilities = arrays
    edges = uniform_edges(check_num_bins(num_bins))
    examples = Examples(y.shape, mask)
    blocks = [(examples.of(events.place), *top_pairs(events)[1:]) for events in event_blocks(y, probabilities, mask)]
    row, confidence, is_right = (np.concatenate(parts) for parts in zip(*blocks, strict=True))

    def of_counts(counts: NDArray[np.float64]) -> float:
        sums = BinSums(edges)
        sums.add(np.zeros(1, np.intp), confidence, is_right, counts[row])
        return float(getattr(sums.bins()[0], _OF_BINS[metric]))

    return Statistic(of_counts(np.ones(examples.count)), of_counts), [examples.count]


def _of_rows(
    metric: Callable[..., float], arrays: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Statistic, list[int]]:
    """Any metric, called with the rows that were drawn, in their order in the arrays."""
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
    have_rows = [row.ndim > axis for row, axis in zip(rows, axes, strict=True)]
    sizes = [row.shape[axis] for row, axis, has_rows in zip(rows, axes, have_rows, strict=True) if has_rows]
    if metric not in _OF_TWO_SAMPLES and len(set(sizes)) != 1:
        raise ValueError(
            f"`arrays` must have one row for each example, not {sizes} rows. "
            "Resample a metric of several samples by hand."
        )

    def of_counts(*counts: NDArray[np.float64]) -> float:
        repeats = [each.astype(np.intp) for each in counts]
        of_arrays = repeats if metric in _OF_TWO_SAMPLES else repeats * len(rows)
        drawn = [
            np.repeat(row, repeat, axis) if has_rows else row
            for row, repeat, axis, has_rows in zip(rows, of_arrays, axes, have_rows, strict=True)
        ]
        return float(metric(*drawn, **{name: np.repeat(mask, repeats[0], 0) for name, mask in named.items()}, **others))

    return Statistic(value, of_counts), sizes if metric in _OF_TWO_SAMPLES else sizes[:1]


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
