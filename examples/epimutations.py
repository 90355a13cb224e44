"""Inheritance of DNA methylation
==============================

How often is a methyl group gained or lost from a plant to its offspring? A pedigree of Arabidopsis tells.

::

    python examples/epimutations.py --figure epimutations.png     # made lines, whose rates are known
    python examples/epimutations.py --data DIR                    # the pedigree of the package AlphaBeta

**Question.** Methylation of cytosines in CG is copied with the DNA, with errors: epimutations. In each generation an
unmethylated copy gains a methyl group with probability alpha, and a methylated copy loses it with probability beta.

**Data.** All plants are Arabidopsis thaliana, in lines that were selfed for up to 32 generations from one founder. For
each pair of 27 plants the package AlphaBeta (Shahryary et al. 2020, Genome Biology 21) has the divergence: the share of
copies that differ, over all cytosines in CG. The share of unmethylated cytosines is .7435.

**Story.** A cytosine is UU, UM or MM. A selfed plant draws two copies from its parent, each of which may change: a 3 by
3 matrix G. With p for the founder's shares of the states, t0, t1 and t2 for the generations of the last common ancestor
and of both plants, and e for the errors, the divergence is::

    D = intercept + sum over s, u, v of (p G^t0)_s (G^(t1 - t0))_su (G^(t2 - t0))_sv d_uv + e,   d_uv = 0, 1/2 or 1

The intercept is for errors of measurement. A share `heterozygous` of the founder's cytosines that are not UU is UM.
Each generation of selfing fixes half of those, so that siblings differ at once. Like AlphaBeta, the story takes
methylation to be in equilibrium: alpha and beta lead to a share of UU of .7435 in the end, here with a standard
deviation of .01.

The 351 divergences come from 27 plants in 11 lines, so that their **errors are not independent**: a plant that was read
badly is in 26 pairs, and a line that changed much is in all of its pairs. So e is a sum of an error of the pair, one of
each plant, and, in a pair of two lines, two of each line: one is constant, one grows with its age. The scale of each of
the four kinds is estimated. The constant errors of lines were added after the data were seen: without them AlphaBeta's
estimate is at the 1 % quantile of the posterior. So the agreement below is no independent check.

**Fit.** The fits begin at the mode, on the real line, at T = 1, in float64, since rates of 1e-4 are small beside 1. One
guide is a Gaussian with all correlations. In the other, four coupling layers bend that Gaussian (`Flow`), since the
logarithms of the rates have a long tail to small values. The gold standard is a random walk (Metropolis) in the same
density, written in NumPy.

**Check.** Rates per 100,000 copies and generation of the real pedigree: medians with the middle 90 % of the posterior,
or estimates with 90 % intervals (2,000 steps of each fit, walks of 16,000, seed 0; 194 seconds of one core)::

    way                                    alpha                  beta
    least squares, as AlphaBeta            8.60  [7.93, 9.33]     24.97 [23.03, 27.08]
      the same, jackknife over lines       8.60  [7.34, 10.08]    24.97 [21.31, 29.26]
    SVI, independent errors                8.58  [7.89, 9.34]     24.96 [22.93, 27.21]
    SVI, shared errors, Gaussian           8.95  [6.88, 11.71]    26.04 [20.02, 33.93]
    SVI, shared errors, flow               9.20  [5.36, 12.28]    26.77 [15.60, 35.67]
    Metropolis, shared errors              9.19  [4.42, 12.59]    26.55 [12.88, 36.20]

Least squares reproduces AlphaBeta's published 8.61 and 25.0 (sum of squares 6.509e-4). It is at the 42 % quantile
of the posterior by Metropolis, and at 41 % by the flow. The standard deviation of the log rates is 50 % too
small by the Gaussian and 20 % by the flow. Their means are .18 and .12 standard deviations too high. So the flow still
cuts off the far end of the tail, and its k-hat of .76 warns of that. The walks have R-hat 1.019, and 372 effective
draws of the worst number.

.. image:: /images/epimutations.png

On made lines alpha is 9.00, lines differ by 15 % in their rates, and the tail is short: the flow has the means within
.01 and the standard deviations within 2 %, the Gaussian 22 % too small (R-hat 1.008). Independent errors give alpha
[9.83, 11.19] and least squares [9.94, 11.11], which miss the truth by far. Shared errors give [9.37, 13.63] by the flow
and [9.27, 13.65] by Metropolis, which just miss it, in this one set of lines.

**Answer.** The estimates stand, but their intervals are too narrow. With errors that plants and lines share, they are
nearly five (flow) to nearly six times (Metropolis) as wide as with independent errors. How wide depends on the story of
the errors: the jackknife over lines makes them only twice as wide. Siblings and the plants of generation 3, from two
lines, are all that tells errors from changes.

**Limits.** Divergences alone do not tell alpha from beta. They tell the total of changes, which is the same along the
dashed line; the equilibrium tells the ratio. At beta / alpha of .3, 3 and 30 the highest log likelihood is 2.0, 1.9 and
0 below the best of the three. A larger `--tolerance` relies less on the equilibrium.
"""

