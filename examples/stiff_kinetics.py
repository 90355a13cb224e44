"""Rates of reactions
==================

How fast are the reactions of a scheme, and which of their constants do the data tell? Fits are compared with NUTS and
adaptive Metropolis.

::

    python examples/stiff_kinetics.py --figure rates.png               # alpha-pinene: 40 published values
    python examples/stiff_kinetics.py --data DIR --steps 600 --walk 10000 --nuts-draws 0   # STAT5, ten minutes
    KERAS_BACKEND=jax python examples/stiff_kinetics.py --data DIR --nuts-draws 150   # with NUTS: half an hour

Concentrations y follow the law of mass action: the speed v of each reaction is its constant k times the concentrations
of its reactants. What is measured of them, g(y), has Gaussian errors::

    dy/dt = S v(y, k),   value ~ N(g(y(t)), sigma^2),   log10 k ~ N(centre, decades^2),   log10 sigma ~ N(0, 1)

The columns of S say what a reaction uses up and makes. In general there is no closed form. Where some reactions are
millions of times as fast as others, the equations are stiff: an explicit solver would take millions of steps.
`bdl.svi.solve_stiff` solves them by LSODA, with sensitivities for the gradient. Two sets of data:

- **alpha-pinene**, the default: heat turns it into dipentene and allo-ocimene, and the latter into others (Box et al.
  1973). The scheme is linear and not stiff, the data tell all five constants, and least squares have published figures
  to compare with. The pyronene was not measured but computed from the alpha-pinene, and the five columns add up to
  about 100. So their errors are not independent. The story takes them as independent, and so do least squares.
- **STAT5** (Boehm et al. 2014), which is stiff: the hormone Epo lets two proteins, STAT5A and STAT5B, be
  phosphorylated. They form dimers, which enter the nucleus and leave it as single proteins. There are 48 values, eight
  species besides Epo, and six constants. Two of these are not identified: any fast import of homodimers fits, and any
  slow export of heterodimers. So there is a posterior only if the prior is proper. That of each constant has a standard
  deviation of three decades around one per minute.

Four families of guides are fitted to the logarithms of all constants and noises, by the ELBO at T = 1: mean-field, low
rank (two common factors), full rank, and a flow. NUTS is the gold standard. Adaptive Metropolis is the fair rival: it
takes one solution a step, and no gradient. Without NUTS (`--nuts-draws 0`) Metropolis is the reference. All methods
begin at the mode of the posterior or close to it.

**alpha-pinene.** NUTS costs as much as 34,160 Metropolis steps, for 114 effective draws, which tell its standard
deviations to 7 percent. Each fit costs as much as 2,074. k4 and k5 correlate by 0.8, and their standard deviations by
mean-field are 46 and 51 percent too small. Full rank is within 19 percent, and the flow within 16.

**STAT5.** The lowest negative log-likelihood is 138.222, that of PEtab's collection of benchmarks. At the mode of the
posterior it is 138.372, since the prior draws the export of heterodimers towards faster. The table has log10 of the
constants by Metropolis, 4 chains of 10,000 steps (R-hat 1.02, 394 effective draws), and the errors of the guides'
standard deviations::

                          Metropolis   mean-field   low rank   full rank   flow
    Epo degradation   -1.562 ± 0.085        -74 %       -5 %        +5 %   -5 %
    k_phos             4.207 ± 0.045        -23 %      -17 %        +3 %   +1 %
    k_imp_hetero      -1.787 ± 0.062        -72 %       +2 %        -1 %   -2 %
    k_exp_homo        -2.224 ± 0.156        -17 %      -35 %       -10 %   -1 %
    k_imp_homo         2.802 ± 1.790        -28 %      -30 %       -28 %   -8 %   (not identified)
    k_exp_hetero      -4.936 ± 1.354        -38 %      -11 %       -30 %   -1 %   (not identified)
    Metropolis steps          40,000        4,353      4,353       4,353  4,353
    processor seconds            263           53         58          57     65

Degradation and import of heterodimers correlate by -0.92, and mean-field has them too narrow by a factor of nearly
four. Full rank has the identified constants within 10 percent. The other two have posteriors that are flat on one side
and steep on the other; no Gaussian fits them, but the flow does. Each fit costs as much as a ninth of Metropolis'
steps, and takes a fifth to a quarter of its processor time. The search for the mode took 970 solutions more. A low
k-hat is no proof: full rank has the lowest, 0.30, and misses the flat sides, which its draws do not reach.

NUTS agrees (on JAX, two chains of 150 draws after as long a warm-up; R-hat 1.02, 109 effective draws, which tell its
standard deviations to 7 percent). Its standard deviations of the identified constants and noises are within 7 percent
of Metropolis'. Measured against it, those of full rank and of the flow are at most 12 percent too small and 8 percent
too large, and those of mean-field up to 75 percent too small. It cost as much as 109,465 Metropolis steps.

.. image:: /images/stiff_kinetics.png
   :alt: Data of STAT5 and fitted curves, the strongest correlation, all correlations, and intervals of the constants

Limits: the search begins at the published constants. The posterior has other modes, of lower density, and none
of these methods visits them.
"""

