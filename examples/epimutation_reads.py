"""Which cytosines changed?
========================

Reads of a founder and three of its offspring: which cytosines gained or lost methylation, and how often?

::

    python examples/epimutation_reads.py --figure reads.png       # made reads, whose truth is known
    python examples/epimutation_reads.py --data DIR               # four plants of Arabidopsis

**Question.** The example `epimutations.py` has one divergence for each pair of whole genomes. Here are the reads of a
few cytosines, in other plants. Which of them changed?

**Data.** The package AlphaBeta has reads of a founder (G0), its child in line 2 (G1_2), a plant three generations later
in that line (G4_2) and one of generation 4 in line 8 (G4_8): methylated reads and all reads, at the first 400 cytosines
of each chromosome. The example takes the cytosines in CG of the nucleus that have reads in the founder and in another
plant.

**Story.** The history of a cytosine is its state in each plant, UU, UM or MM: 81 histories. With the matrix G of one
generation of selfing, as in `epimutations.py`, and the level of each state::

    P(history) = share(G0) G(G0, G1_2) G^3(G1_2, G4_2) G^4(G0, G4_8)
    methylated ~ BetaBinomial(reads, level size, (1 - level) size),   level = low, (low + high) / 2 or high

Errors of conversion and mapping are in the low level. One more history is for cytosines that are mosaics in every
plant, such as those whose reads come from several places of the genome. There the methylated share may be anything. The
history is summed out.

**Fit.** A Gaussian of eight numbers on the real line that four coupling layers bend (`Flow`), from the mode on, at
T = 1. The gold standard is a random walk (Metropolis) in NumPy, with the sum over histories in another order.

**Check.** 333 cytosines of the data (seed 0); rates per 100,000, means with the middle 90 %::

    number               SVI                     Metropolis             AlphaBeta, whole genome
    alpha, gains         174  [2.8, 494]         164  [1.7, 502]         8.6
    beta, losses         13.9 [.3, 54.1]         16.1 [.3, 66.2]        25.0
    low level            .033 [.029, .037]       .033 [.029, .036]
    high level           .881 [.870, .891]       .881 [.869, .892]
    share of mosaics     .118 [.082, .157]       .118 [.081, .156]

All means agree within .12 standard deviations, and all standard deviations within 9 %. The walks have R-hat 1.018, and
220 effective draws of the worst number. The logarithm of alpha has a long tail to small values, which the layers follow
(k-hat .37). Probabilities of a change differ by at most .025. Failed conversion alone does not explain the low level:
in the chloroplast, which has no methylation, 31 of 21,994 reads are methylated.

.. image:: /images/epimutation_reads.png

On 400 made cytosines, whose rates are higher, the middle 90 % hold the truth of seven of nine numbers: alpha 348
[116, 654] where it is 400, beta 649 [228, 1155] where it is 800. The shares of UU and of mosaics are just outside, by
Metropolis as well (R-hat 1.023). 38 cytosines have truly changed; 18 of them are among the 19 that are likelier to have
changed than not. The log score of a change is -.154 nats per cytosine. It is -.314 with the true share of changes as
the probability of each. A run takes a minute and a half of one core, with made or real reads.

**Answer.** 5.9 of 333 cytosines are expected to have changed, and three are likelier to have changed than not. The
calls of methimpute have both U and M in 29, and many of these rest on one read or none. The three lie within 18 bases
of chromosome 3, two of them on both strands of one CG, and gained methylation in the same plant: most likely one event
of a region, and not three. The intervals hold the rates of the whole genome, but they are wide, and owe their low ends
to the prior, whose middle 90 % are .4 to 270. So few reads cannot tell a rate of 1e-4 from none.

**Limits.** The story takes cytosines for independent, and so counts gains too often. The next step is a region as the
unit of change.
"""

# sphinx_gallery_thumbnail_path = "images/epimutation_reads.png"

from __future__ import annotations

import csv
import itertools
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
from inheritance import generation, metropolis
from keras import ops
from rich.console import Console
from rich.table import Table
from scipy import special, stats

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Flow, Global, Observed

