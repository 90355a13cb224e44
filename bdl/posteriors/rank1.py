"""Point-estimated weights between random factors of inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import keras
from keras import ops

from bdl.posteriors.base import Component, FactorPosterior, add_rho, log_scale_of, register
from bdl.posteriors.mean_field import MeanFieldNormal
from bdl.priors import Normal, Prior, Variables, check_penalty, check_positive
from bdl.random import Tensor


@register
@dataclass(frozen=True)
class Rank1(FactorPosterior):
    """A point-estimated weight times one random factor for each input and each output feature.

    `W = mean * outer(r, s)` with `r ~ N(mean_r, scale_r^2)` and `s ~ N(mean_s, scale_s^2)`, so that
    `x @ W = ((x * r) @ mean) * s` needs no sampled weight and every example has factors of its own. The divergence is
    that of the factors. The weights themselves are point estimates (variational EM, not full Bayes): of maximum
    likelihood, or with `kernel_prior` of maximum posterior density, whose penalty `kl` then adds to the divergence.

    Args:
        input_factor_prior: Prior of the input features' factors. `Normal(1, 3)` on a network's first layer lets
            factors of features that are empty in training stay broad, which is what detects unseen inputs. Where all
            features are in use, as in photographs, it costs accuracy; `bdl.layers.InputFactors` tells them apart.
        output_factor_prior: Prior of the output features' factors.
        initial_scale: Positive standard deviation of every factor at the start.
        speed: Positive factor between the stored parameter and the logarithm of a scale.
        kernel_prior: Prior of the weights, charged by its `penalty` in nats: `Normal(0, 1)` is weight decay of `1 / N`
            for `N` examples. None is maximum likelihood.

    Raises:
        ValueError: if a number is not positive and finite, a prior is no prior, or `kernel_prior` has no penalty.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors", eq. 3-5.

    Example:
    >>> Rank1(input_factor_prior=Normal(1.0, 3.0)).input_factor_prior
    Normal(mean=1.0, scale=3.0)
    """

    input_factor_prior: Prior = field(default_factory=lambda: Normal(1.0, 1.0))
    output_factor_prior: Prior = field(default_factory=lambda: Normal(1.0, 1.0))
    initial_scale: float = 0.1
    speed: float = 30.0
    kernel_prior: Prior | None = None

    def __post_init__(self) -> None:
        check_penalty("kernel_prior", self.kernel_prior)
        for argument in ("input_factor_prior", "output_factor_prior"):
            if not isinstance(getattr(self, argument), Prior):
                raise ValueError(f"`{argument}` must be a bdl.priors.Prior, not {getattr(self, argument)!r}.")
        check_positive("initial_scale", self.initial_scale)
        check_positive("speed", self.speed)

    def create_factors(self, layer: keras.Layer, name: str, shapes: dict[str, tuple[int, ...]]) -> Variables:
        """Adds mean and rho of the factors, and what their priors keep.

        Args:
            layer: The layer that owns them.
            name: Name of the weight, used as a prefix.
            shapes: Shape of the `"input"` and of the `"output"` factor.
        """
        variables: Variables = {}
        for side, shape in shapes.items():
            prefix = f"{name}_{side}_factor"
            variables[f"{side}_mean"] = layer.add_weight(
                name=f"{prefix}_mean", shape=shape, initializer="ones", dtype="float32", autocast=False
            )
            variables[f"{side}_rho"] = add_rho(layer, f"{prefix}_rho", shape, self.initial_scale, self.speed)
            held = self._factor_prior(side).create(layer, prefix, variables[f"{side}_mean"])
            variables |= {f"{side}_prior_{key}": variable for key, variable in held.items()}
        return variables

    def factor_mean(self, variables: Variables, side: str) -> keras.Variable:
        """Means of one side's factor, which start at one."""
        return variables[f"{side}_mean"]

    def factor(self, variables: Variables, side: str, noise: Tensor, entries: Tensor | None = None) -> Tensor:
        """The factor of one side for standard normal noise; see `FactorPosterior`."""
        mean, rho = (variables[f"{side}_{part}"] for part in ("mean", "rho"))
        if entries is not None:
            mean, rho = ops.take(mean, entries, axis=0), ops.take(rho, entries, axis=0)
        return ops.convert_to_tensor(mean) + ops.exp(log_scale_of(rho, self.speed)) * noise

    def components(self, variables: Variables) -> list[Component]:
        """The factors of inputs and of outputs, whose posterior is `MeanFieldNormal`."""
        family = MeanFieldNormal(speed=self.speed)
        return [
            Component(
                mean=self.factor_mean(variables, side),
                posterior=family,
                prior=self._factor_prior(side),
                input_axes=(),
                variables={"rho": variables[f"{side}_rho"]},
                prior_variables=self.factor_prior_variables(variables, side),
            )
            for side in ("input", "output")
        ]

    def factor_prior_variables(self, variables: Variables, side: str) -> Variables:
        """Variables of the prior of one side's factor, as its `create` named them."""
        prefix = f"{side}_prior_"
        return {key.removeprefix(prefix): value for key, value in variables.items() if key.startswith(prefix)}

    def _factor_prior(self, side: str) -> Prior:
        return self.input_factor_prior if side == "input" else self.output_factor_prior