# sphinx_gallery_thumbnail_path = "images/stiff_kinetics.png"

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import typer
from keras import ops
from reaction_figure import draw
from reaction_schemes import Experiment, alpha_pinene, is_identified, predicted, stat5
from rich.console import Console
from rich.table import Table
from scipy import optimize

from bdl.schedules import DecayOverFit
from bdl.svi import SVI, Flow, Global, LowRank, Observed, counting_solutions, nuts, solve_stiff
from bdl.svi.checks import Chains
from bdl.svi.derivatives import value_and_gradient

if keras.backend.backend() == "jax":  # NUTS is NumPyro's there, and quicker: a gradient has one solution, not two
    from numpyro.distributions import Normal
else:
    from tensorflow_probability.python.distributions import Normal


def seen_of(experiment: Experiment, on_failure: str = "raise") -> Callable[[Any], Any]:
    """The function from logarithms of constants to what is observed without noise, with a gradient."""
    rates, derivatives = experiment.scheme.rates_of_change, experiment.scheme.derivatives

    def seen(log_k: Any) -> Any:
        settings = {"jacobian": derivatives, "on_failure": on_failure, **experiment.tolerances}
        path = solve_stiff(rates, experiment.initial, experiment.times, 10.0**log_k, **settings)
        return ops.stack(experiment.observe(ops.unstack(path, axis=-1)), axis=-1)[experiment.first :]

    return seen


def story_of(experiment: Experiment, on_failure: str = "raise") -> Callable[[Any], Iterator[Any]]:
    """The story of an experiment, whose data are one row."""
    seen = seen_of(experiment, on_failure)
    centres, noise_centres = experiment.centres.astype("float32"), np.zeros(experiment.num_noises, "float32")
    decades, noise_decades = experiment.decades

    def story(data: Any) -> Iterator[Any]:
        log_k = yield Global("log_k", Normal(centres, decades))
        log_noise = yield Global("log_noise", Normal(noise_centres, noise_decades))
        yield Observed("values", Normal(seen(log_k)[None], 10.0**log_noise), data["values"])

    return story


def data_of(experiment: Experiment) -> dict[str, np.ndarray]:
    """The row of data."""
    return {"values": experiment.values[None, experiment.first :].astype("float32")}


def log_likelihood(experiment: Experiment, x: np.ndarray) -> float:
    """Log likelihood at the logarithms of constants and noises, `-inf` where there is no solution."""
    number = len(experiment.scheme.constants)
    away = (experiment.values - predicted(experiment, x[:number]))[experiment.first :] / 10.0 ** x[number:]
    noises = np.broadcast_to(x[number:], away.shape)
    total = -0.5 * np.sum(away**2) - np.log(10.0) * noises.sum() - 0.5 * np.log(2.0 * np.pi) * away.size
    return float(total) if np.isfinite(total) else -np.inf


