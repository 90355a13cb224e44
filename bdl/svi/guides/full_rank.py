"""The full-rank guide: one Gaussian with all correlations."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.protocols import GaussianVariables
from bdl.random import Tensor
from bdl.svi.guides.base import LocationScaleGuide, mean_and_scale, softplus_inverse
from bdl.svi.guides.gaussian import Gaussian, lower_triangular


@keras.saving.register_keras_serializable(package="bdl")
class FullRank(LocationScaleGuide):
    """A Gaussian on the real line with all correlations, `u = origin + frame (shift + T e)`, for globals.

    `T` is lower triangular with the diagonal `softplus(rho)`. Its variables grow with the square of the size. It comes
    close to posteriors that are nearly Gaussian, so its gradients stick the landing (`bdl.svi.guides.gaussian`).

    Args:
        **kwargs: Of `keras.Layer`.

    Source: Kucukelbir et al. 2017, "Automatic differentiation variational inference", section 2.4; the coordinates are
    those of Dhaka et al. 2020, "Robust, accurate stochastic optimization for variational inference", whitened.

    Example:
    >>> guide = FullRank()
    >>> guide.bind({"slope": 1, "intercept": 1})
    >>> tuple(guide.distribution().draw(np.zeros(2, "float32")).shape)
    (2,)
    """

    def frame_shape(self) -> tuple[int, ...]:
        """A Cholesky factor."""
        return (self.size, self.size)

    def frame_of(self, frame: np.ndarray) -> np.ndarray:
        """The frame as it is."""
        return frame

    def make_scales(self) -> None:
        """Makes `rho` and what is below the diagonal."""
        self.rho = self.add_weight(name="rho", shape=(self.size,), initializer="zeros")
        self.below = self.add_weight(name="below", shape=(self.size, self.size), initializer="zeros")

    def start_scales(self, scale: float) -> None:
        """Sets `T` to a multiple of the identity."""
        self.rho.assign(ops.full((self.size,), softplus_inverse(scale), dtype=self.rho.dtype))
        self.below.assign(np.zeros((self.size, self.size)))

    def inner(self) -> Tensor:
        """`T`."""
        return lower_triangular(self.value(self.below), ops.softplus(self.value(self.rho)))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Gaussian:
        """The Gaussian; the product of two lower-triangular factors is one."""
        frame = self.value(self.frame)
        factor = frame @ self.inner()
        mean = self.value(self.origin) + ops.sum(frame * self.value(self.shift), axis=-1)
        return Gaussian(mean, factor, is_diagonal=False, sticks=True)

    def natural_variables(self) -> list[GaussianVariables]:
        """Mean and Cholesky factor."""
        return [GaussianVariables(self.shift, self.rho, self.below)]

    def num_parameters(self, size: int) -> int:
        """Means, scales, and a matrix, of which what is below the diagonal counts."""
        return size * (2 + size)

    def of_parameters(self, parameters: Tensor, size: int) -> Gaussian:
        """A Gaussian of parameters `(..., size (2 + size))`."""
        mean, scale = mean_and_scale(parameters, size)
        below = ops.reshape(parameters[..., 2 * size :], (*ops.shape(mean)[:-1], size, size))
        return Gaussian(mean, lower_triangular(below, scale), is_diagonal=False)