# sphinx_gallery_thumbnail_path = "images/epimutations.png"

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
from inheritance import (
    TRUTH,
    UNMETHYLATED,
    Pedigree,
    Reduced,
    divergence,
    generate,
    jackknife,
    least_squares,
    load,
    metropolis,
    unmethylated_in_the_end,
)
from keras import ops
from rich.console import Console
from rich.table import Table
from scipy import optimize, special, stats

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Flow, FullRank, Global, Observed

tfd = tfp.distributions


def story_of(reduced: Reduced, tolerance: float) -> Any:
    """The story of a pedigree.

    Args:
        reduced: The pedigree.
        tolerance: Standard deviation of the founder's share of UU around that in the end.
    """

    def story(data: Any) -> Iterator[Any]:
        alpha = yield Global("alpha", tfd.LogNormal(np.log(1e-4), 2.0))
        beta = yield Global("beta", tfd.LogNormal(np.log(1e-4), 2.0))
        heterozygous = yield Global("heterozygous", tfd.Beta(1.0, 30.0))
        intercept = yield Global("intercept", tfd.HalfNormal(10.0))
        scales = yield Global("scales", tfd.Sample(tfd.HalfNormal(2.0), len(reduced.covariances)))
        yield Observed("share", tfd.Normal(unmethylated_in_the_end(alpha, beta), tolerance), data["share"])
        expected = intercept + 1e3 * divergence(alpha, beta, heterozygous, reduced.kinds, ops)
        factor = ops.cholesky(ops.sum(scales[:, None, None] ** 2 * reduced.covariances, axis=0))
        errors = tfd.MultivariateNormalTriL(ops.sum(reduced.of_kind * expected, axis=1), factor)
        yield Observed("inside", errors, data["inside"])
        yield Observed("outside", tfd.Gamma(reduced.freedom / 2, 0.5 / scales[0] ** 2), data["outside"])

    return story


def fit(story: Any, data: dict[str, np.ndarray], guide: Any, steps: int, seed: int) -> SVI:
    """Fits a guide of all globals, from the mode on."""
    model = SVI(story, guide, start="laplace", num_samples=8, seed=seed, dtype="float64")
    model.compile(keras.optimizers.Adam(DecayOverFit(1e-2)), steps_per_execution=50)
    model.fit(data, batch_size="all", steps=steps, verbose=0)
    return model


def on_the_line(draws: dict[str, np.ndarray]) -> np.ndarray:
    """Draws of the globals on the real line, `(draws, 8)`."""
    heterozygous = special.logit(draws["heterozygous"])
    logs = [np.log(draws[name]) for name in ("alpha", "beta", "intercept")]
    return np.column_stack([*logs[:2], heterozygous, logs[2], np.log(draws["scales"])])


def from_the_line(u: np.ndarray) -> dict[str, np.ndarray]:
    """The globals of draws `(..., 8)`."""
    found = dict(zip(("alpha", "beta", "intercept"), np.exp(np.moveaxis(u[..., [0, 1, 3]], -1, 0)), strict=True))
    return {**found, "heterozygous": special.expit(u[..., 2]), "scales": np.exp(u[..., 4:])}