tfd = tfp.distributions
PLANTS = ("G0", "G1_2", "G4_2", "G4_8")
"""The founder, its child in line 2, a great-grandchild of that child, and a plant of generation 4 in line 8."""
STEPS = ((0, 1, 1), (1, 2, 3), (0, 3, 4))
"""Ancestor, descendant, and the generations between them."""
MOSAIC = 3
HISTORIES = np.array([*itertools.product(range(3), repeat=4), (MOSAIC,) * 4])
"""The states UU, UM, MM of the four plants, all combinations of them; and cytosines that are mixed in all of them."""
CHANGED = HISTORIES.min(axis=1) != HISTORIES.max(axis=1)
RATES = {"alpha": 8.61e-5, "beta": 2.50e-4}
"""Per copy and generation, as AlphaBeta estimates them for this species."""
TRUTH = {"alpha": 0.004, "beta": 0.008, "shares": (0.55, 0.02, 0.38, 0.05), "low": 0.02, "high": 0.88, "size": 20.0}
NUM_GENERATED = 400


def log_prior(alpha: Any, beta: Any, shares: Any, xp: Any = np) -> Any:
    """Log probability of each history, `(82,)`."""
    step, after = generation(alpha, beta, xp), {}
    after[1] = step
    after[3] = xp.matmul(xp.matmul(step, step), step)
    after[4] = xp.matmul(after[3], step)
    total = xp.take(xp.log(shares), HISTORIES[:, 0], axis=0)
    for ancestor, descendant, generations in STEPS:
        place = 3 * np.minimum(HISTORIES[:, ancestor], 2) + np.minimum(HISTORIES[:, descendant], 2)
        passed = xp.take(xp.reshape(xp.log(after[generations]), (-1,)), place, axis=0)
        total = total + xp.where(HISTORIES[:, 0] == MOSAIC, 0.0 * passed, passed)
    return total


def shapes(low: Any, high: Any, size: Any, xp: Any = np) -> tuple[Any, Any]:
    """Both parameters of the beta distribution of the methylated share of a plant's cells, by state: `(4,)` each."""
    level = xp.stack([low, (low + high) / 2, high, 0.0 * low + 0.5])
    sizes = xp.stack([size, size, size, 0.0 * size + 2.0])  # of a mosaic cytosine: anything
    return level * sizes, (1 - level) * sizes


class Inherited(tfd.Distribution):
    """Methylated reads of a cytosine in the four plants, its history summed out.

    Args:
        log_prior: Log probability of each history, `(82,)`.
        a, b: Of the beta distribution of each state, `(4,)`.
        reads: All reads, `(cytosines, 4)`.
    """

    def __init__(self, log_prior: Any, a: Any, b: Any, reads: Any) -> None:
        parameters = {"log_prior": log_prior, "a": a, "b": b, "reads": reads}
        super().__init__(log_prior.dtype, tfd.NOT_REPARAMETERIZED, False, True, parameters=parameters)
        self.log_prior, self.by_state = log_prior, tfd.BetaBinomial(reads[..., None], a, b)

    def _batch_shape(self) -> Any:
        return self.by_state.batch_shape[:-2]

    def _event_shape(self) -> Any:
        return self.by_state.batch_shape[-2:-1]

    def _log_prob(self, value: Any) -> Any:
        by_state = self.by_state.log_prob(value[..., None])  # once for each state, and not for each history
        joint = sum(ops.take(by_state[..., plant, :], HISTORIES[:, plant], axis=-1) for plant in range(len(PLANTS)))
        return ops.logsumexp(joint + self.log_prior, axis=-1)


@keras.saving.register_keras_serializable(package="epimutation_reads")
def story(data: Any) -> Iterator[Any]:
    """Rates, and what plants of each state look like."""
    alpha = yield Global("alpha", tfd.LogNormal(math.log(1e-4), 2.0))
    beta = yield Global("beta", tfd.LogNormal(math.log(1e-4), 2.0))
    shares = yield Global("shares", tfd.Dirichlet(np.ones(4, "float32")))
    low = yield Global("low", tfd.Beta(1.0, 20.0))
    high = yield Global("high", tfd.Beta(20.0, 3.0))
    size = yield Global("size", tfd.LogNormal(3.0, 1.0))
    histories, (a, b) = log_prior(alpha, beta, shares, ops), shapes(low, high, size, ops)
    yield Observed("methylated", Inherited(histories, a, b, data["reads"]), data["methylated"])


