"""Independent Gaussians whose scales are products of an input's and an output's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import ops

from bdl.posteriors.base import Posterior, add_rho, log_scale_of, register, scaled_noise, start_scale
from bdl.priors import Prior, Variables, check_positive
from bdl.random import Tensor


@register
@dataclass(frozen=True)
class MatrixNormal(Posterior):
    """Independent Gaussians whose scales are products: one number for each input times one for each output.

    `W ~ N(mean, outer(r, c)^2)`, a matrix-variate Gaussian with diagonal row covariance `r^2` and column covariance
    `c^2`. It is `MeanFieldNormal` with shared scales: `inputs + outputs` of them instead of `inputs * outputs`, and
    every estimator takes it. The axes of a kernel that are summed over count together as its inputs; a bias and an
    embedding have none, so that each of their weights keeps a scale of its own.

    Args:
        initial_scale: Positive standard deviation of a weight at the start. None takes `0.1 / sqrt(fan_in)`.
        speed: Positive factor between the stored parameters and the logarithm of a scale; see `bdl.posteriors`.
            Where both of a weight's parameters move the same way, its scale moves twice as fast as a mean-field one.

    Raises:
        ValueError: if an argument is not positive and finite.

    Source: Louizos & Welling 2016, "Structured and efficient variational deep learning with matrix Gaussian
    posteriors", arXiv 1603.04733, section 3 (without its pseudo-data).

    Example:
    >>> layer = bdl.layers.DenseFlipout(3, kernel_posterior=MatrixNormal())
    >>> layer.build((None, 4))
    >>> {name: tuple(variable.shape) for name, variable in layer.sampled_weights["kernel"].variables.items()}
    {'row_rho': (4, 1), 'column_rho': (1, 3)}
    """

    initial_scale: float | None = None
    speed: float = 10.0

    def __post_init__(self) -> None:
        if self.initial_scale is not None:
            check_positive("initial_scale", self.initial_scale, "None or ")
        check_positive("speed", self.speed)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds `{name}_row_rho` and `{name}_column_rho`, which broadcast to the weight's shape."""
        # Each starts with half of the logarithm.
        scale = math.sqrt(start_scale(self.initial_scale, mean, input_axes))
        rows = [size if axis in input_axes else 1 for axis, size in enumerate(mean.shape)]
        columns = [1 if axis in input_axes else size for axis, size in enumerate(mean.shape)]
        return {
            side: add_rho(layer, f"{name}_{side}", shape, scale, self.speed)
            for side, shape in (("row_rho", rows), ("column_rho", columns))
        }

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations, the shape of the weight, in float32 or better."""
        return ops.exp(self._log_scale(variables))

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        return scaled_noise(self._log_scale(variables), key)

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Closed form of a Gaussian posterior; scalar, total, in nats."""
        log_scale = self._log_scale(variables)
        return prior.kl(ops.convert_to_tensor(mean), ops.exp(log_scale), input_axes, log_scale, prior_variables)

    def _log_scale(self, variables: Variables) -> Tensor:
        return log_scale_of(variables["row_rho"], self.speed) + log_scale_of(variables["column_rho"], self.speed)
