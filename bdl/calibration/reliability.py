"""Reliability bins: how often the predictions of each confidence come true.

Every calibration error is a function of the same four sums in each bin, which add up over blocks and batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._events import Events, event_blocks
from bdl.calibration._validation import check_num_bins, check_share

# The number of bins in Guo et al. (2017), which later papers kept.
DEFAULT_NUM_BINS = 15

Binning = Literal["width", "mass"]

# Groups, forecasts and outcomes of a block of events: what is binned apart, what was said, what came true. Groups are
# those of the events, of the columns, or one zero for all: they broadcast to the forecasts.
Pairs = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """Confidence and accuracy in bins: of the top label, or of whatever was binned.

    Attributes:
        edges: Bin edges, `(bins + 1,)`. Bin `m` is `(edges[m], edges[m + 1]]`; the first holds its lower edge too.
        confidence: Mean forecast in each bin, shape `(bins,)`; NaN where the bin is empty.
        accuracy: Share that came true in each bin, shape `(bins,)`; NaN where the bin is empty.
        count: Number of events in each bin, shape `(bins,)`.
        squared_residual: Mean of `(outcome - forecast)^2` in each bin, shape `(bins,)`; NaN where the bin is empty.
    """

    edges: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]
    squared_residual: NDArray[np.float64]

    @property
    def gap(self) -> NDArray[np.float64]:
        """Accuracy minus confidence in each bin; 0 where it is empty. Negative is overconfident."""
        return np.where(self.count > 0, np.nan_to_num(self.accuracy - self.confidence), 0.0)

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of all events in each bin."""
        return self.count / self.count.sum()

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance between accuracy and confidence, weighted by the bins' counts; between 0 and 1."""
        return float(np.sum(self.share * np.abs(self.gap)))

    @property
    def maximum_calibration_error(self) -> float:
        """Largest distance between accuracy and confidence in any bin."""
        return float(np.max(np.abs(self.gap)))

    @property
    def root_mean_square_calibration_error(self) -> float:
        """Root of the mean squared distance, weighted by the bins' counts."""
        return float(np.sqrt(np.sum(self.share * self.gap**2)))

    @property
    def squared_calibration_error(self) -> float:
        """Unbiased estimate of the mean squared gap; see `debiased_calibration_error`."""
        n = self.count.astype(np.float64)
        pairs = np.maximum(n * (n - 1), 1)
        products = (n * self.gap) ** 2 - n * np.nan_to_num(self.squared_residual)
        return float(np.sum(self.share * np.where(n > 1, products / pairs, 0.0)))

    @property
    def debiased_calibration_error(self) -> float:
        """Root mean square gap without the part of chance, signed: negative is less than chance alone would show."""
        return _signed_root(self.squared_calibration_error)

    def debiased_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of `debiased_calibration_error`, a root mean square gap: the errors that the data do not contradict.

        A true mean squared gap `t` is inside where the unbiased estimate lies within `z sqrt(v + c t)` of it, the
        normal approximation of its variance if that were the truth (as in Wilson's interval of a share): `v` is the
        variance for calibrated bins, `c` what a gap adds.

        Args:
            level: Its confidence level.
        """
        from scipy.special import ndtri

        z_squared = float(ndtri(0.5 + check_share("level", level) / 2)) ** 2
        estimate = self.squared_calibration_error
        n = self.count.astype(np.float64)
        variance = np.maximum(np.nan_to_num(self.squared_residual) - self.gap**2, 0) * n / np.maximum(n - 1, 1)
        by_chance = np.where(n > 1, 2 * variance**2 / np.maximum(n * (n - 1), 1), 0.0)
        v = z_squared * float(np.sum(self.share**2 * by_chance))
        c = z_squared * 4 * float(np.sum(self.share * variance)) / float(n.sum())
        ends = []
        for sign in (-1, 1):
            without_gap = estimate + sign * np.sqrt(v)
            with_gap = estimate + c / 2 + sign * np.sqrt(max(v + c * estimate + c**2 / 4, 0))
            ends.append(_signed_root(with_gap if without_gap > 0 else without_gap))
        return ends[0], ends[1]

    def accuracy_band(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Interval of each bin's accuracy (Clopper and Pearson 1934, exact for the events of one bin).

        Args:
            level: Nominal coverage, of each bin alone.

        Returns:
            Lower and upper ends, each `(bins,)`; NaN where the bin is empty.
        """
        from scipy.special import betaincinv

        tail = (1 - check_share("level", level)) / 2
        n = np.where(self.count > 0, self.count, np.nan)
        hits = np.round(self.accuracy * n)
        low = np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, tail), 0.0)
        high = np.where(hits < n, betaincinv(hits + 1, np.maximum(n - hits, 1), 1 - tail), 1.0)
        return np.where(self.count > 0, low, np.nan), np.where(self.count > 0, high, np.nan)


