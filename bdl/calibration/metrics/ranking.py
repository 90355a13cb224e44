"""Does the uncertainty rank? Detection of unfamiliar inputs, and errors left when the least certain are set aside.

Ranks need all scores in memory, sorted: n log n time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
    return Ranked.of(loss, doubt).curve()


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


_TIES_IN_A_BLOCK = 2**14
"""A few of their temporary arrays fit into a processor's cache; large ones cost more to allocate than to compute."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """Losses in the order of their uncertainty: one sort for every score of a ranking.

    Attributes:
        order: Index of each prediction, the most certain first, `(n,)`.
        losses: Its loss, `(n,)`, in this order.
        bounds: Where each tie of uncertainties starts in this order, and where the last ends, `(ties + 1,)`.
    """

    order: NDArray[np.intp]
    losses: NDArray[Any]
    bounds: NDArray[np.intp]

    @classmethod
    def of(cls, losses: NDArray[Any], uncertainty: NDArray[Any]) -> Ranked:
        """Sorts the losses by the uncertainty, both `(n,)`."""
        order = np.argsort(uncertainty, kind="stable")
        ordered = uncertainty[order]
        is_first = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])
        return cls(order, losses[order], np.flatnonzero(is_first))

    def curve(self) -> RiskCoverageCurve:
        """The risk among the first predictions; a tie adds its mean loss with each prediction that is kept of it."""
        n = len(self.order)
        risk, total = np.empty(n), np.concatenate([[0.0], np.cumsum(self.losses, dtype=np.float64)])
        for rows, start, end in self._blocks():
            before, mean = total[start], (total[end] - total[start]) / (end - start)
            kept = np.arange(rows.start + 1, rows.stop + 1)
            tie = np.repeat(np.arange(len(start)), end - start)
            risk[rows] = (before[tie] + (kept - start[tie]) * mean[tie]) / kept
        kept = np.arange(1.0, n + 1)
        best = np.sort(self.losses).astype(np.float64)
        np.cumsum(best, out=best)
        best /= kept
        kept /= n
        return RiskCoverageCurve(kept, risk, best)

    def area(self, counts: NDArray[np.float64]) -> float:
        """The area under risk and coverage of a resample, without sorting it.

        The j-th of `n` predictions is among the first k for every k from j on, so its loss has the weight
        `1/n sum_{k>=j} 1/k` in the mean of all risks. The predictions of a tie share the sum of their weights.

        Args:
            counts: How often each prediction was drawn, `(n,)`; they sum to `n`.
        """
        area, num_before = 0.0, 0
        for rows, start, _ in self._blocks():
            drawn = counts[self.order[rows]]
            size = np.add.reduceat(drawn, start - rows.start)
            loss = np.add.reduceat(drawn * self.losses[rows], start - rows.start)
            up_to = num_before + np.cumsum(size).astype(np.intp)
            weight = np.diff(self._weights[up_to], prepend=self._weights[num_before])
            area += float(np.sum(weight * loss / np.maximum(size, 1)))
            num_before = int(up_to[-1])
        return area / num_before

    def auroc(self, counts: NDArray[np.float64] | None = None) -> float:
        """How often a loss of 1 is less certain than a loss of 0, equal uncertainties counting one half.

        That is `out_of_distribution_auroc` of the uncertainties of both, of which there must be some.

        Args:
            counts: How often each prediction was drawn, `(n,)`; None for once.
        """
        pairs, num_zeros, num_ones = 0.0, 0.0, 0.0
        for rows, start, _ in self._blocks():
            drawn = np.ones(rows.stop - rows.start) if counts is None else counts[self.order[rows]]
            ones = np.add.reduceat(drawn * self.losses[rows], start - rows.start)
            zeros = np.add.reduceat(drawn, start - rows.start) - ones
            zeros_up_to = num_zeros + np.cumsum(zeros)
            pairs += float(np.sum(ones * (2 * zeros_up_to - zeros)))
            num_zeros, num_ones = float(zeros_up_to[-1]), num_ones + float(np.sum(ones))
        return pairs / (2 * num_zeros * num_ones)

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.intp], NDArray[np.intp]]]:
        """The predictions of some ties, and where each of these starts and ends."""
        for first in range(0, len(self.bounds) - 1, _TIES_IN_A_BLOCK):
            bounds = self.bounds[first : first + _TIES_IN_A_BLOCK + 1]
            yield slice(int(bounds[0]), int(bounds[-1])), bounds[:-1], bounds[1:]

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """`sum_{j<=m} sum_{k=j}^n 1/k` for m from 0 to n."""
        fractions = 1 / np.arange(1, len(self.order) + 1)
        return np.concatenate([[0.0], np.cumsum(np.cumsum(fractions[::-1])[::-1])])


# Metrics of a resample, from how often each prediction was drawn.


def resampled_area(losses: ArrayLike, uncertainty: ArrayLike) -> Callable[[NDArray[np.float64]], float]:
    """The area under risk and coverage."""
    return Ranked.of(check_scores("losses", losses), check_scores("uncertainty", uncertainty)).area


def resampled_excess_area(losses: ArrayLike, uncertainty: ArrayLike) -> Callable[[NDArray[np.float64]], float]:
    """That area above the one of a perfect ranking, which is by the losses."""
    area, best = resampled_area(losses, uncertainty), resampled_area(losses, losses)
    return lambda counts: area(counts) - best(counts)


def resampled_auroc(
    scores_in: ArrayLike, scores_out: ArrayLike
) -> Callable[[NDArray[np.float64], NDArray[np.float64]], float]:
    """The area under the ROC curve of two samples, each drawn on its own."""
    familiar, unfamiliar = check_scores("scores_in", scores_in), check_scores("scores_out", scores_out)
    is_out = np.repeat([0.0, 1.0], [len(familiar), len(unfamiliar)])
    ranked = Ranked.of(is_out, np.concatenate([familiar, unfamiliar]))
    return lambda of_in, of_out: ranked.auroc(np.concatenate([of_in, of_out]))
