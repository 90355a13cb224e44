"""A mixture of Gaussians of several scales around zero: weights that matter and weights that do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.priors.base import Prior, Variables, check_positive, log_scale_of, register, width
from bdl.random import Tensor

_SPEED = 10.0  # between a stored number and a logarithm, as in bdl.posteriors: Adam at 1e-3 then moves it 1 % a step


@register
@dataclass(frozen=True)
class ScaleMixture(Prior):
    """`sum_k weights[k] N(0, scales[k]^2)` on each weight.

    A Gaussian's divergence from a mixture has no closed form. `kl` is the bound that makes the component of each weight
    one more latent variable, with its best posterior, so that the ELBO stays a lower bound:

        KL(q || sum_k pi_k p_k) <= -log sum_k pi_k exp(-KL(q || p_k))                  [nats per weight]

    It is exact for one component, and where one is responsible for all that the posterior reaches. In between it is
    too large by the mean divergence from the component's posterior averaged over `q` to the one given each weight: at
    most 2.5 nats per weight for the default mixture (at a posterior scale of 4 times its small one), and without limit
    as the scales move apart.

    Args:
        weights: Positive probabilities of the components; they sum to 1.
        scales: Their positive standard deviations.
        relative_to: `"fan_in"` has them in units of `1 / sqrt(fan_in)`; None takes them as they are.
        learned: Whether probabilities and scales are variables of the layer, for each weight tensor its own, fitted by
            the optimizer that maximises the ELBO (type-II maximum likelihood).

    Raises:
        ValueError: if numbers or lengths are wrong; on use, if a learned mixture is not given its variables.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", eq. 7; its mixtures have `weights` in
    (1/4, 1/2, 3/4), a large scale in (1, e^-1, e^-2) and a small one in (e^-6, e^-7, e^-8).

    Example:
    >>> zero, scale = np.zeros(1, "float32"), np.full(1, 0.0025, "float32")
    >>> round(float(ScaleMixture().kl(zero, scale)), 2)  # log 2: the small component fits, and has half of the mass
    0.69
    """

    weights: tuple[float, ...] = (0.5, 0.5)
    scales: tuple[float, ...] = (1.0, 0.0025)
    relative_to: str | None = None
    learned: bool = False

    def __post_init__(self) -> None:
        for argument in ("weights", "scales"):
            values = getattr(self, argument)
            if not isinstance(values, (tuple, list)) or not values:
                raise ValueError(f"`{argument}` must hold a number for each component, not {values!r}.")
            for value in values:
                check_positive(argument, value, "for each component ")
            object.__setattr__(self, argument, tuple(float(value) for value in values))
        if len(self.weights) != len(self.scales) or abs(sum(self.weights) - 1.0) > 1e-6:
            raise ValueError(
                f"`weights` must sum to 1, one for each of `scales` {self.scales!r}, not be {self.weights!r}."
            )
        if self.relative_to not in (None, "fan_in"):
            raise ValueError(f"`relative_to` must be None or 'fan_in', not {self.relative_to!r}.")
        if not isinstance(self.learned, bool):
            raise ValueError(f"`learned` must be True or False, not {self.learned!r}.")

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable) -> Variables:
        """Adds `{name}_mixture_log_scales` and `{name}_mixture_logits`, both a tenth of their value, where learned."""
        if not self.learned:
            return {}
        starts = {"log_scales": np.log(self.scales), "logits": np.log(self.weights)}
        return {
            key: layer.add_weight(
                name=f"{name}_mixture_{key}",
                shape=start.shape,
                initializer=_start(start / _SPEED),
                dtype="float32",
                autocast=False,
            )
            for key, start in starts.items()
        }

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Zero and the mixture's standard deviation: those of the Gaussian of the same mean and variance."""
        unit = self._unit(mean.shape, input_axes)
        square = sum(_exp(log_weight + 2.0 * log_scale) for log_weight, log_scale in self._components(variables))
        return 0.0, unit * (math.sqrt(square) if isinstance(square, float) else ops.sqrt(square))

    def resting_place(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """Zero and the scale of the components that each weight is given to: `(sum_k r_k / s_k^2)^(-1/2)`."""
        unit = self._unit(mean.shape, input_axes)
        log_scales = ops.stack([ops.cast(log_scale, "float32") for _, log_scale in self._components(variables)])
        log_terms = self._log_terms((ops.square(mean) + ops.square(scale)) / unit**2, variables)
        shape = (-1, *(1,) * len(mean.shape))
        log_precision = ops.logsumexp(ops.log_softmax(log_terms, axis=0) - 2.0 * ops.reshape(log_scales, shape), axis=0)
        return 0.0, unit * ops.exp(-0.5 * log_precision)

    def kl(
        self,
        mean: Tensor,
        scale: Tensor,
        input_axes: Sequence[int] = (),
        log_scale: Tensor | None = None,
        variables: Variables | None = None,
    ) -> Tensor:
        """The bound; scalar, total over the weights, in nats."""
        unit = self._unit(mean.shape, input_axes)
        squares = (ops.square(mean) + ops.square(scale)) / unit**2
        log_ratio = log_scale_of(scale, log_scale) - math.log(unit)
        return -ops.sum(0.5 + log_ratio + self._log_mass(squares, variables))

    @property
    def why_no_penalty(self) -> str | None:
        """Why the prior cannot be that of a point estimate, if its scales are learned."""
        shrinking = "scales fitted to point estimates shrink to zero, where the density has no bound"
        return shrinking if self.learned else None

    def penalty(self, mean: Tensor, input_axes: Sequence[int] = (), variables: Variables | None = None) -> Tensor:
        """Log density at 0 minus that at the weights; scalar, total, in nats."""
        if self.learned:
            return super().penalty(mean, input_axes, variables)
        squares = ops.square(mean / self._unit(mean.shape, input_axes))
        return ops.sum(self._log_mass(ops.zeros_like(squares), None) - self._log_mass(squares, None))

    def _unit(self, shape: Sequence[int], input_axes: Sequence[int]) -> float:
        return 1.0 if self.relative_to is None else width(self.relative_to, shape, input_axes)

    def _components(self, variables: Variables | None) -> list[tuple[Any, Any]]:
        """Logarithms of each component's probability and scale."""
        if not self.learned:
            return [
                (math.log(weight), math.log(scale)) for weight, scale in zip(self.weights, self.scales, strict=True)
            ]
        if not variables or "logits" not in variables:
            raise ValueError("A learned mixture needs `variables` as `ScaleMixture.create` made them.")
        log_scales, logits = (_SPEED * ops.convert_to_tensor(variables[key]) for key in ("log_scales", "logits"))
        log_weights = logits - ops.logsumexp(logits)
        return [(log_weights[k], log_scales[k]) for k in range(len(self.scales))]

    def _log_mass(self, squares: Tensor, variables: Variables | None) -> Tensor:
        """`log sum_k (pi_k / s_k) exp(-squares / (2 s_k^2))` of each weight."""
        return ops.logsumexp(self._log_terms(squares, variables), axis=0)

    def _log_terms(self, squares: Tensor, variables: Variables | None) -> Tensor:
        """The terms of that sum in logarithms, on the first axis: log responsibilities but for a constant."""
        terms = [
            (log_weight - log_scale) - 0.5 * _exp(-2.0 * log_scale) * squares
            for log_weight, log_scale in self._components(variables)
        ]
        return ops.stack(terms)


def _exp(value: Any) -> Any:
    return math.exp(value) if isinstance(value, float) else ops.exp(value)


def _start(values: Any) -> Any:
    """An initializer that gives these values."""

    def initialize(shape: Any, dtype: Any = None) -> Tensor:
        return ops.convert_to_tensor(values, dtype=dtype)

    return initialize
