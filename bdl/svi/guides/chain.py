"""A Gaussian Markov chain over the real line, alone or given other numbers in which its mean is linear.

With noise `e` of the other numbers, `v = m_v + L_v e`, and noise `n_t` of the chain,

    d_t = slope_t d_{t-1} + scale_t n_t,     u_t = mean_t + sum over i of gain_it e_i + d_t

The precision of `d` is `B B^T` with `B` of two diagonals. The recursion is a scan of affine maps, whose composition is
one, in log2(T) rounds over all T numbers. A loop over time has no gradient under XLA on TensorFlow, and takes T steps
one after the other; a scan that halves its length in each round has fewer operations, but at T = 1,000 took three times
longer, for XLA fuses these rounds and not its strided slices.
"""

from __future__ import annotations

from dataclasses import dataclass

from keras import ops

from bdl.keras_internals import compiled
from bdl.random import Tensor
from bdl.svi.guides.gaussian import Gaussian, log_normal, stuck


@compiled
def chained(slope: Tensor, shift: Tensor) -> Tensor:
    """Solves `y_t = slope_t y_{t-1} + shift_t` along the last axis, with `y_{-1} = 0`.

    Args:
        slope: `(*chains, T)`; the first does not count.
        shift: `(..., *chains, T)`.

    Returns:
        `(..., *chains, T)`.

    Source: Hillis and Steele 1986, "Data parallel algorithms", the sum of all prefixes.

    Example:
    >>> np.asarray(chained(np.array([0.0, 2.0, 2.0]), np.array([1.0, 1.0, 1.0]))).tolist()
    [1.0, 3.0, 7.0]
    """
    distance = 1
    while distance < shift.shape[-1]:  # `shift` then tells what the last `distance` steps lead to, from zero
        shift = shift + slope * later(shift, distance)
        slope = slope * later(slope, distance)
        distance *= 2
    return shift


def later(values: Tensor, steps: int) -> Tensor:
    """Moves values along the last axis by some steps, with zeros where they were.

    Example:
    >>> np.asarray(later(np.array([1.0, 2.0]), 1)).tolist()
    [0.0, 1.0]
    """
    return ops.concatenate([ops.zeros_like(values[..., :steps]), values[..., :-steps]], axis=-1)


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
        density = self.layout.as_flat(log_normal(own) - ops.log(self.scale))
        if self.others is not None:
            density = ops.concatenate([self.others.log_density(first), density], axis=-1)
        return stuck(density, self.solved(noise), self.draw(noise)) if self.sticks else density

    def block(self, noise: Tensor, start: int, stop: int) -> None:
        """None: divergences are those of the draw itself, which at the optimum have no noise in their gradient."""

    def _parts(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise of the other numbers, `(..., others)`, and of the chains, `(..., *chains, T)`."""
        number = 0 if self.gain is None else self.gain.shape[0]
        return noise[..., :number], self.layout.as_chains(noise[..., number:])

    def solved(self, noise: Tensor) -> Tensor:
        """`L^-T e`, L the Cholesky factor of all numbers' covariance."""
        first, own = self._parts(noise)
        weighted = own / self.scale
        pulled = (self.slope * weighted)[..., 1:]
        path = weighted - ops.concatenate([pulled, ops.zeros_like(weighted[..., :1])], axis=-1)
        if self.others is None or self.gain is None:
            return self.layout.as_flat(path)
        rank = len(self.gain.shape) - 1
        axes = list(range(-rank, 0))
        felt = ops.tensordot(path, self.gain, axes=[axes, axes])
        return ops.concatenate([self.others.solved(first - felt), self.layout.as_flat(path)], axis=-1)
