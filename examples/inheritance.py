"""Parts of epimutations.py and epimutation_reads.py: inheritance of states, pedigrees, least squares, random walks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from bdl.svi.checks import Chains

UNMETHYLATED = 0.7435074
"""Share of cytosines (CG) that are unmethylated in these lines, from the documentation of AlphaBeta's `ABneutral`."""
TRUTH = {"alpha": 9e-5, "beta": 2.6e-4, "heterozygous": 0.03}
HALF_DIFFERENCES = np.array([[0.0, 0.5, 1.0], [0.5, 0.0, 0.5], [1.0, 0.5, 0.0]])


def generation(alpha: Any, beta: Any, xp: Any = np) -> Any:
    """Probabilities of the states UU, UM, MM of a selfed offspring, by those of the parent: `(3, 3)`."""
    gain, loss = [1 - alpha, alpha], [beta, 1 - beta]  # of a copy that was unmethylated, or methylated
    half = [(gain[0] + loss[0]) / 2, (gain[1] + loss[1]) / 2]
    rows = [[copy[0] ** 2, 2 * copy[0] * copy[1], copy[1] ** 2] for copy in (gain, half, loss)]
    return xp.stack([xp.stack(row) for row in rows])


def unmethylated_in_the_end(alpha: Any, beta: Any) -> Any:
    """Share of UU after many generations."""
    return beta * ((1 - beta) ** 2 - (1 - alpha) ** 2 - 1) / ((alpha + beta) * ((alpha + beta - 1) ** 2 - 2))


