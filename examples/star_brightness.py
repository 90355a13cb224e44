"""Counts of photons
=================

How bright is a star, and does it flicker? Counts of photons with a background, against exact quadrature.

::

    python examples/star_brightness.py --figure star.png     # made counts, whose truth is known
    python examples/star_brightness.py --data DIR            # a light curve of the X-ray telescope eROSITA

In each time bin the telescope counts S photons where the star is, and B in a field around it, where there is only the
sky. With the exposure t of the bin and the ratio a of the two areas::

    S ~ Poisson(r t + b a),   B ~ Poisson(b),   log r ~ N(mu, s^2) for each bin,   mu ~ N(0, 3^2),   s ~ half-N(1)

How much the star flickers is s. It may be zero, where its posterior ends abruptly. On the real line, in log s, that end
is a long tail to the left, which no Gaussian has. Two fits, each with and without importance weights of its draws, are
compared with the exact posterior:

1. one Gaussian with all correlations of everything on the real line, the rate of each bin among it;
2. one of another story of the same model: the rate of each bin is summed out by quadrature, and s is a function of a
   standard normal variable u, the half-normal quantile of the same rank. Near s = 0, where the data say nothing more,
   the posterior of u falls off as its prior does, which is a Gaussian.
"""

# sphinx_gallery_thumbnail_path = "images/star_brightness.png"

from __future__ import annotations

import csv
import gzip
import math
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
from rich.console import Console
from rich.table import Table
from scipy import special

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Flat, Global, Observed

tfd = tfp.distributions
Bins = dict[str, np.ndarray]
NUM_BINS = 17
TRUTH = {"mu": 1.1, "s": 0.1}
LEAST_EXPOSURE = 0.1
"""Fraction of a bin's time at the full area of the telescope, below which the bin is left out."""
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
LOG_NODE_WEIGHTS = np.log(NODE_WEIGHTS / NODE_WEIGHTS.sum())


@keras.saving.register_keras_serializable(package="star_brightness")
def each_bin(data: Any) -> Iterator[Any]:
    """The rate of each bin is a latent variable, in units of the population's spread."""
    mu = yield Global("mu", tfd.Normal(0.0, 3.0))
    s = yield Global("s", tfd.HalfNormal(1.0))
    z = yield Global("z", tfd.Sample(tfd.Normal(0.0, 1.0), NUM_BINS))
    sky = yield Global("sky", Flat("positive", shape=(NUM_BINS,)))
    yield Observed("S", tfd.Poisson(ops.exp(mu + s * z) * data["exposure"] + sky * data["ratio"]), data["S"])
    yield Observed("B", tfd.Poisson(sky), data["B"])


def half_normal(u: Any) -> Any:
    """A half-normal variable from a standard normal one: the quantile of the same rank."""
    return math.sqrt(2.0) * ops.erfinv(0.5 * (1.0 + ops.erf(u / math.sqrt(2.0))))


@keras.saving.register_keras_serializable(package="star_brightness")
def population(data: Any) -> Iterator[Any]:
    """The rate of each bin is summed out, over the nodes of a quadrature; s is told by its rank in the prior."""
    mu = yield Global("mu", tfd.Normal(0.0, 3.0))
    u = yield Global("u", tfd.Normal(0.0, 1.0))
    s = half_normal(u)
    sky = yield Global("sky", Flat("positive", shape=(NUM_BINS,)))
    counts = ops.exp(mu + s * NODES.astype("float32")) * data["exposure"][:, None] + (sky * data["ratio"])[:, None]
    weights = tfd.Categorical(logits=LOG_NODE_WEIGHTS.astype("float32"))
    yield Observed("S", tfd.MixtureSameFamily(weights, tfd.Poisson(counts)), data["S"])
    yield Observed("B", tfd.Poisson(sky), data["B"])


def load(folder: Path) -> Bins:
    """The bins of the light curve in which the telescope looked at the star long enough."""
    path = folder / "photon_erosita" / "erosita_lightcurve.csv.gz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It is a light curve of eROSITA, from the tests of the package stingray.")
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if float(row["fracexp_0"] or 0) > LEAST_EXPOSURE]
    if len(rows) != NUM_BINS:
        raise SystemExit(f"{path.name}: {NUM_BINS} bins must have an exposure above {LEAST_EXPOSURE}, not {len(rows)}.")
    names = ("counts_0", "back_counts_0", "dt", "fracexp_0", "backratio")
    S, B, seconds, fraction, ratio = (np.array([float(row[name]) for row in rows]) for name in names)
    return {"S": S, "B": B, "exposure": seconds * fraction, "ratio": ratio}


