"""Do the intervals cover? Simulations of bootstrap, debiased and conformal intervals against their nominal coverage.

Each simulation draws a data set of a known truth and asks whether the 95 % interval holds it. Bootstrap intervals of
smooth metrics, the interval of the debiased calibration error (for a calibrated and an overconfident model), and, as a
warning, the bootstrap interval of the plain ECE of a calibrated model, whose truth is zero. Conformal sets and
intervals at 90 %: the mean coverage over simulations, which should be `k / (n + 1)` exactly.

    python benchmarks/calibration_intervals.py --output benchmarks/results/calibration_intervals.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from bdl import calibration
from bdl.calibration import bootstrap_interval, reliability_bins

LEVEL = 0.95
CLASSES = 4
Simulation = Callable[[np.random.Generator, int], tuple[np.ndarray, ...]]


def classified(random: np.random.Generator, n: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from a softmax; stated is the softmax of `sharpness` times its logits."""
    logits = 1.5 * random.normal(size=(n, CLASSES))
    y = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    p = np.exp(sharpness * logits)
    return y, p / p.sum(axis=1, keepdims=True)


def measured(random: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """Targets of heavier tails than the Normals that were predicted for them."""
    scale = random.uniform(0.5, 2.0, size=n)
    return scale * random.standard_t(5, size=n), np.zeros(n), scale


def in_intervals(random: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """The same with their 90 % intervals."""
    y, _, scale = measured(random, n)
    half = stats.norm.ppf(0.95) * scale
    return y, -half, half


def bootstrap_coverage(
    metric: Any, simulate: Simulation, truth: float, n: int, simulations: int, **options: Any
) -> int:
    """How many intervals hold the truth."""
    held = 0
    for seed in range(simulations):
        interval = bootstrap_interval(
            metric, *simulate(np.random.default_rng(seed), n), level=LEVEL, seed=seed, **options
        )
        held += interval.low <= truth <= interval.high
    return held


def truth_of(metric: Any, simulate: Simulation) -> float:
    """The metric of four million draws."""
    return metric(*simulate(np.random.default_rng(10**9), 4_000_000))


def debiased_coverage(sharpness: float, n: int, simulations: int) -> int:
    """How many debiased intervals hold the true root mean square gap within the bins."""
    truth = 0.0
    if sharpness != 1:
        truth = reliability_bins(
            *classified(np.random.default_rng(10**9), 4_000_000, sharpness)
        ).debiased_calibration_error
    held = 0
    for seed in range(simulations):
        low, high = reliability_bins(*classified(np.random.default_rng(seed), n, sharpness)).debiased_interval(LEVEL)
        held += low <= truth <= high
    return held


def conformal_coverage(simulations: int) -> list[tuple[str, float, float, float]]:
    """Name, mean coverage, what it should be at least, and the standard error, at 90 % from 200 examples."""
    n, coverage = 200, 0.9
    rank = math.ceil((n + 1) * coverage)
    exact = rank / (n + 1)
    error = math.sqrt(exact * (1 - exact) / (n + 2)) / math.sqrt(simulations)  # of a Beta(k, n + 1 - k), and of tests
    found: dict[str, list[float]] = {}
    for seed in range(simulations):
        random = np.random.default_rng(seed)
        y, p = classified(random, n + 500, 2.0)
        for method in ("lac", "aps", "raps"):
            conformal = calibration.SplitConformalClassifier(method, seed=seed).fit(p[:n], y[:n])
            sets = conformal.predict_set(p[n:], coverage)
            found.setdefault(method, []).append(calibration.coverage_of_sets(y[n:], sets))
        target, mean, scale = measured(random, n + 500)
        for method, prediction in (
            ("absolute", mean),
            ("normalized", np.stack([mean, scale], axis=1)),
            ("cqr", np.stack([mean - scale, mean + scale], axis=1)),
        ):
            conformal = calibration.SplitConformalRegressor(method).fit(prediction[:n], target[:n])
            low, high = conformal.predict_interval(prediction[n:], coverage).T
            found.setdefault(method, []).append(float(np.mean((low <= target[n:]) & (target[n:] <= high))))
    error = math.hypot(error, math.sqrt(exact * (1 - exact) / 500 / simulations))
    return [(name, float(np.mean(values)), exact, error) for name, values in found.items()]


def main(
    simulations: Annotated[int, typer.Option(help="Data sets of each kind.")] = 1000,
    num_examples: Annotated[int, typer.Option(help="Examples of each.")] = 500,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Simulate and print the tables."""
    smooth: list[tuple[str, Any, Simulation]] = [
        ("accuracy", calibration.accuracy, classified),
        ("NLL", calibration.negative_log_likelihood, classified),
        ("Brier score", calibration.brier_score, classified),
        ("CRPS", calibration.normal_crps, measured),
        ("coverage", calibration.interval_coverage, in_intervals),
    ]
    held = {
        f"bootstrap, {name}": bootstrap_coverage(
            metric, simulate, truth_of(metric, simulate), num_examples, simulations
        )
        for name, metric, simulate in smooth
    }
    held["debiased error, calibrated"] = debiased_coverage(1.0, num_examples, simulations)
    held["debiased error, overconfident"] = debiased_coverage(2.0, num_examples, simulations)
    held["bootstrap, plain ECE, calibrated"] = bootstrap_coverage(
        calibration.expected_calibration_error, classified, 0.0, num_examples, simulations // 5, num_resamples=200
    )
    table = Table("interval", "held the truth", "nominal", title=f"{simulations} simulations of {num_examples}")
    shares = {}
    for name, count in held.items():
        shares[name] = count / (simulations // 5 if "plain ECE" in name else simulations)
        table.add_row(name, f"{shares[name]:.3f}", f"{LEVEL}")
    conformal = conformal_coverage(simulations)
    for name, mean, exact, error in conformal:
        table.add_row(f"conformal, {name}", f"{mean:.4f} ± {error:.4f}", f"{exact:.4f}")
    Console(width=100).print(table)
    if output is not None:
        rows = [{"method": n, "coverage": m, "exact": e, "standard_error": s} for n, m, e, s in conformal]
        output.write_text(json.dumps({"shares": shares, "conformal": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