def log_likelihood(reduced: Reduced, u: np.ndarray) -> float:
    """The log likelihood of the divergences alone, up to a constant."""
    g = from_the_line(u)
    covariance = np.einsum("k,kij->ij", g["scales"] ** 2, reduced.covariances)
    expected = g["intercept"] + 1e3 * divergence(g["alpha"], g["beta"], g["heterozygous"], reduced.kinds)
    factor = np.linalg.cholesky(covariance)
    errors = np.linalg.solve(factor, reduced.inside - reduced.of_kind @ expected)
    own = g["scales"][0]
    outside = -reduced.freedom * np.log(own) - 0.5 * reduced.outside / own**2
    return float(outside - 0.5 * errors @ errors - np.log(np.diag(factor)).sum())


def log_density(reduced: Reduced, tolerance: float, u: np.ndarray) -> float:
    """The log density of the story's posterior on the real line, up to a constant."""
    g = from_the_line(u)
    share = -0.5 * ((unmethylated_in_the_end(g["alpha"], g["beta"]) - UNMETHYLATED) / tolerance) ** 2
    prior = -0.5 * np.sum(((u[:2] - np.log(1e-4)) / 2) ** 2) + 30 * np.log1p(-g["heterozygous"])
    prior += np.log(g["heterozygous"]) + u[3] - 0.5 * (g["intercept"] / 10) ** 2
    prior += np.sum(u[4:] - 0.5 * (g["scales"] / 2) ** 2)
    return log_likelihood(reduced, u) + float(share + prior)


def profile(reduced: Reduced, first: np.ndarray, ratios: tuple[float, ...]) -> list[float]:
    """The highest log likelihood of the divergences at each ratio beta / alpha."""

    def cost(x: np.ndarray, ratio: float) -> float:
        return -log_likelihood(reduced, np.insert(x, 1, x[0] + np.log(ratio)))

    options, start = {"xatol": 1e-3, "fatol": 1e-3, "maxfev": 3000, "adaptive": True}, np.delete(first, 1)
    return [-optimize.minimize(cost, start, (ratio,), "Nelder-Mead", options=options).fun for ratio in ratios]


NAMES = ("alpha", "beta", "beta / alpha", "heterozygous", "intercept")


def table_of(draws: Any) -> np.ndarray:
    """Draws of `NAMES`, `(draws, 5)`."""
    columns = [draws["alpha"], draws["beta"], draws["beta"] / draws["alpha"], draws["heterozygous"], draws["intercept"]]
    return np.stack(columns, axis=1).astype("float64")


def interval(draws: np.ndarray) -> np.ndarray:
    """Quantiles of draws, 5 %, 50 % and 95 %: `(3, ...)`."""
    return np.quantile(draws, [0.05, 0.5, 0.95], axis=0)


