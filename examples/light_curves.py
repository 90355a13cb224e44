"""Light curves by one forward pass
=================================

How bright is an X-ray source in each time bin and energy band? A network that was trained on simulated bins answers.

::

    python examples/light_curves.py --figure light_curves.png     # made counts, whose truth is known
    python examples/light_curves.py --data DIR                    # a light curve of the X-ray telescope eROSITA

In each bin the telescope counts S photons where the source is, and B in a field around it that has only the sky (the
background). The source has the rate r, the exposure is t (seconds at the full area of the telescope), the field has b
expected counts, and a is the ratio of the two areas::

    S ~ Poisson(r t + b a),   B ~ Poisson(b),   log r ~ N(mu, s^2)

The sky b has a flat prior. Given B it is Gamma(B + 1), and is summed out by quadrature. Each bin then has one latent
number, log r. In a faint bin its posterior is far from Gaussian: where the sky alone can explain the counts, the rate
may be as low as the prior allows, and the posterior has a long tail towards low rates.

**Training.** The simulated bins are faint or bright, have little sky or much, and each has its own mu and s. A network
reads (S, B, t, a, mu, s) and gives the posterior of log r, in units of a Gaussian approximation at the mode. Two
families are compared: a Gaussian, and a Gaussian bent by a flow of one layer, which can be skewed. They are fitted to
the simulated bins by the ELBO, at T = 1, with a gradient that sticks the landing (`sticking=True`).

**Check.** The networks are compared with quadrature on 2,000 new simulated bins, grouped by the expected counts of the
source. The table has the error of the mean in standard deviations and that of the standard deviation in percent: the
median, and what one bin in a hundred exceeds. The last column says how often 90 % intervals hold the truth.

.. code-block:: text

    source counts  bins  posterior by  mean, sds  1 in 100  sd, %  1 in 100  90 % holds, %
    ───────────────────────────────────────────────────────────────────────────────────────
    0 to 3          519    quadrature                                           90.4 ± 1.3
                             Gaussian      0.013      0.20    1.4        40     88.1 ± 1.4
                                 flow      0.011      0.07    0.6        13     90.0 ± 1.3
    3 to 30         696    quadrature                                           88.9 ± 1.2
                             Gaussian      0.009      0.17    1.5        34     88.6 ± 1.2
                                 flow      0.006      0.05    0.4         9     88.8 ± 1.2
    30 to 300       562    quadrature                                           88.3 ± 1.4
                             Gaussian      0.003      0.05    0.3         8     88.3 ± 1.4
                                 flow      0.003      0.03    0.2         2     88.3 ± 1.4
    more than 300   223    quadrature                                           87.9 ± 2.2
                             Gaussian      0.002      0.01    0.1         1     87.9 ± 2.2
                                 flow      0.001      0.01    0.1         0     87.9 ± 2.2

For one in a hundred of the faintest bins, the Gaussian's standard deviation is off by 40 % or more, and the flow's by
13 %. These bins have much sky and a wide prior. Their posterior has a hump at the rate that the counts suggest, and a
long tail towards no source at all. A flow of one layer has too few parameters for both.

**The light curve.** For each band, mu ~ N(0, 3^2) and s ~ half-N(1) are not known. Since s may be zero, the fit
replaces it by u, the standard normal variable of the same rank in the prior. A Gaussian of (mu, u) is fitted. The
trained network reads both, and is not trained again. The bands share nothing in this story, and are fitted one by one.
eROSITA's bins last 100 seconds. Those with more than a tenth of the full exposure are kept: 17, and 16 in band 2. The
data do not say what energies the bands have.

The table has mu and s by quadrature over all latent numbers, and the errors of the fit: of the mean in standard
deviations, and of the standard deviation in percent. The last column has the largest errors of the bins' log rates.

.. code-block:: text

    band              mu         error              s        error  log rates: worst
    ─────────────────────────────────────────────────────────────────────────────────
    0      1.101 ± 0.031   -0.04, -6 %  0.078 ± 0.036  +0.03, -4 %         0.02, 3 %
    1      1.069 ± 0.025   -0.01, -5 %  0.041 ± 0.031  -0.06, +7 %         0.06, 3 %
    2     -1.853 ± 0.165  +0.02, -12 %  0.299 ± 0.211  -0.08, +1 %         0.10, 5 %

The rates vary by about 8 % in band 0, where a constant source is not excluded, and by less in band 1. In band 2, with
2 to 16 counts a bin, the data say only that s is below about .7. `examples/star_brightness.py` fits band 0 by one
Gaussian of all log rates and log s; its standard deviation of s is some 40 % too small. With made counts:

.. code-block:: text

    band                           mu         error                          s        error  log rates: worst
    ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    0       1.120 ± 0.029 (truth 1.1)   -0.05, -6 %  0.072 ± 0.035 (truth 0.1)  +0.03, -3 %         0.02, 3 %
    1       0.950 ± 0.052 (truth 1.0)   -0.03, -6 %  0.182 ± 0.047 (truth 0.2)  -0.02, -8 %         0.01, 0 %
    2     -1.701 ± 0.156 (truth -1.6)  -0.02, -10 %  0.421 ± 0.173 (truth 0.3)  -0.00, -6 %         0.01, 2 %

The network needs 22 microseconds of computing time for a bin, and quadrature 822. For one latent number quadrature is
affordable, and so it is the gold standard here. The network has another advantage: it is part of a story, and gives the
posterior of each rate at each draw of mu and s.

.. image:: /images/light_curves.png
   :alt: Intervals of each bin's rate in three bands, posteriors of three faint bins, and the flicker of each band

The figure is of eROSITA's light curve. Limits: given mu and s, the story takes bins to be independent, and those of a
source that changes slowly are not. A flicker common to all bands needs a story whose rows are bins with three rates.
"""

