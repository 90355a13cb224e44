"""Do bdl's diagnostics measure what mathematics says? Mean-field Bayesian linear regression, where all is known.

x ~ N(0, I/D), w ~ N(0, I), y = x w + noise of variance 0.25, N = 200. The posterior of w is Gaussian; the Gaussian with
independent weights that is best by the ELBO has its mean and the inverse of its precision's diagonal as variances. Its
figures are printed in closed form, beside them what `bdl.diagnostics` measures on a network with these weights, and
beside those the published table, which came from one data set of unknown seed.

    python benchmarks/mean_field_table.py --seeds 200 --measured-seeds 20
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import typer

import bdl
from bdl.diagnostics import Quantities, judge
from bdl.diagnostics.measure import measure, take_probe
from bdl.diagnostics.weights import MATCHED_DIVERGENCE, weight_posteriors

NUM_EXAMPLES = 200
NOISE_VARIANCE = 0.25
DIMENSIONS = (10, 100, 1000, 10000)


@dataclass(frozen=True)
class Figures:
    """A row of the table; NLLs and the rate in nats per example."""

    rate: float
    prior_matched: float
    function_signal: float
    function_variance: float
    nll_gibbs: float
    nll_prior: float


COLUMNS = tuple(field.name for field in fields(Figures))
SAMPLED = COLUMNS[2:]  # the first two are read off the weights, without Monte Carlo error
PUBLISHED = {  # "Weight-space alarms alone cry wolf", in the design of the diagnostics
    10: Figures(0.109, 0.00, 0.89, 0.012, 0.725, 4.71),
    100: Figures(0.553, 0.00, 0.83, 0.112, 0.789, 4.71),
    1000: Figures(0.748, 0.00, 0.81, 0.553, 1.443, 4.84),
    10000: Figures(0.420, 0.73, 0.80, 0.925, 2.161, 4.43),
}
ROUNDING = Figures(0.0005, 0.005, 0.005, 0.0005, 0.0005, 0.005)  # half a unit of the last digit published


def draw_data(dimension: int, seed: int, num_examples: int = NUM_EXAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `(n, D)` and targets `(n,)`, rounded to float32 so that network and mathematics see the same."""
    rng = np.random.default_rng([seed, dimension, num_examples])
    x = (rng.normal(size=(num_examples, dimension)) / np.sqrt(dimension)).astype("float32")
    y = x @ rng.normal(size=dimension) + np.sqrt(NOISE_VARIANCE) * rng.normal(size=num_examples)
    return x, y.astype("float32")


