"""Counts of antibodies on cells: the data of surface_proteins.py, real or made, their distribution and its priors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_probability as tfp
from keras import ops
from scipy import optimize, stats

from bdl.likelihoods.counts import log_gamma
from bdl.random import fold_in
from bdl.svi import Global

tfd = tfp.distributions
TYPES = {
    "CD4 T": (0.35, "CD3 CD4 CD2 CD5 CD7 CD27"),
    "CD8 T": (0.2, "CD3 CD8 CD2 CD5 CD7 CD27"),
    "B": (0.15, "CD19 CD20 CD21 IgD HLA-DR"),
    "NK": (0.1, "CD56 CD16 CD7 CD2"),
    "monocyte": (0.2, "CD14 CD11c CD33 HLA-DR"),
}
"""Generated types of cells: their share, and the proteins that they have."""
NUM_ISOTYPES = 4


@dataclass(frozen=True)
class Proteins:
    """Counts of antibodies.

    Args:
        cells: `(cells, proteins)`.
        empty: Of droplets without a cell, `(droplets, proteins)`.
        names: Of the proteins.
        is_on: Of generated cells, whether the cell has the protein, `(cells, proteins)`; None of real ones.
    """

    cells: np.ndarray
    empty: np.ndarray
    names: list[str]
    is_on: np.ndarray | None = None

    @property
    def isotypes(self) -> list[int]:
        """Columns of the controls."""
        return [number for number, name in enumerate(self.names) if "isotype" in name.lower()]


def load(folder: Path) -> Proteins:
    """The cells and empty droplets of a sample of blood."""
    path = folder / "citeseq" / "citeseq_dsb.npz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It comes from the R package dsb, as arrays cells, empty and proteins.")
    with np.load(path) as archive:
        names = [str(name).replace("_PROT", "").strip() for name in archive["proteins"]]
        cells, empty = archive["cells"].astype("float32"), archive["empty"].astype("float32")
    if cells.ndim != 2 or cells.shape[1] != len(names) or empty.shape[1:] != cells.shape[1:]:
        raise SystemExit(f"{path.name}: cells and empty must be counts of {len(names)} proteins.")
    return Proteins(cells, empty, names)


def generate(num_cells: int, num_empty: int = 3000, seed: int = 0) -> Proteins:
    """Cells of `TYPES`. As in real ones, CD4 T cells bind some of the antibody against CD14, which they do not have."""
    rng = np.random.default_rng(seed)
    markers = sorted({name for _, of_type in TYPES.values() for name in of_type.split()})
    names = markers + [f"isotype {number}" for number in range(1, NUM_ISOTYPES + 1)]
    kind = rng.choice(len(TYPES), num_cells, p=[share for share, _ in TYPES.values()])
    share = np.array([[0.95 if name in of_type.split() else 0.01 for name in names] for _, of_type in TYPES.values()])
    share[:, len(markers) :] = 0.0
    is_on = rng.random((num_cells, len(names))) < share[kind]

    level = rng.normal(1.2, 0.7, len(names))
    level[len(markers) :] = rng.normal(-0.3, 0.3, NUM_ISOTYPES)
    higher = np.append(rng.normal(0.2, 0.2, (len(TYPES), len(markers))), np.zeros((len(TYPES), NUM_ISOTYPES)), axis=1)
    higher[list(TYPES).index("CD4 T"), names.index("CD14")] = np.log(2.6)
    size, gap = rng.normal(0.0, 0.35, (num_cells, 1)), rng.uniform(1.6, 3.5, len(names))
    background = counts_of(level + size + higher[kind], 6.0, rng)
    cells = np.where(is_on, counts_of(level + size + gap, 3.0, rng), background)
    empty = counts_of(level + rng.normal(0.0, 0.2, (num_empty, 1)), 6.0, rng)
    return Proteins(cells, empty, names, is_on)


def counts_of(log_mean: np.ndarray, r: float, rng: np.random.Generator) -> np.ndarray:
    """Draws of a negative binomial: Poisson counts, whose rate is of a gamma distribution."""
    return rng.poisson(rng.gamma(r, np.exp(log_mean) / r)).astype("float32")


class Mixture:
    """Counts of background or foreground, both negative binomial: a distribution of the story.

    TensorFlow Probability has the same as a MixtureSameFamily, with a density that takes 4 times as long.

    Args:
        logit: Of the share of the foreground.
        low, high: Log means of background and foreground.
        r_low, r_high: Their r; the variance is `mean + mean^2 / r`.
    """

    support, is_discrete, event_shape = None, True, ()

    def __init__(self, logit: Any, low: Any, high: Any, r_low: Any, r_high: Any) -> None:
        self.logit, self.components = logit, ((low, r_low), (high, r_high))
        self.batch_shape = tuple(low.shape)

    def _parts(self, counts: Any) -> tuple[Any, Any]:
        """Log density of the counts together with each component."""
        log_shares = (-ops.softplus(self.logit), -ops.softplus(-self.logit))
        pairs = zip(log_shares, self.components, strict=True)
        low, high = (share + log_negative_binomial(counts, *component) for share, component in pairs)
        return low, high

    def log_prob(self, counts: Any) -> Any:
        """In nats."""
        return ops.logaddexp(*self._parts(counts))

    def foreground(self, counts: Any) -> Any:
        """Probability that a count is of the foreground."""
        low, high = self._parts(counts)
        return ops.sigmoid(high - low)

    def sample(self, num_samples: int, key: Any) -> Any:
        """Counts, `(num_samples, *batch_shape)`, by a key of `bdl.random`."""
        keys = [ops.cast(fold_in(key, number), "int32") for number in range(3)]
        low, high = (
            tfd.NegativeBinomial(r + 0.0 * log_mean, logits=log_mean - ops.log(r)).sample(num_samples, seed=seed)
            for (log_mean, r), seed in zip(self.components, keys, strict=False)
        )
        is_high = tfd.Bernoulli(logits=self.logit + 0.0 * self.components[0][0]).sample(num_samples, seed=keys[2])
        return ops.where(is_high > 0, high, low)


def log_negative_binomial(counts: Any, log_mean: Any, r: Any) -> Any:
    """Log probability of counts, in nats."""
    odds = log_mean - ops.log(r)
    choices = log_gamma(counts + r) - log_gamma(r) - log_gamma(counts + 1.0)
    return choices + counts * odds - (counts + r) * ops.softplus(odds)


@dataclass(frozen=True)
class Prior:
    """What is known of the background before the cells are seen: normal in the log mean, log-normal in r.

    Args:
        level, log_r: Their medians, `(proteins,)`.
        level_sd, log_r_sd: Their standard deviations.
    """

    level: np.ndarray
    log_r: np.ndarray
    level_sd: float
    log_r_sd: float

    @classmethod
    def of_droplets(cls, empty: np.ndarray) -> Prior:
        """Around what fits the empty droplets. Cells bind more of some antibodies than droplets hold, hence 0.5."""
        clean = np.minimum(empty, np.quantile(empty, 0.999, axis=0).round())  # a clump of antibodies would move a fit
        return cls(*best_negative_binomials(clean), level_sd=0.5, log_r_sd=0.5)

    @classmethod
    def vague(cls, num_proteins: int) -> Prior:
        """That says next to nothing."""
        level, log_r = np.ones(num_proteins, "float32"), np.zeros(num_proteins, "float32")
        return cls(level, log_r, level_sd=3.0, log_r_sd=2.0)


def best_negative_binomials(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log mean and log r of the negative binomial that fits each protein's counts best."""
    search = {"bounds": (-3.0, 5.0), "method": "bounded"}
    log_r = [optimize.minimize_scalar(_cost, args=(column,), **search).x for column in counts.T]
    return np.log(counts.mean(0)).astype("float32"), np.array(log_r, "float32")


def _cost(log_r: float, counts: np.ndarray) -> float:
    """Negative log likelihood of a protein's counts, with their mean."""
    values, times = np.unique(counts, return_counts=True)
    r = np.exp(log_r)
    return -float(times @ stats.nbinom.logpmf(values, r, r / (r + counts.mean())))


def priors_of(prior: Prior, shape: tuple[int, ...]) -> dict[str, Any]:
    """Priors of what each protein has, by name."""
    ones = np.ones(shape, "float32")
    return {
        "level": tfd.Normal(prior.level, prior.level_sd),
        "r_low": tfd.LogNormal(prior.log_r, prior.log_r_sd),
        "above": tfd.Normal(2.0 * ones, 1.0),
        "r_high": tfd.LogNormal(ones, 1.0),
        "share": tfd.Normal(-ones, 1.5),
    }


def sites_of(prior: Prior, shape: tuple[int, ...]) -> Iterator[Any]:
    """Global sites that each protein has: yields them, and returns their values."""
    sites = {}
    for name, distribution in priors_of(prior, shape).items():
        sites[name] = yield Global(name, distribution)
    return sites
