"""What posteriors offer, those that draw weights and those that draw factors, and the small pieces that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from bdl import random
from bdl.priors import Prior, Variables, fan_in
from bdl.protocols import GaussianVariables
from bdl.random import Tensor
from bdl.serialization import Serializable

register = keras.saving.register_keras_serializable(package="bdl.posteriors")

INITIAL_RELATIVE_SCALE = 0.1
"""Initial standard deviation of a mean-field weight, in units of `1 / sqrt(fan_in)`."""


class Posterior(Serializable):
    """Base of posteriors whose weights are drawn: what `kernel_posterior` and its kin accept.

    A posterior of your own needs `create`, `perturbation` and `kl`; `scale` as well for local reparameterization.
    """

    samples_weights: ClassVar[bool] = True
    """Whether the weights themselves are drawn, and not factors around point estimates."""

    has_independent_weights: ClassVar[bool] = True
    """Whether the weights' random parts are independent of each other, as flipout and local reparameterization need."""

    def admits(self, estimator: str) -> bool:
        """Whether an estimator of `bdl.layers.Variational` draws these weights as they are distributed."""
        return self.has_independent_weights or estimator == "reparameterization"

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

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations of each weight by itself, the shape of the weight, in float32 or better."""
        raise NotImplementedError

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        raise NotImplementedError

    def gaussian_variables(self, mean: keras.Variable, variables: Variables) -> GaussianVariables | None:
        """The mean and its scales, for natural gradients; None where the weights are no independent Gaussians.

        Args:
            mean: The wrapped layer's weight.
            variables: The posterior's, from `create`.
        """

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Divergence from the prior: scalar, total over the weights, in nats.

        Args:
            mean: The wrapped layer's weight.
            variables: The posterior's, from `create`.
            prior: The prior of the weights.
            input_axes: Axes of the weight that are summed over in the layer.
            prior_variables: The prior's, from its `create`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Component:
    """A tensor that is drawn from a posterior, with all that its divergence depends on.

    Args:
        mean: Holds its means: a weight of the wrapped layer, or factors.
        posterior: Its posterior.
        prior: Its prior.
        input_axes: Its fan-in axes; none for factors.
        variables: The posterior's variables.
        prior_variables: The variables that its prior keeps in the layer.
    """

    mean: keras.Variable
    posterior: Posterior
    prior: Prior
    input_axes: tuple[int, ...]
    variables: Variables
    prior_variables: Variables

    def kl(self) -> Tensor:
        """Divergence from the prior: scalar, total, in nats, in float32 whatever the layer's policy."""
        mean = ops.cast(ops.convert_to_tensor(self.mean), "float32")
        return self.posterior.kl(mean, self.variables, self.prior, self.input_axes, self.prior_variables)


class FactorPosterior(Serializable):
    """Base of posteriors that put random factors on a layer's inputs and outputs; its weights are point estimates.

    It holds priors of its own: those of the factors, and `kernel_prior`. A side is `"input"` or `"output"`.
    """

    samples_weights: ClassVar[bool] = False
    """Whether the weights themselves are drawn, and not factors around point estimates."""

    kernel_prior: Prior | None = None
    """Prior of the point-estimated weights, charged by its `penalty`; None is maximum likelihood."""

    def admits(self, estimator: str) -> bool:
        """Whether an estimator of `bdl.layers.Variational` draws the factors right: all do, in one and the same way."""
        return True

    def create_factors(self, layer: keras.Layer, name: str, shapes: dict[str, tuple[int, ...]]) -> Variables:
        """Adds the factors' variables, and what their priors keep, to the layer.

        Args:
            layer: The layer that owns them.
            name: Name of the weight, used as a prefix.
            shapes: Shape of the factor of each side.

        Returns:
            The variables by name, to be handed back to the other methods.
        """
        raise NotImplementedError

    def factor_mean(self, variables: Variables, side: str) -> keras.Variable:
        """Means of one side's factor."""
        raise NotImplementedError

    def factor(self, variables: Variables, side: str, noise: Tensor, entries: Tensor | None = None) -> Tensor:
        """One side's factor for standard normal noise, in float32.

        Args:
            variables: From `create_factors`.
            side: Whose factor.
            noise: Of shape `(batch or 1, ...)`, the factor's shape after the first axis; that of `entries` with them.
            entries: Integers that pick entries of the first axis, one for each number of the noise; None takes all.
        """
        raise NotImplementedError

    def components(self, variables: Variables) -> list[Component]:
        """The factors of both sides, inputs first, with the prior of each."""
        raise NotImplementedError

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Divergence of the factors from their priors, plus the weights' penalty; scalar, total, in nats.

        Args:
            mean: The wrapped layer's weight.
            variables: From `create_factors`.
            input_axes: Axes of the weight that are summed over in the layer.
            prior_variables: Those of `kernel_prior`, from its `create`.
        """
        total = sum((component.kl() for component in self.components(variables)), ops.zeros((), dtype="float32"))
        if self.kernel_prior is None:
            return total
        return total + self.kernel_prior.penalty(ops.cast(mean, "float32"), input_axes, prior_variables)


AnyPosterior = Posterior | FactorPosterior
"""What a layer accepts as the posterior of a weight."""


def start_scale(initial_scale: float | None, mean: keras.Variable, input_axes: Sequence[int]) -> float:
    """The given standard deviation at the start, or the one that suits the weight's fan-in."""
    return initial_scale or INITIAL_RELATIVE_SCALE / math.sqrt(fan_in(mean.shape, input_axes))


def add_rho(layer: keras.Layer, name: str, shape: Sequence[int], scale: Any, speed: float) -> keras.Variable:
    """Adds the variable that stores a scale, with this scale (a number, or one for each weight) at the start."""
    rho = np.log(scale) / speed
    # float32 whatever the policy: a half-precision scale would be quantised away.
    return layer.add_weight(
        name=name, shape=tuple(shape), initializer=keras.initializers.Constant(rho), dtype="float32", autocast=False
    )


def log_scale_of(rho: keras.Variable, speed: float) -> Tensor:
    """The logarithm of the scale that a variable stores."""
    return speed * ops.convert_to_tensor(rho)


def scaled_noise(log_scale: Tensor, key: Tensor) -> Tensor:
    """Independent noise of the given scales."""
    draw = ops.stop_gradient(ops.exp(log_scale) * random.normal(log_scale.shape, key))
    # Times one, whose gradient says that the draw's with respect to its log scale is the draw itself: the backward
    # pass then needs neither noise nor scale again.
    return draw * (1.0 + log_scale - ops.stop_gradient(log_scale))
