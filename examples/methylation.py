"""Half a million latent variables
===============================

How methylated are half a million loci of a genome? A latent variable for each, and a network that infers them.

::

    python examples/methylation.py --figure methylation.png      # made loci, whose truth is known
    python examples/methylation.py --data DIR                    # those of human chromosome 22 (IMR90 cells)

**Question.** The level of a locus is the share of DNA copies that are methylated there. How do levels differ over loci?

**Data.** Of the c reads that cover a locus, m are methylated. The real loci are CGs (Lister et al. 2009; `BS.chr22` of
the R package bsseq), with the reads of two replicates added up.

**Story.** The log odds of the levels have a normal distribution::

    m ~ Binomial(c, sigmoid(logit)),   logit ~ N(mean, spread^2) of each locus
    mean ~ N(0, 2^2),   log spread ~ N(0, 1)

**Fit.** A recognition network computes a Gaussian of each logit from (c, m). It is fitted in batches of 1,000 loci, at
T = 1. With so many loci the posterior of mean and spread is so narrow that two more things matter. First, the true
posterior of a logit is not Gaussian. What the ELBO loses by that depends on mean and spread, and moves them. The
importance-weighted bound loses much less. Second, batches are noisy. So a second fit sees all data in each step: there
are only a few thousand distinct pairs (c, m), each weighted by how often it occurs.

**Check.** The gold standard, exact quadrature, is a sum over the same pairs. The figure is of made loci, whose truth is
a mean of 1.65 and a log spread of 0.4. The posterior by the ELBO misses the exact one. That by 20 weighted draws nearly
coincides with it.

.. image:: /images/methylation.png

**Answer.** On the real loci the exact posterior is 1.653 +- .002 for the mean and .399 +- .001 for the log spread. With
the ELBO the means are 3.3 to 4.4 and 9.1 to 9.5 exact standard deviations too low, with 20 weighted draws within .1
(three seeds, `benchmarks/svi_methylation.py`).

**Limits.** In the table of the real data a replicate reports a locus only where at least one of its reads is methylated
(M is 0 exactly where the coverage is 0). So loci without methylation are missing, and the population is that of the
reported loci. The example `methylation_levels.py` conditions on being reported.
"""

# sphinx_gallery_thumbnail_path = "images/methylation.png"

from __future__ import annotations

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
from rich.console import Console
from rich.table import Table
from scipy import optimize, special

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Amortized, FullRank, Global, Local, Observed

tfd = tfp.distributions
Loci = dict[str, np.ndarray]
NUM_LOCI = 494_728
TRUTH = {"mean": 1.65, "log spread": 0.4}
PRIOR_SCALES = np.array([2.0, 1.0])
"""Standard deviations of the priors of mean and log spread, around 0."""


@keras.saving.register_keras_serializable(package="methylation")
def story(data: Any) -> Iterator[Any]:
    """The population of loci."""
    mean = yield Global("mean", tfd.Normal(0.0, 2.0))
    spread = yield Global("spread", tfd.LogNormal(0.0, 1.0))
    logit = yield Local("logit", tfd.Normal(mean, spread))
    yield Observed("methylated", tfd.Binomial(data["coverage"], logits=logit), data["methylated"])


@keras.saving.register_keras_serializable(package="methylation")
def features(data: Any) -> Any:
    """What the recognition network reads of each locus, of the order of one."""
    methylated, coverage = data["methylated"], data["coverage"]
    log_odds = keras.ops.log((methylated + 0.5) / (coverage - methylated + 0.5))
    return keras.ops.stack([log_odds - 1.5, keras.ops.log1p(coverage) - 3.0], axis=-1)


def load(folder: Path) -> Loci:
    """Reads and methylated reads of each locus, both replicates together."""
    path = folder / "methylation" / "imr90_chr22.npz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It comes from the R package bsseq, as arrays M and Cov, (loci, 2).")
    with np.load(path) as archive:
        methylated, coverage = archive["M"], archive["Cov"]
    if methylated.shape != coverage.shape or methylated.ndim != 2 or (methylated > coverage).any():
        raise SystemExit(f"{path.name}: M and Cov must be (loci, replicates) with M <= Cov.")
    return {"methylated": methylated.sum(1).astype("float32"), "coverage": coverage.sum(1).astype("float32")}


def generate(rows: int, seed: int = 0) -> Loci:
    """Loci of the story at `TRUTH`, with coverages like those of the chromosome."""
    rng = np.random.default_rng(seed)
    coverage = 1 + rng.negative_binomial(2.7, 2.7 / (2.7 + 23.4), rows)
    logit = TRUTH["mean"] + np.exp(TRUTH["log spread"]) * rng.standard_normal(rows)
    methylated = rng.binomial(coverage, special.expit(logit))
    return {"methylated": methylated.astype("float32"), "coverage": coverage.astype("float32")}


