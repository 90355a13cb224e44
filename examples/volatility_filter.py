"""Stochastic volatility in NumPy, for examples/volatility.py: new paths, a particle filter, and an exact filter.

Given its parameters, one set of them in each row of `theta`, `(sets, 6)` with the columns `NAMES`, the model is

::

    y_t = mean + exp(h_t / 2) e_t,    h_{t+1} = level + persistence (h_t - level) + spread z_{t+1}
    z_{t+1} = leverage g(e_t) + sqrt(1 - leverage^2) n_{t+1},    n ~ N(0, 1)

where e is Student's t with `freedom` degrees of freedom, scaled to unit variance. g(e) is the standard normal number of
nearly the same rank, so that `leverage` is a correlation of two standard normal numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

NAMES = ("mean", "level", "persistence", "spread", "freedom", "leverage")


def as_normal(x: Any, freedom: Any, xp: Any = np) -> Any:
    """The standard normal number of nearly the same rank as a number of Student's t distribution.

    Args:
        x: Of the t distribution of unit scale.
        freedom: Its degrees of freedom.
        xp: `numpy`, or `keras.ops` for tensors.

    Source: Wallace 1959, "Bounds on normal approximations to Student's and the chi-square distributions".
    """
    ratio = x**2 / freedom + 1e-6  # not zero, where a square root has no gradient
    return x * (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0) * xp.sqrt(xp.log1p(ratio) / ratio)


@dataclass(frozen=True)
class Days:
    """What the parameters say about single days; every column is `(sets, 1)`.

    Args:
        theta: `(sets, 6)`.
    """

    theta: np.ndarray

    @property
    def columns(self) -> Iterator[np.ndarray]:
        """The parameters, each `(sets, 1)`."""
        return iter(np.moveaxis(np.atleast_2d(self.theta)[..., None], 1, 0))

    def first(self, noise: np.ndarray) -> np.ndarray:
        """Log variances of the first day, by standard normal noise `(sets, n)`."""
        _, level, persistence, spread, _, _ = self.columns
        return level + spread / np.sqrt(1.0 - persistence**2) * noise

    def standardised(self, y: Any, h: np.ndarray) -> np.ndarray:
        """Returns over their scale: numbers of the t distribution of unit scale."""
        mean, _, _, _, freedom, _ = self.columns
        return (y - mean) * np.exp(-0.5 * h) * np.sqrt(freedom / (freedom - 2.0))

    def log_density(self, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        """Log density of the return whose standardised value is x."""
        _, _, _, _, freedom, _ = self.columns
        constant = special.gammaln(0.5 * (freedom + 1.0)) - special.gammaln(0.5 * freedom)
        constant -= 0.5 * np.log(np.pi * (freedom - 2.0))
        return constant - 0.5 * h - 0.5 * (freedom + 1.0) * np.log1p(x**2 / freedom)

    def ahead(self, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the next day's log variance."""
        _, level, persistence, spread, freedom, leverage = self.columns
        shock = leverage * as_normal(x, freedom)
        return level + persistence * (h - level) + spread * shock, spread * np.sqrt(1.0 - leverage**2)


