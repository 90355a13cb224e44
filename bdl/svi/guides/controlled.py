"""A quadratic control variate for Gaussian guides: it takes noise off the gradient and changes no expectation.

Let `u = m + L e` be a draw, f the part of the objective that reads it, and m', L' today's m and L, held constant. With
`z = L'^-1 (u - m')`, the draw in units of the guide, the quadratic `q(u) = b'z + sum_i c_i z_i^2 / 2` has the mean

    E q = b'L'^-1 (m - m') + sum_i c_i (L'^-1 ((m - m')(m - m')' + L L') L'^-T)_ii / 2

for any b and c. The objective gets `E q - q(u)`, whose gradient in m and L is zero on average and cancels what is
linear and, coordinate by coordinate, quadratic in f (Miller et al. 2017, arXiv 1705.07880; Geffner and Domke 2020,
arXiv 2007.14634). Mirrored draws cancel the linear part of the gradient in m as well.

The coefficients are variables of the guide, which the model's optimizer trains. At b = E L'grad f and
c_i = E e_i (L'grad f)_i, which is (L'(E hess f) L)_ii (Price's theorem), the gradients `b - L'grad f` and
`c_i - e_i (L'grad f)_i` are zero on average: these the coefficients get, along with the gradient of the objective, from
no further evaluation of the story. A step reads the coefficients that earlier steps have made, never its own draws.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.base import LocationScaleGuide
from bdl.svi.guides.gaussian import Gaussian

CONTROL_VARIATES = (None, "quadratic")


class Controlled(LocationScaleGuide):
    """Base of Gaussian guides that may have a control variate.

    Args:
        control_variate: `"quadratic"`, or None for none.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `control_variate` is neither.
    """

    def __init__(self, control_variate: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if control_variate not in CONTROL_VARIATES:
            raise ValueError(f"`control_variate` must be 'quadratic' or None, not {control_variate!r}.")
        self.control_variate = control_variate

    def make_variables(self, data: Any, given_size: int) -> None:
        """Makes those of a guide, then the coefficients b and c, which begin at zero."""
        super().make_variables(data, given_size)
        if self.control_variate:
            self.slope = self._weight("slope", (self.size,), "zeros")
            self.curvature = self._weight("curvature", (self.size,), "zeros")

    def teaching(self, family: Gaussian, noise: Tensor, real: Tensor) -> Tensor:
        """Draws as they are, which hand the coefficients the gradients `-L'grad f` and `-e_i (L'grad f)_i`.

        Args:
            family: The guide's distribution.
            noise: e of each draw, `(draws, size)`.
            real: The draws, `(draws, size)`.
        """
        moved = _zero(self.value(self.slope)) + _zero(self.value(self.curvature)) * noise
        factor = ops.stop_gradient(family.factor)
        return real - Gaussian(ops.zeros_like(moved), factor, family.is_diagonal).draw(moved)

    def control(self, family: Gaussian, noise: Tensor) -> Tensor:
        """Zero, with the gradient of `E q - q(u)`, mean over the draws, and that of the coefficients: a scalar.

        Args:
            family: The guide's distribution.
            noise: e of each draw, `(draws, size)`.
        """
        slope, curvature = self.value(self.slope), self.value(self.curvature)
        held = ops.stop_gradient(slope), ops.stop_gradient(curvature)
        mean, scales, each = _in_units(family, noise)
        expected = ops.sum(held[0] * mean + 0.5 * held[1] * (mean**2 + scales), axis=-1)
        drawn = ops.mean(ops.sum(held[0] * each + 0.5 * held[1] * each**2, axis=-1))
        return _zero(expected - drawn + 0.5 * ops.sum(slope**2 + curvature**2))

    def get_config(self) -> dict[str, Any]:
        """Configuration from which the guide can be made again."""
        return {**super().get_config(), "control_variate": self.control_variate}


def _in_units(family: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`L'^-1 (m - m')` and the diagonal of `L'^-1 L L' L'^-T`, `(size,)`, and z of each draw, `(draws, size)`."""
    held = ops.stop_gradient(family.factor)
    shifted, each = _zero(family.mean), family.draw(noise) - ops.stop_gradient(family.mean)
    if family.is_diagonal:
        return shifted / held, (family.factor / held) ** 2, each / held
    solved = ops.solve_triangular(held, ops.concatenate([shifted[:, None], ops.transpose(each)], axis=1), lower=True)
    scales = ops.sum(ops.solve_triangular(held, family.factor, lower=True) ** 2, axis=-1)
    return solved[:, 0], scales, ops.transpose(solved[:, 1:])


def _zero(value: Tensor) -> Tensor:
    """Zero, with the gradient of a value."""
    return value - ops.stop_gradient(value)
