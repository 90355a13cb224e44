"""Exponential families of conjugate models: Dirichlet, Gamma and Beta.

    log q(x) = values . t(x) - A(values),     in the numbers of the real line that x is made of

    Dirichlet   values = concentrations            t = log x
    Gamma       values = (shape, rate)             t = (log x, -x)
    Beta        values = (concentration1, ..0)     t = (log x, log(1 - x))

A likelihood that is linear in t, given all else, has the expectation of its value at points whose mean statistics are
E[t]: two for Gamma and Beta, and for Dirichlet one, `exp E[log x]`, which sums to less than one. Its gradient in E[t]
is then exact, and with it the natural gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from bdl import random
from bdl.likelihoods import digamma, log_gamma
from bdl.random import Tensor
from bdl.svi.guides.gaussian import WithoutClosedForms
from bdl.svi.supports import Simplex

Function = Callable[..., Any]


@dataclass(frozen=True)
class Kind:
    """One of the families.

    Args:
        num_points: Points of the rule.
        mean: E[t] of values.
        log_normalizer: A, summed over the last axis.
        points: From E[t] to a list of points: of Gamma and Beta on the real line, of Dirichlet logarithms.
        statistics: t of numbers on the real line, and of the number of values.
        draw: From values and a key to numbers on the real line.
        start: Values that begin around a value x, with the weight of one observation for each.
    """

    num_points: int
    mean: Function
    log_normalizer: Function
    points: Function
    statistics: Function
    draw: Function
    start: Function


def _stacked(one: Tensor, two: Tensor) -> Tensor:
    return ops.stack([one, two], axis=-1)


def _dirichlet_normalizer(values: Tensor) -> Tensor:
    return ops.sum(log_gamma(values), axis=-1) - log_gamma(ops.sum(values, axis=-1))


def _dirichlet_mean(values: Tensor) -> Tensor:
    return digamma(values) - digamma(ops.sum(values, axis=-1, keepdims=True))


def _log_gammas(values: Tensor, key: Tensor) -> Tensor:
    """Logarithms of gamma draws: those of a + 1 times a uniform to the power 1 / a, which do not underflow."""
    boosted = ops.log(random.gamma(values + 1.0, random.fold_in(key, 0)))
    return boosted + ops.log(random.uniform(ops.shape(values), random.fold_in(key, 1))) / values


def _dirichlet_draw(values: Tensor, key: Tensor) -> Tensor:
    shares = ops.softmax(_log_gammas(values, key), axis=-1)
    return Simplex().unconstrain(ops.maximum(shares, float(np.finfo("float32").tiny)), (values.shape[-1],))


def _difference(logs: Tensor) -> Tensor:
    return logs[..., 0] - logs[..., 1]


def _gamma_points(mean: Tensor) -> list[Tensor]:
    """`m (1 +- d)`, of the mean m and the mean logarithm `log m + log(1 - d^2) / 2`."""
    log_mean = ops.log(-mean[..., 1])
    gap = ops.sqrt(_positive(-ops.expm1(2.0 * (mean[..., 0] - log_mean))))
    return [log_mean + ops.log1p(gap), log_mean + ops.log1p(-gap)]


def _beta_points(mean: Tensor) -> list[Tensor]:
    """P and q with `p q = exp(2 E log x)` and `(1 - p) (1 - q) = exp(2 E log(1 - x))`."""
    product, other = ops.exp(2.0 * mean[..., 0]), ops.exp(2.0 * mean[..., 1])
    half = 0.5 * (1.0 + product - other)
    gap = ops.sqrt(_positive(half**2 - product))
    return [ops.log(p) - ops.log1p(-p) for p in (half + gap, half - gap)]


def _positive(values: Tensor) -> Tensor:
    least = float(np.finfo("float32").eps)
    return ops.where(values < least, ops.full_like(values, least), values)


KINDS = {
    "dirichlet": Kind(
        1,
        _dirichlet_mean,
        _dirichlet_normalizer,
        lambda mean: [mean],
        lambda u, size: ops.log(Simplex().constrain(u, (size,))),
        _dirichlet_draw,
        lambda x: x * x.shape[-1],
    ),
    "gamma": Kind(
        2,
        lambda v: _stacked(digamma(v[..., 0]) - ops.log(v[..., 1]), -v[..., 0] / v[..., 1]),
        lambda v: log_gamma(v[..., 0]) - v[..., 0] * ops.log(v[..., 1]),
        _gamma_points,
        lambda u, size: _stacked(u, -ops.exp(u)),
        lambda v, key: _log_gammas(v[..., 0], key) - ops.log(v[..., 1]),
        lambda x: np.stack([np.ones_like(x), 1.0 / x], axis=-1),
    ),
    "beta": Kind(
        2,
        _dirichlet_mean,
        _dirichlet_normalizer,
        _beta_points,
        lambda u, size: _stacked(ops.log_sigmoid(u), ops.log_sigmoid(-u)),
        lambda v, key: _difference(_log_gammas(v, key)),
        lambda x: 2.0 * np.stack([x, 1.0 - x], axis=-1),
    ),
}
"""The families by name."""


@dataclass(frozen=True, eq=False)
class Exponential(WithoutClosedForms):
    """A distribution of one of the families, for a site of a shape, of each row where its values have rows.

    Its draws are not made of noise: in the place of noise stand the draws themselves, on the real line.

    Args:
        kind: The family.
        shape: Of the site's value, or of a row's.
        values: `(..., *shape)` of Dirichlet, `(..., *shape, 2)` of others.

    Example:
    >>> family = Exponential(KINDS["gamma"], (), np.array([3.0, 2.0], "float32"))
    >>> x = np.exp([float(each[0]) for each in family.points(2)])
    >>> round(float(x.mean()), 4), round(float(np.log(x).mean()), 4)
    (1.5, 0.2296)
    """

    kind: Kind
    shape: tuple[int, ...]
    values: Tensor

    @property
    def mean(self) -> Tensor:
        """E[t]; a gradient in it is handed on to the values as it is, which makes it the natural one."""
        values = ops.stop_gradient(self.values)
        return ops.stop_gradient(self.kind.mean(values)) + (self.values - values)

    def points(self, number: int) -> Tensor:
        """Points of the rule, as often as they are asked for: `(number, ..., size)`."""
        found = [self._flat(each) for each in self.kind.points(self.mean)]
        return ops.stack([found[place % len(found)] for place in range(number)])

    def sample(self, number: int, key: Tensor) -> Tensor:
        """Draws on the real line, `(number, ..., size)`."""
        values = ops.repeat(self.values[None], number, axis=0)
        return self._flat(self.kind.draw(values, key))

    def draw(self, noise: Tensor) -> Tensor:
        """The draws themselves."""
        return noise

    def log_density(self, noise: Tensor) -> Tensor:
        """Log density of draws, by coordinate: that of a Dirichlet is divided evenly among its own."""
        is_vector = self.kind.num_points == 1
        lead = tuple(noise.shape[:-1])
        width = self.shape[-1] if is_vector else 1
        inner = (*self.shape[:-1], width - 1) if is_vector else self.shape
        statistics = self.kind.statistics(ops.reshape(noise, (*lead, *inner)), width)
        density = ops.sum(self.values * statistics, axis=-1) - self.kind.log_normalizer(self.values)
        if is_vector:
            density = ops.repeat(density[..., None] / (width - 1), width - 1, axis=-1)
        return ops.reshape(density, (*lead, math.prod(inner)))

    def kl_from(self, prior: Tensor) -> Tensor:
        """Divergence from the same family with other values, in nats, summed over the site: `(...)`.

        Args:
            prior: Values, broadcastable to these.
        """
        values = ops.stop_gradient(self.values)
        prior = ops.broadcast_to(prior, ops.shape(values))
        gap = values - prior
        total = ops.sum(gap * self.kind.mean(values), axis=-1)
        total = total - self.kind.log_normalizer(values) + self.kind.log_normalizer(prior)
        # Its gradient in E[t] is the difference of the values.
        total = total + ops.sum(ops.stop_gradient(gap) * (self.values - values), axis=-1)
        rank = len(self.shape) - (self.kind.num_points == 1)
        return ops.sum(total, axis=tuple(range(-rank, 0))) if rank else total

    def _flat(self, numbers: Tensor) -> Tensor:
        """The axes of the site in one."""
        rank = len(self.shape)
        return ops.reshape(numbers, (*tuple(numbers.shape)[: len(numbers.shape) - rank], -1))
