"""Figures of simulation-based calibration: are the ranks of true values among posterior draws uniform?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from bdl.plots._style import COLORS, IDEAL, LINESTYLES, MUTED, Entries, axes_or_new, legend, tidy
from bdl.report import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMED = len(COLORS)
"""Lines with a colour and a name of their own."""


def rank_ecdf(
    ranks: Mapping[str, ArrayLike], num_draws: int, false_alarm: float = 0.01, ax: Axes | None = None
) -> Axes:
    """Draw how far the distribution functions of ranks are from that of uniform ones, in a simultaneous band.

    A line that leaves the band is a posterior that is not calibrated. Below zero posteriors lie too low, above it too
    high; first above and then below they are too narrow, and the other way round too wide. Lines that leave it have
    colours and names, up to six of them; where none does, the first six have.

    Args:
        ranks: By name, how many draws were below each true value: `(simulations,)`, whole numbers up to `num_draws`, as
            `bdl.svi.simulation_based_calibration(...).by_name` has them.
        num_draws: Draws among which values were ranked.
        false_alarm: Probability that a line of uniform ranks leaves the band at all; it is divided by the number of
            lines.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, ranks are out of range or differ in number, or `false_alarm` is no
            probability in (0, 1).

    Source: Säilynoja, Bürkner and Vehtari 2022, as in `bdl.svi.ranks.bands`.

    Example:
    >>> rank_ecdf({"mean": np.random.default_rng(0).integers(0, 100, 200)}, num_draws=99).get_ylabel()
    'difference of the ECDF'
    """
    from bdl.svi.ranks import bands, counts_below

    arrays = {name: np.asarray(values) for name, values in ranks.items()}
    sizes = {each.shape for each in arrays.values()}
    if len(sizes) != 1 or any(each.ndim != 1 or not each.size for each in arrays.values()):
        raise ValueError(f"`ranks` must hold ranks of as many simulations by each name, not of the shapes {sizes}.")
    if any(np.any((each < 0) | (each > num_draws) | (each != np.round(each))) for each in arrays.values()):
        raise ValueError(f"`ranks` must be whole numbers from 0 to num_draws={num_draws}.")
    if not 0.0 < false_alarm < 1.0:
        raise ValueError(f"`false_alarm` must be a probability in (0, 1), not {false_alarm!r}.")
    simulations = next(iter(arrays.values())).size
    low, high = bands(simulations, num_draws, false_alarm / len(arrays))
    counts = {name: counts_below(values, num_draws) for name, values in arrays.items()}
    outside = [name for name, each in counts.items() if np.any((each < low) | (each > high))]
    named = (outside or list(counts))[:MAX_NAMED]
    edges = np.arange(num_draws + 2) / (num_draws + 1)
    uniform = edges[1:-1]

    def difference(count: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], count / simulations - uniform, [0.0]])

    band = f"{100 * (1 - false_alarm / len(arrays)):.4g} % of uniform lines"
    ax = axes_or_new(ax, width=4.8, height=3.2, labels=[band, *map(printable, named)])
    area = ax.fill_between(edges, difference(low), difference(high), color=MUTED, alpha=0.18, linewidth=0)
    ax.axhline(0, color=MUTED, **IDEAL)
    entries: Entries = [(area, band)]
    for name in [each for each in counts if each not in named] + named:
        place = named.index(name) if name in named else None
        color, width = (MUTED, 0.6) if place is None else (COLORS[place], 1.5)
        style = "-" if place is None else LINESTYLES[place % len(LINESTYLES)]
        (line,) = ax.plot(edges, difference(counts[name]), linestyle=style, color=color, linewidth=width)
        entries += [] if place is None else [(line, printable(name))]
    tidy(ax)
    ax.set(xlim=(0, 1), xlabel="rank of the true value, as a part of the draws", ylabel="difference of the ECDF")
    legend(ax, entries)
    return ax