def generate(seed: int = 1) -> Bins:
    """Counts of the story at `TRUTH`, with exposures and a sky like those of the light curve."""
    rng = np.random.default_rng(seed)
    exposure, ratio = rng.uniform(12, 84, NUM_BINS), rng.uniform(0.0085, 0.0147, NUM_BINS)
    rate = np.exp(TRUTH["mu"] + TRUTH["s"] * rng.standard_normal(NUM_BINS))
    sky = rng.uniform(680, 800, NUM_BINS)
    S, B = rng.poisson(rate * exposure + sky * ratio).astype("float64"), rng.poisson(sky).astype("float64")
    return {"S": S, "B": B, "exposure": exposure, "ratio": ratio}


@dataclass(frozen=True)
class Marginals:
    """Means and standard deviations of (mu, s).

    Args:
        mean, sd: `(2,)`.
    """

    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, weights: np.ndarray | None = None) -> Marginals:
        """Of points `(points, 2)` and their weights."""
        mean = np.average(points, axis=0, weights=weights)
        return cls(mean, np.sqrt(np.average((points - mean) ** 2, axis=0, weights=weights)))


def estimates(bins: Bins) -> tuple[np.ndarray, np.ndarray]:
    """Log rate of each bin by itself, and its standard error."""
    net = bins["S"] - bins["ratio"] * bins["B"]
    return np.log(net / bins["exposure"]), np.sqrt(bins["S"]) / net


def exact_posterior(bins: Bins, num_mu: int = 101, num_s: int = 301) -> tuple[Marginals, np.ndarray, np.ndarray]:
    """Marginals by quadrature over all latent numbers, and a grid of s with its density."""
    values, errors = estimates(bins)
    log_rate = np.linspace(values.min() - 3, values.max() + 3, 3001)
    likelihood = np.array([_log_likelihood(bins, number, log_rate) for number in range(NUM_BINS)])

    width = 8 * np.sqrt((values.var() + np.mean(errors**2)) / NUM_BINS)
    mu = values.mean() + np.linspace(-width, width, num_mu)
    s = (np.arange(num_s) + 0.5) / num_s * 4 * values.std()
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    log_weights = np.log(weights / weights.sum())
    density = np.empty((num_mu, num_s))
    for column, scale in enumerate(s):
        at = mu[:, None] + scale * nodes
        rows = [special.logsumexp(np.interp(at, log_rate, row) + log_weights, axis=1) for row in likelihood]
        density[:, column] = np.sum(rows, axis=0) - 0.5 * (mu / 3) ** 2 - 0.5 * scale**2
    density = np.exp(density - density.max())
    points = np.stack(np.meshgrid(mu, s, indexing="ij"), axis=-1).reshape(-1, 2)
    return Marginals.of(points, density.ravel()), s, density.sum(0) / density.sum() / (s[1] - s[0])


def _log_likelihood(bins: Bins, number: int, log_rate: np.ndarray) -> np.ndarray:
    """Of the counts of a bin at log rates, the sky's rate integrated out, up to a constant."""
    S, B, exposure, ratio = (bins[name][number] for name in ("S", "B", "exposure", "ratio"))
    sky = np.linspace(max(B - 9 * np.sqrt(B + 1), 1e-3), B + 9 * np.sqrt(B + 1), 91)
    expected = np.exp(log_rate)[:, None] * exposure + sky * ratio
    return special.logsumexp(S * np.log(expected) - expected + B * np.log(sky) - sky, axis=1)


def fit(story: Any, bins: Bins, steps: int, seed: int) -> SVI:
    """A Gaussian with all correlations, from the mode on."""
    model = SVI(story, "full_rank", start="laplace", num_samples=8, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(1e-2)))
    model.fit(bins, batch_size="all", steps=steps, verbose=0)
    return model


@dataclass(frozen=True)
class Fitted:
    """What came of a story.

    Args:
        marginals: Of each way to use its draws.
        s: Its draws of s.
        log_rates: Its draws of each bin's log rate, `(draws, bins)`; None where they are summed out.
        k_hat: Of its importance weights.
        seconds: Of the fit.
    """

    marginals: dict[str, Marginals]
    s: np.ndarray
    log_rates: np.ndarray | None
    k_hat: float
    seconds: float


