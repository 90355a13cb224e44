"""Populations of methylation levels
=================================

Which distribution do the levels of half a million loci follow? Four populations, scored on loci that no fit saw.

::

    python examples/methylation_levels.py --figure levels.png     # made loci, whose population is known
    python examples/methylation_levels.py --data DIR              # those of human chromosome 22 (IMR90 cells)

**Question.** The level of a locus is the share of DNA copies that are methylated there. Three reads say little about
it. All other loci help, if their levels follow the right population. The example `methylation.py` takes a logit-normal
population, and asks how exactly it can be fitted. Here four populations compete.

**Data.** Each locus, a CG, has methylated reads m and reads c in two technical replicates (Lister et al. 2009, Nature
462; `BS.chr22` of the R package bsseq). The table has a trap: a replicate reports a locus only if at least one of its
reads was methylated. Of 494,728 loci none has a replicate with reads but no methylated one. So loci that are never
methylated, as in most CpG islands, are missing, and nothing here tells their share. The example takes the loci that
both replicates report. Its likelihood is that of the counts, given that they were reported.

**Story.** Levels p of each kind of loci follow a beta distribution, or their log odds a normal one::

    p ~ sum over kinds of share_k Beta(level_k size_k, (1 - level_k) size_k),   m_r ~ Binomial(c_r, p), r = 1, 2
    score = log P(m_1, m_2 | c_1, c_2) - log P(m_1 > 0, m_2 > 0 | c_1, c_2)

Level and kind of each locus are integrated out in the story: the beta in closed form, the normal by a quadrature, the
kinds by a sum. At most eight global numbers are left. Every second block of 1,000 neighbouring loci is held out, since
neighbours are alike. Standard errors are those of differences, paired by locus and summed by block.

**Fit.** A Gaussian with all correlations, in batches of 1,000 loci, at T = 1. Halfway its scale is set to 10 / sqrt(N),
for N loci. The gold standard is the maximum of the likelihood by SciPy, with standard errors by its curvature.

**Check.** The fits see 227,810 loci of the chromosome in 600 batches (seed 0, a bit over two minutes of one core), and
are scored on the 227,000 others. The scores are means per locus in nats, less those of the logit-normal population.
"Error" is the largest error of a posterior mean, in standard errors of the maximum of the likelihood. "Loss" is the
held-out score of both replicates at the maximum, less that of the fit::

    population           both replicates      second given first    error    loss
    each locus alone     -0.1834 +- 0.0130    -0.0354 +- 0.0020                         (Jeffreys' prior)
    one beta             -0.0196 +- 0.0014    -0.0117 +- 0.0005       0.7    -.00002
    one logit-normal     -3.5857              -1.6717                 0.5    -.00001    (the score itself)
    two betas            +0.0064 +- 0.0006    +0.0035 +- 0.0003      16.2    +.00023
    three betas          +0.0056 +- 0.0005    +0.0027 +- 0.0003      15.4    +.00249

The populations of two numbers are at the maximum. The mixtures are far from it in standard errors: their shares and
sizes make up for each other, and 600 steps are too few for them. For two betas the score hardly shows it. Three betas
lose more by it than they would gain over two: at the maximum they have +.0081.

.. image:: /images/methylation_levels.png

On 96,000 held-out made loci of two betas (the default run, 1,000 steps, two minutes of one core) two betas score +.0055
+- .0004, the truth +.0056 +- .0003, and one beta -.0155 +- .0003. Two betas are up to 4.0 standard errors from the
maximum, with a share of .47 where the truth is .58, and lose .00015 by it, less than the standard error. So read the
mixtures by what they predict, and not by their parameters. The curvature of the likelihood may be a better scale for
the second half of a fit than one scale for all parameters.

**Answer.** One beta fits worse than one logit-normal. A mixture of two betas fits better than both, and predicts the
second replicate better. One of its kinds has levels around .6, widely spread, the other around .91, narrowly. Each
has about half of the population. IMR90 cells are known for wide domains of partial methylation (Lister et al. 2009),
which the first kind may be.

**Limits.** Nothing is said about loci that the table leaves out. The lists behind it report each strand by itself, and
bsseq adds them up: reads of a strand without a methylated one are missing, too, and the story does not know that. Where
the first replicate has a single read, Jeffreys' prior is better than any population (right). So levels, or what is
reported, depend on the coverage, which these populations do not know.
"""