# sphinx_gallery_thumbnail_path = "images/light_curves.png"

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow_probability as tfp
import typer
from exposures import (
    TRUTH,
    Band,
    Exposures,
    Posteriors,
    alone,
    approximate,
    exact,
    exact_band,
    generate,
    half_normal,
    half_normal_of,
    load,
    log_level,
    simulate,
    with_sky,
)
from keras import ops
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import special

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Amortized, FullRank, Global, Local, Observed
from bdl.svi.guides import Flow

tfd = tfp.distributions
GROUPS = {"0 to 3": (0, 3), "3 to 30": (3, 30), "30 to 300": (30, 300), "more than 300": (300, np.inf)}
"""Expected counts of the source."""


def observed(rows: Any, log_rate: Any) -> Observed:
    """The counts at the source, the sky summed out."""
    counts = (ops.exp(log_rate) * rows["exposure"])[..., None] + rows["sky"] * rows["ratio"][..., None]
    weights = tfd.Categorical(logits=rows["log_weights"])
    return Observed("S", tfd.MixtureSameFamily(weights, tfd.Poisson(counts)), rows["S"])


def each_row(rows: Any, mu: Any, s: Any) -> Iterator[Any]:
    """The log rate of each row, in units of its approximation: log r = mode + width * offset."""
    mode, width = approximate(rows, mu, s)
    offset = yield Local("offset", tfd.Normal((mu - mode) / width, s / width))
    yield observed(rows, mode + width * offset)


@keras.saving.register_keras_serializable(package="light_curves")
def any_exposure(rows: Any) -> Iterator[Any]:
    """Exposures of any sources, each with the prior of its log rate."""
    yield from each_row(rows, rows["mu"], half_normal(rows["u"]))


@keras.saving.register_keras_serializable(package="light_curves")
def band(rows: Any) -> Iterator[Any]:
    """The bins of one band, whose mean and spread are not known."""
    mu = yield Global("mu", tfd.Normal(0.0, 3.0))
    u = yield Global("u", tfd.Normal(0.0, 1.0))
    yield from each_row(rows, mu, half_normal(u))


RAW = ["S", "B", "exposure", "ratio"]