@dataclass(frozen=True)
class Cytosines:
    """Reads of cytosines in the four plants.

    Args:
        m, c: Methylated reads, and reads, `(cytosines, 4)`.
        names: Of the cytosines.
        states: Of made ones, the truth, `(cytosines, 4)`.
        calls: Of real ones, whether methimpute's calls have both U and M, `(cytosines,)`.
    """

    m: np.ndarray
    c: np.ndarray
    names: list[str]
    states: np.ndarray | None = None
    calls: np.ndarray | None = None

    @property
    def data(self) -> dict[str, np.ndarray]:
        """What the story reads."""
        return {"methylated": self.m.astype("float32"), "reads": self.c.astype("float32")}


def load(folder: Path) -> Cytosines:
    """The cytosines in CG of the five chromosomes that the founder and another plant have reads of."""
    path = folder / "methylation" / "arabidopsis_ma_lines.csv"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It is made of the example methylomes of the R package AlphaBeta, as CSV.")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["context"] == "CG"]
    m, c = (np.array([[int(row[f"{plant}_{what}"]) for plant in PLANTS] for row in rows]) for what in ("meth", "total"))
    plastid = np.array([row["seqnames"] == "C" for row in rows])
    print(f"Chloroplast: {m[plastid].sum()} of {c[plastid].sum():,} reads methylated, which the conversion has missed")
    nuclear = np.array([row["seqnames"] in "12345" for row in rows]) & (c[:, 0] > 0) & (c[:, 1:].sum(1) > 0)
    names = [f"chromosome {row['seqnames']}, {row['start']}" for row in rows]
    status = [{row[f"{plant}_status"] for plant in PLANTS} for row in rows]
    calls = np.array([{"U", "M"} <= each for each in status])
    return Cytosines(m[nuclear], c[nuclear], [names[k] for k in np.flatnonzero(nuclear)], calls=calls[nuclear])


def generate(rows: int = NUM_GENERATED, seed: int = 0) -> Cytosines:
    """Reads of the story at `TRUTH`. Its rates are higher than those of plants, so that there is something to find."""
    rng = np.random.default_rng(seed)
    prior = np.exp(log_prior(TRUTH["alpha"], TRUTH["beta"], np.array(TRUTH["shares"])))
    states = HISTORIES[rng.choice(len(prior), rows, p=prior / prior.sum())]
    a, b = shapes(*(np.float64(TRUTH[name]) for name in ("low", "high")), np.float64(TRUTH["size"]))
    c = 1 + rng.negative_binomial(1.0, 1.0 / (1.0 + 15.0), (rows, 4))
    m = rng.binomial(c, rng.beta(a[states], b[states]))
    return Cytosines(m, c, [f"cytosine {number}" for number in range(rows)], states)


def log_by_state(cytosines: Cytosines, g: dict[str, Any]) -> np.ndarray:
    """Log likelihood of each plant's reads, given its state, `(cytosines, 4, 4)`, without binomial coefficients."""
    a, b = shapes(g["low"], g["high"], g["size"])
    m, c = cytosines.m[..., None], cytosines.c[..., None]
    return special.betaln(a + m, b + c - m) - special.betaln(a, b)


def chances(cytosines: Cytosines, g: dict[str, Any]) -> np.ndarray:
    """Probability of each history, `(cytosines, 82)`."""
    by_state = log_by_state(cytosines, g)
    log_joint = sum(by_state[:, plant][:, HISTORIES[:, plant]] for plant in range(4))
    return special.softmax(log_joint + log_prior(g["alpha"], g["beta"], g["shares"]), axis=1)


def log_likelihood(cytosines: Cytosines, g: dict[str, Any]) -> float:
    """The exact sum in another order, from the last plants back to the founder, for the gold standard."""
    likelihood, step = np.exp(log_by_state(cytosines, g)), generation(g["alpha"], g["beta"])
    below = likelihood[..., :3]
    line_2 = (below[:, 1] * (below[:, 2] @ np.linalg.matrix_power(step, 3).T)) @ step.T
    line_8 = below[:, 3] @ np.linalg.matrix_power(step, 4).T
    total = (below[:, 0] * line_2 * line_8) @ g["shares"][:3] + likelihood[..., MOSAIC].prod(axis=1) * g["shares"][3]
    return float(np.log(total).sum())


def fit(cytosines: Cytosines, steps: int, seed: int) -> SVI:
    """A Gaussian of the globals that coupling layers bend, from the mode on."""
    model = SVI(story, Flow(layers=4, width=16), start="laplace", num_samples=4, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(1e-2)), steps_per_execution=50)
    model.fit(cytosines.data, batch_size="all", steps=steps, verbose=0)
    return model


