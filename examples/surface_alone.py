"""Each protein by itself, without a state of the cell: by SVI, and by NUTS. A part of surface_proteins.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.table import Table
from scipy import special
from surface_counts import Mixture, Prior, priors_of, sites_of

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Observed, nuts

SHARES = (0.02, 0.3)
"""Shares of cells with the protein, from which the fits begin: a rare one and a common one."""


def story_of_proteins_alone(prior: Prior) -> Callable[..., Iterator[Any]]:
    """The story without a state: shares and backgrounds are the same for all cells, whose sizes are known."""

    def story(data: Any) -> Iterator[Any]:
        sites = yield from sites_of(prior, prior.level.shape)
        yield Observed("counts", mixture_alone(sites, data["size"]), data["counts"])

    return story


def mixture_alone(sites: dict[str, Any], size: Any) -> Mixture:
    """The distribution of the counts without a state."""
    low = size + sites["level"]
    return Mixture(sites["share"] + 0.0 * low, low, low + ops.softplus(sites["above"]), sites["r_low"], sites["r_high"])


def known_sizes(cells: np.ndarray) -> np.ndarray:
    """Of each cell: the logarithm of its total, less the mean of these."""
    log_total = np.log(cells.sum(1))
    return log_total - log_total.mean()


def call_alone(cells: np.ndarray, prior: Prior, droplets: Prior, steps: int, seed: int) -> np.ndarray:
    """Fits each protein without a state, and calls cells by the means of the posterior.

    A mixture may have several optima. So each protein is fitted from each of `SHARES`, with a background as of the
    droplets, as if it were so many proteins, and the fit with the highest ELBO is kept.
    """
    times, num_proteins = len(SHARES), cells.shape[1]
    level, log_r, first_level, first_log_r = (
        np.tile(each, times) for each in (prior.level, prior.log_r, droplets.level, droplets.log_r)
    )
    many = Prior(level, log_r, prior.level_sd, prior.log_r_sd)
    start = {
        "level": first_level,
        "r_low": np.exp(first_log_r),
        "share": np.repeat(special.logit(SHARES), num_proteins).astype("float32"),
    }
    data = {"counts": np.tile(cells, (1, times)), "size": known_sizes(cells)[:, None]}
    model = SVI(story_of_proteins_alone(many), start=start, num_samples=2, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(2e-2)), steps_per_execution=50)
    model.fit(data, batch_size=200, steps=steps, verbose=0)
    draws = model.posterior(num_samples=40, seed=1)
    best = elbo_by_protein(draws, many, data).reshape(times, num_proteins).argmax(0)
    means = {name: each.mean(0) for name, each in draws.items()}
    is_on = ops.convert_to_numpy(mixture_alone(means, data["size"]).foreground(data["counts"])) > 0.5
    return is_on.reshape(len(cells), times, num_proteins)[:, best, np.arange(num_proteins)]


def elbo_by_protein(draws: dict[str, np.ndarray], prior: Prior, data: dict[str, np.ndarray]) -> np.ndarray:
    """ELBO of each protein's fit up to a constant, in nats: proteins have nothing in common here, so it is a sum."""
    priors = priors_of(prior, prior.level.shape)
    elbo = np.zeros(prior.level.shape)
    for number in range(len(draws["level"])):
        one = {name: values[number] for name, values in draws.items()}
        by_cell = ops.convert_to_numpy(mixture_alone(one, data["size"]).log_prob(data["counts"]))
        log_prior = sum(ops.convert_to_numpy(priors[name].log_prob(value)) for name, value in one.items())
        elbo += (by_cell.sum(0, dtype="float64") + log_prior) / len(draws["level"])
    for name, values in draws.items():  # entropy of the normal, or log-normal, guide
        positive = name.startswith("r_")
        real = np.log(values) if positive else values
        elbo += np.log(real.std(0)) + (real.mean(0) if positive else 0.0)
    return elbo


@dataclass(frozen=True)
class Agreement:
    """One protein by SVI and by NUTS.

    Args:
        shift, width: Of each global site, the error of SVI's mean in NUTS' standard deviations, and the ratio of the
            standard deviations.
        r_hat: Largest of NUTS' chains.
        is_on: Whether NUTS' mixture calls each cell positive, `(cells,)`.
        seconds: Of SVI and NUTS.
    """

    shift: dict[str, float]
    width: dict[str, float]
    r_hat: float
    is_on: np.ndarray
    seconds: tuple[float, float]


def compare(cells: np.ndarray, column: int, prior: Prior, steps: int, draws: int, seed: int) -> Agreement:
    """Fits one protein without a state by SVI and by NUTS."""
    own = Prior(prior.level[column], prior.log_r[column], prior.level_sd, prior.log_r_sd)
    story, data = story_of_proteins_alone(own), {"counts": cells[:, column], "size": known_sizes(cells)}
    began = time.perf_counter()
    model = SVI(story, "full_rank", start="laplace", num_samples=8, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(1e-2)), steps_per_execution=50)
    model.fit(data, batch_size="all", steps=steps, verbose=0)
    middle = time.perf_counter()
    reference = nuts(story, data, num_samples=draws, num_warmup=draws, seed=seed)
    end = time.perf_counter()
    found = model.posterior(num_samples=4000, seed=1)
    shift = {name: float((found[name].mean() - each.mean()) / each.std()) for name, each in reference.items()}
    width = {name: float(found[name].std() / each.std()) for name, each in reference.items()}
    mixture = mixture_alone({name: each.mean() for name, each in reference.items()}, data["size"])
    is_on = ops.convert_to_numpy(mixture.foreground(data["counts"])) > 0.5
    return Agreement(shift, width, float(reference.chains.r_hat.max()), is_on, (middle - began, end - middle))


def report_agreement(found: dict[str, Agreement]) -> None:
    """Prints SVI beside NUTS."""
    sites = list(next(iter(found.values())).shift)
    table = Table(
        title="SVI beside NUTS, one protein and 1,000 cells: error of the mean in NUTS' sds, ratio of the sds"
    )
    for column in ("", *sites, "R-hat", "s, SVI", "NUTS"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for name, one in found.items():
        cells = [f"{one.shift[site]:+.2f}, {one.width[site]:.2f}" for site in sites]
        seconds = [f"{each:.0f}" for each in one.seconds]
        table.add_row(name, *cells, f"{one.r_hat:.3f}", *seconds)
    Console(width=130).print(table)
