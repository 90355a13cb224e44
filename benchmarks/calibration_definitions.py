"""Where another library defines a figure otherwise: that definition in a loop, beside the library.

calibration_parity.py runs it. Its rows that compare with bdl show how far the definitions lie apart; the rows from here
show that nothing but the definition does it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from calibration_labels import NUM_BINS, Comparison, by_torchmetrics_with, padded
from scipy.stats import norm


def gaps(forecasts: Iterable[float], came_true: Iterable[bool], edges: list[float]) -> list[tuple[float, float]]:
    """Share and gap of each bin that holds an event: closed on the left, and from the last edge on a bin of its own."""
    bins: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for forecast, outcome in zip(forecasts, came_true, strict=True):
        sums = bins[bisect_right(edges, forecast)]
        sums[0] += forecast - outcome
        sums[1] += 1
    total = sum(count for _, count in bins.values())
    return [(count / total, abs(gap) / count) for gap, count in bins.values()]


def calibration_error(found: list[tuple[float, float]], kind: str = "l1") -> float:
    """The mean gap, the largest (`"max"`) or the root mean square (`"l2"`)."""
    if kind == "max":
        return max(gap for _, gap in found)
    if kind == "l2":
        return math.sqrt(sum(share * gap**2 for share, gap in found))
    return sum(share * gap for share, gap in found)


def edges_in(dtype: Any) -> list[float]:
    """Edges of the bins as a library has them."""
    return np.linspace(0, 1, NUM_BINS + 1, dtype=dtype).astype(float).tolist()


def by_torchmetrics() -> list[Comparison]:
    """Bins that are closed on the left, a sixteenth for a confidence of 1, in float32 for several classes."""

    def multiclass(kind: str, is_padded: bool) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
        theirs = by_torchmetrics_with(norm=kind)

        def compared(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
            void, _, kept = padded(y, p)
            kept = kept if is_padded else np.ones(len(y), bool)
            confidences = p.max(axis=1)[kept].astype("float32").astype(float)
            found = gaps(confidences.tolist(), (p.argmax(axis=1) == y)[kept].tolist(), edges_in("float32"))
            return calibration_error(found, kind), theirs(void if is_padded else y, p)

        return compared

    def binary(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        found = gaps(p[:, 1].tolist(), (y == 1).tolist(), edges_in("float64"))
        return calibration_error(found), by_torchmetrics_with(task="binary")((y == 1).astype(int), p[:, 1])

    rows = [("ECE", "l1"), ("MCE", "max"), ("RMS-CE", "l2")]
    return [
        *((f"{name}, its bins", "torchmetrics", multiclass(kind, False)) for name, kind in rows),
        *((f"{name}, its bins, mask", "torchmetrics", multiclass(kind, True)) for name, kind in rows),
        ("binary ECE, its bins", "torchmetrics", binary),
    ]


def by_netcal() -> list[Comparison]:
    """Bins that are closed on the left, and of two columns those of class 1 rather than of the confidence."""
    from netcal.metrics import ECE, MCE

    def compared(metric: Any, kind: str, is_binary: bool) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
        def of(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
            is_first = (y == 1).astype(int)
            theirs = metric(NUM_BINS).measure(*((p[:, 1], is_first) if is_binary else (p, y)))
            of_class_1 = is_binary or p.shape[1] == 2
            forecasts, came_true = (p[:, 1], y == 1) if of_class_1 else (p.max(axis=1), p.argmax(axis=1) == y)
            inside = np.clip(forecasts, np.finfo(float).eps, 1 - np.finfo(float).eps)
            found = gaps(inside.tolist(), came_true.tolist(), edges_in("float64"))
            return calibration_error(found, kind), float(theirs)

        return of

    return [
        ("ECE, its bins", "netcal", compared(ECE, "l1", False)),
        ("MCE, its bins", "netcal", compared(MCE, "max", False)),
        ("binary ECE, its bins", "netcal", compared(ECE, "l1", True)),
    ]


def by_netcal_regression() -> list[Comparison]:
    """A loss of quantiles that is the distance to the nearer end of a central interval."""
    from netcal.metrics.regression import PinballLoss

    def pinball(y: np.ndarray, prediction: Any, level: float = 0.8) -> tuple[float, float]:
        losses = []
        for target, mean, scale in zip(y, *prediction, strict=True):
            low, high = norm(mean, scale).interval(level)
            end = high if target > mean else low
            losses.append(abs(target - end) * ((1 - level) if low <= target <= high else level))
        theirs = PinballLoss().measure(prediction, y, q=np.array([level]), reduction="mean")
        return float(np.mean(losses)), float(np.mean(theirs))

    return [("pinball loss, its formula", "netcal", pinball)]


FAMILIES: list[tuple[str, bool, Callable[[], list[Comparison]]]] = [
    ("torchmetrics", True, by_torchmetrics),
    ("netcal", True, by_netcal),
    ("netcal", False, by_netcal_regression),
]
