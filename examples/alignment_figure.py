"""A sentence pair's alignments and their uncertainty, drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from word_pairs import Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Aligned:
    """A pair under a model.

    Args:
        prior: p(z | x), `(target words, source words)`.
        posterior: p(z | x, y); the same array for soft attention.
        nll: In nats.
    """

    prior: np.ndarray
    posterior: np.ndarray
    nll: float


def draw(pictures: dict[str, Aligned], pair: Pair, path: Path) -> None:
    """A row for each model: alignments before and after the target is seen, and how uncertain each is."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    number, height = len(pictures), 0.26 * len(pair.target) + 1.9
    figure, axes = plt.subplots(
        number, 3, figsize=(14, height * number), squeeze=False, width_ratios=(3, 3, 2), layout="constrained"
    )
    for row, (name, aligned) in zip(axes, pictures.items(), strict=True):
        _draw_alignment(row[0], aligned.prior, pair, f"{name}: p(z | x)")
        row[2].plot(_entropy(aligned.prior), range(len(pair.target)), "o-", label="p(z | x)")
        if name != "soft":
            _draw_alignment(row[1], aligned.posterior, pair, f"{name}: p(z | x, y)")
            row[2].plot(_entropy(aligned.posterior), range(len(pair.target)), "s--", label="p(z | x, y)")
        else:
            row[1].axis("off")
            row[1].text(0.5, 0.5, "soft attention has no posterior", ha="center", transform=row[1].transAxes)
        row[2].set(xlabel="entropy [nats]", title=f"{name}: uncertainty", xlim=(0, np.log(len(pair.source)) * 1.05))
        row[2].set_yticks(range(len(pair.target)), pair.target)
        row[2].set_ylim(len(pair.target) - 0.5, -0.5)
        row[2].grid(alpha=0.3)
        row[2].legend(loc="best")
    figure.suptitle("Which source word (column) does each target word (row) follow from? Red squares: gold links")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_alignment(axes: Axes, probabilities: np.ndarray, pair: Pair, title: str) -> None:
    axes.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if pair.links:
        rows, columns = zip(*sorted(pair.links), strict=True)
        axes.scatter(columns, rows, marker="s", s=70, facecolors="none", edgecolors="tab:red", linewidths=1.2)
    axes.set_xticks(range(len(pair.source)), pair.source, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(pair.target)), pair.target)
    axes.set_title(title)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    return -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-30)), axis=-1)
