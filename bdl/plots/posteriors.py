"""Figures of posteriors: marginals and pairs of their numbers, and what they predict against what was observed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration._validation import check_num_bins
from bdl.plots._style import COLORS, Entries, axes_or_new, ink, legend, letter_points, tidy
from bdl.report import entry_names, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Draws = Mapping[str, ArrayLike]

MAX_MARGINALS = 48
"""Panels of one figure of marginals."""
MAX_PAIRS = 6
"""Numbers of one figure of pairs; more panels in a row cannot be read on a phone."""

_MAX_POINTS = 500  # of a cloud, which more of them only blacken
_SHOWN = (0.002, 0.998)  # quantiles between which a marginal is drawn
_REACH = 3.0  # interquartile ranges beyond the quartiles that are drawn: a long tail would squeeze the rest
_LEAST_RANGE = 1e-9  # relative; narrower ones are a constant but for rounding
_WIDTH = 4.4  # inches
_CHARACTER_WIDTH = 0.62  # of a letter's height


def marginals(
    draws: Draws,
    reference: Draws | None = None,
    labels: Sequence[str] = ("guide", "reference"),
    ax: Axes | None = None,
    columns: int = 2,
    num_bins: int = 40,
) -> Axes:
    """Draw the density of each number of a posterior, and around it the outline of reference draws.

    A panel spans the central 99.6 % of the draws, or less where a tail is long: three interquartile ranges beyond the
    quartiles. Densities are those of all draws. Sites that the reference lacks are drawn without it.

    Args:
        draws: By site `(draws, *shape)`, as `bdl.svi.SVI.posterior` gives them.
        reference: The same, such as those of `bdl.svi.nuts`, of as many draws as there are.
        labels: What the two are, for the legend.
        ax: Axes whose area the panels fill; their own frame disappears.
        columns: Panels in a row.
        num_bins: Bins of a panel.

    Returns:
        The axes around the panels; `ax.child_axes` holds the axes of each.

    Raises:
        ValueError: if there is nothing to draw, too much of it, a number is not finite, or shapes differ.

    Example:
    >>> random = np.random.default_rng(0)
    >>> ax = marginals({"mean": random.normal(size=500), "effect": random.normal(size=(500, 2))})
    >>> [panel.get_title("left") for panel in ax.child_axes]
    ['mean', 'effect[0]', 'effect[1]']
    """
    numbers = _numbers("draws", draws, MAX_MARGINALS)
    others = {} if reference is None else _of_both(numbers, _numbers("reference", reference), draws, reference)
    if columns < 1:
        raise ValueError(f"`columns` must be a positive integer, not {columns!r}.")
    columns = min(columns, len(numbers))
    shown = _shown(labels, bool(others))
    rows = math.ceil(len(numbers) / columns)
    ax, cells = _panels(ax, rows, columns, shown, height=0.8 if rows > 1 else 1.6, gap=4.3)
    entries: Entries = []
    for cell, (name, values) in zip((cell for line in cells for cell in line), numbers.items(), strict=False):
        both = [each for each in (values, others.get(name)) if each is not None]
        edges = np.linspace(*_range_of(both), check_num_bins(num_bins) + 1)
        entries = max(entries, list(zip(_marginals_of(cell, both, edges), shown, strict=False)), key=len)
        _write_name(cell, ax, name)
    for unused in [cell for line in cells for cell in line][len(numbers) :]:
        unused.remove()
    if others:
        legend(ax, entries)
    return ax


def pairs(
    draws: Draws,
    reference: Draws | None = None,
    labels: Sequence[str] = ("guide", "reference"),
    ax: Axes | None = None,
) -> Axes:
    """Draw each pair of numbers of a posterior as a cloud of draws, over one of reference draws.

    The diagonal has the marginals, and the names. The panels of a column share their horizontal axis, those of a row
    their vertical one. Of a cloud 500 draws are shown, in the range of `marginals`.

    Args:
        draws: By site `(draws, *shape)`, of two to six numbers in all.
        reference: The same, such as those of `bdl.svi.nuts`; sites that `draws` lacks are left out.
        labels: What the two are, for the legend.
        ax: Axes whose area the panels fill; their own frame disappears.

    Returns:
        The axes around the panels; `ax.child_axes` holds the axes of each, row by row.

    Raises:
        ValueError: if there are fewer numbers than two or more than six, one is not finite, or shapes differ.

    Example:
    >>> draws = np.random.default_rng(0).normal(size=(500, 3))
    >>> len(pairs({"effect": draws}).child_axes)
    6
    """
    numbers = _numbers("draws", draws, MAX_PAIRS)
    if len(numbers) < 2:
        raise ValueError(f"`draws` must hold two numbers or more, not {list(numbers)}. One alone has a marginal.")
    others = {} if reference is None else _of_both(numbers, _numbers("reference", reference), draws, reference)
    names, shown = list(numbers), _shown(labels, bool(others))
    height = min(max(0.7 * _WIDTH / len(names), 0.62), 1.2)
    ax, cells = _panels(ax, len(names), len(names), shown, height=height, gap=1.7)
    clouds = [numbers, others]
    ranges = {name: _range_of([cloud[name] for cloud in clouds if name in cloud]) for name in names}
    for row, below in enumerate(names):
        for column, along in enumerate(names):
            cell = cells[row][column]
            if column > row:
                cell.remove()
                continue
            if column == row:
                both = [cloud[along] for cloud in clouds if along in cloud]
                _marginals_of(cell, both, np.linspace(*ranges[along], 26))
                _write_name(cell, ax, along, max(len(names) - row, 2), is_last=row == len(names) - 1)
            else:
                for number in (1, 0):  # the reference below
                    if below in clouds[number] and along in clouds[number]:
                        x, y = _thinned(clouds[number][along]), _thinned(clouds[number][below])
                        cell.scatter(x, y, s=5, c=COLORS[number], alpha=0.45, linewidths=0)
                cell.set(xlim=ranges[along], ylim=ranges[below])
                cell.locator_params(axis="y", nbins=3)
            cell.tick_params(axis="x", labelbottom=row == len(names) - 1, labelrotation=90 if len(names) > 3 else 0)
            cell.tick_params(axis="y", labelleft=column == 0 and row > 0)
    if others:
        keys = [ax.plot([], [], "o", color=COLORS[number], markersize=5)[0] for number in range(2)]
        legend(ax, list(zip(keys, shown, strict=True)))
    return ax


def predictive_check(
    observed: ArrayLike,
    simulated: ArrayLike,
    ax: Axes | None = None,
    xlabel: str = "observed value",
    level: float = 0.9,
    num_bins: int = 30,
) -> Axes:
    """Draw the histogram of what was observed over those of data that the model simulates.

    Where the line leaves the band the model does not make data like these. The band is, for each bin alone, where the
    density of a simulated data set lies with probability `level`; the line in it is the median. The outermost bins hold
    all that lies beyond them. Whole numbers have a bin each where there are no more than 60 of them.

    Args:
        observed: Of all rows, `(rows, ...)`; what is missing may be NaN.
        simulated: Draws of the same, `(draws, rows, ...)`, as `bdl.svi.SVI.predict` gives them.
        ax: Axes to draw into.
        xlabel: What was observed, with its unit.
        level: Probability of the band.
        num_bins: Number of bins, over the range of `marginals`.

    Returns:
        The axes.

    Raises:
        ValueError: if shapes do not match, nothing was observed, `level` is not in (0, 1), or a number is not finite.

    Example:
    >>> random = np.random.default_rng(0)
    >>> predictive_check(random.normal(size=50), random.normal(size=(20, 50))).get_ylabel()
    'density'
    """
    data, draws = np.asarray(observed, "float64"), np.asarray(simulated, "float64")
    if draws.shape[1:] != data.shape or not data.ndim or not len(draws):
        raise ValueError(
            f"`simulated` must have the shape (draws, *{data.shape}) of draws of `observed`, not {draws.shape}. "
            "Pass observed=y and simulated=model.predict(data)[site]."
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be a probability in (0, 1), not {level!r}.")
    is_there = ~np.isnan(data)
    values, draws = data[is_there], draws[:, is_there]
    if not values.size or not (np.isfinite(values).all() and np.isfinite(draws).all()):
        raise ValueError("`observed` and `simulated` must hold finite numbers, and NaN where nothing was observed.")
    edges, is_whole = _edges_of_data(values, draws, check_num_bins(num_bins))
    densities = np.array([_density(np.clip(draw, edges[0], edges[-1]), edges) for draw in draws])
    low, middle, high = np.quantile(densities, [0.5 - level / 2, 0.5, 0.5 + level / 2], axis=0)
    labels = ("observed", f"simulated, {level:.0%}")
    ax = axes_or_new(ax, width=4.8, height=3.2, labels=labels)
    band = ax.stairs(high, edges, baseline=low, color=COLORS[0], fill=True, alpha=0.5)
    ax.stairs(middle, edges, color=COLORS[0], linewidth=1.0, baseline=None)
    own = _density(np.clip(values, edges[0], edges[-1]), edges)
    line = ax.stairs(own, edges, color=COLORS[1], linewidth=1.8, baseline=None)
    tidy(ax)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, None), xlabel=xlabel, ylabel="density")
    ax.locator_params(axis="x", integer=is_whole)
    legend(ax, list(zip((line, band), labels, strict=True)))
    return ax


def _numbers(argument: str, draws: Draws, at_most: int | None = None) -> dict[str, Array]:
    """Draws of each number by its name: `(draws,)` each."""
    found: dict[str, Array] = {}
    for site, values in draws.items():
        array = np.asarray(values, "float64")
        if array.ndim < 1 or len(array) < 2 or not np.isfinite(array).all():
            raise ValueError(
                f"`{argument}[{site!r}]` must be finite draws, two at least, not "
                f"{'numbers that are not finite' if array.ndim and len(array) > 1 else f'the shape {array.shape}'}."
            )
        names = entry_names(site, array.shape[1:])
        if at_most is not None and len(found) + len(names) > at_most:
            raise ValueError(
                f"`{argument}` must hold {at_most} numbers at most in one figure, not {len(found) + len(names)} or "
                f"more. Pick some: {{{site!r}: draws[{site!r}][:, :3]}}."
            )
        found |= zip(names, array.reshape(len(array), -1).T, strict=True)
    if not found:
        raise ValueError(f"`{argument}` must hold the draws of a site at least, not none.")
    return found


def _of_both(
    numbers: Mapping[str, Array], others: dict[str, Array], draws: Draws, reference: Draws
) -> dict[str, Array]:
    """The reference draws of the numbers that are drawn."""
    shapes = {name: (np.shape(draws[name])[1:], np.shape(reference[name])[1:]) for name in draws if name in reference}
    wrong = {name: shape for name, shape in shapes.items() if shape[0] != shape[1]}
    if wrong or not shapes:
        raise ValueError(
            "`reference` must have draws of the same sites, of their shapes, not "
            f"{f'{wrong} (of draws, of the reference)' if wrong else list(reference)}."
        )
    return {name: others[name] for name in numbers if name in others}


def _shown(labels: Sequence[str], has_two: bool) -> list[str]:
    if isinstance(labels, str) or len(labels) != 2:
        raise ValueError(f"`labels` must be two names, of draws and of the reference, not {labels!r}.")
    return list(labels) if has_two else list(labels[:1])


def _panels(
    ax: Axes | None, rows: int, columns: int, labels: Sequence[str], height: float, gap: float
) -> tuple[Axes, list[list[Axes]]]:
    """Axes that fill the area of others, in rows and columns; their ticks and titles reach beyond it, as all axes' do.

    Args:
        ax: The others; None makes a figure.
        rows: Of panels.
        columns: Of panels.
        labels: What the legend will hold, if there are two.
        height: Of a panel in a new figure, in inches.
        gap: Between rows, in letters: for what is written there.
    """
    import matplotlib

    given = ax
    gap_inches = gap * matplotlib.rcParams["font.size"] / 72
    inches = rows * height + (rows - 1) * gap_inches
    around = 0.6  # of the first title and the last ticks
    ax = axes_or_new(ax, width=_WIDTH, height=inches + around, labels=labels if len(labels) > 1 else ())
    ax.set_axis_off()
    if given is not None:
        gap_inches, inches = gap * letter_points(ax) / 72, ax.get_window_extent().height / ax.figure.dpi
    between = min(gap_inches / inches, 0.6 / rows)
    tall = (1.0 - (rows - 1) * between) / rows
    return ax, [
        [
            _panel(ax, column / columns, 1.0 - row * (tall + between) - tall, 1 / columns, tall)
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def _panel(ax: Axes, left: float, bottom: float, width: float, height: float) -> Axes:
    cell = ax.inset_axes((left + 0.04 * width, bottom, 0.92 * width, height), facecolor=ax.get_facecolor())
    cell.xaxis.label.set_color(ink(ax))
    cell.yaxis.label.set_color(ink(ax))
    tidy(cell)
    cell.tick_params(labelsize=letter_points(ax))
    cell.locator_params(axis="x", nbins=3)
    return cell


def _marginals_of(cell: Axes, samples: Sequence[Array], edges: Array) -> list[Any]:
    """Draws densities in one panel: filled the first, as a broad line the second."""
    looks: tuple[dict[str, Any], ...] = (
        {"fill": True, "facecolor": (COLORS[0], 0.45), "edgecolor": COLORS[0], "linewidth": 0.8},
        {"color": COLORS[1], "linewidth": 1.6},
    )
    steps = [cell.stairs(_density(each, edges), edges, **looks[number]) for number, each in enumerate(samples)]
    cell.set(xlim=(edges[0], edges[-1]), ylim=(0, None), yticks=[])
    cell.spines["left"].set_visible(False)
    return steps


def _write_name(cell: Axes, ax: Axes, name: str, num_panels: int = 1, is_last: bool = False) -> None:
    """Writes a name above a panel, shortened to what so many panels have room for."""
    size, panel = letter_points(ax), cell.get_window_extent()
    room = int(num_panels * panel.width / ax.figure.dpi * 72 / (_CHARACTER_WIDTH * size))
    name = printable(name)
    shown = name if len(name) <= room else name[: max(room - 1, 1)] + "\N{HORIZONTAL ELLIPSIS}"
    loc: Any = "right" if is_last else "left"
    cell.set_title(shown, loc=loc, fontsize=size, color=ink(ax), pad=3, parse_math=False)


def _range_of(samples: Sequence[Array]) -> tuple[float, float]:
    """Where most draws of each sample lie, and no more of a long tail than three interquartile ranges."""
    ends = []
    for values in samples:
        low, first, third, high = np.quantile(values, [_SHOWN[0], 0.25, 0.75, _SHOWN[1]])
        reach = _REACH * (third - first) if third > first else np.inf
        ends.append((max(low, first - reach), min(high, third + reach)))
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if high - low > _LEAST_RANGE * max(abs(low), abs(high)):
        return float(low), float(high)
    half = 0.5 * max(abs(low), 1.0)
    return float(low - half), float(high + half)


def _edges_of_data(observed: Array, simulated: Array, num_bins: int) -> tuple[Array, bool]:
    """Bins over the range of both; of few whole numbers, one of each, and whether they are."""
    low, high = _range_of([observed, simulated.ravel()])
    is_whole = all(np.array_equal(values, np.round(values)) for values in (observed, simulated))
    if is_whole and high - low <= 60:
        return np.arange(math.floor(low), math.ceil(high) + 2, dtype=np.float64) - 0.5, True
    return np.linspace(low, high, num_bins + 1), False


def _density(values: Array, edges: Array) -> Array:
    """Shares of all values in the bins, over the bins' widths; values outside count as outside."""
    counts, _ = np.histogram(values, bins=edges)
    return counts / (len(values) * np.diff(edges))


def _thinned(values: Array) -> Array:
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), _MAX_POINTS)).astype(np.intp))]
