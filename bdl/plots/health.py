"""A training at one glance: what the ELBO is made of, and what became of the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdl.plots._style import (
    COLORS,
    LINESTYLES,
    MUTED,
    Entries,
    axes_or_new,
    ink,
    legend,
    letter_points,
    strip_above,
    tidy,
)
from bdl.plots.training import spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def health_curves(epochs: Sequence[Mapping[str, Any]], num_examples: int | None, ax: Axes | None = None) -> Axes:
    """Draws NLL, KL / N and -ELBO (at T = 1), in nats per example, with accuracy in a strip above.

    Where not every epoch knows its ELBO, the compiled loss is drawn as well.

    Args:
        epochs: Logs of each recorded epoch: `epoch`, and of `nll`, `kl` (nats, total), `elbo`, `val_nll` and
            `val_accuracy` those that are known.
        num_examples: N, by which the KL is divided.
        ax: Axes to draw into.

    Returns:
        The axes of the curves.

    Raises:
        ValueError: if no epoch holds any of these.

    Example:
    >>> health_curves([{"epoch": 1, "nll": 0.9}, {"epoch": 2, "nll": 0.5}], None).get_ylabel()
    'nats per example'
    """
    curves = {
        "\N{MINUS SIGN}ELBO": _curve(epochs, "elbo", -1.0),
        "KL / N": _curve(epochs, "kl", 1.0 / num_examples) if num_examples else ([], []),
        "NLL": _curve(epochs, "nll"),
        "NLL, validation": _curve(epochs, "val_nll"),
    }
    if len(curves["\N{MINUS SIGN}ELBO"][1]) < len(epochs):  # a model whose log does not tell its parts
        curves["loss, as compiled"] = _curve(epochs, "loss")
    curves = {label: curve for label, curve in curves.items() if len(curve[1])}
    if not curves:
        raise ValueError("`epochs` holds no loss, nll, kl or elbo. A record of TrainingHealth(data=...) does.")
    ax = axes_or_new(ax, width=4.8, height=3.6, labels=list(curves))
    styles: dict[str, Any] = {
        "\N{MINUS SIGN}ELBO": (COLORS[2], "-", 3.2),
        "KL / N": (COLORS[1], "-", 1.5),
        "NLL": (COLORS[0], "-", 1.5),
        "NLL, validation": (COLORS[0], "--", 1.5),
        "loss, as compiled": (MUTED, LINESTYLES[3], 1.5),
    }
    entries: Entries = []
    for label, (steps, values) in curves.items():
        color, dashes, width = styles[label]
        marker = "o" if len(values) == 1 else ""
        lines = ax.plot(steps, values, color=color, linestyle=dashes, linewidth=width, marker=marker)
        entries += [(line, label) for line in lines]
    tidy(ax)
    if spans_decades([values for _, values in curves.values()]):
        ax.set_yscale("log")
    ax.set(xlabel="epoch", ylabel="nats per example")
    ax.margins(x=0)
    ax.locator_params(axis="x", integer=True)
    steps, accuracy = _curve(epochs, "val_accuracy")
    if len(accuracy):
        strip = strip_above(ax, height=0.14)
        strip.plot(steps, accuracy, color=ink(ax), linewidth=1.4, marker="o" if len(accuracy) == 1 else "")
        strip.set(ylim=(0, 1.05))
        strip.set_title("accuracy", loc="left", color=ink(ax), fontsize=letter_points(ax))  # too long for its side
    legend(ax, entries)
    return ax


def _curve(epochs: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> Any:
    pairs = [(entry["epoch"], factor * entry[key]) for entry in epochs if entry.get(key) is not None]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])