NAMES = ("alpha", "beta", "low", "high", "size", "UU", "UM", "MM", "mosaic")


def on_the_line(draws: dict[str, np.ndarray]) -> np.ndarray:
    """Draws of the globals on the real line, `(draws, 8)`; the logarithms of shares less that of the first."""
    draws = {name: values.astype("float64") for name, values in draws.items()}
    logs = [np.log(draws["alpha"]), np.log(draws["beta"]), special.logit(draws["low"]), special.logit(draws["high"])]
    shares = np.log(draws["shares"][:, 1:] / draws["shares"][:, :1])
    return np.column_stack([*logs, np.log(draws["size"]), shares])


def from_the_line(u: np.ndarray) -> dict[str, Any]:
    """The globals of one draw."""
    rates = {"alpha": np.exp(u[0]), "beta": np.exp(u[1]), "low": special.expit(u[2]), "high": special.expit(u[3])}
    return {**rates, "size": np.exp(u[4]), "shares": special.softmax([0.0, *u[5:]])}


def log_density(cytosines: Cytosines, u: np.ndarray) -> float:
    """The log density of the posterior on the real line, up to a constant, by SciPy and the exact sum."""
    g = from_the_line(u)
    if max(g["alpha"], g["beta"]) >= 1:  # not a probability; a lognormal prior has 2 in a million of its mass there
        return -np.inf
    total = (
        log_likelihood(cytosines, g)
        + stats.norm.logpdf(u[:2], math.log(1e-4), 2.0).sum()
        + stats.norm.logpdf(u[4], 3, 1)
    )
    for name, shape in (("low", (1, 20)), ("high", (20, 3))):
        total += stats.beta.logpdf(g[name], *shape) + np.log(g[name]) + np.log1p(-g[name])
    return float(total + np.log(g["shares"]).sum())


def globals_of(u: np.ndarray) -> np.ndarray:
    """Draws of `NAMES`, `(draws, 9)`."""
    found = [from_the_line(each) for each in u]
    return np.array([[each[name] for name in NAMES[:5]] + list(each["shares"]) for each in found])


