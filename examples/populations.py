"""Parts of methylation_levels.py: loci, populations of their levels, and scores of these, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

BLOCK = 1000
"""Neighbours on the chromosome that are fitted, or held out, together."""
NODES = np.linspace(-5.0, 5.0, 65)
LOG_NODE_WEIGHTS = -0.5 * NODES**2 - special.logsumexp(-0.5 * NODES**2)


@dataclass(frozen=True)
class Loci:
    """Reads of loci in two experiments on the same cells.

    Args:
        m, c: Methylated reads, and reads, `(loci, 2)`.
    """

    m: np.ndarray
    c: np.ndarray

    def blocks(self, parity: int) -> Loci:
        """Every second block of neighbours."""
        chosen = np.arange(len(self.m)) // BLOCK % 2 == parity
        return Loci(self.m[chosen], self.c[chosen])

    @property
    def data(self) -> dict[str, np.ndarray]:
        """What the stories read."""
        return {"methylated": self.m.sum(1).astype("float32"), "coverage": self.c.astype("float32")}


def unpacked(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log shares, levels and sizes from log odds of levels, log sizes, and log ratios of shares to the first."""
    number = (len(x) + 1) // 3
    return special.log_softmax([0.0, *x[2 * number :]]), special.expit(x[:number]), np.exp(x[number : 2 * number])


Population = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A distribution of levels p, told by log E[p^m (1 - p)^(c - m)] of arrays m and c, `(pairs,)`."""


def population(family: str, x: np.ndarray) -> Population:
    """Of a family and its parameters, as `unpacked` reads them."""
    log_shares, level, size = unpacked(x)
    if family == "beta":
        a, b = level * size, (1 - level) * size
        return lambda m, c: special.logsumexp(
            log_shares + special.betaln(a + m[:, None], b + (c - m)[:, None]) - special.betaln(a, b), axis=1
        )
    logit = (special.logit(level)[:, None] + size[:, None] * NODES).ravel()
    weights = (log_shares[:, None] + LOG_NODE_WEIGHTS).ravel()
    softplus = np.logaddexp(0.0, logit)
    return lambda m, c: special.logsumexp(np.outer(m, logit) - np.outer(c, softplus) + weights, axis=1)


def of_distinct(function: Population, m: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A function of (m, c), computed once for each distinct pair: `(loci,)`."""
    pairs, place = np.unique(np.stack([m, c], axis=1), axis=0, return_inverse=True)
    return function(*pairs.T.astype("float64"))[place.ravel()]


def log_score_of_both(of: Population, loci: Loci) -> np.ndarray:
    """Log probability of the counts of both replicates, given that both report the locus: `(loci,)`, in nats."""
    nothing = np.zeros(len(loci.c), int)
    none = [np.exp(of_distinct(of, nothing, c)) for c in (*loci.c.T, loci.c.sum(1))]
    reported = np.log(1 - none[0] - none[1] + none[2])
    return of_distinct(of, loci.m.sum(1), loci.c.sum(1)) + log_choose(loci.m, loci.c).sum(1) - reported


def log_score_of_second(of: Population, loci: Loci) -> np.ndarray:
    """The same of the second replicate, once the first is known: `(loci,)`."""
    (m, c), known = (loci.m.sum(1), loci.c.sum(1)), of_distinct(of, loci.m[:, 0], loci.c[:, 0])
    nothing_more = of_distinct(of, loci.m[:, 0], c)  # the first, and no methylated read in the second
    reported = known + np.log(-np.expm1(nothing_more - known))
    return of_distinct(of, m, c) + log_choose(loci.m[:, 1], loci.c[:, 1]) - reported


def log_choose(m: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Logarithm of the binomial coefficient."""
    return -np.log1p(c) - special.betaln(m + 1.0, c - m + 1.0)


def by_block(difference: np.ndarray) -> tuple[float, float]:
    """Mean of a difference of scores, and its standard error by blocks of neighbours, which are alike."""
    starts = np.arange(0, len(difference), BLOCK)
    sizes = np.diff(np.append(starts, len(difference)))
    excess = np.add.reduceat(difference, starts) - difference.mean() * sizes
    return float(difference.mean()), float(np.sqrt(np.sum(excess**2)) / len(difference))


def scores_of(of: Population, loci: Loci) -> np.ndarray:
    """Both log scores of each locus, `(2, loci)`."""
    return np.stack([log_score_of_both(of, loci), log_score_of_second(of, loci)])


def histogram(of: Population, reads: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Expected shares of loci by their methylated share, given their reads and that some are methylated."""
    expected = np.zeros(len(edges) - 1)
    for c, count in zip(*np.unique(reads, return_counts=True), strict=True):
        m = np.arange(1, c + 1)
        probability = np.exp(of(m.astype("float64"), np.full(len(m), float(c))) + log_choose(m, c))
        expected += count * np.histogram(m / c, edges, weights=probability / probability.sum())[0]
    return expected / len(reads)