@keras.saving.register_keras_serializable(package="light_curves")
class Features(keras.layers.Layer):
    """What the network reads of a row: numbers of the order of one, from (S, B, exposure, ratio, mu, u)."""

    def call(self, inputs: Any) -> Any:
        """`(rows, 6)` to `(rows, 8)`."""
        S, B, exposure, ratio, mu, u = (inputs[:, place] for place in range(6))
        s = half_normal(u)
        rows = {"S": S, "B": B, "exposure": exposure, "ratio": ratio}
        mode, width = approximate(rows, mu, s)
        source, sky = ops.exp(mode) * exposure, ratio * (B + 1.0)
        total = source + sky + ratio * sky
        return ops.stack(
            [
                ops.log(source + 0.01) / 3.0,
                ops.log(sky + 0.01) / 3.0,
                ops.log1p(S) / 3.0,
                ops.log(width) + 1.0,
                width / s,
                (mode - mu) / s,
                (S - source - sky) / ops.sqrt(total),
                ratio * sky / total,
            ],
            axis=-1,
        )


def train(family: Any, number: int, steps: int, seed: int) -> SVI:
    """A recognition network, trained on simulated exposures."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential([Features(), keras.layers.Dense(64, "tanh"), keras.layers.Dense(64, "tanh")])
    guide = {"offset": Amortized(network, inputs=[*RAW, "mu", "u"], family=family)}
    model = SVI(any_exposure, guide, num_samples=2, sticking=True, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(5e-3)))
    rows = with_sky(simulate(number, seed))
    model.fit(rows, batch_size=500, steps=steps, verbose=0)
    return model


NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()
END = special.ndtri(0.95)


def infer(model: SVI, rows: Exposures) -> Posteriors:
    """One forward pass. Draws are increasing in the noise: quantiles of these are those of the noise."""
    rows = {name: ops.convert_to_tensor(rows[name].astype("float32")) for name in [*RAW, "mu", "u"]}
    distribution = model.guide_of("offset").distribution(rows)
    noise = np.concatenate([NODES, [-END, END]]).astype("float32")
    offset = distribution.draw(ops.broadcast_to(noise[:, None, None], (len(noise), rows["S"].shape[0], 1)))
    mode, width = approximate(rows, rows["mu"], half_normal(rows["u"]))
    values = ops.convert_to_numpy(mode + width * offset[..., 0])
    mean = NODE_WEIGHTS @ values[:-2]
    return Posteriors(mean, np.sqrt(NODE_WEIGHTS @ (values[:-2] - mean) ** 2), values[-2], values[-1])


def fit_band(network: SVI, bins: Exposures, steps: int, draws: int, seed: int) -> Band:
    """Mean and spread of the band have a Gaussian; the rates are the trained network's, which reads the two."""
    trained = network.guide_of("offset")
    rates = Amortized(trained.network, inputs=RAW, given=["mu", "u"], family=trained.family)
    model = SVI(band, {"offset": rates, ("mu", "u"): FullRank()}, num_samples=2, seed=seed)
    rows = with_sky({name: bins[name] for name in RAW})
    model.trace_on(rows)
    rates.head.set_weights(trained.head.get_weights())
    rates.trainable = False
    # The start is the level of all bins together, with twice the counts' own error.
    model.guide_of("mu").start_at(np.array([log_level(bins), 0.0]), np.diag([2.0 / np.sqrt(bins["S"].sum()), 1.0]))
    model.compile(keras.optimizers.Adam(DecayOverFit(3e-2)))
    model.fit(rows, batch_size="all", steps=steps, verbose=0)
    noise = np.random.default_rng(seed).standard_normal((draws, 2)).astype("float32")
    mu, u = ops.convert_to_numpy(model.guide_of("mu").distribution().draw(noise)).T
    tiled = {name: np.tile(bins[name], draws) for name in RAW}
    each = infer(network, {**tiled, "mu": np.repeat(mu, len(bins["S"])), "u": np.repeat(u, len(bins["S"]))})
    means, sds = (values.reshape(draws, -1) for values in (each.mean, each.sd))
    points = np.stack([mu, half_normal_of(u)])
    moments = np.stack([means.mean(0), np.sqrt(np.mean(sds**2, axis=0) + means.var(axis=0))])
    return Band(points.mean(1), points.std(1), moments, points[1])