# sphinx_gallery_thumbnail_path = "images/methylation_levels.png"

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow_probability as tfp
import typer
from keras import ops
from populations import (
    BLOCK,
    LOG_NODE_WEIGHTS,
    NODES,
    Loci,
    Population,
    by_block,
    histogram,
    log_score_of_both,
    population,
    scores_of,
    unpacked,
)
from rich.console import Console
from rich.table import Table
from scipy import optimize, special

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Global, Observed

tfd = tfp.distributions
TRUTH = np.array([0.65, 2.5, np.log(3.5), np.log(33.0), np.log(0.42 / 0.58)])
"""Parameters of made loci: log odds of the levels of two kinds, log sizes, log of the ratio of shares."""
START_LEVELS = {1: (0.75,), 2: (0.6, 0.9), 3: (0.3, 0.7, 0.95)}


class InTheTable(tfd.Distribution):
    """Counts, given that they are reported: their density is divided by the probability of being reported.

    Args:
        counts: Distribution of the counts.
        probability: That they are reported, of the shape of the counts' batch.
    """

    def __init__(self, counts: Any, probability: Any) -> None:
        parameters = {"counts": counts, "probability": probability}
        super().__init__(counts.dtype, tfd.NOT_REPARAMETERIZED, False, True, parameters=parameters)
        self.counts, self.probability = counts, probability

    def _batch_shape(self) -> Any:
        return self.counts.batch_shape

    def _event_shape(self) -> Any:
        return self.counts.event_shape

    def _log_prob(self, value: Any) -> Any:
        return self.counts.log_prob(value) - ops.log(self.probability)


def betas(data: Any, number: int) -> Iterator[Any]:
    """Levels of one or several kinds of loci, each with a beta distribution; both are summed or integrated out."""
    level = yield Global("level", tfd.Sample(tfd.Beta(1.0, 1.0), number))
    size = yield Global("size", tfd.Sample(tfd.LogNormal(1.5, 1.5), number))
    shares = yield from shares_of(number)
    a, b = level * size, (1 - level) * size

    def none(c: Any) -> Any:
        """Probability of no methylated read among c, by kind."""
        return ops.exp(tfp.math.lbeta(a, b + c[:, None]) - tfp.math.lbeta(a, b))

    one, other = data["coverage"][:, 0], data["coverage"][:, 1]
    reported = ops.sum(shares * (1 - none(one) - none(other) + none(one + other)), axis=-1)
    counts = tfd.BetaBinomial((one + other)[:, None], a, b)
    mixture = tfd.MixtureSameFamily(tfd.Categorical(probs=shares), counts)
    yield Observed("methylated", InTheTable(mixture, reported), data["methylated"])


def logits(data: Any, number: int) -> Iterator[Any]:
    """The same, where log odds of the levels of each kind have a normal distribution, on the nodes of a quadrature."""
    level = yield Global("level", tfd.Sample(tfd.Beta(1.0, 1.0), number))
    spread = yield Global("size", tfd.Sample(tfd.LogNormal(0.0, 1.0), number))
    shares = yield from shares_of(number)
    middle = ops.log(level) - ops.log1p(-level)
    logit = ops.reshape(middle[:, None] + spread[:, None] * NODES.astype("float32"), (-1,))
    weights = ops.reshape(ops.log(shares)[:, None] + LOG_NODE_WEIGHTS.astype("float32"), (-1,))

    def some(c: Any) -> Any:
        """Probability of a methylated read among c, by node."""
        return -ops.expm1(-c[:, None] * ops.softplus(logit))

    one, other = data["coverage"][:, 0], data["coverage"][:, 1]
    reported = ops.sum(ops.exp(weights) * some(one) * some(other), axis=-1)
    counts = tfd.Binomial((one + other)[:, None], logits=logit)
    mixture = tfd.MixtureSameFamily(tfd.Categorical(logits=weights), counts)
    yield Observed("methylated", InTheTable(mixture, reported), data["methylated"])


