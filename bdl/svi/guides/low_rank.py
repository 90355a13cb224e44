"""The low-rank guide: a Gaussian whose numbers share a few common factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_positive_integer
from bdl.keras_internals import cumsum, matmul
from bdl.random import Tensor
from bdl.svi.guides.base import LocationScaleGuide, mean_and_scale, softplus_inverse
from bdl.svi.guides.framed import Framed
from bdl.svi.guides.gaussian import WithoutClosedForms, log_normal, stuck

LARGEST_FRAME = 1000
"""Numbers above which the frame is a diagonal: a Cholesky factor of 1,000 has 4 MB, of 10,000 it would have 400."""

START_FACTORS = 0.01
"""Size of the factors where a fit begins, in units of the scales: at zero they would have no gradient on average."""


@keras.saving.register_keras_serializable(package="bdl")
class LowRank(LocationScaleGuide):
    """A Gaussian on the real line with a low-rank covariance and a diagonal one, for globals and as a family of rows.

    `u = origin + frame (shift + D e + W z)`, so that the covariance is `frame (D^2 + W W^T) frame^T`, with a diagonal
    D, a matrix W of `rank` columns and standard normal noise e and z. Variables and the price of a step grow with the
    size times the rank, where those of `FullRank` grow with the square of the size.

    The frame keeps the correlations that `start="laplace"` finds, up to 1,000 numbers; above, and without such a
    start, W has to find them. Gradients stick the landing (`bdl.svi.guides.gaussian`).

    Args:
        rank: Columns of W. More than `size` are not used.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `rank` is not a positive integer.

    Source: Ong, Nott, Smith 2018, "Gaussian variational approximation with a factor covariance structure", section 2.

    Example:
    >>> guide = LowRank(rank=2)
    >>> guide.bind({"slopes": 50})
    >>> guide.noise_size, tuple(guide.distribution().draw(np.zeros(52, "float32")).shape)
    (52, (50,))
    """

    def __init__(self, rank: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rank = check_positive_integer(rank, "rank")

    def num_noise(self, size: int) -> int:
        """A number for each coordinate, and one for each factor."""
        return size + min(self.rank, size)

    def frame_shape(self) -> tuple[int, ...]:
        """A Cholesky factor, or standard deviations where it would be large."""
        return (self.size, self.size) if self.size <= LARGEST_FRAME else (self.size,)

    def frame_of(self, frame: np.ndarray) -> np.ndarray:
        """The frame as it is, or the standard deviation of each coordinate given all others."""
        return frame if len(self.frame_shape()) == 2 else super().frame_of(frame)

    def make_scales(self) -> None:
        """Makes `rho` and the factors."""
        shape = (self.size, min(self.rank, self.size))
        self.rho = self.add_weight(name="rho", shape=shape[:1], initializer="zeros")
        self.factors = self.add_weight(name="factors", shape=shape, initializer="zeros")

    def start_scales(self, scale: float) -> None:
        """Sets D to a multiple of the identity, W to small numbers."""
        self.rho.assign(ops.full((self.size,), softplus_inverse(scale), dtype=self.rho.dtype))
        self.factors.assign(scale * START_FACTORS * _waves(*self.factors.shape))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Framed:
        """The Gaussian."""
        scale = ops.softplus(self.value(self.rho))
        base = LowRankGaussian(self.value(self.shift), scale, self.value(self.factors), sticks=True)
        return Framed(base, self.value(self.origin), self.value(self.frame))

    def num_parameters(self, size: int) -> int:
        """Means, scales and factors."""
        return size * (2 + min(self.rank, size))

    def of_parameters(self, parameters: Tensor, size: int) -> LowRankGaussian:
        """A Gaussian of parameters `(..., num_parameters(size))`."""
        mean, scale = mean_and_scale(parameters, size)
        shape = (size, min(self.rank, size))
        factors = ops.reshape(parameters[..., 2 * size :], (*ops.shape(mean)[:-1], *shape))
        start = ops.convert_to_tensor(START_FACTORS * _waves(*shape), dtype=factors.dtype)
        return LowRankGaussian(mean, scale, factors + start)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "rank": self.rank}


@dataclass(frozen=True, eq=False)
class LowRankGaussian(WithoutClosedForms):
    """A Gaussian with the covariance `D^2 + W W^T`, and draws `m + D e + W z`.

    Its noise is e, then z. Given the coordinates before it, u_i is Gaussian: z has the posterior precision

        P_i = I + sum over j < i of w_j w_j^T / d_j^2

    (`w_j` is row j of W), so that the variance of u_i is `d_i^2 + w_i^T P_i^-1 w_i`, and its distance from its
    conditional mean is `d_i e_i + w_i^T P_i^-1 (z - sum over j < i of w_j e_j / d_j)`, without the differences of large
    numbers that u itself would bring in.

    Args:
        mean: `(..., size)`.
        scale: The diagonal of D, `(..., size)`.
        factors: W, `(..., size, rank)`.
        sticks: Whether the gradient of a draw's log density comes through the draw alone.

    Example:
    >>> gaussian = LowRankGaussian(np.zeros(2, "float32"), np.ones(2, "float32"), np.float32([[2.0], [1.0]]))
    >>> np.asarray(gaussian.draw(keras.ops.convert_to_tensor([0.0, 1.0, 3.0])))
    array([6., 4.], dtype=float32)
    """

    mean: Tensor
    scale: Tensor
    factors: Tensor
    sticks: bool = False

    def draw(self, noise: Tensor) -> Tensor:
        """`m + D e + W z`."""
        own, common = self._parts(noise)
        spread = matmul(common[..., None, :], ops.swapaxes(self.factors, -1, -2))[..., 0, :]
        return self.mean + self.scale * own + spread

    def log_density(self, noise: Tensor) -> Tensor:
        """`log q(u_i | u_1 .. u_{i-1})` of each coordinate."""
        own, common = self._parts(noise)
        factors = self.factors / self.scale[..., None]  # in units of D
        squares = factors[..., :, None] * factors[..., None, :]
        root = _inverse_root(self._identity() + _sums_before(squares, 2))
        rest = common[..., None, :] - _sums_before(factors * own[..., None], 1)
        w = _times(root, factors)
        variance = 1.0 + ops.sum(w**2, axis=-1)
        distance = own + ops.sum(w * _times(root, rest), axis=-1)
        density = log_normal(distance / ops.sqrt(variance)) - ops.log(self.scale) - 0.5 * ops.log(variance)
        return stuck(density, self.score(noise), self.draw(noise)) if self.sticks else density

    def score(self, noise: Tensor) -> Tensor:
        """`-(D^2 + W W^T)^-1 (u - m)`, which is `-D^-1 (e + D^-1 W P^-1 (z - W^T D^-1 e))`, P of all."""
        own, common = self._parts(noise)
        factors = self.factors / self.scale[..., None]
        root = _inverse_root(self._identity() + matmul(ops.swapaxes(factors, -1, -2), factors))
        rest = _times(root, common - matmul(own[..., None, :], factors)[..., 0, :])
        turned = _times(ops.swapaxes(root, -1, -2), rest)
        return -(own + ops.sum(factors * turned[..., None, :], axis=-1)) / self.scale

    def _parts(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        size = self.mean.shape[-1]
        return noise[..., :size], noise[..., size:]

    def _identity(self) -> Tensor:
        return ops.eye(self.factors.shape[-1], dtype=self.factors.dtype)


def _sums_before(terms: Tensor, num_axes: int) -> Tensor:
    """Sums of the terms of all coordinates before each; the coordinates are on the axis before the last `num_axes`."""
    rank = len(terms.shape)
    axis = rank - 1 - num_axes
    order = [each for each in range(rank) if each != axis] + [axis]
    last = ops.transpose(terms, order)
    sums = ops.concatenate([ops.zeros_like(last[..., :1]), cumsum(last[..., :-1])], axis=-1)
    return ops.transpose(sums, np.argsort(order).tolist())


def _inverse_root(precision: Tensor) -> Tensor:
    """`L^-1` of small matrices `L L^T`."""
    root = ops.cholesky(precision)
    identity = ops.eye(precision.shape[-1], dtype=precision.dtype)
    return ops.solve_triangular(root, ops.broadcast_to(identity, ops.shape(root)), lower=True)


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Products with vectors on the last axis; leading axes broadcast."""
    return matmul(matrix, vectors[..., None])[..., 0]


def _waves(size: int, rank: int) -> np.ndarray:
    """Columns of cosines, `(size, rank)`, orthogonal to each other."""
    return np.cos(np.pi * np.outer(np.arange(size) + 0.5, np.arange(rank)) / size)
