"""The mean-field guide: independent Gaussians on the real line."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl.protocols import GaussianVariables
from bdl.random import Tensor
from bdl.svi.guides.base import LocationScaleGuide, mean_and_scale, softplus_inverse
from bdl.svi.guides.gaussian import Gaussian


@keras.saving.register_keras_serializable(package="bdl")
class MeanField(LocationScaleGuide):
    """Independent Gaussians on the real line, `u_i = origin_i + frame_i (shift_i + softplus(rho_i) e_i)`, for globals.

    It knows no correlations: where the posterior has some, its standard deviations are too small. `FullRank` knows
    them.

    Args:
        **kwargs: Of `keras.Layer`.

    Source: Kucukelbir et al. 2017, "Automatic differentiation variational inference", section 2.4.

    Example:
    >>> guide = MeanField()
    >>> guide.bind({"mean": 1, "scales": 2})
    >>> [variable.name for variable in guide.trainable_variables], guide.coordinates("scales")
    (['shift', 'rho'], (1, 3))
    """

    def make_scales(self) -> None:
        """Makes `rho`."""
        self.rho = self.add_weight(name="rho", shape=(self.size,), initializer="zeros")

    def start_scales(self, scale: float) -> None:
        """Sets all scales to one number."""
        self.rho.assign(ops.full((self.size,), softplus_inverse(scale), dtype=self.rho.dtype))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Gaussian:
        """The Gaussian."""
        frame = self.value(self.frame)
        mean = self.value(self.origin) + frame * self.value(self.shift)
        return Gaussian(mean, frame * ops.softplus(self.value(self.rho)), is_diagonal=True)

    def natural_variables(self) -> list[GaussianVariables]:
        """Means and scales."""
        return [GaussianVariables(self.shift, self.rho)]

    def num_parameters(self, size: int) -> int:
        """Means and scales."""
        return 2 * size

    def of_parameters(self, parameters: Tensor, size: int) -> Gaussian:
        """A Gaussian of parameters `(..., 2 size)`."""
        return Gaussian(*mean_and_scale(parameters, size), is_diagonal=True)
