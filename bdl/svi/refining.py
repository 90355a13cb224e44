"""The rows of a batch taken nearer to their best Gaussians, before a training step computes its terms: `PerRow`.

At given globals each row has an ELBO of its own. At the temperature T it is, on the real line and over T,

    l(m, F) = E[f(m + F e)] + log det F,     f(z) = log p(observed | z) / T + log p(z | globals),     e ~ N(0, I)

with F lower triangular. The expectation is a rule of 2 d + 1 points for a row of d numbers, 0 and +-l along each axis,
where l^2 = max(3, d) and each of the outer points weighs 1 / (2 l^2) (Julier and Uhlmann 1997, "A new extension of the
Kalman filter to nonlinear systems"): exact where f is a cubic, without noise. So what a row climbs is a fixed function,
and the same slopes by point g_k = F^T grad f(m + F e_k), of weights w_k, give its gradient in both parameters:

    a = sum_k w_k g_k,     A = -sum_k w_k g_k e_k^T,     at the best Gaussian a = 0 and A = I

By Stein's lemma A is the expected negative Hessian in coordinates in which the row is a standard normal, so that no
second derivatives are taken. The natural gradient step of the rate r is there the precision M = (1 - r) I + r A, and

    M = U U^T,     F' = F U^-T,     m' = m + r F M^-1 a

At r = 1 it leads to the posterior at once where that is Gaussian (Khan and Rue 2023, arXiv 2107.04562). M has a root
whatever A is: a pivot below 1/16 becomes 1/16, so that a standard deviation grows fourfold at most. A row takes a step
if its ELBO does not become lower. Otherwise it stays, and its rate falls to a quarter; with each step that is taken
the rate rises fourfold, up to 1. Expectations over the globals are those of a mirrored pair of the step's draws.

At its best Gaussian the ELBO of a row does not change with the Gaussian, so that the gradient in what all rows share
needs no derivative of the table (the envelope theorem).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import current_value
from bdl.random import Tensor
from bdl.svi.derivatives import values_and_gradient
from bdl.svi.draws import Draws
from bdl.svi.enumeration import repeat_rows
from bdl.svi.guides.per_row import PerRow, RowState

if TYPE_CHECKING:
    from bdl.svi.estimators import Estimator

LEAST_PIVOT = 1 / 16
LEAST_TEMPERATURE = 1e-3
"""T of a row at least: where a schedule begins at 0, its best Gaussian would have no width."""

FACTOR = 4.0
"""By which a row's rate changes."""

_ROUNDING = 16 * np.finfo("float32").eps
_Reals = Mapping[str, Tensor]


def refined(estimator: Estimator, data: Any, draws: Draws, temperature: Tensor | float) -> Draws:
    """Takes the rows of the batch a few steps on in the tables of their guides.

    Args:
        estimator: That runs the story.
        data: The batch.
        draws: Of the step.
        temperature: T.

    Returns:
        The draws, those of the refined rows' sites from their new Gaussians, as constants.
    """
    found = [
        (place, each) for place, each in enumerate(estimator.guides) if isinstance(each, PerRow) and each.trainable
    ]
    if not found:
        return draws
    real = {name: ops.stop_gradient(each) for name, each in draws.real.items()}
    families, places = dict(draws.families), {}
    states: dict[int, RowState] = {}
    for place, guide in found:
        places[place] = guide.places(data)
        states[place] = guide.begun(places[place])
        real.update(_apart(guide, states[place].draw(draws.noise[place])))
    with _held(estimator):
        for place, guide in found:
            objective = _Objective.of(estimator, guide, data, real, temperature)
            states[place] = climb(objective, states[place], guide.steps)
            real.update(_apart(guide, states[place].draw(draws.noise[place])))
    for place, guide in found:
        guide.write(places[place], states[place])
        families[place] = [states[place].gaussian()] * len(families[place])
    fresh = {name: real[name] for _, guide in found for name in guide.sizes}
    return replace(draws, real={**draws.real, **fresh}, families=families)


def _apart(guide: PerRow, draws: Tensor) -> dict[str, Tensor]:
    """Draws of a guide by site."""
    return {name: draws[..., slice(*guide.coordinates(name))] for name in guide.sizes}


