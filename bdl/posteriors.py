"""Posteriors over the weights of one tensor. The wrapped layer's own weight is always the mean.

A posterior object holds settings only; its variables live in the layer, as a dictionary that the layer hands back on
each call. So one object can serve many layers.

Scales are `exp(speed * rho)`. An optimizer with normalised steps, such as Adam, moves `rho` by about its learning
rate a step whatever the gradient; with `speed = 1` a scale then changes by 0.1 % a step at rate 1e-3 and is still near
its start after 2,000 steps. With the default speed of 10 it arrives with the means. Rate and speed multiply: above a
rate of 3e-3 lower the speed in proportion, or the scales overshoot (docs/defaults.md has a run that did).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl import random
from bdl.priors import Normal, Prior, _check_positive, fan_in
from bdl.random import Tensor
from bdl.serialization import Serializable, resolve

_register = keras.saving.register_keras_serializable(package="bdl.posteriors")

INITIAL_RELATIVE_SCALE = 0.1
"""Initial standard deviation of a mean-field weight, in units of `1 / sqrt(fan_in)`."""

Variables = dict[str, Any]
"""Variables of one posterior, by name."""


class Posterior(Serializable):
    """Base of all posteriors: what `kernel_posterior` and its kin accept."""

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds the posterior's variables to the layer.

        Args:
            layer: The layer that owns them.
            name: Name of the weight, used as a prefix.
            mean: The wrapped layer's weight.
            input_axes: Axes of the weight that are summed over in the layer.

        Returns:
            The variables by name, to be handed back to the other methods.
        """
        raise NotImplementedError

    def kl(self, mean: Tensor, variables: Variables, prior: Prior | None, input_axes: Sequence[int]) -> Tensor:
        """Divergence from the prior: scalar, total over the weights, in nats."""
        raise NotImplementedError


