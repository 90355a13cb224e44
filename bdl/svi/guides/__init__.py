"""Variational families for the latent sites of a story, as Keras layers."""

from bdl.svi.guides.amortized import Amortized
from bdl.svi.guides.base import Guide
from bdl.svi.guides.categories import Categories
from bdl.svi.guides.conjugate import Conjugate, ConjugateRows
from bdl.svi.guides.counts import Counts
from bdl.svi.guides.delta import Delta
from bdl.svi.guides.flow import Flow
from bdl.svi.guides.full_rank import FullRank
from bdl.svi.guides.hierarchical import Hierarchical
from bdl.svi.guides.low_rank import LowRank
from bdl.svi.guides.mean_field import MeanField
from bdl.svi.guides.per_row import PerRow
from bdl.svi.guides.smoothed import Smoothed, Transition
from bdl.svi.guides.structured import Structured

__all__ = [
    "Amortized",
    "Categories",
    "Conjugate",
    "ConjugateRows",
    "Counts",
    "Delta",
    "Flow",
    "FullRank",
    "Guide",
    "Hierarchical",
    "LowRank",
    "MeanField",
    "PerRow",
    "Smoothed",
    "Structured",
    "Transition",
]
