"""The Laplace prior, whose tails are heavier than a Gaussian's and whose mode is a kink."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

from bdl.priors.base import Prior, Variables, check_width, log_scale_of, register, width
from bdl.random import Tensor

_SMALLEST_SCALE = 1e-30  # a mean divided by it is still a number or infinity, of either of which erf is one


@register
@dataclass(frozen=True)
class Laplace(Prior):
    """Density `exp(-|w - mean| / scale) / (2 scale)` on each weight.

    Its divergence from a Gaussian is a closed form, for `|w - m|` under `N(mu, sigma^2)` is a folded normal:

        KL = log(2 b / sigma) - 1/2 log(2 pi e) + E|w - m| / b
        E|w - m| = (mu - m) erf((mu - m) / (sigma sqrt 2)) + sigma sqrt(2 / pi) exp(-(mu - m)^2 / (2 sigma^2))

    Args:
        mean: Mean, median and mode of the prior.
        scale: Positive `b`, the mean absolute deviation; the standard deviation is `sqrt(2) b`. `"fan_in"` is the `b`
            of standard deviation `1 / sqrt(fan_in)`.

    Raises:
        ValueError: if `scale` is neither.

    Sources: Williams 1995, "Bayesian regularization and pruning using a Laplace prior"; Graves 2011, "Practical
    variational inference for neural networks", section 4.2.

    Example:
    >>> float(Laplace(scale=0.5).penalty(np.array([1.0, -2.0], "float32")))  # |w| / b
    6.0
    """

    mean: float = 0.0
    scale: float | str = 1.0

    def __post_init__(self) -> None:
        check_width("scale", self.scale)

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Returns mean and scale of the Gaussian with the same mean and variance."""
        return self.mean, math.sqrt(2.0) * self._b(mean.shape, input_axes)

    def resting_place(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """The mean and `b sqrt(pi / 2)`, where `log(scale) - E|w - m| / b` is largest."""
        return self.mean, math.sqrt(0.5 * math.pi) * self._b(mean.shape, input_axes)

    def kl(
        self,
        mean: Tensor,
        scale: Tensor,
        input_axes: Sequence[int] = (),
        log_scale: Tensor | None = None,
        variables: Variables | None = None,
    ) -> Tensor:
        """Closed form; scalar, total over the weights, in nats."""
        b = self._b(mean.shape, input_axes)
        constant = math.log(2.0 * b) - 0.5 * math.log(2.0 * math.pi * math.e)
        distance = _mean_distance(mean - self.mean, scale)
        return ops.sum(constant - log_scale_of(scale, log_scale) + distance / b)

    def penalty(self, mean: Tensor, input_axes: Sequence[int] = (), variables: Variables | None = None) -> Tensor:
        """Sum of absolute values, in units of `b`."""
        return ops.sum(ops.abs(mean - self.mean)) / self._b(mean.shape, input_axes)

    def _b(self, shape: Sequence[int], input_axes: Sequence[int]) -> float:
        spread = width(self.scale, shape, input_axes)
        return spread / math.sqrt(2.0) if isinstance(self.scale, str) else spread


def _mean_distance(shift: Tensor, scale: Tensor) -> Tensor:
    """`E|w|` for `w ~ N(shift, scale^2)`.

    It is homogeneous of degree one, so that by Euler's theorem it is the sum of both arguments times their partial
    derivatives. With these held fixed both value and gradient are exact, and finite however small the scale is.
    """
    shift, scale = ops.convert_to_tensor(shift), ops.convert_to_tensor(scale)
    ratio = ops.stop_gradient(shift / ops.maximum(scale, _SMALLEST_SCALE))
    by_shift = ops.erf(ratio / math.sqrt(2.0))
    by_scale = math.sqrt(2.0 / math.pi) * ops.exp(-0.5 * ops.square(ratio))
    return shift * by_shift + scale * by_scale
