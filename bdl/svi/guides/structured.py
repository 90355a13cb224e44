"""The structured guide: a Gaussian Markov chain along an axis of a site, given the other sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import current_value
from bdl.random import Tensor
from bdl.svi.guides.base import START_SCALE, Guide, mean_and_scale, softplus_inverse
from bdl.svi.guides.chain import Chain, Layout, Linear, chained
from bdl.svi.guides.full_rank import FullRank


@keras.saving.register_keras_serializable(package="bdl")
class Structured(Guide):
    """A Gaussian Markov chain on the real line along an axis of a site, for globals: the path of a state-space model.

    Each number of the path depends on the one before it, so that it knows the correlations along the path, at a price
    that grows with its length T and not with its square. The other sites of the guide, such as the parameters of the
    model, have a full-rank Gaussian, and the path depends on them:

        u_t = mean_t + a_t (u_{t-1} - mean_{t-1}) + s_t e_t

    where means, slopes `a_t` and the scales' parameters are linear in the other sites: given the noise of its steps,
    a path is smooth or rough. In the posterior of a state-space model the path is a Markov chain given the parameters,
    too.

    With `start="laplace"` it begins as the chain that is closest to the Laplace approximation, which takes the Hessian
    of all T numbers; without, independent and narrow, and takes more steps. The mode of a path together with the
    scale of its steps is no place to begin: there both are zero. Its gradients stick the landing
    (`bdl.svi.guides.gaussian`).

    Args:
        chain: Name of the site that is the chain. None where the guide is for one site alone.
        axis: Axis of the site's value that is time. Along the others there are chains that are independent of each
            other given the other sites.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `chain` or `axis` does not go with the sites.

    Sources: Archer et al. 2015, "Black box variational inference for state space models", arXiv 1511.07367, section 3,
    for the precision of two diagonals; Tan and Nott 2018, "Gaussian variational approximation with sparse precision
    matrices", section 3, for the order: a path given its parameters.

    Example:
    >>> guide = Structured(chain="states")
    >>> guide.bind({"states": 5, "noise": 1}, shapes={"states": (5,), "noise": ()})
    >>> list(guide.sizes), tuple(guide.distribution().draw(np.zeros(6, "float32")).shape)
    (['noise', 'states'], (6,))
    """

    def __init__(self, chain: str | None = None, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chain = chain
        self.axis = axis
        self.others: FullRank | None = None

    def bind(
        self,
        sizes: Mapping[str, int],
        data: Any = None,
        given_size: int = 0,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Makes the variables; the path comes last in a draw, given the other sites.

        Raises:
            ValueError: if `chain` or `axis` does not go with the sites.
        """
        if self.chain is None and len(sizes) > 1:
            raise ValueError(
                f"`chain` of Structured must name the site that is a chain, one of {list(sizes)}, not be None. Pass "
                "Structured(chain=...), or give it that site alone."
            )
        path = next(iter(sizes)) if self.chain is None else self.chain
        if path not in sizes:
            raise ValueError(f"`chain` of Structured must be one of its sites, {list(sizes)}, not {path!r}.")
        shape = tuple((shapes or {}).get(path, (sizes[path],)))
        if math.prod(shape) != sizes[path]:
            raise ValueError(
                f"The site {path!r} of Structured must have a number on the real line for each entry, not "
                f"{sizes[path]} for the shape {shape}: a support such as a simplex does not."
            )
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"`axis` of Structured must be one of the shape {shape} of {path!r}, not {self.axis}.")
        axis = self.axis % len(shape) - len(shape)
        self.layout = Layout(shape, axis)
        in_order = {name: size for name, size in sizes.items() if name != path}
        super().bind({**in_order, path: sizes[path]}, data, given_size, shapes)

    def make_variables(self, data: Any, given_size: int) -> None:
        """Makes those of the other sites, and where the chain begins and what a fit moves."""
        path = list(self.sizes)[-1]
        others = {name: size for name, size in self.sizes.items() if name != path}
        if others:
            self.others = FullRank(dtype=self.dtype_policy)
            self.others.bind(others)
        whole = list(self.layout.shape)
        shape = (*whole[: self.layout.axis], *whole[len(whole) + self.layout.axis + 1 :], whole[self.layout.axis])
        self.origin = self._weight("origin", shape, trainable=False)
        self.frame_slope = self._weight("frame_slope", shape, trainable=False)
        self.frame_scale = self._weight("frame_scale", shape, trainable=False)
        self.slope_unit = self._weight("slope_unit", shape, trainable=False)
        self.shift = self._weight("shift", shape)
        self.rho = self._weight("rho", shape)
        self.slope = self._weight("slope", shape)
        if others:
            gains = (sum(others.values()), *shape)
            self.frame_gain = self._weight("frame_gain", gains, trainable=False)
            self.mean_gain = self._weight("mean_gain", gains)
            self.slope_gain = self._weight("slope_gain", gains)
            self.rho_gain = self._weight("rho_gain", gains)
        self.start_at(np.zeros(self.size), None)

    def start_at(self, origin: np.ndarray, frame: np.ndarray | None) -> None:
        """Moves it to a start: the chain of the covariance given the other sites, by its regressions of lag one."""
        number = self.size - math.prod(self.layout.shape)
        if self.others is not None:
            self.others.start_at(origin[:number], None if frame is None else frame[:number, :number])
        order = np.asarray(self.layout.as_chains(np.arange(number, self.size)))
        slope, scale = np.zeros(order.shape), np.ones(order.shape)
        if frame is not None:
            own = frame[number:, number:]
            slope, scale = chain_of(own @ own.T, order - number)
        self.origin.assign(origin[order])
        self.frame_slope.assign(slope)
        self.frame_scale.assign(scale)
        self.slope_unit.assign(unit_of_slope(slope, scale))
        self.shift.assign(np.zeros(order.shape))
        self.slope.assign(np.zeros(order.shape))
        if self.others is not None:
            gain = np.zeros((*order.shape, number)) if frame is None else frame[order, :number]
            self.frame_gain.assign(np.moveaxis(gain, -1, 0))
            for variable in (self.mean_gain, self.slope_gain, self.rho_gain):
                variable.assign(np.zeros((number, *order.shape)))
        start = START_SCALE if frame is None else 1.0
        self.rho.assign(ops.full(order.shape, softplus_inverse(start), dtype=self.rho.dtype))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Chain:
        """The chain given the other sites.

        What moves the mean, and what the others add to it, are numbers in the coordinates of the start: its own chain
        makes a path of them.
        """
        frame_slope, unit, slope_unit = (
            current_value(each) for each in (self.frame_slope, self.frame_scale, self.slope_unit)
        )
        mean = current_value(self.origin) + chained(frame_slope, unit * current_value(self.shift))
        slope, rho = frame_slope + slope_unit * current_value(self.slope), current_value(self.rho)
        if self.others is None:
            return Chain(Linear(mean), Linear(slope), Linear(rho), unit, self.layout, sticks=True)
        frame_gain = current_value(self.frame_gain)
        mean = mean + ops.tensordot(current_value(self.others.shift), frame_gain, axes=1)
        gain = ops.tensordot(ops.transpose(self.others.inner()), frame_gain, axes=1)
        gain = gain + chained(frame_slope, unit * current_value(self.mean_gain))
        return Chain(
            Linear(mean, gain),
            Linear(slope, slope_unit * current_value(self.slope_gain)),
            Linear(rho, current_value(self.rho_gain)),
            unit,
            self.layout,
            self.others.distribution(),
            sticks=True,
        )

    def num_parameters(self, size: int) -> int:
        """Parameters of a chain of `size` numbers: means, standard deviations, and correlations."""
        return 3 * size

    def num_noise(self, size: int) -> int:
        """Standard normal numbers that make a draw of `size` numbers."""
        return size

    def of_parameters(self, parameters: Tensor, size: int) -> Chain:
        """One chain over the numbers of a site in their order, standard normal where all parameters are zero.

        The parameters are means, standard deviations, and correlations of neighbours. Whatever these are, no number is
        further off than its own standard deviation: slopes of a long chain that were free could multiply to infinity.

        Args:
            parameters: `(..., 3 size)`.
            size: Numbers in a draw.

        Raises:
            ValueError: if time is not the last axis, so that neighbours in time are none in the site's order.
        """
        if self.axis != -1:
            raise ValueError(
                f"`axis` of Structured must be -1 where it is the family of another guide, not {self.axis}."
            )
        mean, sd = mean_and_scale(parameters, size)
        bend = ops.concatenate([ops.zeros_like(mean[..., :1]), parameters[..., 2 * size + 1 : 3 * size]], axis=-1)
        before = ops.concatenate([ops.ones_like(sd[..., :1]), sd[..., :-1]], axis=-1)
        slope, scale = ops.tanh(bend) * sd / before, sd / ops.cosh(bend)
        rho = ops.full_like(mean, softplus_inverse(1.0))
        return Chain(Linear(mean), Linear(slope), Linear(rho), scale, Layout((size,), -1))

    def _weight(self, name: str, shape: tuple[int, ...], trainable: bool = True) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=trainable)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "chain": self.chain, "axis": self.axis}