def report_exposures(test: Exposures, truth: Posteriors, found: dict[str, Posteriors]) -> None:
    """Errors of each family on new simulated exposures."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in (
        "source counts",
        "bins",
        "posterior by",
        "mean, sds",
        "1 in 100",
        "sd, %",
        "1 in 100",
        "90 % holds, %",
    ):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    expected = np.exp(test["log_rate"]) * test["exposure"]
    for group, (least, most) in GROUPS.items():
        rows = (expected >= least) & (expected < most)
        for name, one in {"quadrature": truth, **found}.items():
            shift = np.abs(one.mean - truth.mean)[rows] / truth.sd[rows]
            wide = 100 * np.abs(one.sd / truth.sd - 1)[rows]
            share = np.mean(((one.low < test["log_rate"]) & (test["log_rate"] < one.high))[rows])
            holds = f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / rows.sum()):.1f}"
            figures = [f"{np.median(shift):.3f}", f"{np.quantile(shift, 0.99):.2f}"]
            figures += [f"{np.median(wide):.1f}", f"{np.quantile(wide, 0.99):.0f}"]
            is_first = name == "quadrature"
            cells = [group, str(rows.sum())] if is_first else ["", ""]
            table.add_row(*cells, name, *([""] * 4 if is_first else figures), holds)
    Console(width=120).print(table)


def report_bands(truth: list[Band], found: list[Band], is_made: bool) -> None:
    """Each band's level and flicker, and how far the fit is from quadrature."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("band", "mu", "error", "s", "error", "log rates: worst"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for number, (exactly, one) in enumerate(zip(truth, found, strict=True)):
        cells = []
        for axis, name in enumerate(("mu", "s")):
            told = f" (truth {TRUTH[name][number]})" if is_made else ""
            shift, wide = (one.mean - exactly.mean)[axis] / exactly.sd[axis], 100 * (one.sd / exactly.sd - 1)[axis]
            cells += [f"{exactly.mean[axis]:.3f} ± {exactly.sd[axis]:.3f}{told}", f"{shift:+.2f}, {wide:+.0f} %"]
        shift = np.abs(one.rates[0] - exactly.rates[0]).max() / exactly.rates[1].mean()
        wide = 100 * np.abs(one.rates[1] / exactly.rates[1] - 1).max()
        table.add_row(str(number), *cells, f"{shift:.2f}, {wide:.0f} %")
    Console(width=120).print(table)


