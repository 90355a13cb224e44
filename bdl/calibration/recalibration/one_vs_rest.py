"""Recalibration of one class against the rest: Platt, beta, isotonic calibration and histogram binning.

Each class's probability is mapped on its own, then rows are divided by their sum (Zadrozny and Elkan 2002); where all
classes are mapped to zero, they become equally probable. A binary problem has one map, of the second class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from bdl.calibration._validation import check_num_bins
from bdl.calibration.recalibration._affine import Examples, inverse_temperature
from bdl.calibration.recalibration._base import ProbabilityCalibrator, log_softmax
from bdl.calibration.recalibration._convex import minimum

Map = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class _OneVsRest(ProbabilityCalibrator):
    """Subclasses write `_fit_class(log_odds, is_class, counts)` and `_map_class(fitted, log_odds)`.

    A class's probability is the sigmoid of its log odds.
    """

    def _fit_class(
        self, log_odds: NDArray[np.float64], is_class: NDArray[np.bool_], counts: NDArray[np.float64]
    ) -> Any:
        raise NotImplementedError

    def _map_class(self, fitted: Any, log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError

    def _fit(self, scores: NDArray[np.float64], labels: NDArray[np.intp], counts: NDArray[np.float64]) -> None:
        odds = _log_odds(scores)
        self.maps_ = [self._fit_class(odds[:, k], labels == k, counts) for k in self._mapped(odds.shape[1])]

    def _calibrate(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        odds = _log_odds(scores)
        mapped = np.stack(
            [
                self._map_class(each, odds[:, k])
                for each, k in zip(self.maps_, self._mapped(odds.shape[1]), strict=True)
            ],
            axis=1,
        )
        if mapped.shape[1] == 1:
            return np.concatenate([1 - mapped, mapped], axis=1)
        total = mapped.sum(axis=1, keepdims=True)
        return np.divide(mapped, total, out=np.full_like(mapped, 1 / mapped.shape[1]), where=total > 0)

    @staticmethod
    def _mapped(num_classes: int) -> range:
        return range(1, 2) if num_classes == 2 else range(num_classes)


class PlattScaling(_OneVsRest):
    """A logistic regression on the log odds of each class: `sigmoid(a log(p / (1 - p)) + b)`.

    With Platt's targets, `(n_1 + 1) / (n_1 + 2)` for one and `1 / (n_0 + 2)` for zero, which keep it from certainty
    (Platt 1999, "Probabilistic outputs for support vector machines", section 2.2). They also hold it
    above the least NLL on its own data, which `BetaCalibration` reaches.

    Args:
        from_logits: Whether X are logits; else probabilities.

    Attributes:
        maps_: The two coefficients of each mapped class.
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import PlattScaling
    >>> PlattScaling().fit([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]).predict([0.7, 0.4])
    array([1, 0])
    """

    def __init__(self, from_logits: bool = False) -> None:
        self.from_logits = from_logits

    def _fit_class(
        self, log_odds: NDArray[np.float64], is_class: NDArray[np.bool_], counts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        ones, zeros = counts[is_class].sum(), counts[~is_class].sum()
        targets = np.where(is_class, (ones + 1) / (ones + 2), 1 / (zeros + 2))
        return _logistic(log_odds[:, None], targets, counts)

    def _map_class(self, fitted: NDArray[np.float64], log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        return _sigmoid(fitted[0] * log_odds + fitted[1])


class BetaCalibration(_OneVsRest):
    """A logistic regression on `log p` and `-log(1 - p)`: `sigmoid(a log p - b log(1 - p) + c)`, `a, b >= 0`.

    Right if the probabilities of both classes are beta distributed; unlike Platt scaling it holds the identity, and
    maps that bend the other way (Kull et al. 2017, "Beta calibration", eq. 4).

    Args:
        from_logits: Whether X are logits; else probabilities.

    Attributes:
        maps_: `a`, `b` and `c` of each mapped class.
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import BetaCalibration
    >>> BetaCalibration().fit([0.9, 0.8, 0.7, 0.2, 0.1, 0.6], [1, 1, 0, 0, 0, 1]).predict([0.85, 0.15])
    array([1, 0])
    """

    def __init__(self, from_logits: bool = False) -> None:
        self.from_logits = from_logits

    def _fit_class(
        self, log_odds: NDArray[np.float64], is_class: NDArray[np.bool_], counts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return _beta(log_odds, is_class, counts)

    def _map_class(self, fitted: NDArray[np.float64], log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        log_p, minus_log_rest = _log_p_and_minus_log_rest(log_odds)
        return _sigmoid(fitted[0] * log_p + fitted[1] * minus_log_rest + fitted[2])


class IsotonicCalibration(_OneVsRest):
    """The best monotone map of each class's probability, by scikit-learn's `IsotonicRegression`.

    It needs a thousand examples or so, says 0 and 1 where the data do, and makes ties, so that accuracy and ranking may
    change (Zadrozny and Elkan 2002, "Transforming classifier scores").

    Args:
        from_logits: Whether X are logits; else probabilities.

    Attributes:
        maps_: The fitted regression of each mapped class.
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import IsotonicCalibration
    >>> IsotonicCalibration().fit([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]).predict_proba([0.75])
    array([[0.5, 0.5]])
    """

    def __init__(self, from_logits: bool = False) -> None:
        self.from_logits = from_logits

    def _fit_class(
        self, log_odds: NDArray[np.float64], is_class: NDArray[np.bool_], counts: NDArray[np.float64]
    ) -> IsotonicRegression:
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        return regression.fit(_sigmoid(log_odds), is_class, sample_weight=counts)

    def _map_class(self, fitted: IsotonicRegression, log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        return fitted.predict(_sigmoid(log_odds))


class HistogramBinning(_OneVsRest):
    """The share of the class in each bin of its probability (Zadrozny and Elkan 2001).

    Args:
        num_bins: Bins of each class; of equal mass there may be fewer, where probabilities are equal.
        binning: `"mass"` for bins of equally many examples, `"width"` for bins of equal width.
        from_logits: Whether X are logits; else probabilities.

    Attributes:
        maps_: Inner edges and shares of the bins of each mapped class; an empty bin keeps its middle.
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import HistogramBinning
    >>> HistogramBinning(num_bins=2).fit([0.9, 0.8, 0.3, 0.1], [1, 1, 1, 0]).predict_proba([0.2, 0.7])
    array([[0.5, 0.5], [0. , 1. ]])
    """

    def __init__(self, num_bins: int = 15, binning: str = "mass", from_logits: bool = False) -> None:
        self.num_bins = num_bins
        self.binning = binning
        self.from_logits = from_logits

    def _fit_class(
        self, log_odds: NDArray[np.float64], is_class: NDArray[np.bool_], counts: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        num_bins, p = check_num_bins(self.num_bins), _sigmoid(log_odds)
        if self.binning not in ("width", "mass"):
            raise ValueError(f"`binning` must be 'width' or 'mass', not {self.binning!r}.")
        edges = np.arange(num_bins + 1) / num_bins
        if self.binning == "mass":
            edges = np.unique([0.0, *_middles(p, counts, edges[1:-1]), 1.0])
        index = np.searchsorted(edges[1:-1], p, side="left")
        count = np.bincount(index, weights=counts, minlength=len(edges) - 1)
        hits = np.bincount(index, weights=counts * is_class, minlength=len(edges) - 1)
        middle = (edges[:-1] + edges[1:]) / 2
        return edges[1:-1], np.divide(hits, count, out=middle, where=count > 0)

    def _map_class(
        self, fitted: tuple[NDArray[np.float64], NDArray[np.float64]], log_odds: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        inner, shares = fitted
        return shares[np.searchsorted(inner, _sigmoid(log_odds), side="left")]


def _log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """`log(p / (1 - p))` of each class, exact also where p rounds to one.

    Of all but the most probable class p is at most 1/2, and `1 - p` loses no digits; of that class it is the sum of the
    others.
    """
    from scipy.special import logsumexp

    log_p = log_softmax(scores)
    top = log_p.argmax(axis=1)[:, None]
    others = log_p.copy()
    np.put_along_axis(others, top, -np.inf, axis=1)
    odds = log_p - np.log1p(-np.exp(others))
    np.put_along_axis(
        odds, top, np.take_along_axis(log_p, top, axis=1) - logsumexp(others, axis=1, keepdims=True), axis=1
    )
    return odds


def _middles(p: NDArray[np.float64], counts: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of weighted values, each half way to the next value: between values, so that bins hold whole ones."""
    values, index = np.unique(p, return_inverse=True)
    reached = np.cumsum(np.bincount(index, weights=counts))
    place = np.searchsorted(reached, levels * reached[-1], side="left")
    return (values[place] + values[np.minimum(place + 1, len(values) - 1)]) / 2