def log_density(experiment: Experiment, x: np.ndarray) -> float:
    """Log density of the posterior, up to a constant."""
    number = len(experiment.scheme.constants)
    decades, noise_decades = experiment.decades
    z = np.concatenate([(x[:number] - experiment.centres) / decades, x[number:] / noise_decades])
    return log_likelihood(experiment, x) - 0.5 * float(z @ z)


def with_best_noise(experiment: Experiment, log_k: np.ndarray) -> np.ndarray:
    """The constants, and the noises that make the data most likely."""
    squares = (experiment.values - predicted(experiment, log_k))[experiment.first :] ** 2
    variances = squares.mean(axis=0 if experiment.num_noises > 1 else None)
    return np.concatenate([log_k, 0.5 * np.log10(np.atleast_1d(variances))])


def most_likely(experiment: Experiment) -> tuple[np.ndarray, float]:
    """The best constants near the published ones, within the benchmark's bounds, with the best noises, and the NLL."""

    def cost(log_k: np.ndarray) -> float:
        return -log_likelihood(experiment, with_best_noise(experiment, log_k))

    bounds = [(-5.0, 5.0)] * len(experiment.centres)
    found = optimize.minimize(cost, experiment.published, method="L-BFGS-B", bounds=bounds, options={"eps": 1e-5})
    return with_best_noise(experiment, found.x), float(found.fun)


def mode_of(experiment: Experiment) -> tuple[np.ndarray, int]:
    """The mode of the posterior near the published constants, and the solutions that the search took."""
    start = with_best_noise(experiment, experiment.published)
    found = optimize.minimize(lambda x: -log_density(experiment, x), start, method="L-BFGS-B", options={"eps": 1e-5})
    return found.x, found.nfev


