"""A distribution in coordinates of its own: those of a fit's start."""

from __future__ import annotations

from dataclasses import dataclass

from keras import ops

from bdl.keras_internals import matmul
from bdl.random import Tensor
from bdl.svi.guides.gaussian import RealLine, WithoutClosedForms


@dataclass(frozen=True, eq=False)
class Framed(WithoutClosedForms):
    """`u = origin + frame v`, for v of another distribution. Origin and frame are constants.

    What is numerically hard, scales apart by powers of ten and correlations near 1, stays in the frame: densities are
    those of v, plus a constant.

    Args:
        base: The distribution of v.
        origin: `(size,)`.
        frame: Standard deviations `(size,)`, or a lower-triangular matrix `(size, size)`.

    Example:
    >>> from bdl.svi.guides.gaussian import Gaussian
    >>> base = Gaussian(keras.ops.zeros(2), keras.ops.ones(2), is_diagonal=True)
    >>> framed = Framed(base, keras.ops.ones(2), keras.ops.convert_to_tensor([[1.0, 0.0], [3.0, 4.0]]))
    >>> np.asarray(framed.draw(keras.ops.ones(2)))
    array([2., 8.], dtype=float32)
    """

    base: RealLine
    origin: Tensor
    frame: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """`origin + frame v`."""
        base = self.base.draw(noise)
        if self._is_diagonal():
            return self.origin + self.frame * base
        return self.origin + matmul(base[..., None, :], ops.transpose(self.frame))[..., 0, :]

    def log_density(self, noise: Tensor) -> Tensor:
        """Log density by coordinate: below the diagonal a frame changes what a coordinate is given, not its scale."""
        diagonal = self.frame if self._is_diagonal() else ops.diagonal(self.frame)
        return self.base.log_density(noise) - ops.log(diagonal)

    def _is_diagonal(self) -> bool:
        return len(self.frame.shape) == 1