def chain_of(covariance: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Markov chains nearest to a Gaussian, `argmin KL(Gaussian || chains)`: its regressions of lag one.

    Args:
        covariance: `(numbers, numbers)`.
        order: Places of the chains' numbers in it, `(*chains, T)`.

    Returns:
        Slopes and standard deviations given the number before, `(*chains, T)`.

    Example:
    >>> slope, scale = chain_of(np.array([[1.0, 0.6], [0.6, 1.0]]), np.arange(2))
    >>> slope.tolist(), scale.tolist()
    ([0.0, 0.6], [1.0, 0.8])
    """
    variance = np.diag(covariance)[order]
    shared = covariance[order[..., 1:], order[..., :-1]]
    slope = np.zeros(order.shape)
    slope[..., 1:] = shared / variance[..., :-1]
    rest = variance.copy()
    rest[..., 1:] -= slope[..., 1:] * shared
    return slope, np.sqrt(np.maximum(rest, 1e-6 * variance))


def unit_of_slope(slope: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The change of a slope that moves a number by one of its standard deviations where the one before is off by its.

    Example:
    >>> unit_of_slope(np.array([0.0, 0.0]), np.array([2.0, 1.0])).tolist()
    [0.0, 0.5]
    """
    unit = np.zeros(slope.shape)
    variance = scale[..., 0] ** 2
    for step in range(1, slope.shape[-1]):
        unit[..., step] = scale[..., step] / np.sqrt(variance)
        variance = slope[..., step] ** 2 * variance + scale[..., step] ** 2
    return unit
