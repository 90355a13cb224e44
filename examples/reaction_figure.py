"""Rates of reactions, drawn: data and curves, correlations, and what is known of each constant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reaction_schemes import Experiment, is_identified, predicted


def draw(path: Path, experiment: Experiment, results: Mapping[str, Any], reference: Any) -> None:
    """Data and fitted curves, the strongest correlation, all correlations, and what is known of each constant.

    Args:
        path: PNG.
        experiment: The experiment.
        results: Draws by method, `stiff_kinetics.Result`.
        reference: Those of the gold standard.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((curves, pair), (matrix, known)) = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    best, poor = results["flow"], results["mean-field"]
    number = len(experiment.centres)
    fine = np.linspace(0.0, experiment.times[-1], 200)
    for place in range(0, len(best.draws), len(best.draws) // 40):
        for column, line in enumerate(predicted(experiment, best.draws[place, :number], fine).T):
            curves.plot(fine, line, color=f"C{column}", lw=0.6, alpha=0.15)
    for column, name in enumerate(experiment.observables):
        curves.plot(experiment.times, experiment.values[:, column], "o", color=f"C{column}", ms=4, label=name)
    curves.set(xlabel="minutes", ylabel="percent", title="Measured, and curves of 40 draws of the flow")
    curves.legend(frameon=False, fontsize="small")

    correlation = reference.correlation
    first, second = np.unravel_index(np.abs(np.tril(correlation[:number, :number], -1)).argmax(), (number, number))
    shown = {reference.name: ("0.6", reference), "flow": ("C0", best), "mean-field": ("C3", poor)}
    for name, (colour, each) in shown.items():
        some = each.draws[:: max(len(each.draws) // 1000, 1)]
        pair.plot(some[:, second], some[:, first], ".", color=colour, ms=3, alpha=0.5, label=name)
    names = [f"log10 {name}" for name in experiment.names]
    title = f"The strongest correlation, {correlation[first, second]:.2f}"
    pair.set(xlabel=names[second], ylabel=names[first], title=title)
    pair.legend(frameon=False, markerscale=4)

    both = np.tril(correlation, -1) + np.triu(best.correlation, 1)
    image = matrix.imshow(both, cmap="RdBu_r", vmin=-1, vmax=1)
    matrix.set_xticks(range(len(names)), experiment.names, rotation=40, ha="right", fontsize="small")
    matrix.set_yticks(range(len(names)), experiment.names, fontsize="small")
    for (row, column), value in np.ndenumerate(both):
        if row != column:
            colour = "white" if abs(value) > 0.6 else "0.2"
            matrix.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    matrix.set_title(f"Correlations: {reference.name} (below), flow (above)")
    figure.colorbar(image, ax=matrix, shrink=0.8)

    identified = is_identified(experiment, reference.draws)
    prior = 1.645 * experiment.decades[0]
    for row, centre in enumerate(experiment.centres):
        known.barh(row, 2 * prior, left=centre - prior, height=0.8, color="0.92", label=None if row else "prior")
        for step, (name, (colour, each)) in enumerate(shown.items()):
            low, middle, high = np.quantile(each.draws[:, row], [0.05, 0.5, 0.95])
            height = row + 0.22 * (1 - step)
            known.plot([low, high], [height, height], color=colour, lw=3, label=None if row else name)
            known.plot(middle, height, "o", color=colour, ms=5)
    told = [
        name if sure else f"{name}\n(not identified)" for name, sure in zip(experiment.names, identified, strict=False)
    ]
    known.set_yticks(range(number), told, fontsize="small")
    known.set(xlabel="log10 of the constant", title="What is known of each: 90 percent intervals")
    known.invert_yaxis()
    known.legend(frameon=False, fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=110)
    plt.close(figure)
