"""Supports of distributions, their maps from the real line, and what is asked of a distribution of any library."""

from bdl.svi.supports.base import Support
from bdl.svi.supports.discrete import Discrete
from bdl.svi.supports.distributions import (
    MOST_VALUES,
    Distribution,
    as_normal,
    batch_rank,
    exponential_parameters,
    inside,
    is_discrete,
    log_prob,
    sample,
    sample_of_shape,
    shape_of,
    support_of,
    values_of,
)
from bdl.svi.supports.flat import Flat
from bdl.svi.supports.intervals import Above, Below, Between, Real, interval
from bdl.svi.supports.markov import MarkovChain
from bdl.svi.supports.matrices import CorrelationCholesky, CorrelationMatrix, LowerCholesky, PositiveDefinite
from bdl.svi.supports.torch_like import unchecked
from bdl.svi.supports.vectors import Ordered, Product, Simplex

__all__ = [
    "MOST_VALUES",
    "Above",
    "Below",
    "Between",
    "CorrelationCholesky",
    "CorrelationMatrix",
    "Discrete",
    "Distribution",
    "Flat",
    "LowerCholesky",
    "MarkovChain",
    "Ordered",
    "PositiveDefinite",
    "Product",
    "Real",
    "Simplex",
    "Support",
    "as_normal",
    "batch_rank",
    "exponential_parameters",
    "inside",
    "interval",
    "is_discrete",
    "log_prob",
    "sample",
    "sample_of_shape",
    "shape_of",
    "support_of",
    "unchecked",
    "values_of",
]
