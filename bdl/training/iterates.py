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


@dataclass(frozen=True)
class Movement:
    """How a run of iterates moves.

    Args:
        r_hat: Largest R-hat between the halves of the run; infinite where a number is not finite.
        error: Largest Monte Carlo standard error of the run's average: of a mean in the posterior's own standard
            deviations, of a log scale as it is, so that .1 is ten percent.
        effective: Least effective sample size.
        worst: Place of the number whose R-hat is the largest.

    Source: Dhaka et al. 2020, "Robust, accurate stochastic optimization for variational inference", sections 4 and 5.
    """

    r_hat: float
    error: float
    effective: float
    worst: int

    @classmethod
    def of(cls, iterates: np.ndarray) -> Movement:
        """The movement of a run.

        Args:
            iterates: `(reads, 2 numbers)`, means before log scales, as `Iterate.numbers` has them.

        Example:
        >>> noise = np.random.default_rng(0).normal(size=(400, 2))
        >>> bool(Movement.of(noise).r_hat < 1.1), round(Movement.of(0.1 * noise).error, 3)
        (True, 0.006)
        """
        size = iterates.shape[1] // 2
        if not np.isfinite(iterates).all():
            worst = int(np.argmin(np.isfinite(iterates).all(axis=0)))
            return cls(np.inf, np.inf, 0.0, worst % size)
        moving = np.flatnonzero(np.ptp(iterates, axis=0) > 0)
        if not moving.size:
            return cls(1.0, 0.0, float(len(iterates)), 0)
        runs = iterates[None][..., moving]
        r_hat, effective = split_r_hat(runs), bulk_effective_sample_size(runs)
        units = np.concatenate([np.exp(iterates[:, size:].mean(axis=0)), np.ones(size)])[moving]
        errors = iterates[:, moving].std(axis=0, ddof=1) / np.sqrt(effective) / units
        worst = int(np.argmax(r_hat))
        return cls(float(r_hat[worst]), float(errors.max()), float(effective.min()), int(moving[worst]) % size)
