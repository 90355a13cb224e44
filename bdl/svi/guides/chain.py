"""Gaussian Markov chains over the real line, alone or given other numbers.

With noise `e` of the other numbers, `v = m_v + L_v e`, and noise `n_t` of a chain,

    d_t = slope_t(e) d_{t-1} + scale_t(e) n_t,     u_t = mean_t(e) + d_t

where means, slopes and the scales' parameters are linear in `e`. Given the other numbers the precision of `d` is
`B B^T` with `B` of two diagonals. The recursion is a scan of affine maps, whose composition is one, in log2(T) rounds
over all T numbers. A loop over time has no gradient under XLA on TensorFlow, and takes T steps one after the other.

A density that sticks the landing (`bdl.svi.guides.gaussian`) is computed from the draw, with all parameters held: the
noise of the other numbers, their slopes, scales and means, and then the chain's noise, are read off it.
"""

from __future__ import annotations

from dataclasses import dataclass

from keras import ops

from bdl.keras_internals import compiled
from bdl.random import Tensor
from bdl.svi.guides.gaussian import Gaussian, WithoutClosedForms, log_normal


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
class Linear:
    """Numbers that are linear in the noise of the other numbers.

    Args:
        constant: `(..., *chains, T)`.
        gain: What a unit of each other number's noise adds, `(others, *chains, T)`; None where there are none.
    """

    constant: Tensor
    gain: Tensor | None = None

    def at(self, noise: Tensor) -> Tensor:
        """Their values at noise `(..., others)`: `(..., *chains, T)`."""
        return self.constant if self.gain is None else self.constant + ops.tensordot(noise, self.gain, axes=1)

    def fixed(self) -> Linear:
        """The same, without a gradient in what it is made of."""
        gain = None if self.gain is None else ops.stop_gradient(self.gain)
        return Linear(ops.stop_gradient(self.constant), gain)


@dataclass(frozen=True, eq=False)
class Chain(WithoutClosedForms):
    """Gaussian Markov chains, given other numbers that come before them in a draw.

    Args:
        mean: Of each number.
        slope: Of each number on the one before it; the first of a chain does not count.
        rho: Of the standard deviation of each number given the one before it, `unit * softplus(rho)`.
        unit: `(*chains, T)`.
        layout: Of the chains' numbers in a draw.
        others: The Gaussian of the other numbers; None where there are none.
        sticks: Whether the gradient of a draw's log density comes through the draw alone.

    Example:
    >>> mean, slope, rho = (Linear(np.array(each)) for each in ([0.0, 0.0], [0.0, 3.0], [0.0, 0.0]))
    >>> chain = Chain(mean, slope, rho, np.array([1.0, 4.0]) / np.log(2.0), Layout((2,), -1))
    >>> np.round(np.asarray(chain.draw(np.ones(2))), 6).tolist()
    [1.0, 7.0]
    """

    mean: Linear
    slope: Linear
    rho: Linear
    unit: Tensor
    layout: Layout
    others: Gaussian | None = None
    sticks: bool = False

    def draw(self, noise: Tensor) -> Tensor:
        """The other numbers, then the chains'."""
        first, own = self._parts(noise)
        path = self.layout.as_flat(self.mean.at(first) + self._deviation(first, own))
        return path if self.others is None else ops.concatenate([self.others.draw(first), path], axis=-1)

    def log_density(self, noise: Tensor) -> Tensor:
        """`log q(u_i | u_1 .. u_{i-1})` of each coordinate."""
        first, own = self._parts(noise)
        if self.sticks:
            own, scale = self._read(first, own)
        else:
            scale = self.unit * ops.softplus(self.rho.at(first))
        density = self.layout.as_flat(log_normal(own) - ops.log(scale))
        if self.others is None:
            return density
        return ops.concatenate([self.others.log_density(first), density], axis=-1)

    def _parts(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise of the other numbers, `(..., others)`, and of the chains, `(..., *chains, T)`."""
        number = 0 if self.others is None else self.others.mean.shape[-1]
        return noise[..., :number], self.layout.as_chains(noise[..., number:])

    def _deviation(self, first: Tensor, own: Tensor) -> Tensor:
        """`d`: what the chains are away from their mean."""
        return chained(self.slope.at(first), self.unit * ops.softplus(self.rho.at(first)) * own)

    def _read(self, first: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The chains' noise and scales as they are read off a draw: their gradient is that of the draw alone."""
        deviation = self._deviation(first, own)
        moved = _moved(self.mean.at(first) + deviation)
        if self.others is not None:
            factor = ops.stop_gradient(self.others.factor)
            inverse = ops.solve_triangular(factor, ops.eye(factor.shape[-1], dtype=factor.dtype), lower=True)
            felt = ops.tensordot(_moved(self.others.draw(first)), ops.transpose(inverse), axes=1)
            first = first + felt
            moved = moved - Linear(ops.zeros_like(self.unit), self.mean.fixed().gain).at(felt)
        deviation = ops.stop_gradient(deviation) + moved
        scale = ops.stop_gradient(self.unit) * ops.softplus(self.rho.fixed().at(first))
        return (deviation - self.slope.fixed().at(first) * later(deviation, 1)) / scale, scale


def _moved(values: Tensor) -> Tensor:
    """Zeros with the gradient of values."""
    return values - ops.stop_gradient(values)