def optimum(x: np.ndarray, y: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale `(D,)` of the Gaussian that minimises `E_q[-log p(y|x,w)] + T KL(q || p)`.

    The precision of `p(w) p(y|x,w)^(1/T)` is `P = I + x'x / (T v)`, its mean `P^-1 x'y / (T v)`, which is solved for in
    the space of the examples; v is the variance of the noise. The best diagonal Gaussian has precisions `diag(P)`.
    """
    x, y = x.astype("float64"), y.astype("float64")
    variance = temperature * NOISE_VARIANCE
    mean = x.T @ np.linalg.solve(x @ x.T + variance * np.eye(len(x)), y)
    return mean, 1.0 / np.sqrt(1.0 + np.square(x).sum(axis=0) / variance)


def gibbs_nll(x: np.ndarray, y: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> float:
    """`-E_q log p(y|x,w)` in nats per example."""
    x, y = x.astype("float64"), y.astype("float64")
    squares = np.square(y - x @ mean) + np.square(x) @ np.square(scale)
    return float(0.5 * np.log(2 * np.pi * NOISE_VARIANCE) + squares.mean() / (2 * NOISE_VARIANCE))


def divergences(mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """KL of each weight from N(0, 1), in nats."""
    return 0.5 * (np.square(scale) + np.square(mean) - 1.0) - np.log(scale)


def closed_form(x: np.ndarray, y: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Figures:
    """The figures of `q = N(mean, scale^2)`."""
    kl, squares = divergences(mean, scale), np.square(x.astype("float64"))
    return Figures(
        rate=float(kl.sum() / len(y)),
        prior_matched=float(np.mean(kl < MATCHED_DIVERGENCE)),
        function_signal=float(np.std(x.astype("float64") @ mean) / np.std(y.astype("float64"))),
        function_variance=float((squares @ np.square(scale)).mean() / squares.sum(axis=1).mean()),
        nll_gibbs=gibbs_nll(x, y, mean, scale),
        nll_prior=gibbs_nll(x, y, np.zeros_like(mean), np.ones_like(scale)),
    )


def measure_network(
    x: np.ndarray, y: np.ndarray, mean: np.ndarray, scale: np.ndarray, num_samples: int, seed: int = 0
) -> Quantities:
    """What bdl's diagnostics say of a linear network with the posterior `q = N(mean, scale^2)`."""
    prior = bdl.priors.Normal()
    layer = bdl.layers.DenseReparameterization(1, use_bias=False, kernel_prior=prior, seed=seed)
    network = keras.Sequential([keras.Input((x.shape[1],)), layer])
    likelihood = bdl.likelihoods.Normal(scale=float(np.sqrt(NOISE_VARIANCE)))
    (posterior,) = weight_posteriors(network)
    posterior.assign(mean[:, None], scale[:, None])
    probe = take_probe((x, y), len(y), likelihood, "data")
    return measure(network, likelihood, len(y), train=probe, num_samples=num_samples, is_thorough=True)


def figures_of(q: Quantities) -> Figures:
    """The row of the table that was measured."""
    values = (q.rate, q.layers[0].prior_matched, q.function_signal, q.function_variance, q.train.nll_gibbs, q.nll_prior)
    return Figures(*map(float, values))


def compare(dimension: int, seeds: int, measured_seeds: int, num_samples: int) -> dict[str, Any]:
    """One dimension: closed form over many data sets, and measurements on the first of them with noise of their own."""
    exact, measured, verdicts = [], [], Counter()
    for seed in range(seeds):
        x, y = draw_data(dimension, seed)
        mean, scale = optimum(x, y)
        exact.append(astuple(closed_form(x, y, mean, scale)))
        if seed < measured_seeds:
            quantities = measure_network(x, y, mean, scale, num_samples, seed)
            measured.append(astuple(figures_of(quantities)))
            verdicts[judge(quantities).verdict] += 1
    exact, measured = np.array(exact), np.array(measured)
    deviation = measured - exact[: len(measured)]
    columns = {}
    for i, name in enumerate(COLUMNS):
        published, slack = getattr(PUBLISHED[dimension], name), getattr(ROUNDING, name)
        low, high = float(exact[:, i].min()), float(exact[:, i].max())
        columns[name] = {
            "published": published,
            "closed_form": {
                "mean": float(exact[:, i].mean()),
                "sd": float(exact[:, i].std(ddof=1)),
                "range": [low, high],
            },
            "published_is_inside": bool(low - slack <= published <= high + slack),
            "closed_form_same_seeds": float(exact[: len(measured), i].mean()),
            "measured": float(measured[:, i].mean()),
            "largest_deviation": float(np.abs(deviation[:, i]).max()),
        }
        if name in SAMPLED:
            error = float(deviation[:, i].std(ddof=1) / np.sqrt(len(measured)))
            columns[name] |= {"error": error, "deviation_in_errors": float(deviation[:, i].mean() / error)}
    return {"dimension": dimension, "columns": columns, "verdicts": dict(verdicts)}


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table, a line for each figure."""
    heads = ("published", "closed form ± sd over data", "inside", "same data", "measured ± MC error", "deviation")
    widths = (9, 26, 6, 9, 20, 14)
    for row in rows:
        print(f"\nD = {row['dimension']}: verdicts {row['verdicts']}")
        print(f"{'':18}" + "  ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
        for name, c in row["columns"].items():
            error = f" ± {c['error']:.5f}" if "error" in c else ""
            apart = f"{c['deviation_in_errors']:+.2f} s.e." if error else f"max {c['largest_deviation']:.0e}"
            cells = (
                f"{c['published']:.3f}",
                f"{c['closed_form']['mean']:.4f} ± {c['closed_form']['sd']:.4f}",
                "yes" if c["published_is_inside"] else "NO",
                f"{c['closed_form_same_seeds']:.5f}",
                f"{c['measured']:.5f}{error}",
                apart,
            )
            print(f"{name:18}" + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def main(
    seeds: Annotated[int, typer.Option(help="Data sets for the closed form.")] = 200,
    measured_seeds: Annotated[int, typer.Option(help="How many of them are also measured by bdl.", min=2)] = 20,
    samples: Annotated[int, typer.Option(help="Functions drawn for each measurement.")] = 256,
    output: Annotated[Path | None, typer.Option(help="Where to write the results (JSON).")] = None,
) -> None:
    """Prints closed form, measurement and published table side by side."""
    rows = [compare(dimension, seeds, min(measured_seeds, seeds), samples) for dimension in DIMENSIONS]
    show(rows)
    if output is not None:
        settings = {"num_examples": NUM_EXAMPLES, "noise_variance": NOISE_VARIANCE, "num_samples": samples}
        settings |= {"seeds": seeds, "measured_seeds": measured_seeds, "backend": keras.backend.backend()}
        from bdl.report import write_atomically

        write_atomically(output, json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
