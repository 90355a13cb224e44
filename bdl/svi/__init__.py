"""Stochastic variational inference for probabilistic models that are not networks."""

from bdl.svi.checks import k_hat
from bdl.svi.guides import Amortized, Delta, FullRank, Guide, Hierarchical, MeanField, Structured
from bdl.svi.model import SVI
from bdl.svi.reference import nuts
from bdl.svi.story import Global, Local, Observed
from bdl.svi.supports import Flat, MarkovChain

__all__ = [
    "SVI",
    "Amortized",
    "Delta",
    "Flat",
    "FullRank",
    "Global",
    "Guide",
    "Hierarchical",
    "Local",
    "MarkovChain",
    "MeanField",
    "Observed",
    "Structured",
    "k_hat",
    "nuts",
]