def _held(estimator: Estimator) -> keras.StatelessScope:
    """A scope in which networks have the weights of now, as constants, and leave no state behind."""
    variables = [each for network in estimator.networks.values() for each in network.variables]
    return keras.StatelessScope([(each, ops.stop_gradient(current_value(each))) for each in variables])


@dataclass(frozen=True, eq=False)
class _Objective:
    """`f`, by row, at points of a guide's sites.

    Args:
        estimator: That runs the story.
        guide: Whose sites they are.
        data: The batch, each row repeated for its points.
        others: Draws of the other sites on the real line, repeated where they are local: the mean over these is taken.
        temperature: T.
    """

    estimator: Estimator
    guide: PerRow
    data: Any
    others: list[dict[str, Tensor]]
    temperature: Tensor

    @classmethod
    def of(cls, estimator: Estimator, guide: PerRow, data: Any, real: _Reals, temperature: Any) -> _Objective:
        """That of a step, whose draws are given on the real line."""
        number = len(rule(guide.size)[1])
        names = [name for name in real if name not in guide.sizes]
        varying = [name for name in names if estimator.objective == "elbo" or not estimator.is_global(name)]
        others = []
        for draw in range(min(estimator.num_draws, 2) if varying else 1):
            one = {name: real[name][draw] for name in names}
            others.append({n: each if estimator.is_global(n) else repeat_rows(each, number) for n, each in one.items()})
        lowest = ops.cast(LEAST_TEMPERATURE, estimator.dtype)
        temperature = ops.cast(temperature, estimator.dtype)
        temperature = ops.where(temperature > lowest, temperature, lowest)
        return cls(estimator, guide, repeat_rows(data, number), others, temperature)

    def __call__(self, points: Tensor) -> Tensor:
        """Of points `(rows, size)`, repeated rows: `(rows,)`, in nats."""
        total = 0.0
        for others in self.others:
            densities = self.estimator.log_densities(self.data, {**others, **_apart(self.guide, points)})
            for name, density in densities.items():
                if name in self.estimator.sites and not self.estimator.is_global(name):
                    total = total + density
                elif name not in self.estimator.sites:
                    total = total + density / self.temperature
        return total / len(self.others)


