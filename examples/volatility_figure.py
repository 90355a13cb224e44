"""The figure of examples/volatility.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binom
from volatility_filter import correlations, kurtosis

from bdl.calibration import pit_histogram


def draw(
    path: Path,
    y: np.ndarray,
    first_day: int,
    fits: Mapping[str, Any],
    exact: Any,
    forecasts: Mapping[str, Any],
    new: np.ndarray,
    truth: np.ndarray | None,
) -> None:
    """Volatility, parameters, scores, calibration, and stylised facts.

    Args:
        path: Of the PNG.
        y: Returns, `(days,)`.
        first_day: Number of the first day that is forecast.
        fits: What came of each fit, the structured one first.
        exact: Weighted draws of the exact posterior, or None.
        forecasts: Of each model.
        new: New series, `(series, days)`.
        truth: Log variances, `(days,)`, where they are known.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["path"] * 3, ["cloud", "score", "pit"], ["squares", "leverage", "tails"]],
        figsize=(13, 11),
        layout="constrained",
    )
    _path(axes["path"], y, first_day, fits["structured"], forecasts["SV, structured"], truth)
    _cloud(axes["cloud"], fits, exact)
    _scores(axes["score"], forecasts)
    _pit(axes["pit"], forecasts)
    _facts(axes["squares"], axes["leverage"], axes["tails"], y, new)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _path(ax: Any, y: np.ndarray, first_day: int, fitted: Any, forecast: Any, truth: np.ndarray | None) -> None:
    """Sizes of returns, the volatility that the fit infers, and the one that is forecast."""
    ax.vlines(np.arange(len(y)), 0.0, np.abs(y), color="0.75", lw=0.6, label="size of the return")
    low, middle, high = np.quantile(np.exp(0.5 * fitted.path), [0.05, 0.5, 0.95], axis=0)
    days = np.arange(first_day)
    ax.fill_between(days, low, high, color="C0", alpha=0.35, lw=0)
    ax.plot(days, middle, color="C0", lw=1, label="posterior given all days of the fit, 90 %")
    ax.plot(np.arange(first_day, len(y)), forecast.volatility, color="C1", lw=1, label="forecast of the day before")
    if truth is not None:
        ax.plot(np.exp(0.5 * truth), color="k", lw=0.8, ls=":", label="truth")
    ax.axvline(first_day, color="0.4", lw=0.8)
    top = 1.6 * max(high.max(), forecast.volatility.max())
    ax.set(xlim=(0, len(y)), ylim=(0, top), xlabel="day", ylabel="percent", title="Volatility")
    ax.legend(ncols=4, loc="upper left", edgecolor="white", framealpha=1.0)


def _cloud(ax: Any, fits: Mapping[str, Any], exact: Any) -> None:
    """Persistence and spread: the exact posterior, and the guides'."""
    shown = {"structured": (fits["structured"].theta, "C0")}
    if "mean-field" in fits:
        shown["mean-field"] = (fits["mean-field"].theta, "C3")
    if exact is not None:
        chosen = np.random.default_rng(0).choice(len(exact.weights), 2000, p=exact.weights)
        shown["exact filter"] = (exact.theta[chosen], "0.3")
    for name, (theta, colour) in shown.items():
        points = np.stack([logit(theta[:, 2]), np.log(theta[:, 3])])
        root = np.linalg.cholesky(np.cov(points))
        angle = np.linspace(0, 2 * np.pi, 200)
        ellipse = points.mean(axis=1, keepdims=True) + 2 * root @ np.stack([np.cos(angle), np.sin(angle)])
        ax.plot(expit(ellipse[0]), np.exp(ellipse[1]), color=colour, lw=1.8, label=name)
        ax.plot(theta[:150, 2], theta[:150, 3], ".", color=colour, ms=2.5, alpha=0.5)
    ax.set(xlabel="persistence", ylabel="spread", title="Parameters: two standard deviations")
    ax.legend(frameon=False)


def _scores(ax: Any, forecasts: Mapping[str, Any]) -> None:
    """Cumulative log scores over the rival's."""
    rival = "GARCH, t" if "GARCH, t" in forecasts else "constant, normal"
    styles = {
        "SV, structured": ("C0", "-"),
        "SV, structured, no leverage": ("C0", ":"),
        "SV, mean-field": ("C3", "-"),
        "GJR-GARCH, t": ("C2", "--"),
        "GARCH, normal": ("0.5", "--"),
    }
    for name, (colour, style) in styles.items():
        if name in forecasts and name != rival:
            difference = np.cumsum(forecasts[name].log_score - forecasts[rival].log_score)
            ax.plot(difference, color=colour, ls=style, lw=1.4, label=name)
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="day of the forecast", ylabel="nats", title=f"Log score, summed, less that of {rival}")
    ax.legend(frameon=False, fontsize="small")


def _pit(ax: Any, forecasts: Mapping[str, Any]) -> None:
    """Histograms of the PIT, and where that of a calibrated forecast lies, bin by bin."""
    bins, days = 20, len(next(iter(forecasts.values())).pit)
    band = np.array(binom.interval(0.95, days, 1 / bins)) * bins / days
    ax.axhspan(*band, color="0.9", label="calibrated, 95 %")
    for name, colour in (("constant, normal", "0.6"), ("GARCH, normal", "C2"), ("SV, structured", "C0")):
        if name in forecasts:
            heights = bins * pit_histogram(forecasts[name].pit, num_bins=bins)
            edges = np.arange(bins + 1) / bins
            ax.stairs(heights, edges, color=colour, lw=1.5, label=name, baseline=None)
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel="PIT", ylabel="density", title="Calibration of the forecasts")
    ax.legend(frameon=False, fontsize="small")


def _facts(squares: Any, leverage: Any, tails: Any, y: np.ndarray, new: np.ndarray) -> None:
    """Stylised facts of the data and of new series."""
    panels = ((squares, False, "Autocorrelation of sizes"), (leverage, True, "Correlation of return and later size"))
    for ax, is_signed, title in panels:
        low, middle, high = np.quantile(correlations(new, is_signed), [0.05, 0.5, 0.95], axis=0)
        lags = np.arange(1, len(middle) + 1)
        ax.fill_between(lags, low, high, color="C0", alpha=0.25, lw=0, label="new series, 90 %")
        ax.plot(lags, middle, color="C0", lw=1)
        ax.plot(lags, correlations(y[None], is_signed)[0], "k.", ms=5, label="data")
        ax.axhline(0, color="0.4", lw=0.8)
        ax.set(xlabel="days later", title=title)
        ax.legend(frameon=False)
    (own,), values = kurtosis(y[None]), kurtosis(new)
    edges = np.geomspace(3, max(np.quantile(values, 0.99), 1.2 * own), 40)
    tails.hist(values, edges, color="C0", alpha=0.4, label="new series")
    tails.axvline(own, color="k", label="data")
    tails.axvline(3, color="0.5", ls="--", lw=1, label="normal")
    tails.set(xscale="log", xlabel="kurtosis", ylabel="series", title="Kurtosis of returns")
    ticks = [each for each in (3, 5, 10, 20, 50, 100, 200, 500) if each <= edges[-1]]
    tails.set_xticks(ticks, [str(each) for each in ticks])
    tails.set_xticks([], minor=True)
    tails.legend(edgecolor="white", framealpha=1.0)