def chance_of_change(cytosines: Cytosines, u: np.ndarray, most: int = 100) -> np.ndarray:
    """Probability that a cytosine's state differs between plants, over draws of the globals: `(cytosines,)`."""
    some = u[:: max(len(u) // most, 1)]
    return np.mean([chances(cytosines, from_the_line(each))[:, CHANGED].sum(axis=1) for each in some], axis=0)


def report(cytosines: Cytosines, ours: np.ndarray, exactly: np.ndarray, seconds: dict[str, float], note: str) -> None:
    """Prints the globals by SVI and by Metropolis."""
    table = Table(title="Globals: mean and middle 90 %; rates per 100,000 copies and generation")
    columns = ("", "SVI", f"Metropolis ({seconds['Metropolis']:.0f} s)", "error, sd", "of sd", "AlphaBeta")
    truth = None
    if cytosines.states is not None:
        columns = (*columns[:-1], "truth")
        truth = [*(TRUTH[name] for name in NAMES[:5]), *TRUTH["shares"]]
    for column in columns:
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    known = truth or [RATES["alpha"], RATES["beta"]]
    for k, name in enumerate(NAMES):
        scale, digits = (1e5, 1) if k < 2 else (1, 1 if name == "size" else 3)
        cells = []
        for draws in (ours[:, k], exactly[:, k]):
            low, high = np.quantile(draws, [0.05, 0.95])
            cells.append(f"{scale * draws.mean():.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]")
        x, y = (np.log(draws[:, k]) if k < 2 else draws[:, k] for draws in (ours, exactly))
        errors = f"{(x.mean() - y.mean()) / y.std():+.2f}", f"{100 * (x.std() / y.std() - 1):+.0f} %"
        table.add_row(name, *cells, *errors, f"{scale * known[k]:.{digits}f}" if k < len(known) else "")
    console = Console(width=120)
    console.print(table)
    print(f"SVI: {seconds['SVI']:.0f} s, {note}. Errors of rates are those of their logarithms.")


def tell_changes(cytosines: Cytosines, changed: np.ndarray, most: int) -> np.ndarray:
    """Prints how many cytosines changed; the numbers of the likeliest come back."""
    sure = changed > 0.5
    print(f"{len(changed)} cytosines; expected to have changed: {changed.sum():.2f}; likelier than not: {sure.sum()}")
    if cytosines.states is not None:
        truly = cytosines.states.min(1) != cytosines.states.max(1)
        share, score = truly.mean(), np.log(np.where(truly, changed, 1 - changed)).mean()
        alone = special.xlogy(share, share) + special.xlog1py(1 - share, -share)
        print(f"Truly changed: {truly.sum()}, {truly[sure].sum()} of them likelier than not")
        print(f"Log score per cytosine: {score:.3f} nats; {alone:.3f} by the share of changes alone")
    if cytosines.calls is not None:
        print(f"Cytosines that methimpute calls U in one plant and M in another: {cytosines.calls.sum()}")
    return np.argsort(-changed)[:most]


def draw(
    path: Path, cytosines: Cytosines, ours: np.ndarray, exactly: np.ndarray, changed: np.ndarray, top: Any
) -> None:
    """The posterior of the rates, and the reads of the cytosines that are likeliest to have changed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(1, 1.1))
    bins = np.linspace(*np.quantile(np.log10(exactly[:, :2]), [0.001, 0.999]), 41)
    known = RATES if cytosines.states is None else TRUTH
    label = "AlphaBeta" if cytosines.states is None else "truth"
    for k, colour in enumerate(("C0", "C1")):
        name = ("alpha, gains", "beta, losses")[k]
        left.hist(np.log10(exactly[:, k]), bins, density=True, color=colour, alpha=0.25, label=f"{name}: Metropolis")
        left.hist(np.log10(ours[:, k]), bins, density=True, histtype="step", color=colour, lw=1.6, label=f"{name}: SVI")
        left.axvline(np.log10(known[NAMES[k]]), color=colour, ls="--", lw=1.2, label=f"{NAMES[k]}: {label}")
    left.set(xlabel="log10 of the rate per copy and generation", ylabel="density", title="Rates")
    left.set_ylim(0, 1.9 * left.get_ylim()[1])
    left.legend(frameon=False, fontsize="small", loc="upper left")

    share = cytosines.m[top] / np.maximum(cytosines.c[top], 1)
    image = right.imshow(np.where(cytosines.c[top] > 0, share, np.nan), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, plant), value in np.ndenumerate(share):
        text = f"{cytosines.m[top][row, plant]}/{cytosines.c[top][row, plant]}"
        right.text(plant, row, text, ha="center", va="center", color="w" if value > 0.6 else "0.2", fontsize=9)
    right.set_xticks(range(4), ["founder", "line 2, gen. 1", "line 2, gen. 4", "line 8, gen. 4"])
    right.set_yticks(range(len(top)), [f"{cytosines.names[k]}: {changed[k]:.2f}" for k in top])
    right.set_title("Methylated of all reads; probability of a change")
    figure.colorbar(image, ax=right, label="methylated share", shrink=0.8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with methylation/arabidopsis_*.csv; else BDL_DATA.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    walk: Annotated[int, typer.Option(help="Steps of each of four Metropolis chains.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the fit.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of rates and changes.")] = None,
) -> None:
    """Fits the story, and compares with Metropolis."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    cytosines = load(folder) if folder else generate()
    began = time.perf_counter()
    model = fit(cytosines, steps, seed)
    seconds = {"SVI": time.perf_counter() - began}
    u = on_the_line(model.posterior(num_samples=4000, seed=1))
    began = time.perf_counter()
    chains = metropolis(lambda each: log_density(cytosines, each), u, walk, seed)
    seconds["Metropolis"] = time.perf_counter() - began
    drawn = np.concatenate(chains.draws)
    ours, exactly = globals_of(u), globals_of(drawn)
    note = f"R-hat of Metropolis {chains.r_hat.max():.3f}, {chains.effective_sample_size.min():,.0f} effective"
    report(cytosines, ours, exactly, seconds, f"{model.k_hat(cytosines.data, seed=1)} {note}")
    changed, summed = (chance_of_change(cytosines, each) for each in (u, drawn))
    off = np.abs(changed - summed).max()
    print(f"Probability of a change, over draws of SVI and of Metropolis: at most {off:.3f} apart")
    top = tell_changes(cytosines, changed, most=10)
    if figure is not None:
        draw(figure, cytosines, ours, exactly, changed, top)


if __name__ == "__main__":
    typer.run(main)
