"""Gaussian priors of fixed scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

from bdl.priors.base import Prior, Variables, check_positive, fan_in, register
from bdl.random import Tensor


class _FixedGaussian(Prior):
    """A Gaussian whose mean and scale do not depend on the posterior."""

    def penalty(self, mean: Tensor, input_axes: Sequence[int] = (), variables: Variables | None = None) -> Tensor:
        """Half the sum of squares, in units of the scale."""
        prior_mean, prior_scale = self.parameters(mean, mean, input_axes, variables)
        return 0.5 * ops.sum(ops.square((mean - prior_mean) / prior_scale))


@register
@dataclass(frozen=True)
class Normal(_FixedGaussian):
    """`N(mean, scale^2)` on each weight.

    Args:
        mean: Mean of the prior.
        scale: Positive standard deviation (not variance) of the prior.

    Raises:
        ValueError: if `scale` is not positive and finite.

    Example:
    >>> Normal(scale=0.5)
    Normal(mean=0.0, scale=0.5)
    """

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """The fixed mean and scale."""
        return self.mean, self.scale


@register
@dataclass(frozen=True)
class FanInNormal(_FixedGaussian):
    """`N(0, scale^2 / fan_in)` on each weight, so that the prior of a unit's input does not grow with the width.

    Args:
        scale: Positive standard deviation of a unit's pre-activation for inputs of unit size.

    Raises:
        ValueError: if `scale` is not positive and finite.

    Source: Neal 1996, "Bayesian learning for neural networks", section 2.1.

    Example:
    >>> FanInNormal().parameters(np.zeros((100, 2)), np.ones((100, 2)), input_axes=(0,))
    (0.0, 0.1)
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Zero and `scale / sqrt(fan_in)`."""
        return 0.0, self.scale / math.sqrt(fan_in(mean.shape, input_axes))


@register
@dataclass(frozen=True)
class WidthNormal(_FixedGaussian):
    """`N(0, spread^2 / fan_in)`, with a spread that grows as the square root of the wider side of the tensor.

    The spread is `scale * sqrt(max(fan_in, fan_out))`, at most `max_spread`: few units bear little noise each, many
    units average theirs out. It is for deviations from fitted means, `TiedMean(WidthNormal())`.

    Args:
        scale: Positive spread of a tensor of width 1.
        max_spread: Positive largest spread: standard deviation of a unit's pre-activation for inputs of unit size.

    Raises:
        ValueError: if an argument is not positive and finite.

    Source: an experiment, research/defaults.py; at a fixed spread it is `FanInNormal`.

    Example:
    >>> WidthNormal().parameters(np.zeros((100, 2)), np.ones((100, 2)), input_axes=(0,))
    (0.0, 0.05)
    """

    scale: float = 0.05
    max_spread: float = 1.0

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        check_positive("max_spread", self.max_spread)

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Zero and `spread / sqrt(fan_in)`."""
        inputs = fan_in(mean.shape, input_axes)
        outputs = math.prod(mean.shape) // inputs
        return 0.0, min(self.scale * math.sqrt(max(inputs, outputs)), self.max_spread) / math.sqrt(inputs)