def reliability_bins(
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = DEFAULT_NUM_BINS,
    binning: Binning = "width",
    mask: ArrayLike | None = None,
) -> ReliabilityBins:
    """Sort examples by the confidence of their predicted class and compare it with the accuracy.

    With confidence `c_i = max_k p_ik` and bins `B_m = {i: (m - 1) / M < c_i <= m / M}`,
    `conf(B_m) = mean of c_i` and `acc(B_m) = mean of 1[argmax_k p_ik = y_i]` over `B_m`
    (Guo et al. 2017, "On calibration of modern neural networks", section 2).
    The edges are rounded to the dtype of `probabilities`, so that a float32 0.2 counts as 0.2.

    Args:
        y: Class indices, shape `(n,)`, or any shape `(...)` of events; see `mask`.
        probabilities: Shape `(..., classes)`, or that of `y` for the probability of label 1 of two, which means the
            same as the two columns `1 - p` and `p`.
        num_bins: Positive integer `M`.
        binning: `"width"` for bins of equal width, `"mass"` for edges at the quantiles of the confidence (kept in
            memory, sorted), so that bins hold equally many events but for ties.
        mask: True where an event counts, shape of `y`: tokens that are no padding.

    Returns:
        `ReliabilityBins`, with `num_bins` bins.

    Raises:
        ValueError: if an argument is not valid; the message names it, and the cure.

    Example:
    >>> from bdl.calibration import reliability_bins
    >>> bins = reliability_bins([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], num_bins=2)
    >>> bins.count
    array([0, 3])
    >>> bins.accuracy
    array([   nan, 0.6667])
    """
    return grouped_bins(top_pairs, y, probabilities, num_bins, binning, mask)[0]


def grouped_bins(
    pairs: Callable[[Events], Pairs],
    y: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int,
    binning: Binning,
    mask: ArrayLike | None,
    num_groups: int = 1,
) -> list[ReliabilityBins]:
    """Reliability bins of each group, all by one pass over the events (two for bins of equal mass)."""
    num_bins = check_num_bins(num_bins)
    if binning not in ("width", "mass"):
        raise ValueError(f"`binning` must be 'width' or 'mass', not {binning!r}. 'width' is the usual choice.")
    edges = uniform_edges(num_bins, num_groups)
    if binning == "mass":
        parts = [_by_group(pairs(events), num_groups) for events in event_blocks(y, probabilities, mask)]
        for group, forecasts in enumerate(map(np.concatenate, zip(*parts, strict=True))):
            if len(forecasts):
                edges[group] = np.quantile(forecasts, np.linspace(0, 1, num_bins + 1))
    sums = BinSums(edges, is_uniform=binning == "width")
    for events in event_blocks(y, probabilities, mask):
        sums.add(*pairs(events))
    return sums.bins()


def uniform_edges(num_bins: int, num_groups: int = 1) -> NDArray[np.float64]:
    """Edges of bins of equal width, `(groups, bins + 1)`."""
    return np.tile(np.arange(num_bins + 1) / num_bins, (num_groups, 1))


