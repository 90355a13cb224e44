"""The horseshoe prior: most groups of weights near zero, a few left free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

from bdl.priors.base import Prior, Variables, as_matrix, check_width, from_matrix, log_scale_of, register, width
from bdl.random import Tensor

HORSESHOE_GROUPS = ("weight", "row", "column")
"""What may share a scale under `Horseshoe`."""
_SMALLEST_MOMENT = 1e-30  # keeps E[1/lambda^2] finite in float32 where a whole group is exactly zero


@register
@dataclass(frozen=True)
class Horseshoe(Prior):
    """`w ~ N(0, tau^2 lambda_g^2)` with `lambda_g ~ half-Cauchy(0, 1)` for each group of weights.

    The half-Cauchy is a mixture of inverse gammas, `lambda^2 | a ~ IG(1/2, 1/a)` and `a ~ IG(1/2, 1)`. Under
    independent `q(w) q(lambda^2) q(a)` the best `q(lambda^2)` and `q(a)` are inverse gammas in closed form, so that the
    prior needs no variables. For a group of `n` weights, `M = sum E_q[w^2] / (2 tau^2)`, `c = (n + 1) / 2` and
    `u = E_q[1 / lambda^2]`, whose value gives `E_q[1 / a] = 1 / (1 + u)`, the divergence is

        KL <= M u - c log u + log(1 + u) + c log c - c - log Gamma(c) + log pi - n/2 - sum log(scale / tau)

    for every `u > 0`. It is least where `M u^2 + (M + 1 - c) u - c = 0`; `kl` takes the positive root. The gradient is
    taken at fixed `u`, which is exact there (envelope theorem). The ELBO stays a lower bound; it is below that of the
    half-Cauchy itself by about a nat a group (at most 1.4 for 1 and 3 weights and scales from `tau / 100` up).

    Args:
        groups: Which weights share a `lambda`: `"weight"` (none), `"row"` (an input) or `"column"` (an output). A bias
            is one row.
        global_scale: Positive `tau`, or `"fan_in"` for `1 / sqrt(fan_in)`. Where `p` of `D` groups are expected to
            matter, Piironen and Vehtari advise that scale times `p / (D - p)`.

    Raises:
        ValueError: if `groups` is none of these or `global_scale` is neither.

    Sources: Carvalho, Polson & Scott 2009, "Handling sparsity via the horseshoe"; Wand et al. 2011, "Mean field
    variational Bayes for elaborate distributions", for the mixture; Ghosh, Yao & Doshi-Velez 2018, "Structured
    variational learning of Bayesian neural networks with horseshoe priors"; Piironen & Vehtari 2017, "Sparsity
    information and regularization in the horseshoe and other shrinkage priors", for the global scale.

    Example:
    >>> scale = np.full((4, 2), 0.1, "float32")
    >>> small, large = (float(Horseshoe().kl(np.full((4, 2), m, "float32"), scale, (0,))) for m in (0.0, 50.0))
    >>> large - small < 100  # a Gaussian of scale tau = 1/2 would take 8 * (50 / tau)^2 / 2 = 40,000 nats more
    True
    """

    groups: str = "row"
    global_scale: float | str = "fan_in"

    def __post_init__(self) -> None:
        if self.groups not in HORSESHOE_GROUPS:
            raise ValueError(f"`groups` must be one of {HORSESHOE_GROUPS}, not {self.groups!r}.")
        check_width("global_scale", self.global_scale)

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Zero and `tau / sqrt(u)`: the scale of the Gaussian that the weights have given their `lambda`."""
        tau = width(self.global_scale, mean.shape, input_axes)
        squares = as_matrix(ops.square(mean) + ops.square(scale), input_axes)
        size = self._size(squares)
        local = 1.0 / ops.sqrt(_precision(self._moments(squares, tau), size))
        return 0.0, from_matrix(tau * local * ops.ones_like(squares), mean.shape, input_axes)

    def kl(
        self,
        mean: Tensor,
        scale: Tensor,
        input_axes: Sequence[int] = (),
        log_scale: Tensor | None = None,
        variables: Variables | None = None,
    ) -> Tensor:
        """The bound at its least; scalar, total over the weights, in nats."""
        tau = width(self.global_scale, mean.shape, input_axes)
        squares = as_matrix(ops.square(mean) + ops.square(scale), input_axes)
        size = self._size(squares)
        moments = self._moments(squares, tau)
        precision = ops.stop_gradient(_precision(moments, size))
        shape = 0.5 * (size + 1)
        constant = shape * math.log(shape) - shape - math.lgamma(shape) + math.log(math.pi) - 0.5 * size
        constant += size * math.log(tau)
        groups = moments * precision - shape * ops.log(precision) + ops.log1p(precision) + constant
        return ops.sum(groups) - ops.sum(log_scale_of(scale, log_scale))

    @property
    def why_no_penalty(self) -> str:
        """Why the prior cannot be that of a point estimate."""
        return "its scales, fitted to point estimates, would shrink to zero, where the density has no bound"

    def _size(self, squares: Tensor) -> int:
        """Weights in a group."""
        num_rows, num_columns = squares.shape
        return {"weight": 1, "row": num_columns, "column": num_rows}[self.groups]

    def _moments(self, squares: Tensor, tau: float) -> Tensor:
        """`M` of each group, broadcastable to the weights' matrix."""
        axis = {"row": 1, "column": 0}.get(self.groups)
        totals = squares if axis is None else ops.sum(squares, axis=axis, keepdims=True)
        return 0.5 / tau**2 * totals


def _precision(moments: Tensor, size: int) -> Tensor:
    """The positive root `u` of `M u^2 + (M + 1 - c) u - c = 0`, without cancellation."""
    moments = ops.maximum(moments, _SMALLEST_MOMENT)
    shape = 0.5 * (size + 1)
    slope = moments + (1.0 - shape)
    total = ops.abs(slope) + ops.sqrt(ops.square(slope) + 4.0 * shape * moments)
    return ops.where(slope >= 0.0, 2.0 * shape / total, 0.5 * total / moments)
