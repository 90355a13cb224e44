"""Figures: numbers in, matplotlib axes out.

Each function draws into `ax`, or into a new figure when `ax` is None, and returns the axes; `ax.figure.savefig(path)`
saves it. Matplotlib is imported at the first drawing, and pyplot, with its global state, never.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import ReliabilityBins, out_of_distribution_auroc
from bdl.calibration._validation import check_num_bins, check_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["elbo_parts", "image_grid", "reliability_diagram", "score_histograms"]

# Okabe and Ito (2008), "Color universal design": told apart by readers with any colour vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINESTYLES = ("-", "--", "-.", ":")
_INK = "#333333"
_MUTED = "#8A8A8A"

# Curves whose largest value exceeds their smallest by this factor are drawn on a logarithmic axis.
_LOG_SCALE_RATIO = 100

# Titles in an image grid: the size of the text, and the height of a line of it.
_TITLE_POINTS = 8
_TITLE_LINE_INCHES = 1.25 * _TITLE_POINTS / 72

# What `bdl.VariationalModel` logs of its ELBO.
_ELBO_KEYS = ("nll", "kl", "elbo", "temperature")


def reliability_diagram(
    bins: ReliabilityBins | Sequence[ReliabilityBins], labels: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw accuracy against confidence, the gap to the diagonal, and above them how many examples each bin holds.

    Points below the diagonal are overconfident. A point's area grows with its bin's share of the examples, so that
    bins with few examples, whose accuracy is mostly noise, do not catch the eye. The legend gives the expected
    calibration error.

    Args:
        bins: `bdl.calibration.reliability_bins(y, probabilities)`, or a sequence of them to compare.
        labels: One name for each.
        ax: Axes to draw into.

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
    if not curves:
        raise ValueError("`bins` must hold at least one ReliabilityBins. Received: none. Make one by reliability_bins.")
    names = [""] * len(curves) if labels is None else list(labels)
    if len(names) != len(curves):
        raise ValueError(
            f"`labels` must name each of the {len(curves)} ReliabilityBins. Received: {names!r}. Pass as many names."
        )
    ax = _axes_or_new(ax, width=4.2, height=4.8)
    strip = ax.inset_axes((0, 1.04, 1, 0.16), sharex=ax)
    ax.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for i, (curve, name) in enumerate(zip(curves, names, strict=True)):
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        share = curve.count / curve.count.sum()
        filled = curve.count > 0
        confidence, accuracy = curve.confidence[filled], curve.accuracy[filled]
        label = f"{name}  ECE {curve.expected_calibration_error:.3f}".strip()
        ax.vlines(confidence, confidence, accuracy, color=color, linewidth=5, alpha=0.2, zorder=2)
        ax.plot(confidence, accuracy, color=color, linewidth=1.2, zorder=3)
        area = 18 + 160 * share[filled]
        ax.scatter(confidence, accuracy, s=area, c=color, marker=marker, linewidths=0, zorder=4, clip_on=False)
        ax.plot([], [], color=color, marker=marker, linewidth=1.2, markersize=5, label=label)
        strip.stairs(share, curve.edges, color=color, fill=len(curves) == 1, linewidth=1.2)
    _tidy(ax)
    _tidy_strip(strip)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    strip.set(ylim=(0, None), ylabel="share")
    _legend(ax)
    return ax


def elbo_parts(history: Mapping[str, Sequence[float]], num_examples: int, ax: Axes | None = None) -> Axes:
    """Draw what the ELBO is made of, epoch by epoch: NLL, KL / N and their sum -ELBO, in nats per example.

    -ELBO is the one at temperature 1; the temperature T by which the loss weighted the KL stands in the strip above,
    where the dashed line at 1 is Bayes. Validation curves are dashed. The axis is logarithmic when all curves are
    positive and span more than two decades.

    Args:
        history: Lists of one length, one value an epoch: `nll` (nats per example), `kl` (nats, total), `elbo` (nats per
            example), `temperature`, and after validation `val_nll` and `val_elbo`. `fit(...).history` has them.
        num_examples: Number of training examples N.
        ax: Axes to draw into.

    Returns:
        The axes of the curves; the strip of the temperature is its child `ax.child_axes[0]`.

    Raises:
        ValueError: if a key is missing, the lengths differ, or `num_examples` is not positive.

    Example:
    >>> history = {"nll": [0.9, 0.4], "kl": [50.0, 80.0], "elbo": [-1.4, -1.2], "temperature": [0.5, 1.0]}
    >>> elbo_parts(history, num_examples=100).get_ylabel()
    'nats per example'
    """
    values = _history_arrays(history)
    if not num_examples > 0:
        raise ValueError(f"`num_examples` must be positive. Received: {num_examples!r}. Pass the training set's size.")
    blue, vermilion, green = _COLORS[:3]
    # The sum comes first, and broad, so that a part that makes up nearly all of it still shows on top.
    curves = [
        ("$-$ELBO", -values["elbo"], green, "-", 3.2),
        ("KL / N", values["kl"] / num_examples, vermilion, "-", 1.5),
        ("NLL", values["nll"], blue, "-", 1.5),
    ]
    if "val_elbo" in values:
        curves.append(("$-$ELBO, validation", -values["val_elbo"], green, "--", 1.5))
    if "val_nll" in values:
        curves.append(("NLL, validation", values["val_nll"], blue, "--", 1.5))

    ax = _axes_or_new(ax, width=6.0, height=4.0)
    strip = ax.inset_axes((0, 1.04, 1, 0.14), sharex=ax)
    epochs = np.arange(1, len(values["nll"]) + 1)
    marker = "o" if len(epochs) == 1 else ""  # a line through one point cannot be seen
    for label, curve, color, linestyle, linewidth in curves:
        ax.plot(epochs, curve, color=color, linestyle=linestyle, linewidth=linewidth, marker=marker, label=label)
    strip.axhline(1, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    strip.plot(epochs, values["temperature"], color=_INK, marker=marker, linewidth=1.4)
    _tidy(ax)
    _tidy_strip(strip)
    if _spans_decades([curve for _, curve, *_ in curves]):
        ax.set_yscale("log")
    ax.set(xlabel="epoch", ylabel="nats per example")
    ax.margins(x=0)
    strip.margins(x=0)
    ax.locator_params(axis="x", integer=True)
    strip.set(ylim=(0, 1.2 * np.nanmax([1.0, *values["temperature"]])), ylabel="T")
    _legend(ax)
    return ax


def image_grid(images: ArrayLike, titles: Sequence[str], ax: Axes | None = None, columns: int | None = None) -> Axes:
    """Draw images in rows with a title above each.

    Args:
        images: Shape `(n, height, width)` or `(n, height, width, 1)` for grey ones, drawn on one common scale from
            their smallest value (black) to their largest (white); `(n, height, width, 3)` or `(..., 4)` for colour,
            as integers from 0 to 255 or floats from 0 to 1.
        titles: One for each image, of one or more lines.
        ax: Axes whose area the grid fills; its own frame disappears.
        columns: Images in a row; by default as many as make the grid about square.

    Returns:
        The axes around the grid; `ax.child_axes` holds the axes of each image.

    Raises:
        ValueError: if the shape of `images` is another, the number of titles differs, or colours are out of range.

    Example:
    >>> import numpy as np
    >>> ax = image_grid(np.zeros((2, 8, 8)), ["0.1 nats", "2.3 nats"])
    >>> [image.get_title() for image in ax.child_axes]
    ['0.1 nats', '2.3 nats']
    """
    pictures = _checked_images(images)
    count = len(pictures)
    if len(titles) != count:
        raise ValueError(
            f"`titles` must name each of the {count} images. Received: {len(titles)} titles. Pass {count}."
        )
    if columns is not None and columns < 1:
        raise ValueError(
            f"`columns` must be a positive integer or None. Received: {columns!r}. Pass None for a square."
        )
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    title_inches = _TITLE_LINE_INCHES * max(title.count("\n") + 1 for title in titles) + 0.08
    if ax is None:
        image_inches = 1.1 * pictures.shape[1] / pictures.shape[2]
        ax = _axes_or_new(None, width=1.17 * columns, height=(image_inches + title_inches) * rows + 0.04)
        ax.set_position((0, 0, 1, 1))
    ax.set_axis_off()

    # A row is a title and an image; the title takes the height that its text needs in the axes as they are now.
    axes_inches = ax.get_window_extent().height / ax.figure.dpi
    row_height, column_width = 1 / rows, 1 / columns
    image_height = max(row_height - title_inches / axes_inches, row_height / 2)
    grey_scale = {"cmap": "gray", "vmin": pictures.min(), "vmax": pictures.max()} if pictures.ndim == 3 else {}
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(i, columns)
        left, bottom = (column + 0.03) * column_width, (rows - 1 - row + 0.02) * row_height
        cell = ax.inset_axes((left, bottom, 0.94 * column_width, 0.98 * image_height))
        cell.imshow(picture, interpolation="nearest", **grey_scale)
        cell.set_title(title, fontsize=_TITLE_POINTS, color=_INK, pad=3)
        cell.set_axis_off()
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
        raise ValueError("`scores` must hold at least one array. Received: none. Pass for example {'test': entropy}.")
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=check_num_bins(num_bins))
    ax = _axes_or_new(ax, width=5.0, height=3.2)
    familiar = next(iter(samples))
    for i, (name, sample) in enumerate(samples.items()):
        density, _ = np.histogram(sample, bins=edges, density=True)
        color = _COLORS[i % len(_COLORS)]
        if name == familiar:
            ax.stairs(density, edges, color=color, fill=True, alpha=0.35, label=name)
        else:
            label = f"{name}  AUROC {out_of_distribution_auroc(samples[familiar], sample):.3f}"
            linestyle = _LINESTYLES[(i - 1) % len(_LINESTYLES)]
            ax.stairs(density, edges, color=color, linewidth=1.6, linestyle=linestyle, label=label)
    _tidy(ax)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, None), xlabel=xlabel, ylabel="density")
    _legend(ax)
    return ax


def _axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the axes of a new figure of that many inches, which no pyplot state holds on to."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained").add_subplot()


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_MUTED)
    ax.tick_params(color=_MUTED, labelcolor=_INK, labelsize=9)
    ax.xaxis.label.set_color(_INK)
    ax.yaxis.label.set_color(_INK)


def _legend(ax: Axes) -> None:
    ax.legend(loc="best", fontsize=9, facecolor="white", edgecolor="none", framealpha=0.8)


def _tidy_strip(strip: Axes) -> None:
    _tidy(strip)
    strip.tick_params(labelbottom=False, labelsize=8)
    strip.locator_params(axis="y", nbins=2, prune="lower")
    strip.yaxis.label.set_fontsize(9)


def _history_arrays(history: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    missing = [key for key in _ELBO_KEYS if key not in history]
    if missing:
        raise ValueError(
            f"`history` must have the keys {list(_ELBO_KEYS)}. Received: {sorted(history)}, without {missing}. "
            "Pass `fit(...).history` of a `bdl.VariationalModel`, which logs them."
        )
    keys = [*_ELBO_KEYS, *(key for key in ("val_nll", "val_elbo") if key in history)]
    values = {key: np.asarray(history[key], dtype=np.float64) for key in keys}
    shapes = {key: array.shape for key, array in values.items()}
    if len(set(shapes.values())) != 1 or values["nll"].ndim != 1 or values["nll"].size == 0:
        raise ValueError(
            f"`history` must hold one value an epoch under each key. Received: shapes {shapes}. "
            "Validate after every epoch (`validation_freq=1`), or leave the `val_` keys out."
        )
    return values


def _spans_decades(curves: Sequence[NDArray[np.float64]]) -> bool:
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    return values.size > 0 and bool(values.min() > 0) and bool(values.max() / values.min() > _LOG_SCALE_RATIO)


def _checked_images(images: ArrayLike) -> NDArray[Any]:
    """Return images `(n, height, width)` if grey, `(n, height, width, 3 or 4)` if in colour."""
    array = np.asarray(images)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (3, 4))):
        raise ValueError(
            "`images` must have shape (n, height, width) or (n, height, width, 1, 3 or 4). "
            f"Received: shape {array.shape}. Move the channels last, or add the axis of one image with `images[None]`."
        )
    if array.ndim == 4 and array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "`images` in colour must be floats from 0 to 1, or integers from 0 to 255. "
            f"Received: {array.dtype} from {array.min():.4g} to {array.max():.4g}. "
            "Divide by 255, or undo the standardisation."
        )
    return array
