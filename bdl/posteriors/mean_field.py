"""Independent Gaussians: a scale for each weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.posteriors.base import Posterior, add_rho, log_scale_of, register, scaled_noise, start_scale
from bdl.priors import Prior, Variables, check_positive
from bdl.protocols import GaussianVariables
from bdl.random import Tensor


@register
@dataclass(frozen=True)
class MeanFieldNormal(Posterior):
    """Independent Gaussians `N(mean, scale^2)`, the mean being the wrapped weight.

    Args:
        initial_scale: Positive standard deviation at the start. None takes `0.1 / sqrt(fan_in)`.
        initial_ratio: Positive ratio of the standard deviation to the weight's size at the start, in place of
            `initial_scale`: for trained weights, whose size tells how finely they are known. Weights near 0 count as a
            hundredth of the tensor's root mean square.
        speed: Positive factor between the stored parameter and the logarithm of the scale; see `bdl.posteriors`.

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
            check_positive("initial_scale", self.initial_scale, "None or ")
        if self.initial_ratio is not None:
            check_positive("initial_ratio", self.initial_ratio, "None or ")
            if self.initial_scale is not None:
                raise ValueError(
                    f"`initial_scale`={self.initial_scale!r} and `initial_ratio`={self.initial_ratio!r} both say where "
                    "the scales start: give one of them."
                )
        check_positive("speed", self.speed)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds `{name}_rho`, of the weight's shape."""
        if self.initial_ratio is not None:
            scale: Any = self.initial_ratio * _sizes(mean)
            return {"rho": add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed)}
        scale = start_scale(self.initial_scale, mean, input_axes)
        return {"rho": add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed)}

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations, the shape of the weight, in float32 or better."""
        return ops.exp(log_scale_of(variables["rho"], self.speed))

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        return scaled_noise(log_scale_of(variables["rho"], self.speed), key)

    def gaussian_variables(self, mean: keras.Variable, variables: Variables) -> GaussianVariables:
        """The mean, and the logarithms of the scales."""
        return GaussianVariables(mean, variables["rho"], speed=self.speed)

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Closed form of a Gaussian posterior; scalar, total, in nats."""
        log_scale = log_scale_of(variables["rho"], self.speed)
        return prior.kl(ops.convert_to_tensor(mean), ops.exp(log_scale), input_axes, log_scale, prior_variables)


def _sizes(weight: keras.Variable) -> np.ndarray:
    """Absolute values, those near zero raised to a hundredth of the root mean square."""
    values = np.abs(np.asarray(ops.convert_to_numpy(weight), "float64"))
    return np.maximum(values, max(0.01 * math.sqrt(np.mean(values**2)), 1e-6))
