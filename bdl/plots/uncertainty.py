"""Figures of how good an uncertainty is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import ReliabilityBins, RiskCoverageCurve, out_of_distribution_auroc
from bdl.calibration._validation import check_num_bins, check_scores
from bdl.plots._style import COLORS, IDEAL, LINESTYLES, MARKERS, MUTED, Entries, axes_or_new, legend, strip_above, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_POINTS = 600


def reliability_diagram(
    bins: ReliabilityBins | Sequence[ReliabilityBins],
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    level: float | None = 0.95,
) -> Axes:
    """Draw accuracy against confidence, the gap to the diagonal, and above them how many examples each bin holds.

    Points below the diagonal are overconfident. A point's area grows with its bin's share of the examples, so that
    bins with few examples, whose accuracy is mostly noise, do not catch the eye; its whiskers are the interval of its
    accuracy. The legend gives the expected calibration error.

    Args:
        bins: `bdl.calibration.reliability_bins(y, probabilities)`, or a sequence of them to compare.
        labels: One name for each.
        ax: Axes to draw into.
        level: Nominal coverage of the whiskers (`ReliabilityBins.accuracy_band`); None for none.

    Returns:
        The axes of the diagram; the strip above is its child `ax.child_axes[0]`.

    Raises:
        ValueError: if there is nothing to draw, or the number of labels differs.

    Example:
    >>> from bdl.calibration import reliability_bins
    >>> reliability_diagram(reliability_bins([1, 0, 1], [0.9, 0.2, 0.6])).get_xlabel()
    'confidence'
    """
    curves = [bins] if isinstance(bins, ReliabilityBins) else list(bins)
    names = _names_of("labels", labels, curves, "ReliabilityBins")
    described = [
        f"{name}  ECE {curve.expected_calibration_error:.3f}".strip() for curve, name in zip(curves, names, strict=True)
    ]
    ax = axes_or_new(ax, width=4.2, height=4.8, labels=described)
    strip = strip_above(ax, height=0.16)
    ax.plot([0, 1], [0, 1], color=MUTED, **IDEAL, zorder=1)
    entries: Entries = []
    for i, (curve, label) in enumerate(zip(curves, described, strict=True)):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        share = curve.count / curve.count.sum()
        filled = curve.count > 0
        confidence, accuracy = curve.confidence[filled], curve.accuracy[filled]
        ax.vlines(confidence, confidence, accuracy, color=color, linewidth=5, alpha=0.2, zorder=2)
        ax.plot(confidence, accuracy, color=color, linewidth=1.2, zorder=3)
        if level is not None:
            low, high = (end[filled] for end in curve.accuracy_band(level))
            ax.vlines(confidence, low, high, color=color, linewidth=0.9, alpha=0.8, zorder=3)
        area = 18 + 160 * share[filled]
        ax.scatter(confidence, accuracy, s=area, c=color, marker=marker, linewidths=0, zorder=4, clip_on=False)
        entries += [(key, label) for key in ax.plot([], [], color=color, marker=marker, linewidth=1.2, markersize=5)]
        strip.stairs(curve.count, curve.edges, color=color, fill=len(curves) == 1, linewidth=1.2)
    tidy(ax)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    strip.set(ylim=(0, None), ylabel="count")
    legend(ax, entries)
    return ax


def risk_coverage(
    curves: RiskCoverageCurve | Sequence[RiskCoverageCurve],
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    ylabel: str = "error rate of those kept",
) -> Axes:
    """Draw the risk of the most certain predictions against the share that is kept.

    A dotted curve is a perfect ranking of the same losses. The legend gives the area under each curve.

    Args:
        curves: `bdl.calibration.risk_coverage_curve(losses, uncertainty)`, or a sequence of them to compare.
        labels: One name for each.
        ax: Axes to draw into.
        ylabel: What the risk is.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, or the number of labels differs.

    Example:
    >>> from bdl.calibration import risk_coverage_curve
    >>> risk_coverage(risk_coverage_curve([0, 0, 1], [0.1, 0.2, 0.9])).get_xlabel()
    'coverage'
    """
    drawn = [curves] if isinstance(curves, RiskCoverageCurve) else list(curves)
    names = _names_of("labels", labels, drawn, "RiskCoverageCurve")
    described = [f"{name}  AURC {curve.area:.4f}".strip() for curve, name in zip(drawn, names, strict=True)]
    ideal = "a perfect ranking of the same errors"
    ax = axes_or_new(ax, width=4.8, height=3.2, labels=[*described, ideal])
    entries: Entries = []
    for i, (curve, label) in enumerate(zip(drawn, described, strict=True)):
        color, linestyle = COLORS[i % len(COLORS)], LINESTYLES[i % len(LINESTYLES)]
        shown = _thinned(len(curve.coverage))
        lines = ax.plot(curve.coverage[shown], curve.risk[shown], color=color, linestyle=linestyle)
        ax.plot(curve.coverage[shown], curve.best_risk[shown], color=color, **IDEAL)
        entries += [(line, label) for line in lines]
    entries += [(line, ideal) for line in ax.plot([], [], color=MUTED, **IDEAL)]
    tidy(ax)
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage", ylabel=ylabel)
    legend(ax, entries)
    return ax


def pit_histogram(
    heights: ArrayLike | Sequence[ArrayLike],
    num_targets: int,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    level: float = 0.95,
) -> Axes:
    """Draw the histogram of probability integral transforms: flat if calibrated.

    A valley in the middle means too narrow predictions, a hill too wide ones, a slope a bias. The band is where a bin
    of a calibrated model lies with probability `level`.

    Args:
        heights: `bdl.calibration.pit_histogram(...)`, shares `(bins,)`, or a sequence of them of equal length.
        num_targets: Number of targets behind them.
        labels: One name for each.
        ax: Axes to draw into.
        level: Nominal coverage of the band, for each bin alone.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, or the number of labels differs.

    Example:
    >>> pit_histogram([0.25, 0.25, 0.25, 0.25], num_targets=100).get_ylabel()
    'density'
    """
    from scipy.stats import binom

    histograms = list(np.atleast_2d(np.asarray(heights, dtype=np.float64)))
    names = _names_of("labels", labels, histograms, "histogram")
    num_bins = len(histograms[0])
    edges = np.arange(num_bins + 1) / num_bins
    low, high = (end * num_bins / num_targets for end in binom.interval(level, num_targets, 1 / num_bins))
    band = f"calibrated, {level:.0%}"
    ax = axes_or_new(ax, width=4.8, height=3.2, labels=[band, *filter(None, names)])
    entries: Entries = [(ax.axhspan(low, high, color=MUTED, alpha=0.18, linewidth=0), band)]
    ax.axhline(1, color=MUTED, **IDEAL)
    for i, (histogram, name) in enumerate(zip(histograms, names, strict=True)):
        color, linestyle = COLORS[i % len(COLORS)], LINESTYLES[i % len(LINESTYLES)]
        steps = ax.stairs(histogram * num_bins, edges, color=color, linewidth=1.6, linestyle=linestyle)
        entries += [(steps, name)] if name else []
    tidy(ax)
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel="predictive probability below the target", ylabel="density")
    legend(ax, entries)
    return ax


def interval_coverage(
    levels: ArrayLike,
    shares: ArrayLike | Sequence[ArrayLike],
    num_targets: int,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    level: float = 0.95,
) -> Axes:
    """Draw the share of targets inside central intervals against the share that was promised.

    Below the diagonal intervals are too narrow. The band is where a calibrated model lies with probability `level`.

    Args:
        levels: Nominal coverages, `(levels,)`.
        shares: Observed ones, `bdl.calibration.metrics.observed_coverage(...)[0]`, or a sequence of them.
        num_targets: Number of targets behind them.
        labels: One name for each.
        ax: Axes to draw into.
        level: Nominal coverage of the band, at each level alone.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, or the number of labels differs.

    Example:
    >>> interval_coverage([0.5, 0.9], [0.45, 0.88], num_targets=100).get_xlabel()
    'promised coverage'
    """
    from scipy.stats import binom

    promised = np.asarray(levels, dtype=np.float64)
    curves = list(np.atleast_2d(np.asarray(shares, dtype=np.float64)))
    names = _names_of("labels", labels, curves, "curve of shares")
    low, high = (end / num_targets for end in binom.interval(level, num_targets, promised))
    band = f"calibrated, {level:.0%}"
    ax = axes_or_new(ax, width=4.2, height=4.2, labels=[band, *filter(None, names)])
    ax.plot([0, 1], [0, 1], color=MUTED, **IDEAL)
    entries: Entries = [(ax.fill_between(promised, low, high, color=MUTED, alpha=0.18, linewidth=0), band)]
    for i, (curve, name) in enumerate(zip(curves, names, strict=True)):
        color, linestyle = COLORS[i % len(COLORS)], LINESTYLES[i % len(LINESTYLES)]
        lines = ax.plot(promised, curve, color=color, linewidth=1.6, linestyle=linestyle)
        entries += [(line, name) for line in lines if name]
    tidy(ax)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="promised coverage", ylabel="observed coverage", aspect="equal")
    legend(ax, entries)
    return ax


def uncertainty_split(
    aleatoric: ArrayLike, epistemic: ArrayLike, ax: Axes | None = None, unit: str = "nats", num_groups: int = 20
) -> Axes:
    """Draw what uncertainty is made of, from the most certain predictions to the least.

    Predictions are sorted by their total uncertainty and put into groups of equal size; a bar is the mean of a group.

    Args:
        aleatoric: Noise in the data, `(n,)`.
        epistemic: What more data could remove, `(n,)`.
        ax: Axes to draw into.
        unit: Unit of both.
        num_groups: Number of bars.

    Returns:
        The axes.

    Raises:
        ValueError: if either is not a non-empty vector of finite numbers, or their lengths differ.

    Example:
    >>> uncertainty_split([0.1, 0.2], [0.0, 0.3]).get_ylabel()
    'uncertainty [nats]'
    """
    noise, doubt = check_scores("aleatoric", aleatoric), check_scores("epistemic", epistemic)
    if len(noise) != len(doubt):
        raise ValueError(f"`aleatoric` and `epistemic` must have one length, not {len(noise)} and {len(doubt)}.")
    groups = np.array_split(np.argsort(noise + doubt, kind="stable"), min(check_num_bins(num_groups), len(noise)))
    lower, upper = (np.array([np.mean(part[group]) for group in groups]) for part in (noise, doubt))
    edges = np.cumsum([0, *(len(group) for group in groups)]) / len(noise)
    labels = ("aleatoric: noise in the data", "epistemic: the model's doubt")
    ax = axes_or_new(ax, width=4.8, height=3.2, labels=labels)
    parts = (
        ax.stairs(lower, edges, color=COLORS[0], fill=True, alpha=0.55),
        ax.stairs(lower + upper, edges, baseline=lower, color=COLORS[1], fill=True, alpha=0.75),
    )
    tidy(ax)
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel="predictions, from the most certain", ylabel=f"uncertainty [{unit}]")
    legend(ax, list(zip(parts, labels, strict=True)))
    return ax


def score_histograms(
    scores: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    xlabel: str = "predictive entropy [nats]",
    num_bins: int = 30,
) -> Axes:
    """Draw the densities of an uncertainty score on familiar inputs and on others.

    All share their bins. The first entry, filled, stands for inputs like the training data; the legend gives for each
    other entry the AUROC with which the score tells it from the first.

    Args:
        scores: Score arrays `(n,)` by name, higher being more uncertain; the first is in-distribution.
        ax: Axes to draw into.
        xlabel: What the score is, with its unit.
        num_bins: Number of bins over the range of all scores.

    Returns:
        The axes.

    Raises:
        ValueError: if there are no scores, or one is not a non-empty vector of finite numbers.

    Example:
    >>> score_histograms({"test": [0.1, 0.2, 0.4], "noise": [1.0, 1.2]}).get_ylabel()
    'density'
    """
    samples = {name: check_scores(f"scores[{name!r}]", values) for name, values in scores.items()}
    if not samples:
        raise ValueError("`scores` must hold at least one array, not none. Pass for example {'test': entropy}.")
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=check_num_bins(num_bins))
    familiar, *_ = samples
    described = {
        name: name if name == familiar else f"{name}  AUROC {out_of_distribution_auroc(samples[familiar], sample):.3f}"
        for name, sample in samples.items()
    }
    ax = axes_or_new(ax, width=4.8, height=3.2, labels=list(described.values()))
    entries: Entries = []
    for i, (name, sample) in enumerate(samples.items()):
        density, _ = np.histogram(sample, bins=edges, density=True)
        look = (
            {"fill": True, "alpha": 0.35}
            if name == familiar
            else {"linewidth": 1.6, "linestyle": LINESTYLES[(i - 1) % len(LINESTYLES)]}
        )
        entries.append((ax.stairs(density, edges, color=COLORS[i % len(COLORS)], **look), described[name]))
    tidy(ax)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, None), xlabel=xlabel, ylabel="density")
    legend(ax, entries)
    return ax


def _names_of(argument: str, labels: Sequence[str] | None, drawn: Sequence[object], what: str) -> list[str]:
    """One name for each of the things drawn, empty if none were given, or a ValueError."""
    if not drawn:
        raise ValueError(f"There must be at least one {what} to draw, not none. Make one by `bdl.calibration`.")
    names = [""] * len(drawn) if labels is None else list(labels)
    if len(names) != len(drawn):
        raise ValueError(f"`{argument}` must name each of the {len(drawn)} {what}, not {names!r}. Pass as many names.")
    return names


def _thinned(count: int) -> NDArray[np.intp]:
    """At most a few hundred places of a long curve; a figure has no more pixels."""
    return np.unique(np.linspace(0, count - 1, min(count, _MAX_POINTS)).astype(np.intp))