def distinct(loci: Loci, most: int | None = None) -> tuple[Loci, np.ndarray]:
    """The distinct pairs, and how many loci have each.

    Args:
        loci: All loci.
        most: Loci that a row stands for at most; more of them are dealt out evenly to several rows. Each row has draws
            of its own, so that a pair of thousands of loci does not hang on one row's draws.
    """
    pairs = np.stack([loci["methylated"], loci["coverage"]], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    copies = np.ones_like(counts) if most is None else -(-counts // most)
    pairs, counts = np.repeat(pairs, copies, axis=0), np.repeat(counts / copies, copies)
    return {"methylated": pairs[:, 0], "coverage": pairs[:, 1]}, counts.astype("float32")


def compiled(model: SVI) -> SVI:
    """The model with a new optimizer, whose rate falls over the next fit."""
    model.compile(keras.optimizers.Adam(DecayOverFit(2e-2)))
    return model


def model_of(seed: int, num_examples: int | None = None) -> SVI:
    """The model, not fitted yet."""
    keras.utils.set_random_seed(seed)
    recognition = keras.Sequential([keras.layers.Dense(32, "tanh"), keras.layers.Dense(32, "tanh")])
    guide = {"logit": Amortized(recognition, inputs=features), ("mean", "spread"): FullRank()}
    return compiled(SVI(story, guide, num_examples=num_examples, seed=seed))


def fit_batches(loci: Loci, steps: int, seed: int, batch_size: Any = 1000) -> SVI:
    """The model after a fit to batches of loci."""
    model = model_of(seed)
    model.fit(loci, batch_size=batch_size, steps=steps, verbose=0)
    # From here on the globals move in units of what N loci tell of them. Their prior is hundreds of times as wide.
    globals_guide = model.guide_of("mean")
    mean = keras.ops.convert_to_numpy(globals_guide.distribution().mean)
    globals_guide.start_at(mean, 10.0 / np.sqrt(len(loci["coverage"])) * np.eye(2))
    return model


def fit_pairs(model: SVI, loci: Loci, steps: int, num_samples: int | None = None) -> SVI:
    """Fits on to all loci in each step, as weighted pairs.

    A weight says how often a row was observed. N is the number of rows of the fit, here of the pairs, so that with
    plain counts the likelihood is that of all loci, and the KL of the globals counts once: T is 1.

    Args:
        model: Already fitted.
        loci: All loci.
        steps: Training steps.
        num_samples: Draws of each logit in the importance-weighted bound; None takes the ELBO.
    """
    if num_samples is not None:
        model.objective, model.num_samples = "multi_sample", num_samples
    rows, counts = distinct(loci, most=100)
    compiled(model).fit(rows, batch_size="all", steps=steps, sample_weight=counts, verbose=0)
    return model


@dataclass(frozen=True)
class Posterior:
    """Mean, standard deviation and correlation of (mean, log spread).

    Args:
        mean, sd: `(2,)`.
        correlation: Between them.
    """

    mean: np.ndarray
    sd: np.ndarray
    correlation: float

    @classmethod
    def of(cls, points: np.ndarray, weights: np.ndarray | None = None) -> Posterior:
        """Of points `(points, 2)` and their weights."""
        covariance = np.cov(points.T, aweights=weights, ddof=0)
        sd = np.sqrt(np.diag(covariance))
        return cls(np.average(points, axis=0, weights=weights), sd, covariance[0, 1] / sd.prod())


def exact_posterior(loci: Loci, num_nodes: int = 401, width: int = 15) -> Posterior:
    """The posterior of the globals by quadrature, over grids of z = (logit - mean) / spread and of the globals."""
    pairs, counts = distinct(loci)
    z = np.linspace(-8.0, 8.0, num_nodes)
    log_prior = -0.5 * z**2 - special.logsumexp(-0.5 * z**2)

    def log_density(point: np.ndarray) -> float:
        logit = point[0] + np.exp(point[1]) * z
        log_joint = np.outer(pairs["methylated"], logit) - np.outer(pairs["coverage"], np.logaddexp(0.0, logit))
        log_joint += log_prior
        top = log_joint.max(axis=1, keepdims=True)
        log_evidence = top[:, 0] + np.log(np.exp(log_joint - top).sum(axis=1))
        return float(counts @ log_evidence - 0.5 * np.sum((point / PRIOR_SCALES) ** 2))

    scale = 2.0 / np.sqrt(counts.sum())  # about a standard deviation
    start = np.array([1.0, 0.0])
    for size in (1.0, scale):  # the second search begins at the end of the first, at the scale of the posterior
        simplex = start + size * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        options = {"initial_simplex": simplex, "xatol": scale / 10, "fatol": 0.01}
        start = optimize.minimize(lambda point: -log_density(point), start, method="Nelder-Mead", options=options).x
    steps = scale * np.eye(2)
    middle = log_density(start)
    curvature = [2 * middle - log_density(start + step) - log_density(start - step) for step in steps]
    ends = 5.0 * scale / np.sqrt(curvature)
    grid = np.stack(np.meshgrid(*(np.linspace(-end, end, width) for end in ends)), axis=-1).reshape(-1, 2) + start
    log_weights = np.array([log_density(point) for point in grid])
    return Posterior.of(grid, np.exp(log_weights - log_weights.max()))


def globals_of(model: SVI, num_samples: int = 50_000) -> Posterior:
    """The guide's posterior of (mean, log spread)."""
    draws = model.posterior(num_samples=num_samples, seed=1)
    return Posterior.of(np.stack([draws["mean"], np.log(draws["spread"])], axis=1).astype("float64"))


NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


def local_elbo(mean: Any, sd: Any, loci: Loci, point: np.ndarray) -> tuple[Any, Any, Any]:
    """ELBO of each locus for q(logit) = N(mean, sd^2) at given globals, in nats, and its slopes in mean and sd.

    Without the binomial coefficient; the expectation is by quadrature. All arguments but the globals `(rows,)`.
    """
    noise, spread = NODES[:, None], np.exp(point[1])
    logit = mean + sd * noise
    methylated, coverage = loci["methylated"], loci["coverage"]
    log_likelihood = methylated * logit - coverage * np.logaddexp(0.0, logit)
    slope = methylated - coverage * special.expit(logit)
    away = (mean - point[0]) / spread
    kl = 0.5 * (away**2 + (sd / spread) ** 2 - 1.0) - np.log(sd / spread)
    in_mean = NODE_WEIGHTS @ slope - away / spread
    in_sd = NODE_WEIGHTS @ (slope * noise) - sd / spread**2 + 1 / sd
    return NODE_WEIGHTS @ log_likelihood - kl, in_mean, in_sd


def optimise(loci: Loci, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best Gaussian of each locus, one after the other, by SciPy's L-BFGS."""
    found = []
    for row in range(len(loci["coverage"])):
        one = {name: values[row : row + 1] for name, values in loci.items()}

        def cost(x: np.ndarray, one: Loci = one) -> tuple[float, np.ndarray]:
            sd = np.exp(x[1:])
            elbo, in_mean, in_sd = local_elbo(x[:1], sd, one, point)
            return -float(elbo[0]), -np.concatenate([in_mean, in_sd * sd])

        found.append(optimize.minimize(cost, point, jac=True, method="L-BFGS-B").x)
    return np.array(found)[:, 0], np.exp(np.array(found)[:, 1])


def infer(model: SVI, loci: Loci) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each locus' logit by the recognition network: one forward pass."""
    loci = {name: values.astype("float32") for name, values in loci.items()}
    q = model.guide_of("logit").distribution({name: keras.ops.convert_to_tensor(each) for name, each in loci.items()})
    return tuple(keras.ops.convert_to_numpy(each)[:, 0] for each in (q.mean, q.factor))


def amortization_gap(q: tuple[np.ndarray, np.ndarray], loci: Loci, point: np.ndarray) -> np.ndarray:
    """ELBO of each locus' best Gaussian less that of q, in nats: `(rows,)`."""
    return local_elbo(*optimise(loci, point), loci, point)[0] - local_elbo(*q, loci, point)[0]


def seconds_per_locus(infer_all: Any, loci: Loci, rows: int, repeats: int = 1) -> float:
    """Median time of inference, by a function of as many loci as asked for."""
    some = {name: np.resize(values, rows) for name, values in loci.items()}
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        infer_all(some)
        times.append((time.perf_counter() - began) / rows)
    return float(np.median(times))


def draw(path: Path, exact: Posterior, found: dict[str, Posterior], model: SVI, point: np.ndarray) -> None:
    """The globals' posteriors, and those of three loci by the network beside the exact ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    angle = np.linspace(0, 2 * np.pi, 200)
    styles = [
        ("exact", exact, "0.3", "-"),
        *zip(found, found.values(), ("C1", "C0", "C2"), ("--", "-", ":"), strict=False),
    ]
    for name, posterior, colour, style in styles:
        rho = posterior.correlation
        root = np.linalg.cholesky(np.array([[1.0, rho], [rho, 1.0]])) * posterior.sd[:, None]
        ellipse = posterior.mean[:, None] + 2 * root @ np.stack([np.cos(angle), np.sin(angle)])
        left.plot(*ellipse, color=colour, linestyle=style, lw=3 if name == "exact" else 1.6, label=name)
        left.plot(*posterior.mean, "o", color=colour, ms=4)
    left.set(xlabel="mean (logit)", ylabel="log spread", title="The population: two standard deviations")
    left.legend(frameon=False)
    pairs = np.array([[1.0, 3.0], [12.0, 12.0], [30.0, 40.0]], "float32")
    rows = {"methylated": pairs[:, 0], "coverage": pairs[:, 1]}
    logit = np.linspace(-4, 7, 1101)
    for (methylated, coverage), mean, sd, colour in zip(pairs, *infer(model, rows), ("C0", "C1", "C2"), strict=True):
        log_density = methylated * logit - coverage * np.logaddexp(0, logit)
        log_density -= 0.5 * ((logit - point[0]) / np.exp(point[1])) ** 2
        density = np.exp(log_density - log_density.max())
        right.fill_between(logit, density / np.trapezoid(density, logit), color=colour, alpha=0.25, lw=0)
        gaussian = np.exp(-0.5 * ((logit - mean) / sd) ** 2) / sd / np.sqrt(2 * np.pi)
        right.plot(logit, gaussian, color=colour, label=f"{methylated:.0f} of {coverage:.0f} reads")
    right.set(
        xlabel="logit of a locus",
        ylabel="density",
        title="Loci: exact (filled), recognition network (line)",
        ylim=(0, None),
    )
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def report(exact: Posterior, found: dict[str, Posterior], seconds: dict[str, float], truth: dict | None) -> None:
    """Prints the globals of each fit beside the exact ones."""
    table = Table(title="Globals: error of the mean in standard deviations, and of the standard deviation in percent")
    for column in ("", "mean", "", "", "log spread", "", "", "correlation", "seconds"):
        table.add_column(column, justify="right" if column or table.columns else "left", no_wrap=True)
    if truth is not None:
        table.add_row("truth", f"{truth['mean']:.4f}", "", "", f"{truth['log spread']:.4f}", "", "", "", "")
    cells = [c for m, s in zip(exact.mean, exact.sd, strict=True) for c in (f"{m:.5f}", f"± {s:.5f}", "")]
    table.add_row("exact", *cells, f"{exact.correlation:.2f}", f"{seconds['exact']:.0f}")
    for name, one in found.items():
        errors = zip(one.mean, (one.mean - exact.mean) / exact.sd, 100 * (one.sd / exact.sd - 1), strict=True)
        cells = [cell for mean, shift, wide in errors for cell in (f"{mean:.5f}", f"{shift:+.2f}", f"{wide:+.0f} %")]
        table.add_row(name, *cells, f"{one.correlation:.2f}", f"{seconds[name]:.0f}")
    Console(width=120).print(table)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with methylation/imr90_chr22.npz; else BDL_DATA.")] = None,
    rows: Annotated[int, typer.Option(help="Loci that are made where there are no data.")] = NUM_LOCI,
    steps: Annotated[int, typer.Option(help="Steps on batches of 1,000 loci.")] = 500,
    finish: Annotated[int, typer.Option(help="Steps on all loci, as weighted pairs, by each bound.")] = 1000,
    draws: Annotated[int, typer.Option(help="Draws of each logit in the importance-weighted bound.")] = 20,
    optimised: Annotated[int, typer.Option(help="Loci whose best Gaussian is searched for.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the fits.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the posteriors.")] = None,
) -> None:
    """Fits by both bounds, and compares them with the exact posterior."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    loci = load(folder) if folder else generate(rows)
    print(f"{len(loci['coverage']):,} loci, {len(distinct(loci)[1]):,} distinct pairs", flush=True)
    began = time.perf_counter()
    exact = exact_posterior(loci)
    seconds, found, gaps = {"exact": time.perf_counter() - began}, {}, {}
    few = {name: values[:: max(len(values) // optimised, 1)] for name, values in loci.items()}
    began = time.perf_counter()
    model = fit_batches(loci, steps, seed)
    for name, num_samples in {"ELBO": None, f"{draws} weighted draws": draws}.items():
        fit_pairs(model, loci, finish, num_samples)
        seconds[name] = time.perf_counter() - began
        found[name] = globals_of(model)
        gaps[name] = np.mean(amortization_gap(infer(model, few), few, exact.mean))
    report(exact, found, seconds, None if folder else TRUTH)
    network = seconds_per_locus(lambda some: infer(model, some), loci, 100_000, repeats=5)
    scipy = seconds_per_locus(lambda some: optimise(some, exact.mean), few, len(few["coverage"]))
    print(
        f"A new locus: {1e6 * network:.2f} microseconds by the network, {1e6 * scipy:.0f} by SciPy's L-BFGS, "
        f"{scipy / network:,.0f} times as long."
    )
    shown = ", ".join(f"{name} {gap:.4f}" for name, gap in gaps.items())
    print(f"Amortization gap, nats per locus (ELBO of the best Gaussian less that of the network's): {shown}")
    if figure is not None:
        draw(figure, exact, found, model, exact.mean)


if __name__ == "__main__":
    typer.run(main)
