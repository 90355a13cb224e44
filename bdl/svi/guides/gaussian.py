"""Distributions over the real line that guides hand out: a Gaussian with its Cholesky factor, and a point.

Whoever draws brings the noise. A draw's log density comes by coordinate, each given the coordinates before it, so that
a joint family has a share for each of its sites:

    u = m + L e,     log q(u_i | u_1 .. u_{i-1}) = -e_i^2 / 2 - log(2 pi) / 2 - log L_ii,     L lower triangular

The gradient of that density has two parts: one through the draw u, and one of the density at u, through m and L. The
second is zero on average and can be left out: sticking the landing (Roeder, Wu, Duvenaud 2017, arXiv 1703.09194,
section 3). What is left, `-L^-T e` for each u, cancels the gradient of a log posterior that is nearly Gaussian draw by
draw, so that steps near the optimum have hardly any noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from keras import ops

from bdl.random import Tensor

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class Block:
    """The Gaussian of some coordinates given a draw of those before them.

    Args:
        mean: `(..., k)`.
        variance: Of each coordinate, `(..., k)`.
        log_scale: Logarithms of the diagonal of the block's Cholesky factor, `(..., k)`.
    """

    mean: Tensor
    variance: Tensor
    log_scale: Tensor

    def kl_from(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Divergence from independent Gaussians, in nats, summed over the coordinates: `(...)`.

        Args:
            loc: Their means, broadcastable to `(..., k)`.
            scale: Their standard deviations.

        Example:
        >>> block = Block(np.zeros(2), np.ones(2), np.zeros(2))
        >>> float(block.kl_from(np.ones(2), np.ones(2)))
        1.0
        """
        squares = (self.variance + (self.mean - loc) ** 2) / scale**2
        return ops.sum(0.5 * (squares - 1.0) + ops.log(scale) - self.log_scale, axis=-1)


class RealLine(Protocol):
    """A distribution of `size` real numbers, reparameterized by standard normal noise: `noise_size` numbers of it."""

    is_point: bool

    def draw(self, noise: Tensor) -> Tensor:
        """The draw that belongs to noise `(..., noise_size)`: `(..., size)`."""

    def log_density(self, noise: Tensor) -> Tensor:
        """Log density of that draw by coordinate, `(..., size)`."""

    def score(self, noise: Tensor) -> Tensor | None:
        """Gradient of the log density in that draw, `(..., size)`.

        None if it is not known, or the draw of the noise reversed is not the draw reflected at a centre.
        """

    def block(self, noise: Tensor, start: int, stop: int) -> Block | None:
        """The Gaussian of coordinates start to stop, given those before them in the draw; None if it is not one."""


class WithoutClosedForms:
    """Base of distributions whose divergences are those of a draw, and whose score is not known or not symmetric."""

    is_point = False

    def score(self, noise: Tensor) -> Tensor | None:
        """None, as `RealLine` says."""

    def block(self, noise: Tensor, start: int, stop: int) -> Block | None:
        """None, as `RealLine` says."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian.

    Args:
        mean: `(..., size)`.
        factor: Standard deviations `(..., size)`, or the Cholesky factor `(..., size, size)`.
        is_diagonal: Which of the two.
        sticks: Whether the gradient of a draw's log density comes through the draw alone. Divergences are then not in
            closed form, which would bring the noise back.

    Example:
    >>> gaussian = Gaussian(np.zeros(2), np.array([[1.0, 0.0], [3.0, 4.0]]), is_diagonal=False)
    >>> np.asarray(gaussian.draw(np.ones(2)))
    array([1., 7.])
    """

    mean: Tensor
    factor: Tensor
    is_diagonal: bool
    sticks: bool = False
    is_point = False

    def draw(self, noise: Tensor) -> Tensor:
        """`m + L e`."""
        return self.mean + self._scaled(self.factor, noise)

    def log_density(self, noise: Tensor) -> Tensor:
        """`log q(u_i | u_1 .. u_{i-1})` of each coordinate."""
        density = log_normal(noise) - self._log_scale(self.factor)
        return stuck(density, self.score(noise), self.draw(noise)) if self.sticks else density

    def score(self, noise: Tensor) -> Tensor:
        """`-L^-T e`."""
        if self.is_diagonal:
            return -noise / self.factor
        return -solved(ops.swapaxes(self.factor, -1, -2), noise, lower=False)

    def block(self, noise: Tensor, start: int, stop: int) -> Block | None:
        """The Gaussian of coordinates start to stop, given a draw of those before them; None if the density sticks."""
        if self.sticks:
            return None
        own = self.factor[..., start:stop] if self.is_diagonal else self.factor[..., start:stop, start:stop]
        mean = self.draw(noise)[..., start:stop] - self._scaled(own, noise[..., start:stop])
        variance = own**2 if self.is_diagonal else ops.sum(own**2, axis=-1)
        return Block(mean, variance, self._log_scale(own))

    def _scaled(self, factor: Tensor, noise: Tensor) -> Tensor:
        return factor * noise if self.is_diagonal else ops.sum(factor * noise[..., None, :], axis=-1)

    def _log_scale(self, factor: Tensor) -> Tensor:
        return ops.log(factor if self.is_diagonal else ops.diagonal(factor, axis1=-2, axis2=-1))