def simulate(theta: np.ndarray, num_days: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns and log variances of a new series for each set of parameters, `(sets, days)`."""
    days = Days(theta)
    mean, _, _, _, freedom, _ = days.columns
    h = days.first(rng.standard_normal(mean.shape))
    returns, path = [], []
    for _ in range(num_days):
        x = rng.standard_t(freedom)
        returns.append(mean + np.exp(0.5 * h) * np.sqrt((freedom - 2.0) / freedom) * x)
        path.append(h)
        centre, sd = days.ahead(x, h)
        h = centre + sd * rng.standard_normal(mean.shape)
    return np.concatenate(returns, axis=1), np.concatenate(path, axis=1)


@dataclass(frozen=True)
class Forecast:
    """One-day-ahead distributions at what came: each from the days before alone.

    Args:
        log_score: Log density of each day's return, in nats, `(days,)`.
        pit: Distribution function at each day's return, `(days,)`.
        volatility: Standard deviation of each day's return, in percent; None where it was not kept.
    """

    log_score: np.ndarray
    pit: np.ndarray
    volatility: np.ndarray | None = None

    def since(self, day: int) -> Forecast:
        """From a day on."""
        kept = None if self.volatility is None else self.volatility[day:]
        return Forecast(self.log_score[day:], self.pit[day:], kept)


def resample(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Systematic resampling: numbers of the particles that go on, `(sets, particles)`.

    Args:
        weights: Normalized, `(sets, particles)`.
        rng: One uniform number for each set.
    """
    sets, number = weights.shape
    rows = np.arange(sets)[:, None]
    ends = np.cumsum(weights, axis=1)
    points = (np.arange(number) + rng.random((sets, 1))) / number
    # One sorted list for all sets: those of set s lie between s and s + 1.
    found = np.searchsorted((ends / ends[:, -1:] + rows).ravel(), (points + rows).ravel()).reshape(sets, number)
    return np.minimum(found - rows * number, number - 1)


def particle_filter(y: np.ndarray, theta: np.ndarray, num_particles: int, seed: int) -> tuple[Forecast, np.ndarray]:
    """One-day-ahead distributions of all days, averaged over draws of the parameters.

    The bootstrap filter: particles move by the transition, and are resampled by the likelihood of the day's return.
    The parameters' draws keep equal weights: what they know comes from the days that they were fitted to.

    Args:
        y: Returns, `(days,)`.
        theta: Draws of the parameters, `(draws, 6)`.
        num_particles: Of each draw.
        seed: Of the noise.

    Returns:
        The forecasts, and log densities by draw, `(draws, days)`.

    Source: Gordon, Salmond and Smith 1993, "Novel approach to nonlinear/non-Gaussian Bayesian state estimation".
    """
    rng, days = np.random.default_rng(seed), Days(theta)
    mean, _, _, _, freedom, _ = days.columns
    h = days.first(rng.standard_normal((len(theta), num_particles)))
    by_draw, pit, volatility = [], [], []
    for value in y:
        x = days.standardised(value, h)
        log_density = days.log_density(x, h)
        top = log_density.max(axis=1, keepdims=True)
        weights = np.exp(log_density - top)
        total = weights.sum(axis=1, keepdims=True)
        by_draw.append(top[:, 0] + np.log(total[:, 0] / num_particles))
        pit.append(special.stdtr(freedom, x).mean())
        volatility.append(np.sqrt(np.exp(h).mean() + mean.var()))
        chosen = resample(weights / total, rng)
        centre, sd = days.ahead(np.take_along_axis(x, chosen, 1), np.take_along_axis(h, chosen, 1))
        h = centre + sd * rng.standard_normal(h.shape)
    scores = np.stack(by_draw, axis=1)
    log_score = special.logsumexp(scores, axis=0) - np.log(len(theta))
    return Forecast(log_score, np.array(pit), np.array(volatility)), scores


def exact_filter(y: np.ndarray, theta: np.ndarray, num_nodes: int = 101, width: float = 5.5) -> np.ndarray:
    """Log density of each day's return given the days before, by quadrature over a grid of the log variance.

    The trapezoid rule on a grid of `width` stationary standard deviations on both sides of the level. For the smooth
    densities here it errs by far less than the particle filter where its nodes lie no wider apart than the standard
    deviation of a step.

    Args:
        y: Returns, `(days,)`.
        theta: `(sets, 6)`.
        num_nodes: Of the grid.
        width: Half of the grid's width.

    Returns:
        `(sets, days)`, in nats.

    Source: Langrock, MacDonald and Zucchini 2012, "Some nonstandard stochastic volatility models and their estimation
    using structured hidden Markov models".
    """
    found = [_exact(y, each, num_nodes, width) for each in np.array_split(theta, -(-len(theta) // 8))]
    return np.concatenate(found)


def _exact(y: np.ndarray, theta: np.ndarray, num_nodes: int, width: float) -> np.ndarray:
    days = Days(theta)
    nodes = np.linspace(-width, width, num_nodes)
    h = days.first(np.tile(nodes, (len(theta), 1)))
    share = np.tile(stats.norm.pdf(nodes), (len(theta), 1))
    share /= share.sum(axis=1, keepdims=True)
    scores = []
    for value in y:
        x = days.standardised(value, h)
        joint = share * np.exp(days.log_density(x, h))
        total = joint.sum(axis=1, keepdims=True)
        scores.append(np.log(total[:, 0]))
        centre, sd = days.ahead(x, h)
        unit, centre = (h / sd).astype("float32"), (centre / sd).astype("float32")
        kernel = unit[:, None, :] - centre[:, :, None]
        kernel = np.exp(-0.5 * kernel * kernel)
        share = np.einsum("si,sij->sj", (joint / total).astype("float32"), kernel).astype("float64")
        share /= share.sum(axis=1, keepdims=True)
    return np.stack(scores, axis=1)


def correlations(y: np.ndarray, is_signed: bool, num_lags: int = 40) -> np.ndarray:
    """Of the size of a return, or of the return itself, with the size of returns later, `(series, lags)`."""
    centred = y - y.mean(axis=1, keepdims=True)
    size = np.abs(centred) - np.abs(centred).mean(axis=1, keepdims=True)
    first = centred if is_signed else size
    scale = first.std(axis=1) * size.std(axis=1)
    each = [np.mean(first[:, :-lag] * size[:, lag:], axis=1) / scale for lag in range(1, num_lags + 1)]
    return np.stack(each, axis=1)


def kurtosis(y: np.ndarray) -> np.ndarray:
    """Fourth moment of standardised returns, 3 where they are normal, `(series,)`."""
    return stats.kurtosis(y, axis=1, fisher=False)


def facts(y: np.ndarray) -> dict[str, np.ndarray]:
    """Stylised facts of the returns of each series in `(series, days)`."""
    sizes, signed = correlations(y, False), correlations(y, True)
    return {
        "kurtosis": kurtosis(y),
        "correlation of sizes, 1 day apart": sizes[:, 0],
        "the same, mean of 1 to 20 days": sizes[:, :20].mean(1),
        "return and later size, mean of 1 to 5 days": signed[:, :5].mean(1),
    }
