"""Stochastic variational inference for probabilistic models that are not networks."""

from bdl.svi.checks import k_hat
from bdl.svi.guides import (
    Amortized,
    Categories,
    Conjugate,
    ConjugateRows,
    Counts,
    Delta,
    Flow,
    FullRank,
    Guide,
    Hierarchical,
    LowRank,
    MeanField,
    PerRow,
    Smoothed,
    Structured,
    Transition,
)
from bdl.svi.joint import from_joint
from bdl.svi.model import SVI
from bdl.svi.reference import nuts
from bdl.svi.sbc import simulation_based_calibration
from bdl.svi.stiff import counting_solutions, solve_stiff
from bdl.svi.story import Global, Local, Observed
from bdl.svi.supports import Flat, MarkovChain

__all__ = [
    "SVI",
    "Amortized",
    "Categories",
    "Conjugate",
    "ConjugateRows",
    "Counts",
    "Delta",
    "Flat",
    "Flow",
    "FullRank",
    "Global",
    "Guide",
    "Hierarchical",
    "Local",
    "LowRank",
    "MarkovChain",
    "MeanField",
    "Observed",
    "PerRow",
    "Smoothed",
    "Structured",
    "Transition",
    "counting_solutions",
    "from_joint",
    "k_hat",
    "nuts",
    "simulation_based_calibration",
    "solve_stiff",
]
