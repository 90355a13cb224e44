"""How all figures look: colours for any vision, quiet axes, no pyplot state."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), "Color universal design": told apart by readers with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINESTYLES = ("-", "--", "-.", ":")
INK = "#333333"
MUTED = "#8A8A8A"


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the axes of a new figure of that many inches, which no pyplot state holds on to."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained").add_subplot()


def tidy(ax: Axes) -> None:
    """Takes away the frame's upper and right side, and mutes the rest."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(color=MUTED, labelcolor=INK, labelsize=9)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)


def legend(ax: Axes) -> None:
    """Adds the legend, through which curves shine."""
    ax.legend(loc="best", fontsize=9, facecolor="white", edgecolor="none", framealpha=0.8)


def tidy_strip(strip: Axes) -> None:
    """The same for a strip above other axes, whose x axis it shares."""
    tidy(strip)
    strip.tick_params(labelbottom=False, labelsize=8)
    strip.locator_params(axis="y", nbins=2, prune="lower")
    strip.yaxis.label.set_fontsize(9)
