"""Which way the curves of a training go, by rank statistics that a single wild epoch does not move (Q15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bdl.diagnostics.quantities import Trends

_LEAST_EPOCHS = 5  # below, no rank test can reach p < 0.05


def measure_trends(epochs: Sequence[Mapping[str, float]], num_examples: int | None) -> Trends | None:
    """Trends of a run over its last third.

    Args:
        epochs: Logs of each epoch, in order: `nll` (nats per example), `kl` (nats, total), `elbo` (nats per example, at
            T = 1), and where known `val_nll`, `val_accuracy` or `accuracy`.
        num_examples: N, which turns `kl` into nats per example.

    Returns:
        The trends. With two to four epochs, which no rank test can judge, only what the last of them changed the NLL
        by, without a significance; None with fewer, or without an NLL.

    Sources: Theil 1950, Sen 1968 (slopes); Mann 1945, Kendall 1975 (significance).

    Example:
    >>> epochs = [{"elbo": -2.0 + 0.1 * t, "nll": 1.0, "kl": 100.0 - 10 * t} for t in range(9)]
    >>> trends = measure_trends(epochs, num_examples=100)
    >>> round(trends.elbo_change, 2), trends.kappa
    (0.4, 1.0)
    """
    if len(epochs) < _LEAST_EPOCHS:
        return _of_few(epochs)
    window = max(_LEAST_EPOCHS, len(epochs) // 3)
    curves = {key: _curve(epochs, key) for key in ("elbo", "nll", "kl", "val_nll")}
    accuracy = _curve(epochs, "val_accuracy")
    accuracy = _curve(epochs, "accuracy") if accuracy is None else accuracy
    elbo_change, elbo_p = _trend(curves["elbo"], window)
    nll_change, nll_p = _trend(curves["nll"], window)
    kl_change, _ = _trend(curves["kl"], window)
    val_nll_change, val_nll_p = _trend(curves["val_nll"], window)
    rise, errors = _rise(curves["val_nll"], window)
    nll_rise, nll_errors = _rise(curves["nll"], window)
    drop, _ = _rise(None if accuracy is None else -accuracy, window)
    return Trends(
        window=window,
        elbo_change=elbo_change,
        elbo_p=elbo_p,
        nll_change=nll_change,
        nll_p=nll_p,
        nll_rise=nll_rise,
        nll_rise_errors=nll_errors,
        kl_fall=_kl_fall(curves["nll"], curves["kl"], window, num_examples),
        val_nll_change=val_nll_change,
        val_nll_p=val_nll_p,
        val_nll_rise=rise,
        val_nll_rise_errors=errors,
        val_nll_best=None if curves["val_nll"] is None else float(_smoothed(curves["val_nll"], window)[0].min()),
        accuracy_drop=drop,
        kappa=_kappa(kl_change, nll_change, num_examples),
    )


def _of_few(epochs: Sequence[Mapping[str, float]]) -> Trends | None:
    values = [epoch["nll"] for epoch in epochs if epoch.get("nll") is not None]
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return None
    return Trends(window=len(values), nll_change=float(values[-1] - values[-2]))


def _curve(epochs: Sequence[Mapping[str, float]], key: str) -> np.ndarray | None:
    values = np.array([epoch[key] for epoch in epochs if epoch.get(key) is not None], "float64")
    return values if len(values) >= _LEAST_EPOCHS and np.all(np.isfinite(values)) else None


def _trend(curve: np.ndarray | None, window: int) -> tuple[float | None, float | None]:
    """Change over the window and its significance."""
    if curve is None:
        return None, None
    from scipy import stats

    values = curve[-window:]
    if np.ptp(values) == 0:
        return 0.0, 1.0
    slope = stats.theilslopes(values).slope
    return float(slope * (len(values) - 1)), float(stats.kendalltau(np.arange(len(values)), values).pvalue)


def _rise(curve: np.ndarray | None, window: int) -> tuple[float | None, float | None]:
    """How far the end of a curve lies above its best, both smoothed, and that in standard errors."""
    if curve is None:
        return None, None
    smooth, width = _smoothed(curve, window)
    rise = float(smooth[-1] - smooth.min())
    # Scatter of single epochs about the trend, from differences of neighbours, which a trend does not enter.
    scatter = float(np.std(np.diff(curve)) / np.sqrt(2.0))
    return rise, float(rise / max(scatter * np.sqrt(2.0 / width), 1e-12))


def _smoothed(curve: np.ndarray, window: int) -> tuple[np.ndarray, int]:
    """Means of neighbouring epochs, and of how many."""
    width = max(3, min(window, len(curve) // 5))
    return np.convolve(curve, np.full(width, 1.0 / width), "valid"), width


def _kl_fall(nll: np.ndarray | None, kl: np.ndarray | None, window: int, num_examples: int | None) -> float | None:
    """How far KL / N fell since the best smoothed NLL; None where the two were not recorded together."""
    if nll is None or kl is None or len(nll) != len(kl) or not num_examples:
        return None
    smooth_nll, smooth_kl = _smoothed(nll, window)[0], _smoothed(kl, window)[0]
    return float(smooth_kl[smooth_nll.argmin()] - smooth_kl[-1]) / num_examples


def _kappa(kl_change: float | None, nll_change: float | None, num_examples: int | None) -> float | None:
    """Share of the ELBO's gain that came from the KL; None where the ELBO did not gain."""
    if kl_change is None or nll_change is None or not num_examples:
        return None
    gain = -(kl_change / num_examples + nll_change)
    return float(-kl_change / num_examples / gain) if gain > 0 else None
