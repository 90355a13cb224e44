"""Are ranks uniform? Simultaneous bands of their distribution function, and p-values."""

from __future__ import annotations

import functools

import numpy as np
from scipy import stats

NUM_SIMULATIONS = 20_000
"""Samples of uniform ranks from which bands and p-values come: a rate of .001 is known to a fifth of itself."""


def counts_below(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """How many ranks are at most 0, 1, ..., `num_draws - 1`: the distribution function before its last step.

    Args:
        ranks: `(..., simulations)`, whole numbers from 0 to `num_draws`.
        num_draws: Draws among which values were ranked.

    Returns:
        `(..., num_draws)`.

    Example:
    >>> counts_below(np.array([0, 2, 2, 3]), 3)
    array([1, 1, 3])
    """
    return (np.asarray(ranks)[..., None] <= np.arange(num_draws)).sum(axis=-2)


def bands(num_simulations: int, num_draws: int, false_alarm: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest counts between which the distribution function of uniform ranks stays as a whole.

    Args:
        num_simulations: Number of ranks.
        num_draws: Draws among which values were ranked.
        false_alarm: Probability that uniform ranks leave the band somewhere.

    Returns:
        Two arrays `(num_draws,)`, to be compared with `counts_below`.

    Source: Säilynoja, Bürkner and Vehtari 2022, "Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison", algorithm 1: bands of binomial quantiles, of a pointwise
    level that is found by simulation.

    Example:
    >>> low, high = bands(100, 9, 0.05)
    >>> bool(np.all(low < 100 * np.arange(1, 10) / 10)), bool(np.all(high > 100 * np.arange(1, 10) / 10))
    (True, True)
    """
    tails, least = _tails(num_simulations, num_draws), _least_tails(num_simulations, num_draws)
    gamma = np.quantile(least, false_alarm, method="inverted_cdf") if false_alarm * len(least) >= 1 else least[0]
    inside = tails > gamma
    low = np.argmax(inside, axis=1)
    return low, num_simulations - np.argmax(inside[:, ::-1], axis=1)


def p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Probability that the distribution function of uniform ranks strays as far somewhere as this one does.

    Args:
        ranks: `(simulations,)`.
        num_draws: Draws among which values were ranked.

    Example:
    >>> uniform = np.random.default_rng(0).integers(0, 100, 200)
    >>> p_value(uniform, 99) > 0.05, p_value(uniform // 2, 99) < 1e-4
    (True, True)
    """
    tails, least = _tails(len(ranks), num_draws), _least_tails(len(ranks), num_draws)
    found = tails[np.arange(num_draws), counts_below(ranks, num_draws)].min()
    return float((1 + np.searchsorted(least, found * (1 + 1e-9), side="right")) / (1 + len(least)))


@functools.lru_cache(maxsize=4)
def _tails(num_simulations: int, num_draws: int) -> np.ndarray:
    """The smaller tail of each count at each place, `(num_draws, num_simulations + 1)`."""
    counts = np.arange(num_simulations + 1)
    below = stats.binom(num_simulations, np.arange(1, num_draws + 1)[:, None] / (num_draws + 1))
    return np.minimum(below.cdf(counts), below.sf(counts - 1))


@functools.lru_cache(maxsize=4)
def _least_tails(num_simulations: int, num_draws: int) -> np.ndarray:
    """The smallest tail along each of many simulated distribution functions, in order."""
    random = np.random.default_rng(0)
    uniform = np.full(num_draws + 1, 1.0 / (num_draws + 1))
    counts = random.multinomial(num_simulations, uniform, size=NUM_SIMULATIONS)[:, :-1].cumsum(axis=1)
    return np.sort(_tails(num_simulations, num_draws)[np.arange(num_draws), counts].min(axis=1))