class BinSums:
    """What the bins of each group hold: sums, to which blocks of events add.

    Args:
        edges: `(groups, bins + 1)`.
        is_uniform: Whether they are those of `uniform_edges`.
    """

    def __init__(self, edges: NDArray[np.float64], is_uniform: bool = True) -> None:
        self._edges = edges
        self._is_uniform = is_uniform
        self._sums = np.zeros((4, edges.shape[0] * (edges.shape[1] - 1)))

    def add(
        self,
        groups: NDArray[Any],
        forecasts: NDArray[Any],
        outcomes: NDArray[Any],
        times: NDArray[np.float64] | None = None,
    ) -> None:
        """Adds the `Pairs` of a block.

        Args:
            groups: Group of each event, or of each column of the forecasts.
            forecasts: What was said.
            outcomes: What came true.
            times: How often each counts; None for once.
        """
        index = _bin_index(forecasts, groups, self._edges, self._is_uniform)
        self._sums += _sums(index, forecasts, outcomes, self._sums.shape[1], times)

    def bins(self) -> list[ReliabilityBins]:
        """Reliability bins of each group."""
        parts = np.split(self._sums, len(self._edges), axis=1)
        return [_bins(edges, part) for edges, part in zip(self._edges, parts, strict=True)]


def top_pairs(events: Events) -> Pairs:
    """The predicted class's probability, and whether it came true; one group."""
    return np.zeros(1, np.intp), events.confidence, events.predicted == events.labels


def top_label_pairs(events: Events) -> Pairs:
    """The same, grouped by the predicted class."""
    return events.predicted, events.confidence, events.predicted == events.labels


def class_pairs(events: Events) -> Pairs:
    """Each class's probability, and whether it was the label, grouped by class; class 1 alone of a binary problem."""
    if events.is_binary:
        return np.zeros(1, np.intp), events.probabilities[:, 1], events.labels == 1
    classes = np.arange(events.probabilities.shape[1])
    return classes, events.probabilities, events.labels[:, None] == classes


def _by_group(pairs: Pairs, num_groups: int) -> list[NDArray[Any]]:
    """The forecasts of each group."""
    groups, forecasts, _ = pairs
    if num_groups == 1:
        return [forecasts]
    if forecasts.ndim == 2:
        return list(forecasts.T)
    return [forecasts[groups == group] for group in range(num_groups)]


def _bin_index(
    forecasts: NDArray[Any], groups: NDArray[Any], edges: NDArray[np.float64], is_uniform: bool
) -> NDArray[np.intp]:
    """Bin of each forecast, numbered through all groups. Edges in the forecasts' dtype decide, also where computed."""
    num_bins = edges.shape[1] - 1
    inner = edges[:, 1:-1].astype(forecasts.dtype)
    if is_uniform:
        # The product is off by one bin at most, next to an edge, where two comparisons put it right.
        index = np.minimum((forecasts * forecasts.dtype.type(num_bins)).astype(np.intp), num_bins - 1)
        padded = np.concatenate([[-np.inf], inner[0], [np.inf]]).astype(forecasts.dtype)
        index -= forecasts <= padded[index]
        index += forecasts > padded[index + 1]
        return index + groups * num_bins
    index = np.empty(forecasts.shape, np.intp)
    for group, group_edges in enumerate(inner):
        members: Any = (slice(None), group) if forecasts.ndim == 2 else groups == group
        if len(groups) == 1:
            members = slice(None)
        index[members] = np.searchsorted(group_edges, forecasts[members], side="left") + group * num_bins
    return index


def _sums(
    index: NDArray[np.intp],
    forecasts: NDArray[Any],
    outcomes: NDArray[Any],
    length: int,
    times: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Counts, and sums of forecasts, outcomes and squared residuals in each bin, in float64."""
    forecasts, outcomes = forecasts.astype(np.float64).ravel(), outcomes.astype(np.float64).ravel()
    index = index.ravel()
    columns = (forecasts, outcomes, (outcomes - forecasts) ** 2)
    weights = columns if times is None else tuple(times * column for column in columns)
    return np.stack([np.bincount(index, weights=weight, minlength=length) for weight in (times, *weights)])


def _bins(edges: NDArray[np.float64], sums: NDArray[np.float64]) -> ReliabilityBins:
    count, confidence, accuracy, squared = sums
    means = [
        np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
        for total in (confidence, accuracy, squared)
    ]
    return ReliabilityBins(edges, means[0], means[1], count.astype(np.int64), means[2])


def _signed_root(square: float) -> float:
    return float(np.sign(square) * np.sqrt(abs(square)))
