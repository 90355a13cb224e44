"""Eight schools
=============

Eight schools: does coaching help, and how much do schools differ? A classic hierarchy, against exact figures.

::

    python examples/eight_schools.py --figure eight_schools.png

Each of eight schools measured the effect y of its coaching, with a standard error sigma (Rubin 1981, "Estimation in
parallel randomized experiments", table 1). In the story the true effects theta come from a population::

    y_j ~ N(theta_j, sigma_j),   theta_j = mu + tau raw_j,   raw_j ~ N(0, 1),   mu ~ N(0, 5),   tau ~ half-Cauchy(5)

It is told with `raw` in the place of theta (non-centred): theta could be near mu only where tau is small, a funnel that
no Gaussian fits. What remains of it is corrected by importance weights, as long as k-hat says that they can. Given tau
all else is Gaussian here, so that the exact posterior is an integral over tau alone.
"""

# sphinx_gallery_thumbnail_path = "images/eight_schools.png"

from __future__ import annotations

import os
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

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Global, Observed

tfd = tfp.distributions
SCHOOLS = {
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}
NAMES = ("mu", "tau", *(f"theta[{school}]" for school in "ABCDEFGH"))


@keras.saving.register_keras_serializable(package="eight_schools")
def story(data: Any) -> Iterator[Any]:
    """Effects of coaching in eight schools."""
    mu = yield Global("mu", tfd.Normal(0.0, 5.0))
    tau = yield Global("tau", tfd.HalfCauchy(0.0, 5.0))
    raw = yield Global("raw", tfd.Sample(tfd.Normal(0.0, 1.0), 8))
    yield Observed("y", tfd.Normal(mu + tau * raw, data["sigma"]), data["y"])


@dataclass(frozen=True)
class Marginals:
    """Mean and standard deviation of each of `NAMES`.

    Args:
        mean, sd: `(10,)`.
    """

    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, draws: np.ndarray, weights: np.ndarray | None = None) -> Marginals:
        """Of draws `(draws, 10)` and their weights."""
        mean = np.average(draws, axis=0, weights=weights)
        return cls(mean, np.sqrt(np.average((draws - mean) ** 2, axis=0, weights=weights)))


def exact_posterior(num_points: int = 4000) -> tuple[Marginals, np.ndarray, np.ndarray]:
    """Exact marginals, and a grid of tau with its density.

    Given tau, y_j is N(mu, tau^2 + sigma_j^2). The grid is even in arctan(tau / 5), in which the prior is uniform.
    """
    angle = (np.arange(num_points) + 0.5) / num_points * np.pi / 2
    tau = 5.0 * np.tan(angle)[:, None]
    y, variance = SCHOOLS["y"], SCHOOLS["sigma"] ** 2
    precision = 1.0 / (tau**2 + variance)
    precision_of_mu = 1.0 / 25.0 + precision.sum(1)
    mean_of_mu = (precision * y).sum(1) / precision_of_mu
    square = (precision * y**2).sum(1) - precision_of_mu * mean_of_mu**2
    log_evidence = 0.5 * (np.log(precision).sum(1) - np.log(precision_of_mu) - square)
    weights = np.exp(log_evidence - log_evidence.max())
    weights /= weights.sum()

    pooled = variance * precision  # the share of mu in the mean of theta
    mean = np.column_stack([mean_of_mu, tau, pooled * mean_of_mu[:, None] + (1 - pooled) * y])
    within = (1 - pooled) * variance + pooled**2 / precision_of_mu[:, None]
    within = np.column_stack([1 / precision_of_mu, np.zeros(num_points), within])
    overall = weights @ mean
    density = weights / (5.0 * (np.pi / 2 / num_points) / np.cos(angle) ** 2)
    return Marginals(overall, np.sqrt(weights @ (within + (mean - overall) ** 2))), tau[:, 0], density


def fit(steps: int, seed: int) -> SVI:
    """A Gaussian with all correlations, from the mode on."""
    model = SVI(story, "full_rank", start="laplace", num_samples=8, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(1e-2)))
    model.fit(SCHOOLS, batch_size="all", steps=steps, verbose=0)
    return model


def draws_of(model: SVI, num_samples: int, seed: int) -> np.ndarray:
    """Draws of `NAMES` from the guide, `(draws, 10)`."""
    draws = model.posterior(num_samples=num_samples, seed=seed)
    theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["raw"]
    return np.column_stack([draws["mu"], draws["tau"], theta]).astype("float64")


def report(exact: Marginals, found: dict[str, Marginals]) -> None:
    """Prints the exact figures, and the errors of each approximation."""
    table = Table(title="Error of a mean in standard deviations, and of a standard deviation in percent")
    for column in ("", "exact", *(cell for name in found for cell in (name, ""))):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for number, name in enumerate(NAMES):
        mean, sd = exact.mean[number], exact.sd[number]
        cells = [f"{mean:.2f} ± {sd:.2f}"]
        for one in found.values():
            cells += [f"{(one.mean[number] - mean) / sd:+.2f}", f"{100 * (one.sd[number] / sd - 1):+.0f} %"]
        table.add_row(name, *cells)
    Console(width=100).print(table)


def draw(path: Path, exact: Marginals, tau: np.ndarray, density: np.ndarray, draws: np.ndarray, weights: Any) -> None:
    """Effects of the schools, and how much they differ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    shown = {"exact": (exact, "0.3"), "weighted draws": (Marginals.of(draws, weights), "C0")}
    places = np.arange(len(NAMES))
    for shift, (name, (marginals, colour)) in zip((-0.12, 0.12), shown.items(), strict=True):
        left.errorbar(marginals.mean, places + shift, xerr=marginals.sd, fmt="o", color=colour, capsize=3, label=name)
    left.plot(SCHOOLS["y"], places[2:], "x", color="C1", label="measured")
    left.set_yticks(places, NAMES)
    left.invert_yaxis()
    left.set(xlabel="effect, points of the test", title="Mean and standard deviation")
    left.legend(frameon=False)
    bins = np.linspace(0, 20, 61)
    right.hist(draws[:, 1], bins, density=True, histtype="step", color="C1", label="full rank")
    right.hist(draws[:, 1], bins, weights=weights, density=True, color="C0", alpha=0.35, label="weighted draws")
    right.plot(tau, density, color="0.3", lw=2, label="exact")
    right.set(xlim=(0, 20), xlabel="tau", ylabel="density", title="How much schools differ")
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2000,
    draws: Annotated[int, typer.Option(help="Draws of the posterior.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the fit.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the posterior.")] = None,
) -> None:
    """Fits, weights and compares."""
    exact, tau, density = exact_posterior()
    model = fit(steps, seed)
    sample = draws_of(model, draws, seed=1)
    smoothed = model.k_hat(SCHOOLS, num_samples=draws, seed=1)  # of the same draws
    weights = np.exp(smoothed.log_weights)
    report(exact, {"full rank": Marginals.of(sample), "weighted draws": Marginals.of(sample, weights)})
    print(smoothed)
    if figure is not None:
        draw(figure, exact, tau, density, sample, weights)


if __name__ == "__main__":
    typer.run(main)
