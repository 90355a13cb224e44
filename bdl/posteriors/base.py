"""What every posterior offers, and the small pieces that several of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from bdl import random
from bdl.priors import Prior, Variables, fan_in
from bdl.random import Tensor
from bdl.serialization import Serializable

register = keras.saving.register_keras_serializable(package="bdl.posteriors")

INITIAL_RELATIVE_SCALE = 0.1
"""Initial standard deviation of a mean-field weight, in units of `1 / sqrt(fan_in)`."""


class Posterior(Serializable):
    """Base of all posteriors: what `kernel_posterior` and its kin accept."""

    has_independent_weights: ClassVar[bool] = True
    """Whether the weights' random parts are independent of each other, as flipout and local reparameterization need."""

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

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior | None,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Divergence from the prior: scalar, total over the weights, in nats.

        Args:
            mean: The wrapped layer's weight.
            variables: The posterior's, from `create`.
            prior: The prior; None where the posterior holds priors of its own.
            input_axes: Axes of the weight that are summed over in the layer.
            prior_variables: The prior's, from its `create`.
        """
        raise NotImplementedError


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
