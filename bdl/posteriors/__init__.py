"""Posteriors over the weights of one tensor. The wrapped layer's own weight is always the mean.

There are two kinds. A `Posterior` draws the weights themselves. A `FactorPosterior` (`Rank1`) draws factors of the
layer's inputs and outputs, around weights that are point estimates.

A posterior object holds settings only; its variables live in the layer, as a dictionary that the layer hands back on
each call. So one object can serve many layers.

Scales are `exp(speed * rho)`. An optimizer with normalised steps, such as Adam, moves `rho` by about its learning
rate a step whatever the gradient; with `speed = 1` a scale then changes by 0.1 % a step at rate 1e-3 and is still near
its start after 2,000 steps. With the default speed of 10 it arrives with the means. Rate and speed multiply: above a
rate of 3e-3 lower the speed in proportion, or the scales overshoot (research/defaults.md has a run that did).
"""

from __future__ import annotations

from typing import Any

from bdl.posteriors.base import INITIAL_RELATIVE_SCALE, AnyPosterior, Component, FactorPosterior, Posterior
from bdl.posteriors.low_rank import INITIAL_RELATIVE_FACTOR, LowRankNormal
from bdl.posteriors.matrix_normal import MatrixNormal
from bdl.posteriors.mean_field import MeanFieldNormal
from bdl.posteriors.rank1 import Rank1
from bdl.priors import Variables
from bdl.serialization import resolve

__all__ = [
    "INITIAL_RELATIVE_FACTOR",
    "INITIAL_RELATIVE_SCALE",
    "AnyPosterior",
    "Component",
    "FactorPosterior",
    "LowRankNormal",
    "MatrixNormal",
    "MeanFieldNormal",
    "Posterior",
    "Rank1",
    "Variables",
    "get",
]

_POSTERIORS: dict[str, type] = {
    "mean_field": MeanFieldNormal,
    "matrix_normal": MatrixNormal,
    "low_rank": LowRankNormal,
    "rank1": Rank1,
}


def get(posterior: AnyPosterior | str | dict[str, Any], argument: str = "posterior") -> AnyPosterior:
    """Turns a name, a configuration or a posterior into a posterior.

    Args:
        posterior: A `Posterior` or a `FactorPosterior`; one of `"mean_field"`, `"matrix_normal"`, `"low_rank"`,
            `"rank1"`; or a configuration.
        argument: Name of the argument, for the error message.

    Raises:
        ValueError: if it is none of these.

    Example:
    >>> get("mean_field")
    MeanFieldNormal(initial_scale=None, speed=10.0, initial_ratio=None)
    """
    return resolve(posterior, _POSTERIORS, argument, Posterior, FactorPosterior)