def _log_p_and_minus_log_rest(log_odds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return -np.logaddexp(0, -log_odds), np.logaddexp(0, log_odds)


def _sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import expit

    return expit(log_odds)


class _CrossEntropy:
    """Mean cross-entropy of a logistic regression with targets in [0, 1]."""

    def __init__(self, design: NDArray[np.float64], targets: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
        self._design, self._targets, self._shares = design, targets, counts / counts.sum()

    def value_and_slope(self, at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The loss and its gradient."""
        odds = self._design @ at
        value = float(self._shares @ (np.logaddexp(0, odds) - self._targets * odds))
        return value, self._design.T @ (self._shares * (_sigmoid(odds) - self._targets))

    def curvature(self, at: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.float64]:
        """The Hessian times a direction."""
        p = _sigmoid(self._design @ at)
        return self._design.T @ (self._shares * p * (1 - p) * (self._design @ along))


def _logistic(
    features: NDArray[np.float64],
    targets: NDArray[np.float64],
    counts: NDArray[np.float64],
    start: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Coefficients and intercept of least cross-entropy with targets in [0, 1]; never above that of the start."""
    design = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    scale = np.maximum(np.sqrt(np.mean(design**2, axis=0)), 1e-12)
    first = np.zeros(len(scale)) if start is None else start * scale
    found, _ = minimum(_CrossEntropy(design / scale, targets, counts), first, tolerance=1e-11)
    return found / scale


def _beta(
    log_odds: NDArray[np.float64], is_class: NDArray[np.bool_], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Beta calibration's coefficients, from those of temperature scaling, `(1 / T, 1 / T, 0)`.

    The best of the fits without the coefficients that would be negative: where the free minimum of a convex function is
    not allowed, the allowed one has a coefficient of 0.
    """
    features = np.stack(_log_p_and_minus_log_rest(log_odds), axis=1)
    two_classes = np.stack([np.zeros_like(log_odds), log_odds], axis=1)
    factor = inverse_temperature(Examples(two_classes, is_class.astype(np.intp), counts))
    scaled, targets = np.array([factor, factor, 0.0]), is_class.astype(np.float64)
    found = _logistic(features, targets, counts, scaled)
    if min(found[:2]) >= 0:
        return found
    candidates = [scaled]
    for chosen in ([0], [1], []):
        found = np.zeros(3)
        found[[*chosen, 2]] = _logistic(features[:, chosen], targets, counts)
        if min(found[:2]) >= 0:
            candidates.append(found)
    loss = _CrossEntropy(np.concatenate([features, np.ones((len(features), 1))], axis=1), targets, counts)
    return min(candidates, key=lambda each: loss.value_and_slope(each)[0])
