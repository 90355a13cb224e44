"""Figures: numbers in, matplotlib axes out.

Each function draws into `ax`, or into a new figure when `ax` is None, and returns the axes; `ax.figure.savefig(path)`
saves it. Matplotlib is imported at the first drawing, and pyplot, with its global state, never.
"""

from bdl.plots.images import image_grid
from bdl.plots.posteriors import marginals, pairs, predictive_check
from bdl.plots.ranks import rank_ecdf
from bdl.plots.training import elbo_parts
from bdl.plots.uncertainty import (
    interval_coverage,
    pit_histogram,
    reliability_diagram,
    risk_coverage,
    score_histograms,
    uncertainty_split,
)

__all__ = [
    "elbo_parts",
    "image_grid",
    "interval_coverage",
    "marginals",
    "pairs",
    "pit_histogram",
    "predictive_check",
    "rank_ecdf",
    "reliability_diagram",
    "risk_coverage",
    "score_histograms",
    "uncertainty_split",
]