def divergence(alpha: Any, beta: Any, heterozygous: Any, times: np.ndarray, xp: Any = np) -> Any:
    """Expected share of copies that differ between two plants, `(pairs,)`.

    Args:
        alpha: Chance that an unmethylated copy gains methylation, per generation.
        beta: Chance that a methylated copy loses it.
        heterozygous: Share of UM among the founder's cytosines that are not UU.
        times: Generations of the last common ancestor and of both plants, integers `(pairs, 3)`.
        xp: `numpy` or `keras.ops`.
    """
    each, pair = np.unique(times, axis=0, return_inverse=True)
    step = generation(alpha, beta, xp)

    @functools.cache
    def power(number: int) -> Any:
        if number < 2:
            return step if number else np.eye(3)
        half = xp.matmul(power(number // 2), power(number // 2))
        return xp.matmul(half, step) if number % 2 else half

    methylated = 1 - UNMETHYLATED
    founder = xp.stack([0 * alpha + UNMETHYLATED, methylated * heterozygous, methylated * (1 - heterozygous)])
    passed, place = np.unique(np.stack([each[:, 0], *(each[:, 1:] - each[:, :1]).T]), return_inverse=True)
    powers = xp.stack([0 * step + power(number) for number in passed.tolist()])
    before, one, other = (xp.take(powers, where, axis=0) for where in place.reshape(3, -1))
    states = xp.sum(founder[:, None] * before, axis=1)  # of the ancestor, (kinds, 3)
    differ = xp.sum(xp.matmul(one, HALF_DIFFERENCES) * other, axis=-1)
    return xp.take(xp.sum(states * differ, axis=-1), pair.ravel(), axis=0)


@dataclass(frozen=True)
class Pedigree:
    """Pairs of plants, in the order of `itertools.combinations`.

    Args:
        times: Generations of the last common ancestor and of both plants, integers `(pairs, 3)`.
        divergence: Observed share of copies that differ, in thousandths: `(pairs,)`.
    """

    times: np.ndarray
    divergence: np.ndarray

    @property
    def pairs(self) -> np.ndarray:
        """Numbers of both plants, `(pairs, 2)`."""
        number = round((1 + np.sqrt(1 + 8 * len(self.times))) / 2)
        return np.array(list(itertools.combinations(range(number), 2)))

    @property
    def line(self) -> np.ndarray:
        """The line that each plant belongs to: those with a common ancestor after the founder share one."""
        line = np.arange(self.pairs.max() + 1)
        for (one, other), (ancestor, *_) in zip(self.pairs, self.times, strict=True):
            if ancestor > 0:
                line[other] = line[one]
        return np.unique(line, return_inverse=True)[1]

    @property
    def shared(self) -> tuple[np.ndarray, ...]:
        """What pairs have in common: plants, `(pairs, plants)`; lines, `(pairs, lines)`; and lines by their age.

        A line that is unlike others may be so from its beginning, or more so in each generation.
        """
        line, pairs = self.line, self.pairs
        plants = np.zeros((len(pairs), len(line)))
        lines, aged = np.zeros((2, len(pairs), line.max() + 1))
        for row, pair in enumerate(pairs):
            plants[row, pair] = 1.0
            if line[pair[0]] != line[pair[1]]:
                lines[row, line[pair]] = 1.0
                aged[row, line[pair]] = self.times[row, 1:] / self.times.max()
        return plants, lines, aged

    def without(self, line: int) -> Pedigree:
        """The pedigree of the other lines."""
        keep = (self.line[self.pairs] != line).all(axis=1)
        return Pedigree(self.times[keep], self.divergence[keep])


def load(folder: Path) -> Pedigree:
    """The pedigree of the mutation accumulation lines."""
    path = folder / "methylation" / "arabidopsis_ma_pedigree_divergence.csv"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It is the example pedigree (CG) of the R package AlphaBeta, as CSV.")
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    pedigree = Pedigree(table[:, :3].astype(int), 1e3 * table[:, 3])
    age = np.full(pedigree.pairs.max() + 1, -1)
    for pair, times in zip(pedigree.pairs, pedigree.times[:, 1:], strict=True):
        if not np.isin(age[pair], [-1, *times]).all() or ((age[pair] >= 0).all() and (age[pair] != times).any()):
            raise SystemExit(
                f"{path.name}: pairs must stand in the order (1, 2), (1, 3), ..., (2, 3), ... of the plants."
            )
        age[pair] = times
    return pedigree


LONG_LINES = (*[(31, 31)] * 5, *[(31, 31, 31)] * 2, *[(31, 31, (31, (32, 32)))] * 2)
FOUNDER = (0, (3, (2, (3, 3)), *((30, offspring) for offspring in LONG_LINES)))
"""The pedigree of the data: a plant with offspring is (generation, offspring), a sequenced one is a generation."""


def generate(seed: int = 0, cytosines: int = 200_000) -> Pedigree:
    """Plants of the pedigree, cytosine by cytosine, at `TRUTH`.

    Rates differ from line to line, and some plants are read worse than others, as in the data.
    """
    rng = np.random.default_rng(seed)
    plants: list[tuple[int, tuple[tuple[int, int], ...], np.ndarray]] = []

    def grow(node: Any, parent: np.ndarray, ancestors: tuple[tuple[int, int], ...], rate: float) -> None:
        age, offspring = node if isinstance(node, tuple) else (node, ())
        chances = generation(rate * TRUTH["alpha"], rate * TRUTH["beta"])
        chances = np.linalg.matrix_power(chances, age - ancestors[-1][1]).cumsum(axis=1)
        states = (rng.random(cytosines)[:, None] > chances[parent, :2]).sum(axis=1)
        path = (*ancestors, (len(plants), age))
        for each in offspring:
            grow(each, states, path, rate)
        if not offspring:
            misread = rng.random(cytosines) < rng.gamma(4.0, 3e-4)
            plants.append((age, ancestors, np.where(misread, 2 - states, states)))

    methylated = 1 - UNMETHYLATED
    shares = [UNMETHYLATED, methylated * TRUTH["heterozygous"], methylated * (1 - TRUTH["heterozygous"])]
    founder = rng.choice(3, cytosines, p=shares)
    for line in FOUNDER[1]:
        grow(line, founder, ((-1, 0),), np.exp(0.15 * rng.standard_normal() - 0.15**2 / 2))
    times, differ = [], []
    for (age, ancestors, one), (other_age, others, other) in itertools.combinations(plants, 2):
        times.append((max(set(ancestors) & set(others), key=lambda each: each[1])[1], age, other_age))
        differ.append(1e3 * np.abs(one - other).mean() / 2)
    return Pedigree(np.array(times), np.array(differ))


@dataclass(frozen=True)
class Reduced:
    """All that the divergences say, in fewer numbers.

    What is expected, and what pairs have in common, lies in a space of fewer dimensions than there are pairs. In it the
    errors have a covariance. Of what is outside only the sum of squares depends on a parameter, on the scale of each
    pair's own error.

    Args:
        kinds: The distinct times, `(kinds, 3)`.
        of_kind: From what is expected of each kind of pair to the space, `(dimensions, kinds)`.
        covariances: Of errors of each pair alone, of plants, and of lines in two ways, each of scale 1,
            `(1 or 4, dimensions, dimensions)`.
        inside: The divergences in the space, `(dimensions,)`.
        outside: Sum of squares of what is outside.
        freedom: Dimensions outside.
    """

    kinds: np.ndarray
    of_kind: np.ndarray
    covariances: np.ndarray
    inside: np.ndarray
    outside: float
    freedom: int

    @classmethod
    def of(cls, pedigree: Pedigree, is_dependent: bool) -> Reduced:
        """Of a pedigree, where pairs that share a plant or a line share a part of their errors, or do not."""
        kinds, kind = np.unique(pedigree.times, axis=0, return_inverse=True)
        kind, shared = np.eye(len(kinds))[kind.ravel()], pedigree.shared if is_dependent else ()
        basis, size, _ = np.linalg.svd(np.hstack([kind, *shared]), full_matrices=False)
        basis = basis[:, size > 1e-9 * size.max()].T
        covariances = np.stack([np.eye(len(basis)), *((basis @ each) @ (basis @ each).T for each in shared)])
        inside = basis @ pedigree.divergence
        outside = float(np.sum(pedigree.divergence**2) - np.sum(inside**2))
        return cls(kinds, basis @ kind, covariances, inside, outside, len(pedigree.divergence) - len(basis))

    @property
    def data(self) -> dict[str, np.ndarray]:
        """What the story reads: one row."""
        data = {"share": UNMETHYLATED, "inside": self.inside, "outside": self.outside}
        return {name: np.array(value)[None] for name, value in data.items()}


def least_squares(pedigree: Pedigree) -> tuple[np.ndarray, np.ndarray, float]:
    """AlphaBeta's estimate, which weighs all pairs alike and keeps the founder's share of UU for all time.

    Returns:
        Estimates of `NAMES`; the standard errors of log alpha and log beta that independent errors would have; the sum
        of squares.
    """

    def residuals(x: np.ndarray) -> np.ndarray:
        alpha, beta = np.exp(x[:2])
        errors = pedigree.divergence - x[3] - 1e3 * divergence(alpha, beta, x[2], pedigree.times)
        return np.append(errors, 1e3 * np.sqrt(len(errors)) * (unmethylated_in_the_end(alpha, beta) - UNMETHYLATED))

    first, bounds = [np.log(1e-4), np.log(3e-4), 0.01, 2.0], ([-20, -20, 0, 0], [-2, -2, 1, 20])
    found = optimize.least_squares(residuals, first, bounds=bounds, x_scale=[0.1, 0.1, 0.01, 1.0])
    squares = float(np.sum(found.fun[:-1] ** 2))
    covariance = np.linalg.inv(found.jac.T @ found.jac) * squares / (len(pedigree.divergence) - len(first))
    alpha, beta, heterozygous, intercept = *np.exp(found.x[:2]), *found.x[2:]
    estimate = np.array([alpha, beta, beta / alpha, heterozygous, intercept])
    return estimate, np.sqrt(np.diag(covariance))[:2], squares * 1e-6


def jackknife(pedigree: Pedigree) -> np.ndarray:
    """Standard errors of log alpha and log beta by least squares without each line in turn."""
    number = pedigree.line.max() + 1
    found = np.array([np.log(least_squares(pedigree.without(line))[0][:2]) for line in range(number)])
    return np.sqrt((number - 1) * found.var(axis=0))


def metropolis(density: Callable[[np.ndarray], float], first: np.ndarray, steps: int, seed: int) -> Chains:
    """Draws by four random walks, whose first half is left out: it tells the shape of the steps of the second.

    Args:
        density: Logarithm of a density on the real line.
        first: Draws of something like it, `(draws, size)`, in which the walks begin.
        steps: Of each walk.
        seed: Of the walks.
    """
    rng = np.random.default_rng(seed)

    def walk(u: np.ndarray, factor: np.ndarray) -> list[np.ndarray]:
        now, drawn = density(u), []
        for _ in range(steps // 2):
            proposed = u + factor @ rng.standard_normal(len(u))
            there = density(proposed)
            if np.log(rng.random()) < there - now:
                u, now = proposed, there
            drawn.append(u)
        return drawn

    starts = first[rng.choice(len(first), 4, replace=False)]
    for _ in range(2):
        factor = np.linalg.cholesky(np.cov(first.T)) * 2.38 / np.sqrt(first.shape[1])
        walks = np.array([walk(u, factor) for u in starts])
        starts, first = walks[:, -1], np.concatenate(walks[:, steps // 10 :])
    return Chains(walks, 0)
