"""How all figures look: the colours of matplotlib's style in force, hues for any vision, legends that cover nothing.

Lines of models and measurements are never dotted: a dotted line is the ideal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from bdl.report import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Okabe and Ito (2008), "Color universal design": told apart by readers with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINESTYLES: tuple[Any, ...] = ("-", "--", "-.", (0, (6, 2, 1, 2, 1, 2)))
IDEAL: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2}
MUTED = "#8A8A8A"  # to be seen on white and on black

Entries: TypeAlias = "list[tuple[Artist, str]]"
"""What a legend explains: what is drawn, with its label."""

_LABEL_WIDTH = 38  # characters of a legend's line, which fill the narrowest figure
_TWO_COLUMNS_UP_TO = 18  # characters of a label


def axes_or_new(ax: Axes | None, width: float, height: float, labels: Sequence[str] = ()) -> Axes:
    """Return `ax`, or the axes of a new figure of so many inches, which no pyplot state holds on to.

    Args:
        ax: Axes to draw into, if there are any.
        width: Of the new figure.
        height: Of the new figure without its legend.
        labels: What the legend will hold; the figure grows by its lines.
    """
    if ax is not None:
        return ax
    import matplotlib
    from matplotlib.figure import Figure

    wrapped = [_wrapped(label) for label in labels]
    rows = wrapped[:: _num_columns(wrapped)]  # two columns hold labels of one line
    letters = sum(1.25 * (label.count("\n") + 1) + 0.5 for label in rows) + 0.5
    height += letters * matplotlib.rcParams["font.size"] / 72
    return Figure(figsize=(width, height), dpi=150, layout="constrained").add_subplot()


def ink(ax: Axes) -> Any:
    """The colour of text on these axes."""
    return ax.xaxis.label.get_color()


def letter_points(ax: Axes) -> float:
    """The size of text on these axes."""
    return float(ax.xaxis.label.get_fontsize())


def tidy(ax: Axes) -> None:
    """Takes away the frame's upper and right side, and mutes the rest."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(color=MUTED, labelcolor=ink(ax))  # ticks are made later, perhaps in another style


def legend(ax: Axes, entries: Entries) -> None:
    """Adds a legend below the axes, where it covers nothing.

    A figure without a layout engine would cut it off there: in such a one it stands inside, where it covers least.

    Args:
        ax: The axes.
        entries: What it explains; in a label nothing is markup.
    """
    import matplotlib.transforms

    labels = [_wrapped(label) for _, label in entries]
    if not labels:
        return
    figure = ax.get_figure(root=True)
    place: dict[str, Any] = {"loc": "best"}
    if figure is not None and figure.get_layout_engine() is not None:
        points = 3.6 * letter_points(ax)  # of the ticks' labels and the axis' own
        down = matplotlib.transforms.ScaledTranslation(0, -points / 72, figure.dpi_scale_trans)
        place = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": ax.transAxes + down}
    made = ax.legend(
        [artist for artist, _ in entries],
        [" "] * len(labels),  # matplotlib would skip a label that begins with an underscore, and set formulas
        ncols=_num_columns(labels),
        borderaxespad=0.2,
        facecolor=ax.get_facecolor(),
        edgecolor="none",
        framealpha=0.8,
        labelcolor=ink(ax),
        **place,
    )
    for text, label in zip(made.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def strip_above(ax: Axes, height: float) -> Axes:
    """Axes above others, whose x axis and colours they share.

    Args:
        ax: The axes below.
        height: Of the strip, as a share of theirs.
    """
    strip = ax.inset_axes((0, 1.04, 1, height), sharex=ax, facecolor=ax.get_facecolor())
    strip.xaxis.label.set_color(ink(ax))
    strip.yaxis.label.set_color(ink(ax))
    tidy(strip)
    strip.tick_params(labelbottom=False)
    strip.locator_params(axis="y", nbins=2, prune="lower")
    return strip


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(printable(label), _LABEL_WIDTH)) or " "


def _num_columns(labels: Sequence[str]) -> int:
    return 2 if len(labels) > 1 and max(len(label) for label in labels) <= _TWO_COLUMNS_UP_TO else 1