def around(estimate: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The same quantiles of a normal distribution around the logarithm of an estimate."""
    return np.array([estimate * np.exp(z * errors) for z in (-1.645, 0.0, 1.645)])


def show(name: str, middle: float, low: float | None = None, high: float | None = None) -> str:
    """A number of `NAMES` as text, rates per 100,000."""
    scale, digits = (1e5, 2) if name in ("alpha", "beta") else (1, 4 if name == "heterozygous" else 2)
    text = f"{middle * scale:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


@dataclass(frozen=True)
class Fitted:
    """What comes of a fit.

    Args:
        draws: Of `NAMES`, `(draws, 5)`.
        seconds: Of the fit.
        note: How far it can be trusted.
    """

    draws: np.ndarray
    seconds: float
    note: str


FITS = {
    "SVI, independent": (False, FullRank),
    "SVI, shared, Gaussian": (True, FullRank),
    "SVI, shared, flow": (True, lambda: Flow(layers=4, width=16)),
}
"""Whether pairs that share a plant or a line share errors, and the guide."""
EXACT = "Metropolis, shared"


def fit_all(pedigree: Pedigree, tolerance: float, steps: int, walk: int, seed: int) -> dict[str, Fitted]:
    """Fits both stories by SVI, and the one with shared errors by Metropolis, too."""
    found = {}
    for name, (is_dependent, guide) in FITS.items():
        began = time.perf_counter()
        reduced = Reduced.of(pedigree, is_dependent)
        model = fit(story_of(reduced, tolerance), reduced.data, guide(), steps, seed)
        seconds = time.perf_counter() - began
        draws = model.posterior(num_samples=10_000, seed=1)
        found[name] = Fitted(table_of(draws), seconds, f"k-hat {model.k_hat(reduced.data, seed=1).k:.2f}")
    began = time.perf_counter()
    chains = metropolis(lambda u: log_density(reduced, tolerance, u), on_the_line(draws), walk, seed)
    note = f"R-hat {chains.r_hat.max():.3f}, {chains.effective_sample_size.min():,.0f} effective"
    drawn = table_of(from_the_line(np.concatenate(chains.draws)))
    found[EXACT] = Fitted(drawn, time.perf_counter() - began, note)
    return found


def report(pedigree: Pedigree, fits: dict[str, Fitted], errors: dict[str, np.ndarray], truth: dict | None) -> None:
    """Prints the rates by each way."""
    table = Table(title="Rates per 100,000 copies and generation, intercept in thousandths; median and middle 90 %")
    for column in ("", *NAMES, "", "seconds"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    if truth is not None:
        numbers = [truth["alpha"], truth["beta"], truth["beta"] / truth["alpha"], truth["heterozygous"]]
        table.add_row("truth", *(show(*each) for each in zip(NAMES, numbers, strict=False)), "", "", "")
    estimate, _, squares = least_squares(pedigree)
    for name, each in errors.items():
        rates = [show(n, *values[[1, 0, 2]]) for n, values in zip(NAMES[:2], around(estimate[:2], each).T, strict=True)]
        rest = [show(n, value) for n, value in zip(NAMES[2:], estimate[2:], strict=True)]
        table.add_row(name, *rates, *rest, f"SSE {squares:.3e}", "")
    for name, each in fits.items():
        cells = [show(n, *values[[1, 0, 2]]) for n, values in zip(NAMES, interval(each.draws).T, strict=True)]
        table.add_row(name, *cells, each.note, f"{each.seconds:.0f}")
    Console(width=190).print(table)
    exact = fits[EXACT].draws
    for name, each in fits.items():
        ranks = [np.mean(each.draws[:, k] < estimate[k]) for k in range(2)]
        text = f"{name}: least squares' alpha and beta lie at {ranks[0]:.0%} and {ranks[1]:.0%} of the posterior"
        if name.startswith("SVI, shared"):
            ours, theirs = np.log(each.draws[:, :2]), np.log(exact[:, :2])
            shift = (ours.mean(0) - theirs.mean(0)) / theirs.std(0)
            width = 100 * (ours.std(0) / theirs.std(0) - 1)
            text += f"; means of log rates {shift[0]:+.2f} and {shift[1]:+.2f} sd from Metropolis'"
            text += f", sd {width[0]:+.0f} and {width[1]:+.0f} %"
        print(text)
    total = exact[:, 0] * UNMETHYLATED + exact[:, 1] * (1 - UNMETHYLATED)
    print(
        "Changes per 100,000 copies and generation, both kinds together: " + show("alpha", *interval(total)[[1, 0, 2]])
    )
    ratios = (0.3, 3.0, 30.0)
    first = np.array([*np.log(estimate[:2]), special.logit(estimate[3]), np.log(estimate[4]), *[-0.5] * 4])
    alone = np.array(profile(Reduced.of(pedigree, is_dependent=True), first, ratios))
    told = ", ".join(f"{ratio:g}: {value:.2f}" for ratio, value in zip(ratios, alone - alone.max(), strict=True))
    print(f"Log likelihood of the divergences alone, by beta / alpha, less the highest: {told}")


def draw(path: Path, pedigree: Pedigree, fits: dict[str, Fitted], errors: dict[str, np.ndarray], truth: Any) -> None:
    """The divergences, the joint posterior of the rates, and how wide each way's intervals are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained", width_ratios=(5, 5, 4))
    exact = fits[EXACT].draws
    estimate = least_squares(pedigree)[0]
    ancestor, one, other = pedigree.times.T
    apart, within = one + other - 2 * ancestor, ancestor > 0
    shake = np.random.default_rng(0).uniform(-0.6, 0.6, len(apart))
    for chosen, label, colour in ((~within, "of two lines", "C0"), (within, "of one line", "C1")):
        left.plot((apart + shake)[chosen], pedigree.divergence[chosen], ".", color=colour, ms=4, alpha=0.5, label=label)
    kinds = np.unique(pedigree.times, axis=0)
    expected = [d[4] + 1e3 * divergence(d[0], d[1], d[3], kinds) for d in exact[:: len(exact) // 200]]
    low, centre, high = interval(np.array(expected))
    at = kinds[:, 1] + kinds[:, 2] - 2 * kinds[:, 0]
    left.errorbar(at, centre, (centre - low, high - centre), fmt="_", color="0.1", ms=12, capsize=3, label="expected")
    left.set(xlabel="generations between two plants", ylabel="copies that differ, thousandths", ylim=(0, None))
    left.set_title("Divergence of pairs")
    left.legend(frameon=False)

    middle.plot(*1e5 * exact[:, :2].T, ".", color="0.75", ms=2.5, label="Metropolis", rasterized=True)
    low, high = np.quantile(1e5 * exact[:, :2], [0.002, 0.998], axis=0)
    corners = 0.6 * low, 1.25 * high
    grid = np.stack(np.meshgrid(*np.linspace(*corners, 120).T), axis=-1)
    for name, colour in zip(FITS, ("C1", "C2", "C0"), strict=True):
        rates = 1e5 * fits[name].draws[:2000, :2].T
        density = stats.gaussian_kde(rates)
        level = np.quantile(density(rates), 0.1)  # of the region that holds 90 % of the draws
        middle.contour(
            *np.moveaxis(grid, -1, 0), density(grid.reshape(-1, 2).T).reshape(grid.shape[:2]), [level], colors=colour
        )
        middle.plot([], [], color=colour, label=f"{name}: 90 %")
    total = estimate[0] * UNMETHYLATED + estimate[1] * (1 - UNMETHYLATED)
    beta = np.linspace(0.02, 0.99, 100) * total / (1 - UNMETHYLATED)
    ridge = (total - beta * (1 - UNMETHYLATED)) / UNMETHYLATED
    middle.plot(1e5 * ridge, 1e5 * beta, "--", color="0.4", lw=1, label="as many changes in all")
    middle.plot(*1e5 * estimate[:2], "x", color="k", ms=8, mew=2, label="least squares")
    if truth is not None:
        middle.plot(1e5 * truth["alpha"], 1e5 * truth["beta"], "*", color="C3", ms=12, label="truth")
    middle.set(xlim=(corners[0][0], corners[1][0]), ylim=(corners[0][1], corners[1][1]))
    middle.set(
        xlabel="alpha: gains per 100,000", ylabel="beta: losses per 100,000", title="Joint posterior of the rates"
    )
    middle.legend(framealpha=1.0, edgecolor="none", fontsize="small", loc="upper left")

    rows = {name: around(estimate[:1], each[:1])[:, 0] for name, each in errors.items()}
    rows |= {name: interval(each.draws[:, 0]) for name, each in fits.items()}
    for place, (low, centre, high) in enumerate(rows.values()):
        right.errorbar(
            1e5 * centre, -place, xerr=[[1e5 * (centre - low)], [1e5 * (high - centre)]], fmt="o", color="C0"
        )
    if truth is not None:
        right.axvline(1e5 * truth["alpha"], color="C3", lw=1, label="truth")
        right.legend(frameon=False)
    right.set_yticks(-np.arange(len(rows)), list(rows))
    right.set(xlabel="alpha: gains per 100,000", title="90 % intervals", ylim=(0.5 - len(rows), 0.5))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with methylation/arabidopsis_*.csv; else BDL_DATA.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far the founder may be from equilibrium, in share of UU.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(help="Training steps of each fit.")] = 2000,
    walk: Annotated[int, typer.Option(help="Steps of each of four Metropolis chains.")] = 16_000,
    seed: Annotated[int, typer.Option(help="Of the fits.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of divergences and rates.")] = None,
) -> None:
    """Fits both stories, and compares with least squares and Metropolis."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    pedigree = load(folder) if folder else generate()
    print(
        f"{pedigree.pairs.max() + 1} plants of {pedigree.line.max() + 1} lines, {len(pedigree.times)} pairs", flush=True
    )
    fits = fit_all(pedigree, tolerance, steps, walk, seed)
    errors = {"least squares": least_squares(pedigree)[1], "  jackknife over lines": jackknife(pedigree)}
    truth = None if folder else TRUTH
    report(pedigree, fits, errors, truth)
    if figure is not None:
        draw(figure, pedigree, fits, errors, truth)


if __name__ == "__main__":
    typer.run(main)
