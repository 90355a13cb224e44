"""Stochastic variational inference for probabilistic models that are not networks."""

from bdl.svi.checks import k_hat
from bdl.svi.guides import Amortized, Delta, Flow, FullRank, Guide, LowRank, MeanField
from bdl.svi.joint import from_joint
from bdl.svi.model import SVI
from bdl.svi.reference import nuts
from bdl.svi.story import Global, Local, Observed
from bdl.svi.supports import Flat

__all__ = [
    "SVI",
    "Amortized",
    "Delta",
    "Flat",
    "Flow",
    "FullRank",
    "Global",
    "Guide",
    "Local",
    "LowRank",
    "MeanField",
    "Observed",
    "from_joint",
    "k_hat",
    "nuts",
]
