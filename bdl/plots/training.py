"""Figures of training: what the ELBO is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bdl.plots._style import COLORS, IDEAL, MUTED, Entries, axes_or_new, ink, legend, strip_above, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Curves whose largest value exceeds their smallest by this factor are drawn on a logarithmic axis.
_LOG_SCALE_RATIO = 100

# What `bdl.VariationalModel` logs of its ELBO.
_ELBO_KEYS = ("nll", "kl", "elbo", "temperature")


def elbo_parts(history: Mapping[str, Sequence[float]], num_examples: int, ax: Axes | None = None) -> Axes:
    """Draw what the ELBO is made of, epoch by epoch: NLL, KL / N and their sum -ELBO, in nats per example.

    -ELBO is the one at temperature 1; the temperature T by which the loss weighted the KL stands in the strip above,
    where the dotted line at 1 is Bayes. Validation curves are dashed. The axis is logarithmic when all curves are
    positive and span more than two decades.

    Args:
        history: Lists of one length, one value per epoch: `nll` (nats per example), `kl` (nats, total), `elbo` (nats
            per example), `temperature`, and after validation `val_nll` and `val_elbo`. `fit(...).history` has them.
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
        raise ValueError(f"`num_examples` must be positive, not {num_examples!r}. Pass the training set's size.")
    blue, vermilion, green = COLORS[:3]
    # The sum comes first, and broad, so that a part that makes up nearly all of it still shows on top.
    curves = [
        ("\N{MINUS SIGN}ELBO", -values["elbo"], green, "-", 3.2),
        ("KL / N", values["kl"] / num_examples, vermilion, "-", 1.5),
        ("NLL", values["nll"], blue, "-", 1.5),
    ]
    if "val_elbo" in values:
        curves.append(("\N{MINUS SIGN}ELBO, validation", -values["val_elbo"], green, "--", 1.5))
    if "val_nll" in values:
        curves.append(("NLL, validation", values["val_nll"], blue, "--", 1.5))

    ax = axes_or_new(ax, width=4.8, height=3.6, labels=[label for label, *_ in curves])
    strip = strip_above(ax, height=0.14)
    epochs = np.arange(1, len(values["nll"]) + 1)
    marker = "o" if len(epochs) == 1 else ""  # a line through one point cannot be seen
    entries: Entries = []
    for label, curve, color, linestyle, linewidth in curves:
        lines = ax.plot(epochs, curve, color=color, linestyle=linestyle, linewidth=linewidth, marker=marker)
        entries += [(line, label) for line in lines]
    strip.axhline(1, color=MUTED, **IDEAL, zorder=1)
    strip.plot(epochs, values["temperature"], color=ink(ax), marker=marker, linewidth=1.4)
    tidy(ax)
    if spans_decades([curve for _, curve, *_ in curves]):
        ax.set_yscale("log")
    ax.set(xlabel="epoch", ylabel="nats per example")
    ax.margins(x=0)
    strip.margins(x=0)
    ax.locator_params(axis="x", integer=True)
    strip.set(ylim=(0, 1.2 * np.nanmax([1.0, *values["temperature"]])), ylabel="T")
    legend(ax, entries)
    return ax


def _history_arrays(history: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    missing = [key for key in _ELBO_KEYS if key not in history]
    if missing:
        raise ValueError(
            f"`history` must have the keys {list(_ELBO_KEYS)}, not {sorted(history)}: {missing} are missing. "
            "Pass `fit(...).history` of a `bdl.VariationalModel`, which logs them."
        )
    keys = [*_ELBO_KEYS, *(key for key in ("val_nll", "val_elbo") if key in history)]
    values = {key: np.asarray(history[key], dtype=np.float64) for key in keys}
    shapes = {key: array.shape for key, array in values.items()}
    if len(set(shapes.values())) != 1 or values["nll"].ndim != 1 or values["nll"].size == 0:
        raise ValueError(
            f"`history` must hold one value per epoch under each key, not shapes {shapes}. "
            "Validate after every epoch (`validation_freq=1`), or leave the `val_` keys out."
        )
    return values


def spans_decades(curves: Sequence[NDArray[np.float64]]) -> bool:
    """Whether all curves are positive and need a logarithmic axis."""
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    return values.size > 0 and bool(values.min() > 0) and bool(values.max() / values.min() > _LOG_SCALE_RATIO)
