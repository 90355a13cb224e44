"""A Gaussian Markov chain over the real line, alone or given other numbers in which its mean is linear.

With noise `e` of the other numbers, `v = m_v + L_v e`, and noise `n_t` of the chain,

    d_t = slope_t d_{t-1} + scale_t n_t,     u_t = mean_t + sum over i of gain_it e_i + d_t

The precision of `d` is `B B^T` with `B` of two diagonals, so that a draw and its density cost as many operations as
there are numbers. The recursion is a scan of affine maps in log2(T) levels, each half as long as the one before: a
composition of maps is a map. Loops over time have no gradient under XLA on TensorFlow, and take T steps one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.gaussian import HALF_LOG_TWO_PI, Gaussian, stuck


def chained(slope: Tensor, shift: Tensor) -> Tensor:
    """Solves `y_t = slope_t y_{t-1} + shift_t` along the last axis, with `y_{-1} = 0`.

    Args:
        slope: `(*chains, T)`; the first does not count.
        shift: `(..., *chains, T)`.

    Returns:
        `(..., *chains, T)`.

    Source: Blelloch 1990, "Prefix sums and their applications", section 1.4.

    Example:
    >>> np.asarray(chained(np.array([0.0, 2.0, 2.0]), np.array([1.0, 1.0, 1.0]))).tolist()
    [1.0, 3.0, 7.0]
    """
    length = shift.shape[-1]
    if length == 1:
        return ops.convert_to_tensor(shift)
    half = length // 2
    # The map over two steps is that of the second after that of the first.
    first, second = slope[..., 0 : 2 * half : 2], slope[..., 1 : 2 * half : 2]
    before, after = shift[..., 0 : 2 * half : 2], shift[..., 1 : 2 * half : 2]
    odd = chained(second * first, after + second * before)  # y_1, y_3, ...
    even = before + first * shifted(odd, 1)
    whole = ops.reshape(ops.stack([even, odd], axis=-1), (*ops.shape(odd)[:-1], 2 * half))
    if length == 2 * half:
        return whole
    last = shift[..., -1:] + slope[..., -1:] * whole[..., -1:]
    return ops.concatenate([whole, last], axis=-1)


def shifted(values: Tensor, steps: int) -> Tensor:
    """Moves values along the last axis by one step, later (1) or earlier (-1), with a zero in the free place.

    Example:
    >>> np.asarray(shifted(np.array([1.0, 2.0]), 1)).tolist()
    [0.0, 1.0]
    """
    zero = ops.zeros_like(values[..., :1])
    if steps == 1:
        return ops.concatenate([zero, values[..., :-1]], axis=-1)
    return ops.concatenate([values[..., 1:], zero], axis=-1)


@dataclass(frozen=True, eq=False)
class Layout:
    """How the numbers of a site lie in a draw, and which of its axes is time.

    Args:
        shape: Of a value.
        axis: Of time, negative.
    """

    shape: tuple[int, ...]
    axis: int

    def as_chains(self, flat: Tensor) -> Tensor:
        """`(..., numbers)` to `(..., *chains, T)`."""
        whole = ops.reshape(flat, (*ops.shape(flat)[:-1], *self.shape))
        return whole if self.axis == -1 else ops.moveaxis(whole, self.axis, -1)

    def as_flat(self, chains: Tensor) -> Tensor:
        """`(..., *chains, T)` to `(..., numbers)`."""
        whole = chains if self.axis == -1 else ops.moveaxis(chains, -1, self.axis)
        return ops.reshape(whole, (*ops.shape(whole)[: len(whole.shape) - len(self.shape)], -1))


@dataclass(frozen=True, eq=False)
class Chain:
    """Gaussian Markov chains, given other numbers that come before them in a draw.

    Args:
        mean: `(..., *chains, T)`.
        slope: Of each number on the one before it; the first of a chain does not count. `(..., *chains, T)`.
        scale: Standard deviation of each number given the one before it, `(..., *chains, T)`.
        layout: Of the chains' numbers in a draw.
        others: The Gaussian of the other numbers; None where there are none.
        gain: What a unit of each other number's noise adds to the mean, `(others, *chains, T)`.
        sticks: Whether the gradient of a draw's log density comes through the draw alone.

    Example:
    >>> chain = Chain(np.zeros(2), np.array([0.0, 3.0]), np.array([1.0, 4.0]), Layout((2,), -1))
    >>> np.asarray(chain.draw(np.ones(2))).tolist()
    [1.0, 7.0]
    """

    mean: Tensor
    slope: Tensor
    scale: Tensor
    layout: Layout
    others: Gaussian | None = None
    gain: Tensor | None = None
    sticks: bool = False
    is_point = False

    def draw(self, noise: Tensor) -> Tensor:
        """The other numbers, then the chains'."""
        first, own = self._parts(noise)
        path = self.mean + chained(self.slope, self.scale * own)
        if self.others is None:
            return self.layout.as_flat(path)
        path = path + ops.tensordot(first, self.gain, axes=1)
        return ops.concatenate([self.others.draw(first), self.layout.as_flat(path)], axis=-1)

    def log_density(self, noise: Tensor) -> Tensor:
        """`log q(u_i | u_1 .. u_{i-1})` of each coordinate."""
        first, own = self._parts(noise)
        density = self.layout.as_flat(-0.5 * own**2 - HALF_LOG_TWO_PI - ops.log(self.scale))
        if self.others is not None:
            plain = self.others.log_density(first)
            density = ops.concatenate([plain, density], axis=-1)
        return stuck(density, self.draw(noise), self._solved(noise)) if self.sticks else density

    def block(self, noise: Tensor, start: int, stop: int) -> None:
        """None: divergences are those of the draw itself, which at the optimum have no noise in their gradient."""

    def _parts(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise of the other numbers, `(..., others)`, and of the chains, `(..., *chains, T)`."""
        number = 0 if self.gain is None else self.gain.shape[0]
        return noise[..., :number], self.layout.as_chains(noise[..., number:])

    def _solved(self, noise: Tensor) -> Tensor:
        """`L^-T e`, L the Cholesky factor of all numbers' covariance."""
        first, own = self._parts(noise)
        weighted = own / self.scale
        path = weighted - shifted(self.slope * weighted, -1)
        if self.others is None or self.gain is None:
            return self.layout.as_flat(path)
        rank = len(self.gain.shape) - 1
        axes = list(range(-rank, 0))
        pulled = ops.tensordot(path, self.gain, axes=[axes, axes])
        return ops.concatenate([self.others.solved(first - pulled), self.layout.as_flat(path)], axis=-1)