def draw(path: Path, bands: list[Exposures], network: SVI, found: list[Band], truth: list[Band], gaussian: SVI) -> None:
    """The light curves, three posteriors of a bin, and the flicker."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12.5, 7), layout="constrained")
    for number, (bins, one, ax) in enumerate(zip(bands, found, axes[0], strict=True)):
        by_itself, place = infer(network, alone(bins)), np.arange(len(bins["S"]))
        ends = np.exp([by_itself.low, by_itself.high])
        ax.vlines(place - 0.15, *ends, color="C1", lw=2, label="each bin alone")
        middle, half = one.rates[0], 1.645 * one.rates[1]
        ax.vlines(place + 0.15, np.exp(middle - half), np.exp(middle + half), color="C0", lw=2, label="with all bins")
        ax.axhline(np.exp(one.mean[0]), color="0.5", lw=1)
        ax.set(xlabel="time bin", ylabel="counts per second", title=f"Band {number}: 90 % intervals", ylim=(0, None))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if number == 0:
            ax.legend(frameon=False, loc="lower right")
    shown = {"S": [0.0, 4.0, 30.0], "B": [200.0, 200.0, 2000.0], "exposure": [20.0] * 3, "ratio": [0.01] * 3}
    few = alone({name: np.array(values) for name, values in shown.items()})
    _, grid, density = exact(few)
    for row, colour in enumerate(("C2", "C3", "C4")):
        axes[1, 0].fill_between(grid[row], density[row], color=colour, alpha=0.25, lw=0)
        name = f"S = {few['S'][row]:.0f}, sky {few['B'][row] * few['ratio'][row]:.0f}"
        for model, style, label in ((network, "-", name), (gaussian, ":", None)):
            axes[1, 0].plot(*density_of(model, few, row), style, color=colour, label=label)
    axes[1, 0].set(
        xlabel="log rate",
        ylabel="density",
        xlim=(-8, 2.5),
        ylim=(0, None),
        title="Exact (filled), flow, Gaussian (dotted)",
    )
    axes[1, 0].legend(frameon=False, loc="upper left")
    for number, (exactly, one) in enumerate(zip(truth, found, strict=True)):
        grid, density = exactly.s
        axes[1, 1].plot(grid, np.cumsum(density) * (grid[1] - grid[0]), color=f"C{number}", lw=3, alpha=0.4)
        axes[1, 1].plot(np.sort(one.s), np.linspace(0, 1, len(one.s)), color=f"C{number}", label=f"band {number}")
        shift = (one.rates[0] - exactly.rates[0]) / exactly.rates[1]
        axes[1, 2].plot(np.arange(len(shift)), shift, "o", color=f"C{number}", ms=4, label=f"band {number}")
    axes[1, 1].set(
        xlabel="s", ylabel="share of the posterior below", xlim=(0, 1), ylim=(0, 1), title="Flicker: exact (pale), fit"
    )
    axes[1, 2].set(
        xlabel="time bin", ylabel="error of the mean [sds]", ylim=(-0.3, 0.3), title="Log rates with all bins"
    )
    axes[1, 2].xaxis.get_major_locator().set_params(integer=True)
    for ax in axes[1, 1:]:
        ax.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def density_of(model: SVI, rows: Exposures, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and density of the network's posterior of a row's log rate."""
    one = {name: ops.convert_to_tensor(rows[name][row : row + 1].astype("float32")) for name in [*RAW, "mu", "u"]}
    noise = np.linspace(-4, 4, 401, dtype="float32")[:, None, None]
    distribution = model.guide_of("offset").distribution(one)
    mode, width = approximate(one, one["mu"], half_normal(one["u"]))
    points = mode + width * distribution.draw(ops.convert_to_tensor(noise))[:, 0, 0]
    log_density = distribution.log_density(ops.convert_to_tensor(noise))[:, 0, 0] - ops.log(width)
    return ops.convert_to_numpy(points), np.exp(ops.convert_to_numpy(log_density))


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with photon_erosita; else BDL_DATA.")] = None,
    simulated: Annotated[int, typer.Option(help="Simulated exposures to train on.")] = 50_000,
    checked: Annotated[int, typer.Option(help="New ones to check on.")] = 2_000,
    steps: Annotated[int, typer.Option(help="Training steps of each network.")] = 1_500,
    finish: Annotated[int, typer.Option(help="Training steps of each band.")] = 1_000,
    draws: Annotated[int, typer.Option(help="Draws of each band's mean and spread.")] = 4_000,
    seed: Annotated[int, typer.Option(help="Of the fits.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the light curves.")] = None,
) -> None:
    """Trains networks on simulated exposures, checks them, and reads a light curve with the better one."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    bands = load(folder) if folder else generate()
    test = simulate(checked, seed + 1_000_003)
    began = time.process_time()
    truth, *_ = exact(test)
    slow = (time.process_time() - began) / checked
    found, networks = {}, {}
    for name, family in {"Gaussian": "mean_field", "flow": Flow(layers=1, width=1)}.items():
        began = time.perf_counter()
        networks[name] = train(family, simulated, steps, seed)
        print(f"{name}: trained in {time.perf_counter() - began:.0f} s", flush=True)
        found[name] = infer(networks[name], test)
    report_exposures(test, truth, found)
    began = time.process_time()
    infer(networks["flow"], test)
    fast = (time.process_time() - began) / checked
    print(f"A bin: {1e6 * fast:.0f} microseconds of computing time by the network, {1e6 * slow:.0f} by quadrature.")
    exactly = [exact_band(bins) for bins in bands]
    fits = [fit_band(networks["flow"], bins, finish, draws, seed) for bins in bands]
    report_bands(exactly, fits, is_made=folder is None)
    if figure is not None:
        draw(figure, bands, networks["flow"], fits, exactly, networks["Gaussian"])


if __name__ == "__main__":
    typer.run(main)
