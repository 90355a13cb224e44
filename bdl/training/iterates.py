"""Where a posterior is during a fit: means and scales of its numbers, step by step, and how they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bdl.training.mixing import bulk_effective_sample_size, split_r_hat


@dataclass(frozen=True, eq=False)
class Iterate:
    """Where the posterior of the global parameters was.

    Args:
        mean: Of each number: in a story on the real line, in a network of a weight.
        log_scale: Logarithm of its standard deviation.
    """

    mean: np.ndarray
    log_scale: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """Both, one after the other."""
        return np.concatenate([self.mean, self.log_scale])


@runtime_checkable
class HasIterates(Protocol):
    """A model whose fit can be watched: `SVI` and `VariationalModel`.

    Attributes:
        average: A `TailAverage` of its variables, or None.
        convergence: What was seen of the last fit's convergence: anything that prints as a sentence; None of nothing.
        temperature: T of the next training step, or None where it is not known.
    """

    average: Any
    convergence: Any
    temperature: float | None

    def iterate(self) -> Iterate | None:
        """Where the posterior is now; None where nothing has a scale."""

    def iterate_names(self) -> Sequence[str]:
        """Name of each number of an iterate's mean."""


@dataclass(frozen=True, eq=False)
class Movement:
    """How a run of iterates moves, number by number: the means, then the log scales, `(2 numbers,)` each.

    Lengths are in the posterior's own standard deviations; of a log scale as they are, so that .1 is ten percent.

    Args:
        r_hat: R-hat between the halves of the run; 1 where nothing moves, infinite where a number is not finite.
        error: Monte Carlo standard error of the run's average.
        effective: Effective sample size of the run.
        drift: How far the number would move in as many steps as the fit has had, at its speed between the halves.
        slowness: That speed as a part of the average one since the fit began.

    Source: Dhaka et al. 2020, "Robust, accurate stochastic optimization for variational inference", sections 4 and 5,
    of all but the last two.
    """

    r_hat: np.ndarray
    error: np.ndarray
    effective: np.ndarray
    drift: np.ndarray
    slowness: np.ndarray

    @classmethod
    def of(cls, iterates: np.ndarray, start: np.ndarray, before: float = 0.0) -> Movement:
        """The movement of a run.

        Args:
            iterates: `(reads, 2 numbers)`, means before log scales, as `Iterate.numbers` has them.
            start: Where the fit began, `(2 numbers,)`.
            before: Length of the fit before the run, in distances between reads.

        Example:
        >>> noise = np.random.default_rng(0).normal(size=(400, 2))
        >>> found = Movement.of(0.1 * noise, start=np.full(2, 5.0))
        >>> bool(found.r_hat.max() < 1.1), bool(found.error.max() < 0.01)
        (True, True)
        """
        length, numbers = iterates.shape
        size, half = numbers // 2, length // 2
        r_hat, effective = np.ones(numbers), np.full(numbers, float(length))
        finite = np.isfinite(iterates).all(axis=0)
        moving = finite & (np.ptp(iterates, axis=0) > 0)
        if moving.any():
            runs = iterates[None][..., moving]
            r_hat[moving], effective[moving] = split_r_hat(runs), bulk_effective_sample_size(runs)
        r_hat[~finite] = np.inf
        with np.errstate(invalid="ignore", over="ignore"):
            units = np.concatenate([np.exp(iterates[:, size:].mean(axis=0)), np.ones(size)])
            speed = np.abs(iterates[:half].mean(axis=0) - iterates[-half:].mean(axis=0)) / units / (length - half)
            way = np.abs(iterates.mean(axis=0) - start) / units
            average = np.maximum(way, np.finfo("float32").tiny) / (before + 0.5 * length)
            error = iterates.std(axis=0, ddof=1) / np.sqrt(effective) / units
        return cls(r_hat, error, effective, speed * (before + length), speed / average)