def adaptive_metropolis(experiment: Experiment, start: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """A random walk whose steps have 2.38^2 / d times the covariance of its own past (Haario et al. 2001).

    Args:
        experiment: The experiment.
        start: Where it begins, `(d,)`.
        steps: Solutions of the equations, one a step.
        seed: Of the walk.

    Returns:
        `(steps, d)`.
    """
    rng = np.random.default_rng(seed)
    size, warm = len(start), steps // 20
    here, value = start, log_density(experiment, start)
    walk, factor = np.empty((steps, size)), 0.02 * np.eye(size)
    for step in range(steps):
        if step >= warm and step % 50 == 0:
            past = np.cov(walk[:step], rowvar=False) + 1e-8 * np.eye(size)
            factor = np.linalg.cholesky(past * 2.38**2 / size)
        there = here + factor @ rng.standard_normal(size)
        other = log_density(experiment, there)
        if np.log(rng.uniform()) < other - value:
            here, value = there, other
        walk[step] = here
    return walk


@dataclass(frozen=True)
class Result:
    """Draws of the posterior, and what they cost.

    Args:
        name: Of the method.
        draws: `(draws, d)`.
        plain: Solutions of the equations.
        with_sensitivities: Solutions with sensitivities.
        seconds: Of processor time.
        told: What it says of its own quality: k-hat, or R-hat and the effective sample size.
    """

    name: str
    draws: np.ndarray
    plain: int
    with_sensitivities: int
    seconds: float
    told: str

    @property
    def correlation(self) -> np.ndarray:
        """Of the logarithms."""
        return np.corrcoef(self.draws, rowvar=False)


def stacked(sites: Any) -> np.ndarray:
    """Draws of both sites side by side."""
    return np.concatenate([sites["log_k"], sites["log_noise"]], axis=-1).astype("float64")


def of_chains(name: str, chains: np.ndarray, plain: int, with_sensitivities: int, seconds: float) -> Result:
    """The result of Markov chains `(chains, draws, d)`."""
    told = Chains(chains, 0)
    text = f"R-hat {told.r_hat.max():.2f}, {told.effective_sample_size.min():.0f} effective draws"
    return Result(name, chains.reshape(-1, chains.shape[-1]), plain, with_sensitivities, seconds, text)


def spread_at(experiment: Experiment, mode: np.ndarray) -> np.ndarray:
    """Cholesky factor of the Laplace approximation's covariance, by the Hessian of Gauss and Newton.

    It takes the derivatives of what is observed, here by differences, and not the curvature of the solution.
    """
    number = len(experiment.centres)
    slopes = [
        (predicted(experiment, mode[:number] + h) - predicted(experiment, mode[:number] - h))[experiment.first :] / 2e-3
        for h in 1e-3 * np.eye(number)
    ]
    weighted = np.stack(slopes) / 10.0 ** mode[number:]
    precision = np.diag(np.repeat(np.array(experiment.decades) ** -2.0, [number, experiment.num_noises]))
    precision[:number, :number] += np.einsum("ito,jto->ij", weighted, weighted)
    each = weighted[0].size / experiment.num_noises  # measurements for each noise
    precision[number:, number:] += 2.0 * np.log(10.0) ** 2 * each * np.eye(experiment.num_noises)
    return np.linalg.cholesky(np.linalg.inv(precision))


def fit(experiment: Experiment, name: str, guide: Any, mode: np.ndarray, steps: int, seed: int) -> Result:
    """A variational fit. It begins at the Laplace approximation, half as wide: further out the slopes are others."""
    began = time.process_time()
    factor = 0.5 * spread_at(experiment, mode)
    with counting_solutions() as solutions:
        model = SVI(story_of(experiment), guide, num_samples=2, seed=seed)
        model.compile(keras.optimizers.Adam(DecayOverFit(3e-2)))
        model.trace_on(data_of(experiment))
        model.guide_of("log_k").start_at(mode, factor)
        model.fit(data_of(experiment), batch_size="all", steps=steps, verbose=0)
    seconds = time.process_time() - began
    plain = solutions.plain + 2 * len(experiment.centres)
    draws = stacked(model.posterior(num_samples=4000, seed=1))
    smoothed = model.k_hat(data_of(experiment), num_samples=500, seed=1)
    return Result(name, draws, plain, solutions.with_sensitivities, seconds, f"k-hat {smoothed.k:.2f}")


def sample_by_nuts(experiment: Experiment, mode: np.ndarray, chains: int, draws: int, seed: int) -> Result:
    """Draws of the No-U-Turn sampler, chain after chain from the mode on; their warm-up is as long."""
    number = len(experiment.centres)
    start = {"log_k": mode[:number], "log_noise": mode[number:]}
    # Its first steps are long, to where some constant is 1e28 and there is no solution: points that it rejects.
    story, data = story_of(experiment, on_failure="nan"), data_of(experiment)
    began = time.process_time()
    with counting_solutions() as solutions:
        found = [stacked(nuts(story, data, draws, draws, 1, start=start, seed=seed + chain)) for chain in range(chains)]
    seconds = time.process_time() - began
    return of_chains("NUTS", np.stack(found), solutions.plain, solutions.with_sensitivities, seconds)


def walk_chains(experiment: Experiment, mode: np.ndarray, chains: int, steps: int, seed: int) -> Result:
    """Draws of adaptive Metropolis, the second half of chains that begin around the mode."""
    began = time.process_time()
    starts = mode + 0.05 * np.random.default_rng(seed).standard_normal((chains, len(mode)))
    walks = [adaptive_metropolis(experiment, start, steps, seed + chain) for chain, start in enumerate(starts)]
    kept = np.stack(walks)[:, steps // 2 :]
    return of_chains("Metropolis", kept, chains * steps, 0, time.process_time() - began)


def price(experiment: Experiment, log_k: np.ndarray, repeats: int = 20) -> float:
    """Processor time of a solution with sensitivities over that of one without."""
    x, seen = ops.convert_to_tensor(log_k.astype("float32")), seen_of(experiment)
    both = value_and_gradient(lambda x: ops.sum(seen(x)), "float32")

    def seconds(function: Callable[[], Any]) -> float:
        function()
        began = time.process_time()
        for _ in range(repeats):
            function()
        return time.process_time() - began

    return seconds(lambda: both(log_k)) / seconds(lambda: ops.convert_to_numpy(seen(x)))


def reference_of(results: dict[str, Result]) -> Result:
    """NUTS, or Metropolis where it was left out."""
    return results.get("NUTS", results["Metropolis"])


def report(experiment: Experiment, results: dict[str, Result], times_dearer: float) -> None:
    """Prints the posteriors beside that of the reference, and what each has cost."""
    reference = reference_of(results)
    mean, sd = reference.draws.mean(axis=0), reference.draws.std(axis=0)
    others = [each for each in results.values() if each is not reference]
    identified = is_identified(experiment, reference.draws)
    table = Table(
        title="Decadic logarithms: shift of the mean in standard deviations, and error of the standard deviation"
    )
    for column in ("", "literature", reference.name, *(each.name for each in others)):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for number, name in enumerate(experiment.names):
        is_vague = number < len(identified) and not identified[number]
        known = f"{experiment.published[number]:.3f}" if number < len(experiment.published) else ""
        cells = [
            f"{(each.draws[:, number].mean() - mean[number]) / sd[number]:+.2f} "
            f"{100 * (each.draws[:, number].std() / sd[number] - 1):+4.0f} %"
            for each in others
        ]
        table.add_row(name + (" (vague)" if is_vague else ""), known, f"{mean[number]:.3f} ± {sd[number]:.3f}", *cells)
    console = Console(width=150)
    console.print(table)
    table = Table(title=f"Cost: a solution with sensitivities takes as long as {times_dearer:.1f} without")
    for column in ("", "solutions", "with sensitivities", "in Metropolis steps", "processor s", "quality"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for each in results.values():
        steps = each.plain + times_dearer * each.with_sensitivities
        cells = f"{each.plain:,}", f"{each.with_sensitivities:,}", f"{steps:,.0f}", f"{each.seconds:.0f}", each.told
        table.add_row(each.name, *cells)
    console.print(table)


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with kinetics/Boehm_JProteomeRes2014; else BDL_DATA.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each fit.")] = 400,
    walk: Annotated[int, typer.Option(help="Steps of each of 4 chains of adaptive Metropolis.")] = 4000,
    nuts_draws: Annotated[
        int, typer.Option(help="Draws of each of 2 chains of NUTS, after a warm-up as long; 0: none.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of the fits.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the posteriors.")] = None,
) -> None:
    """Fits four families, and compares them with NUTS and adaptive Metropolis."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    experiment = stat5(folder) if folder else alpha_pinene()
    mode, solutions = mode_of(experiment)
    best, nll = most_likely(experiment)
    number = len(experiment.centres)
    squares = np.sum((experiment.values - predicted(experiment, best[:number]))[experiment.first :] ** 2)
    constants = ", ".join(f"{k:.4g}" for k in 10 ** best[:number])
    print(f"{experiment.name}: lowest NLL {nll:.3f}, sum of squares {squares:.3f}, at {constants}.")
    found = -log_likelihood(experiment, mode)
    print(f"The posterior's mode, by {solutions:,} solutions: NLL {found:.3f}.", flush=True)
    results = {}
    for result in run_all(experiment, mode, steps, walk, nuts_draws, seed):
        results[result.name] = result
        print(f"{result.name}: {result.seconds:.0f} s, {result.told}", flush=True)
    report(experiment, results, price(experiment, mode[:number]))
    if figure is not None:
        draw(figure, experiment, results, reference_of(results))


def run_all(
    experiment: Experiment, mode: np.ndarray, steps: int, walk: int, nuts_draws: int, seed: int
) -> Iterator[Result]:
    """All methods, one after the other."""
    for name, guide in {
        "mean-field": "mean_field",
        "low rank": LowRank(2),
        "full rank": "full_rank",
        "flow": Flow(),
    }.items():
        yield fit(experiment, name, guide, mode, steps, seed)
    yield walk_chains(experiment, mode, 4, walk, seed)
    if nuts_draws:
        yield sample_by_nuts(experiment, mode, 2, nuts_draws, seed)


if __name__ == "__main__":
    typer.run(main)
