"""One tensor of weights with a Gaussian posterior, whatever the layer and the library that hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops


@dataclass(frozen=True, eq=False)
class WeightPosterior:
    """Gaussian posterior and prior of one tensor, weight by weight, and the variables behind it.

    Args:
        layer: Path of the layer.
        mean_variable: Holds the means.
        scale_variables: Hold what the scales are made of.
        read_scale: The standard deviation of each weight, from the values of those variables.
        write_scale: Values of those variables that make the weights independent with given standard deviations.
        prior_mean: Prior means, broadcastable; those of `Prior.parameters`, where the prior is not Gaussian.
        prior_scale: Prior standard deviations, broadcastable; likewise.
        rest: Mean and standard deviation at which the prior alone would hold each weight (`Prior.resting_place`).
        is_factor: Whether it multiplies entries of the layer's inputs or outputs one by one.
    """

    layer: str
    mean_variable: keras.Variable
    scale_variables: tuple[keras.Variable, ...]
    read_scale: Callable[..., np.ndarray]
    write_scale: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    prior_mean: Any
    prior_scale: Any
    rest: tuple[Any, Any]
    is_factor: bool = False

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """All variables of the posterior, the means first."""
        return (self.mean_variable, *self.scale_variables)

    @property
    def mean(self) -> np.ndarray:
        """Posterior means."""
        return to_numpy(self.mean_variable)

    @property
    def scale(self) -> np.ndarray:
        """Posterior standard deviations."""
        return self.read_scale(*(to_numpy(variable) for variable in self.scale_variables))

    def excess(self) -> np.ndarray:
        """How far each weight by itself is from where its prior alone would hold it, in nats (Q9).

        That is the divergence of one Gaussian from the other. Where the prior is Gaussian their sum over independent
        weights is the KL; of other priors, and of correlated weights, only the layer knows it.
        """
        rest_mean, rest_scale = self.rest
        ratio, shift = self.scale / rest_scale, (self.mean - rest_mean) / rest_scale
        return 0.5 * (ratio**2 + shift**2 - 1.0) - np.log(ratio)

    def assign(self, mean: Any, scale: Any) -> None:
        """Sets the posterior to independent Gaussians."""
        shape = tuple(self.mean_variable.shape)
        scale = np.broadcast_to(np.asarray(scale, "float32"), shape)
        self.mean_variable.assign(np.broadcast_to(np.asarray(mean, "float32"), shape))
        for variable, value in zip(self.scale_variables, self.write_scale(scale), strict=True):
            variable.assign(value)


def to_numpy(value: Any) -> np.ndarray:
    """An array of a number, an array or a tensor of any backend."""
    if isinstance(value, (float, int, np.ndarray)):
        return np.asarray(value)
    return ops.convert_to_numpy(ops.convert_to_tensor(value))