def shares_of(number: int) -> Iterator[Any]:
    """Shares of the kinds of loci; a single kind has all."""
    if number == 1:
        return ops.ones(1)
    return (yield Global("shares", tfd.Dirichlet(np.ones(number, "float32"))))


FAMILIES = {"beta": betas, "logit-normal": logits}
START_SIZES = {"beta": 5.0, "logit-normal": 1.0}


def load(folder: Path) -> Loci:
    """The loci of the chromosome that both replicates report."""
    path = folder / "methylation" / "imr90_chr22.npz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It comes from the R package bsseq, as arrays M and Cov, (loci, 2).")
    with np.load(path) as archive:
        m, c = archive["M"].astype("int64"), archive["Cov"].astype("int64")
    if m.shape != c.shape or m.ndim != 2 or (m > c).any():
        raise SystemExit(f"{path.name}: M and Cov must be (loci, replicates) with M <= Cov.")
    unmethylated = (m == 0) & (c > 0)
    print(f"{len(m):,} loci; replicates that have reads of a locus, but no methylated one: {unmethylated.sum()}")
    both = (m > 0).all(axis=1)
    return Loci(m[both], c[both])


def generate(rows: int, seed: int = 0) -> Loci:
    """Reads of loci of the population `TRUTH`, with coverages like those of the chromosome; reported ones only."""
    rng = np.random.default_rng(seed)
    _, level, size = unpacked(TRUTH)
    kind = (rng.random(rows) < special.expit(TRUTH[-1])).astype(int)
    rate = rng.beta((level * size)[kind], ((1 - level) * size)[kind])[:, None]
    c = 1 + rng.negative_binomial(2.0, 2.0 / (2.0 + 11.0), (rows, 2))
    m = rng.binomial(c, rate)
    both = (m > 0).all(axis=1)
    return Loci(m[both], c[both])