def rule(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights for the expectation under a standard normal of so many numbers.

    Returns:
        `(points, size)` and `(points,)`.

    Example:
    >>> points, weights = rule(1)
    >>> float(weights @ points[:, 0] ** 4)
    3.0
    """
    square = max(3, size)
    axes = np.sqrt(square) * np.eye(size)
    points, weights = np.concatenate([axes, -axes]), np.full(2 * size, 0.5 / square)
    if square > size:
        points, weights = np.concatenate([points, np.zeros((1, size))]), np.append(weights, 1.0 - size / square)
    return points, weights


@dataclass(frozen=True, eq=False)
class _Slopes:
    """The ELBO of rows, and its gradient in the coordinates in which each is a standard normal.

    Args:
        value: `(rows,)`, in nats, over T.
        first: a, `(rows, size)`.
        second: A, `(rows, size, size)`, or its diagonal `(rows, size)`.
    """

    value: Tensor
    first: Tensor
    second: Tensor

    def where(self, condition: Tensor, other: _Slopes) -> _Slopes:
        """These where the condition `(rows,)` holds, others where it does not."""

        def chosen(ours: Tensor, others: Tensor) -> Tensor:
            return ops.where(ops.reshape(condition, (-1, *(1 for _ in ours.shape[1:]))), ours, others)

        return _Slopes(*map(chosen, (self.value, self.first, self.second), (other.value, other.first, other.second)))


def climb(objective: Any, state: RowState, steps: int) -> RowState:
    """Steps of rows up their ELBO.

    Args:
        objective: `f` of points `(rows * number of points, size)`, those of a row one after the other.
        state: Where the rows are.
        steps: How many.

    Example:
    >>> start = RowState(ops.zeros((2, 1)), ops.ones((2, 1)), ops.ones((2,)))
    >>> found = climb(lambda z: -2.0 * (z[:, 0] - 3.0) ** 2, start, steps=1)
    >>> np.asarray(found.mean)[0], np.asarray(found.factor)[0]
    (array([3.], dtype=float32), array([0.5], dtype=float32))
    """
    slopes = _slopes(objective, state)
    for _ in range(steps):
        tried = _step(state, slopes)
        found = _slopes(objective, tried)
        lowest = slopes.value - _ROUNDING * (1.0 + ops.abs(slopes.value))
        is_taken = ops.isfinite(found.value) & ((found.value >= lowest) | ~ops.isfinite(slopes.value))
        rate = ops.where(is_taken, state.rate * FACTOR, state.rate / FACTOR)
        state, slopes = tried.where(is_taken, state), found.where(is_taken, slopes)
        state = replace(state, rate=ops.where(rate > 1.0, ops.ones_like(rate), rate))
    return state


def _slopes(objective: Any, state: RowState) -> _Slopes:
    """Value and gradient of the rows' ELBO, by the rule."""
    size, is_diagonal = state.mean.shape[-1], len(state.factor.shape) == 2
    dtype = state.mean.dtype
    number = len(rule(size)[1])
    nodes, weights = (ops.convert_to_tensor(each, dtype=dtype) for each in rule(size))
    points = ops.swapaxes(state.draw(nodes[:, None, :]), 0, 1)  # (rows, points, size)
    values, slopes = values_and_gradient(objective, ops.reshape(points, (-1, size)))
    values, slopes = ops.reshape(values, (-1, number)), ops.reshape(slopes, (-1, number, size))
    if is_diagonal:
        slopes = slopes * state.factor[:, None, :]
        diagonal = state.factor
        second = -ops.sum(weights[:, None] * slopes * nodes, axis=1)
    else:
        slopes = ops.sum(slopes[..., None] * state.factor[:, None], axis=2)
        diagonal = ops.diagonal(state.factor, axis1=-2, axis2=-1)
        weighted = weights[:, None] * slopes
        second = -ops.stack([ops.sum(weighted * nodes[:, axis : axis + 1], axis=1) for axis in range(size)], axis=-1)
        second = ops.tril(second) + ops.swapaxes(ops.tril(second, k=-1), -1, -2)  # the gradient in F, lower triangular
    value = ops.sum(weights * values, axis=-1) + ops.sum(ops.log(diagonal), axis=-1)
    return _Slopes(value, ops.sum(weights[:, None] * slopes, axis=1), second)


def _step(state: RowState, slopes: _Slopes) -> RowState:
    """A natural gradient step of each row."""
    rate = state.rate[:, None]
    if len(state.factor.shape) == 2:
        precision = _at_least(1.0 - rate + rate * slopes.second)
        factor = state.factor / ops.sqrt(precision)
        return RowState(state.mean + rate * state.factor * slopes.first / precision, factor, state.rate)
    unit = ops.eye(state.mean.shape[-1], dtype=state.mean.dtype)
    root = _upper_root((1.0 - rate[..., None]) * unit + rate[..., None] * slopes.second)
    factor = ops.swapaxes(ops.solve_triangular(root, ops.swapaxes(state.factor, -1, -2), lower=False), -1, -2)
    solved = ops.solve_triangular(root, slopes.first[..., None], lower=False)[..., 0]
    return RowState(state.mean + rate * ops.sum(factor * solved[:, None, :], axis=-1), factor, state.rate)


def _upper_root(matrix: Tensor) -> Tensor:
    """U with `U U^T` the matrix, upper triangular; of one that is not positive definite small pivots are raised.

    Column by column, the last one first: a few operations for all rows together, and no error whatever is in them.
    """
    size, columns, rest = matrix.shape[-1], [], matrix
    unit = ops.eye(size, dtype=matrix.dtype)
    for axis in reversed(range(size)):
        pivot = ops.sqrt(_at_least(rest[:, axis, axis]))[:, None]
        column = ops.where(ops.arange(size) < axis, rest[:, :, axis] / pivot, pivot * unit[axis])
        rest = rest - column[:, :, None] * column[:, None, :]
        columns.append(column)
    return ops.stack(columns[::-1], axis=-1)


def _at_least(pivots: Tensor) -> Tensor:
    return ops.where(pivots > LEAST_PIVOT, pivots, ops.full_like(pivots, LEAST_PIVOT))