@_register
@dataclass(frozen=True)
class MeanFieldNormal(Posterior):
    """Independent Gaussians `N(mean, scale^2)`, the mean being the wrapped weight.

    Args:
        initial_scale: Positive standard deviation at the start. None takes `0.1 / sqrt(fan_in)`.
        initial_ratio: Positive ratio of the standard deviation to the weight's size at the start, in place of
            `initial_scale`: for trained weights, whose size tells how finely they are known. Weights near 0 count as a
            hundredth of the tensor's root mean square.
        speed: Positive factor between the stored parameter and the logarithm of the scale; see the module's docstring.

    Raises:
        ValueError: if an argument is not positive and finite, or both the scale and the ratio are given.

    Source: Graves 2011; Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.

    Example:
    >>> MeanFieldNormal(initial_scale=0.05)
    MeanFieldNormal(initial_scale=0.05, speed=10.0, initial_ratio=None)
    """

    initial_scale: float | None = None
    speed: float = 10.0
    initial_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.initial_scale is not None:
            _check_positive("initial_scale", self.initial_scale, "None or ")
        if self.initial_ratio is not None:
            _check_positive("initial_ratio", self.initial_ratio, "None or ")
            if self.initial_scale is not None:
                raise ValueError(
                    f"`initial_scale`={self.initial_scale!r} and `initial_ratio`={self.initial_ratio!r} both say where "
                    "the scales start: give one of them."
                )
        _check_positive("speed", self.speed)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds `{name}_rho`, of the weight's shape."""
        if self.initial_ratio is not None:
            scale: Any = self.initial_ratio * _sizes(mean)
            return {"rho": _add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed)}
        scale = self.initial_scale or INITIAL_RELATIVE_SCALE / math.sqrt(fan_in(mean.shape, input_axes))
        return {"rho": _add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed)}

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations, the shape of the weight, in float32 or better."""
        return ops.exp(_log_scale(variables["rho"], self.speed))

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        log_scale = _log_scale(variables["rho"], self.speed)
        draw = ops.stop_gradient(ops.exp(log_scale) * random.normal(log_scale.shape, key))
        # Times one, whose gradient says that the draw's with respect to its log scale is the draw itself: the backward
        # pass then needs neither noise nor scale again.
        return draw * (1.0 + log_scale - ops.stop_gradient(log_scale))

    def kl(self, mean: Tensor, variables: Variables, prior: Prior | None, input_axes: Sequence[int]) -> Tensor:
        """Closed form of a Gaussian posterior; scalar, total, in nats."""
        assert prior is not None
        log_scale = _log_scale(variables["rho"], self.speed)
        return prior.kl(ops.convert_to_tensor(mean), ops.exp(log_scale), input_axes, log_scale)


@_register
@dataclass(frozen=True)
class Rank1(Posterior):
    """A point-estimated weight times one random factor for each input and each output feature.

    `W = mean * outer(r, s)` with `r ~ N(mean_r, scale_r^2)` and `s ~ N(mean_s, scale_s^2)`, so that
    `x @ W = ((x * r) @ mean) * s` needs no sampled weight and every example has factors of its own. The divergence is
    that of the factors; the weights themselves are fitted by maximum likelihood (variational EM, not full Bayes).

    Args:
        input_factor_prior: Prior of the input features' factors. `Normal(1, 10)` on a network's first layer lets
            factors of features that the data never use stay broad, which is what detects unseen inputs.
        output_factor_prior: Prior of the output features' factors.
        initial_scale: Positive standard deviation of every factor at the start.
        speed: Positive factor between the stored parameter and the logarithm of a scale.

    Raises:
        ValueError: if a number is not positive and finite or a prior is no prior.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors", eq. 3-5.

    Example:
    >>> Rank1(input_factor_prior=Normal(1.0, 10.0)).input_factor_prior
    Normal(mean=1.0, scale=10.0)
    """

    input_factor_prior: Prior = field(default_factory=lambda: Normal(1.0, 1.0))
    output_factor_prior: Prior = field(default_factory=lambda: Normal(1.0, 1.0))
    initial_scale: float = 0.1
    speed: float = 30.0

    def __post_init__(self) -> None:
        for argument in ("input_factor_prior", "output_factor_prior"):
            if not isinstance(getattr(self, argument), Prior):
                raise ValueError(f"`{argument}` must be a bdl.priors.Prior, not {getattr(self, argument)!r}.")
        _check_positive("initial_scale", self.initial_scale)
        _check_positive("speed", self.speed)

    def create_factors(self, layer: keras.Layer, name: str, shapes: dict[str, tuple[int, ...]]) -> Variables:
        """Adds mean and rho of the factors.

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
            variables[f"{side}_rho"] = _add_rho(layer, f"{prefix}_rho", shape, self.initial_scale, self.speed)
        return variables

    def factor(self, variables: Variables, side: str, noise: Tensor) -> Tensor:
        """The factor of one side for standard normal noise of shape `(batch or 1, ...)`, in float32."""
        scale = ops.exp(_log_scale(variables[f"{side}_rho"], self.speed))
        return ops.convert_to_tensor(variables[f"{side}_mean"]) + scale * noise

    def kl(self, mean: Tensor, variables: Variables, prior: Prior | None, input_axes: Sequence[int]) -> Tensor:
        """Divergence of both factors from their priors; `prior` does not enter. Scalar, total, in nats."""
        total: Tensor = 0.0
        for side, factor_prior in (("input", self.input_factor_prior), ("output", self.output_factor_prior)):
            log_scale = _log_scale(variables[f"{side}_rho"], self.speed)
            factor_mean = ops.convert_to_tensor(variables[f"{side}_mean"])
            total = total + factor_prior.kl(factor_mean, ops.exp(log_scale), log_scale=log_scale)
        return total


_POSTERIORS: dict[str, type] = {"mean_field": MeanFieldNormal, "rank1": Rank1}


def get(posterior: Posterior | str | dict[str, Any], argument: str = "posterior") -> Posterior:
    """Turns a name, a configuration or a posterior into a posterior.

    Args:
        posterior: A `Posterior`; `"mean_field"` or `"rank1"`; or a configuration.
        argument: Name of the argument, for the error message.

    Raises:
        ValueError: if it is none of these.

    Example:
    >>> get("mean_field")
    MeanFieldNormal(initial_scale=None, speed=10.0, initial_ratio=None)
    """
    return resolve(posterior, _POSTERIORS, argument, Posterior)


def _sizes(weight: keras.Variable) -> np.ndarray:
    """Absolute values, those near zero raised to a hundredth of the root mean square."""
    values = np.abs(np.asarray(ops.convert_to_numpy(weight), "float64"))
    return np.maximum(values, max(0.01 * math.sqrt(np.mean(values**2)), 1e-6))


def _add_rho(layer: keras.Layer, name: str, shape: Sequence[int], scale: Any, speed: float) -> keras.Variable:
    rho = np.log(scale) / speed
    # float32 whatever the policy: a half-precision scale would be quantised away.
    return layer.add_weight(
        name=name, shape=tuple(shape), initializer=keras.initializers.Constant(rho), dtype="float32", autocast=False
    )


def _log_scale(rho: keras.Variable, speed: float) -> Tensor:
    return speed * ops.convert_to_tensor(rho)