def fit_all(bins: Bins, steps: int, draws: int, seed: int) -> Iterator[Fitted]:
    """Both stories, one after the other."""
    for name, story in {"every bin's rate": each_bin, "rates summed out": population}.items():
        began = time.perf_counter()
        model = fit(story, bins, steps, seed)
        seconds = time.perf_counter() - began
        sample = model.posterior(num_samples=draws, seed=1)
        smoothed = model.k_hat(bins, num_samples=draws, seed=1)  # of the same draws
        is_summed = "u" in sample
        s = ops.convert_to_numpy(half_normal(sample["u"])) if is_summed else sample["s"]
        points = np.stack([sample["mu"], s], axis=1).astype("float64")
        weighted = Marginals.of(points, np.exp(smoothed.log_weights))
        rates = None if is_summed else sample["mu"][:, None] + s[:, None] * sample["z"]
        marginals = {name: Marginals.of(points), f"{name}, weighted": weighted}
        yield Fitted(marginals, s, rates, smoothed.k, seconds)


def report(exact: Marginals, fits: list[Fitted], truth: dict | None) -> None:
    """Prints the exact figures, and the errors of each approximation."""
    table = Table(title="Error of a mean in standard deviations, and of a standard deviation in percent")
    for column in ("", "mu", "", "s", "", "k-hat", "seconds"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    if truth is not None:
        table.add_row("truth", f"{truth['mu']:.3f}", "", f"{truth['s']:.3f}", "", "", "")
    cells = [cell for mean, sd in zip(exact.mean, exact.sd, strict=True) for cell in (f"{mean:.4f}", f"± {sd:.4f}")]
    table.add_row("exact", *cells, "", "")
    for each in fits:
        for name, one in each.marginals.items():
            errors = zip((one.mean - exact.mean) / exact.sd, 100 * (one.sd / exact.sd - 1), strict=True)
            cells = [cell for shift, wide in errors for cell in (f"{shift:+.3f}", f"{wide:+.0f} %")]
            table.add_row(name, *cells, f"{each.k_hat:.2f}", f"{each.seconds:.0f}")
    Console(width=110).print(table)


def draw(path: Path, bins: Bins, exact: Marginals, curve: Any, fits: list[Fitted]) -> None:
    """The rate of each bin, and how much they differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    values, errors = estimates(bins)
    number = np.arange(NUM_BINS)
    left.axhspan(*(exact.mean[0] + exact.mean[1] * np.array([-1, 1])), color="0.88", label="population: mu ± s")
    left.axhline(exact.mean[0], color="0.5", lw=1)
    left.errorbar(number - 0.12, values, yerr=errors, fmt="o", ms=4, color="C1", label="each bin alone")
    rates = fits[0].log_rates
    left.errorbar(number + 0.12, rates.mean(0), yerr=rates.std(0), fmt="o", ms=4, color="C0", label="posterior")
    left.set(xlabel="time bin", ylabel="log rate", title="Brightness: mean and standard deviation")
    left.legend(frameon=False, ncols=3, fontsize="small")
    top = exact.mean[1] + 5 * exact.sd[1]
    for each, colour in zip(fits, ("C1", "C0"), strict=True):
        name = next(iter(each.marginals))
        right.hist(each.s, np.linspace(0, top, 71), density=True, histtype="step", color=colour, lw=1.5, label=name)
    right.plot(*curve, color="0.3", lw=2, label="exact")
    right.set(xlim=(0, top), ylim=(0, None), xlabel="s", ylabel="density", title="Flicker")
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with photon_erosita; else BDL_DATA.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each fit.")] = 2000,
    draws: Annotated[int, typer.Option(help="Draws of each posterior.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the fits.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the posteriors.")] = None,
) -> None:
    """Fits two stories of the same counts, and compares."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    bins = load(folder) if folder else generate()
    exact, *curve = exact_posterior(bins)
    fits = list(fit_all(bins, steps, draws, seed))
    report(exact, fits, None if folder else TRUTH)
    if figure is not None:
        draw(figure, bins, exact, curve, fits)


if __name__ == "__main__":
    typer.run(main)