def fit(family: str, number: int, loci: Loci, steps: int, seed: int) -> SVI:
    """A population, fitted to batches of loci."""
    start = {"level": np.array(START_LEVELS[number]), "size": np.full(number, START_SIZES[family])}
    start |= {"shares": np.full(number, 1 / number)} if number > 1 else {}
    model = SVI(functools.partial(FAMILIES[family], number=number), "full_rank", start=start, num_samples=2, seed=seed)
    for part in (steps // 2, steps - steps // 2):
        model.compile(keras.optimizers.Adam(DecayOverFit(3e-2)), steps_per_execution=50)
        model.fit(loci.data, batch_size=1000, steps=part, verbose=0)
        # The second part moves the parameters in units of what N loci tell of them, and not of the start.
        guide = model.guide_of("level")
        mean = ops.convert_to_numpy(guide.distribution().mean)
        if part == steps // 2:
            guide.start_at(mean, 10.0 / np.sqrt(len(loci.m)) * np.eye(len(mean)))
    return model


def draws_of(model: SVI, num_samples: int = 4000) -> np.ndarray:
    """Draws of the posterior, as `unpacked` reads them: `(draws, parameters)`."""
    draws = {name: each.astype("float64") for name, each in model.posterior(num_samples=num_samples, seed=1).items()}
    shares = draws.get("shares", np.ones((num_samples, 1)))
    return np.hstack([special.logit(draws["level"]), np.log(draws["size"]), np.log(shares[:, 1:] / shares[:, :1])])


def best(family: str, loci: Loci, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of the likelihood by SciPy, and standard errors by the curvature there: the gold standard."""
    pairs, counts = np.unique(np.stack([loci.m.sum(1), loci.c.sum(1)]), axis=1, return_counts=True)
    reads, of_reads = np.unique(np.sort(loci.c, axis=1).T, axis=1, return_counts=True)
    (m, c), (one, other) = pairs.astype("float64"), reads.astype("float64")

    def cost(x: np.ndarray) -> float:
        of = population(family, x)
        none = [np.exp(of(np.zeros(len(one)), each)) for each in (one, other, one + other)]
        return -float(counts @ of(m, c) - of_reads @ np.log(1 - none[0] - none[1] + none[2])) / len(loci.m)

    def slope(x: np.ndarray) -> np.ndarray:
        return np.array([(cost(x + step) - cost(x - step)) / 2e-4 for step in 1e-4 * np.eye(len(x))])

    found = optimize.minimize(cost, first, jac=slope, method="BFGS", options={"gtol": 1e-6}).x
    curvature = np.array([(slope(found + step) - slope(found - step)) / 2e-3 for step in 1e-3 * np.eye(len(found))])
    return found, np.sqrt(np.diag(np.linalg.inv((curvature + curvature.T) / 2)) / len(loci.m))


@dataclass(frozen=True)
class Fitted:
    """What comes of a population.

    Args:
        of: The population, at the posterior mean.
        x: Posterior means of its parameters; None where nothing was fitted.
        shift: Largest error of a mean, in standard errors of the maximum of the likelihood; None likewise.
        lost: Held-out log score of both replicates at the maximum of the likelihood less that of this one, in nats.
        scores: Held-out log scores of both replicates, and of the second given the first: `(2, loci)`.
        seconds: Of the fit.
    """

    of: Population
    x: np.ndarray | None
    shift: float | None
    lost: float | None
    scores: np.ndarray
    seconds: float

    @classmethod
    def unfitted(cls, of: Population, held_out: Loci) -> Fitted:
        """A result for a population that is given."""
        return cls(of, None, None, None, scores_of(of, held_out), 0.0)


MODELS = {
    "beta": ("beta", 1),
    "logit-normal": ("logit-normal", 1),
    "two betas": ("beta", 2),
    "three betas": ("beta", 3),
}
RIVAL = "logit-normal"


def fit_all(fitted: Loci, held_out: Loci, steps: int, seed: int) -> dict[str, Fitted]:
    """Every population, and two that ignore it: one level for all loci, and each locus by itself (Jeffreys' prior)."""
    level = fitted.m.sum() / fitted.c.sum()
    found = {
        "one level for all": Fitted.unfitted(population("beta", np.array([special.logit(level), 12.0])), held_out),
        "each locus alone": Fitted.unfitted(population("beta", np.array([0.0, 0.0])), held_out),
    }
    for name, (family, number) in MODELS.items():
        began = time.perf_counter()
        draws = draws_of(fit(family, number, fitted, steps, seed))
        seconds, x = time.perf_counter() - began, draws.mean(0)
        most, errors = best(family, fitted, x)
        of, shift = population(family, x), float(np.abs((x - most) / errors).max())
        scores = scores_of(of, held_out)
        lost = float(np.mean(log_score_of_both(population(family, most), held_out) - scores[0]))
        print(f"{name}: {seconds:.0f} s", flush=True)
        found[name] = Fitted(of, x, shift, lost, scores, seconds)
    return found


def report(found: dict[str, Fitted], truth: Fitted | None) -> None:
    """Prints the scores, and the kinds of loci that each population has."""
    rival = found[RIVAL].scores
    table = Table(title=f"Held-out log score per locus, in nats, less that of the {RIVAL} population")
    for column in ("", "both replicates", "second given first", "largest error, sd", "nats lost to it", "seconds"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for name, each in {**found, **({} if truth is None else {"truth": truth})}.items():
        gains = [by_block(own - other) for own, other in zip(each.scores, rival, strict=True)]
        cells = [f"{gain:+.4f} ± {error:.4f}" for gain, error in gains]
        if name == RIVAL:
            cells = [f"{score:.4f}" for score in rival.mean(axis=1)]
        rest = ["", "", ""] if each.shift is None else [f"{each.shift:.1f}", f"{each.lost:+.6f}", f"{each.seconds:.0f}"]
        table.add_row(name, *cells, *rest)
    console = Console(width=120)
    console.print(table)
    kinds = Table(title="Kinds of loci: share, level (mean of a beta, median of a logit-normal), size or spread")
    for column in ("", "share", "level", "size"):
        kinds.add_column(column, justify="right" if kinds.columns else "left", no_wrap=True)
    populations = {name: each.x for name, each in found.items() if each.x is not None}
    for name, x in {**populations, **({} if truth is None else {"truth": TRUTH})}.items():
        for number, (share, level, size) in enumerate(zip(*unpacked(x), strict=True)):
            kinds.add_row("" if number else name, f"{np.exp(share):.3f}", f"{level:.3f}", f"{size:.2f}")
    console.print(kinds)


def draw(path: Path, found: dict[str, Fitted], held_out: Loci, least: int = 20) -> None:
    """The loci's methylated shares, the gains of each population, and where they come from."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained", width_ratios=(5, 5, 4))
    m, c = held_out.m.sum(1), held_out.c.sum(1)
    chosen, edges = c >= least, np.linspace(0, 1, 26) + 1e-9
    observed = np.histogram(m[chosen] / c[chosen], edges)[0] / chosen.sum()
    left.stairs(observed, edges, fill=True, color="0.85", label="held-out loci")
    colours = {"beta": "C1", RIVAL: "C2", "two betas": "C0"}
    for name, colour in colours.items():
        expected = histogram(found[name].of, c[chosen], edges)
        left.plot((edges[1:] + edges[:-1]) / 2, expected, ".-", color=colour, lw=1.3, ms=4, label=name)
    left.set(xlabel=f"methylated share of {least} reads or more", ylabel="share of loci", title="Levels")
    left.legend(frameon=False, loc="upper left")

    shown = [name for name in found if name != RIVAL and found[name].x is not None]
    for row, (label, colour) in enumerate((("both replicates", "C0"), ("second given first", "C1"))):
        gains = [by_block(found[name].scores[row] - found[RIVAL].scores[row]) for name in shown]
        at = -np.arange(len(shown)) + 0.15 - 0.3 * row
        means, errors = 1e3 * np.array(gains).T
        middle.errorbar(means, at, xerr=2 * errors, fmt="o", color=colour, capsize=3, label=f"{label}, ± 2 s.e.")
    middle.axvline(0, color="0.5", lw=1)
    middle.set_yticks(-np.arange(len(shown)), shown)
    middle.set(xlabel="nats per 1,000 loci", title=f"Held-out gain over the {RIVAL}", ylim=(0.6 - len(shown), 0.9))
    middle.legend(frameon=False, fontsize="small", loc="upper left")

    reads = np.array([1, 2, 4, 8, 16, 32])
    place = np.digitize(held_out.c[:, 0], reads) - 1
    for name, colour in {"each locus alone": "0.5", **colours}.items():
        scores = [found[name].scores[1][place == k].mean() for k in range(len(reads))]
        right.plot(np.arange(len(reads)), scores, "o-", color=colour, ms=4, label=name)
    labels = [
        f"{low}-{high - 1}" if high > low + 1 else str(low) for low, high in zip(reads, [*reads[1:], 0], strict=True)
    ]
    right.set_xticks(np.arange(len(reads)), [*labels[:-1], f"{reads[-1]}+"])
    right.set(xlabel="reads in the first replicate", ylabel="nats per locus", title="Log score of the second replicate")
    right.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with methylation/imr90_chr22.npz; else BDL_DATA.")] = None,
    rows: Annotated[int, typer.Option(help="Loci that are made where there are no data.")] = 200_000,
    steps: Annotated[int, typer.Option(help="Steps of each fit, on batches of 1,000 loci.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the fits.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of levels and scores.")] = None,
) -> None:
    """Fits populations to half of the loci, and scores them on the other half."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    loci = load(folder) if folder else generate(rows)
    fitted, held_out = loci.blocks(0), loci.blocks(1)
    print(f"{len(fitted.m):,} loci to fit, {len(held_out.m):,} held out, in blocks of {BLOCK:,} neighbours", flush=True)
    found = fit_all(fitted, held_out, steps, seed)
    truth = None if folder else Fitted.unfitted(population("beta", TRUTH), held_out)
    report(found, truth)
    if figure is not None:
        draw(figure, found, held_out)


if __name__ == "__main__":
    typer.run(main)
