"""The figure of surface_proteins.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE
from surface_counts import Proteins


def draw(path: Path, proteins: Proteins, fitted: Any, limits: np.ndarray) -> None:
    """A protein, a pair of proteins, and the cells' states coloured by denoised counts."""
    figure, axes = plt.subplot_mosaic([list(".AABB."), list("CCDDEE")], figsize=(12.5, 8), layout="constrained")
    draw_protein(axes["A"], proteins, fitted, limits, "CD14")
    draw_pair(axes["B"], proteins, fitted, limits, ("CD3", "CD14"))
    plane = TSNE(init="pca", random_state=0).fit_transform(fitted.state)
    for axis, name in zip((axes["C"], axes["D"], axes["E"]), ("CD3", "CD19", "CD14"), strict=True):
        column = proteins.names.index(name)
        denoised = fitted.is_on[:, column] * proteins.cells[:, column]
        order = np.argsort(denoised)
        points = axis.scatter(*plane[order].T, c=np.log1p(denoised[order]), s=4, cmap="viridis")
        figure.colorbar(points, ax=axis, label="log(1 + denoised count)")
        axis.set(xticks=[], yticks=[], title=f"States of the cells (t-SNE): {name}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_protein(axis: Any, proteins: Proteins, fitted: Any, limits: np.ndarray, name: str) -> None:
    """Counts of a protein in empty droplets, and in cells by their call."""
    column = proteins.names.index(name)
    counts, on = proteins.cells[:, column], fitted.is_on[:, column] > 0.5
    edges = np.concatenate([np.arange(16), np.geomspace(16, max(counts.max(), 17) + 1, 14)]) - 0.5
    groups = (
        (proteins.empty[:, column], len(proteins.empty), "empty droplets", "0.6"),
        (counts[~on], len(counts), "cells, background", "C0"),
        (counts[on], len(counts), "cells, foreground", "C3"),
    )
    for values, total, label, colour in groups:
        heights = np.histogram(values, edges)[0] / total / np.diff(np.log1p(edges + 0.5))
        axis.stairs(heights, np.log1p(edges + 0.5), color=colour, lw=1.6, label=label)
    axis.axvline(np.log1p(limits[column] + 0.5), color="0.3", ls=":", lw=1.2)
    axis.set(xlabel="log(1 + count)", ylabel="density", title=f"{name}; dotted: raw threshold")
    axis.legend(frameon=False, fontsize="small")


def draw_pair(axis: Any, proteins: Proteins, fitted: Any, limits: np.ndarray, names: tuple[str, str]) -> None:
    """Counts of two proteins in each cell, by the calls."""
    columns = [proteins.names.index(name) for name in names]
    first, second = (fitted.is_on[:, columns] > 0.5).T
    counts = proteins.cells[:, columns] + np.random.default_rng(0).uniform(-0.4, 0.4, (len(first), 2))
    groups = {
        "neither": ~first & ~second,
        f"{names[0]}+": first & ~second,
        f"{names[1]}+": ~first & second,
        "both": first & second,
    }
    for (label, rows), colour in zip(groups.items(), ("0.6", "C0", "C3", "k"), strict=True):
        points = np.log1p(np.maximum(counts[rows], 0))
        axis.scatter(*points.T, s=5, color=colour, label=f"{label}: {rows.sum():,}")
    axis.axvline(np.log1p(limits[columns[0]] + 0.5), color="0.3", ls=":", lw=1.2)
    axis.axhline(np.log1p(limits[columns[1]] + 0.5), color="0.3", ls=":", lw=1.2)
    axis.set(xlabel=f"log(1 + count) of {names[0]}", ylabel=f"log(1 + count) of {names[1]}")
    axis.set_title("Calls; dotted: raw thresholds")
    axis.legend(frameon=False, fontsize="small", markerscale=2)