@dataclass(frozen=True, eq=False)
class Point(WithoutClosedForms):
    """All mass at one point, whose density is left out: it does not depend on where the point is.

    Args:
        mean: The point, `(..., size)`.
    """

    mean: Tensor
    is_point = True

    def draw(self, noise: Tensor) -> Tensor:
        """The point, once for each row of noise."""
        return self.mean + ops.zeros_like(noise)

    def log_density(self, noise: Tensor) -> Tensor:
        """Zeros."""
        return ops.zeros_like(noise)


def log_normal(noise: Tensor) -> Tensor:
    """Log density of standard normal numbers, one by one."""
    return -0.5 * noise**2 - _HALF_LOG_TWO_PI


def stuck(log_density: Tensor, score: Tensor, draw: Tensor) -> Tensor:
    """A log density whose gradient comes through the draw alone, by coordinate.

    Args:
        log_density: Of the draw, `(..., size)`.
        score: Its gradient in the draw, `(..., size)`.
        draw: `(..., size)`.
    """
    moved = draw - ops.stop_gradient(draw)  # zero, with the gradient of the draw
    return ops.stop_gradient(log_density) + ops.stop_gradient(score) * moved


def solved(factor: Tensor, vectors: Tensor, lower: bool) -> Tensor:
    """Solutions of `factor @ x = vector`, for each vector.

    Args:
        factor: Triangular, `(size, size)`, or that of each row, `(rows, size, size)`.
        vectors: `(..., size)`, or `(..., rows, size)`.
        lower: Whether the factor is lower triangular.

    Example:
    >>> np.asarray(solved(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([2.0, 3.0]), lower=True))
    array([1., 2.])
    """
    if len(factor.shape) > 2:
        factor = ops.broadcast_to(factor, (*ops.shape(vectors), vectors.shape[-1]))
        return ops.solve_triangular(factor, vectors[..., None], lower=lower)[..., 0]
    columns = ops.transpose(ops.reshape(vectors, (-1, vectors.shape[-1])))
    return ops.reshape(ops.transpose(ops.solve_triangular(factor, columns, lower=lower)), ops.shape(vectors))


def lower_triangular(below: Tensor, diagonal: Tensor) -> Tensor:
    """A lower-triangular matrix.

    Args:
        below: `(..., n, n)`, of which only what lies below the diagonal counts.
        diagonal: `(..., n)`.

    Example:
    >>> np.asarray(lower_triangular(np.full((2, 2), 3.0), np.array([1.0, 2.0])))
    array([[1., 0.],
           [3., 2.]])
    """
    size = diagonal.shape[-1]
    unit = ops.eye(size, dtype=diagonal.dtype)
    return ops.tril(below, k=-1) + diagonal[..., None] * unit
