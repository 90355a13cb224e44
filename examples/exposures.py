"""Exposures of an X-ray telescope, simulated, made and read, and their posterior by quadrature."""

from __future__ import annotations

import csv
import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from scipy import special

Exposures = dict[str, np.ndarray]
LEAST_EXPOSURE = 0.1
"""Fraction of a bin's time at the full area of the telescope, below which the bin is left out."""
ALONE = {"mu": 0.0, "u": 1.5}
"""A prior of a bin by itself that says little: log r ~ N(0, 1.8^2), s being of this rank u."""
NUM_BANDS, NUM_BINS = 3, 17
TRUTH = {"mu": (1.1, 1.0, -1.6), "s": (0.1, 0.2, 0.3)}
"""Of the bands that are made."""


def half_normal(u: Any) -> Any:
    """A half-normal variable from a standard normal one: the quantile of the same rank."""
    return math.sqrt(2.0) * ops.erfinv(0.5 * (1.0 + ops.erf(u / math.sqrt(2.0))))


def half_normal_of(u: np.ndarray) -> np.ndarray:
    """The same of numbers, in float64."""
    return special.ndtri(0.5 * (1 + special.ndtr(u)))


def with_sky(rows: Exposures, num_nodes: int = 8) -> Exposures:
    """The rows with nodes and weights of the Gauss quadrature over the sky, b ~ Gamma(B + 1, 1)."""
    order = np.arange(num_nodes)
    diagonal = 2 * order + rows["B"][:, None] + 1
    beside = np.sqrt(order[1:] * (order[1:] + rows["B"][:, None]))
    matrix = diagonal[:, :, None] * np.eye(num_nodes)
    matrix[:, order[1:], order[:-1]] = beside  # eigh reads the lower triangle
    nodes, vectors = np.linalg.eigh(matrix)
    return {**rows, "sky": nodes, "log_weights": 2 * np.log(np.abs(vectors[:, 0]))}


def approximate(rows: Any, mu: Any, s: Any, steps: int = 6) -> tuple[Any, Any]:
    """Mode and curvature's standard deviation of each log rate, by Fisher scoring with the sky's mean and variance."""
    sky, sky_variance = rows["ratio"] * (rows["B"] + 1.0), rows["ratio"] ** 2 * (rows["B"] + 1.0)
    seen = ops.log(ops.maximum(rows["S"] - sky, 0.5) / rows["exposure"])
    share = 1.0 / (1.0 + s**2 * ops.maximum(rows["S"] - sky, 0.5))
    log_rate = share * mu + (1.0 - share) * seen
    for _ in range(steps):
        source = ops.exp(log_rate) * rows["exposure"]
        variance = source + sky + sky_variance
        information = source**2 / variance + 1.0 / s**2
        slope = source * (rows["S"] - source - sky) / variance - (log_rate - mu) / s**2
        log_rate = log_rate + ops.clip(slope / information, -1.0, 1.0)
    return log_rate, 1.0 / ops.sqrt(information)


def simulate(number: int, seed: int) -> Exposures:
    """Exposures of sources from faint to bright, with little sky and much, and their true log rates."""
    rng = np.random.default_rng(seed)
    mu, u = rng.normal(0.0, 2.0, number), rng.standard_normal(number)
    s = half_normal_of(u)
    log_rate = mu + s * rng.standard_normal(number)
    exposure = np.exp(rng.uniform(np.log(2), np.log(100), number))
    ratio = np.exp(rng.uniform(np.log(0.003), np.log(0.3), number))
    sky = np.exp(rng.uniform(0, np.log(1000), number))
    S = rng.poisson(np.exp(log_rate) * exposure + sky * ratio).astype("float64")
    B = rng.poisson(sky).astype("float64")
    return {"S": S, "B": B, "exposure": exposure, "ratio": ratio, "mu": mu, "u": u, "log_rate": log_rate}


@dataclass(frozen=True)
class Posteriors:
    """Of the log rate of each row.

    Args:
        mean, sd: `(rows,)`.
        low, high: Ends of the interval with 90 %, 5 % on each side.
    """

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray


def log_likelihood(rows: Exposures, log_rate: np.ndarray) -> np.ndarray:
    """Of log rates `(rows, points)`, up to a constant of each row."""
    rows = with_sky(rows, num_nodes=16)
    expected = (np.exp(log_rate) * rows["exposure"][:, None])[..., None] + (rows["sky"] * rows["ratio"][:, None])[
        :, None
    ]
    terms = rows["S"][:, None, None] * np.log(expected) - expected + rows["log_weights"][:, None]
    return special.logsumexp(terms, axis=-1)


def exact(rows: Exposures, points: int = 201) -> tuple[Posteriors, np.ndarray, np.ndarray]:
    """By quadrature: a grid over all of the prior, then one where the posterior is; with that grid and the density."""
    mu, s = rows["mu"][:, None], half_normal_of(rows["u"])[:, None]
    mode, width = (ops.convert_to_numpy(each)[:, None] for each in approximate(rows, rows["mu"], s[:, 0]))
    low, high = mode - np.minimum(6 * s, 40 * width), mode + 12 * width
    for drop in (40.0, None):
        grid = low + (high - low) * np.linspace(0, 1, points)
        log_density = log_likelihood(rows, grid) - 0.5 * ((grid - mu) / s) ** 2
        log_density -= log_density.max(axis=1, keepdims=True)
        if drop is not None:
            inside = log_density > -drop
            low = np.where(inside, grid, np.inf).min(axis=1, keepdims=True)
            high = np.where(inside, grid, -np.inf).max(axis=1, keepdims=True)
    weights = np.exp(log_density)
    weights /= weights.sum(axis=1, keepdims=True)
    mean = np.sum(weights * grid, axis=1)
    sd = np.sqrt(np.sum(weights * (grid - mean[:, None]) ** 2, axis=1))
    cumulative = np.cumsum(weights, axis=1) - 0.5 * weights
    ends = [[np.interp(p, c, g) for c, g in zip(cumulative, grid, strict=True)] for p in (0.05, 0.95)]
    step = grid[:, 1:2] - grid[:, :1]
    return Posteriors(mean, sd, *np.array(ends)), grid, weights / step


def load(folder: Path) -> list[Exposures]:
    """The bins of each band in which the telescope looked at the source long enough."""
    path = folder / "photon_erosita" / "erosita_lightcurve.csv.gz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It is a light curve of eROSITA, from the tests of the package stingray.")
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    bands = []
    for number in range(NUM_BANDS):
        fraction = f"fracexp_{number}"
        bins = [row for row in rows if float(row[fraction] or 0) > LEAST_EXPOSURE]
        names = (f"counts_{number}", f"back_counts_{number}", "dt", fraction, "backratio")
        S, B, seconds, share, ratio = (np.array([float(row[name]) for row in bins]) for name in names)
        bands.append({"S": S, "B": B, "exposure": seconds * share, "ratio": ratio})
    return bands


def generate(seed: int = 1) -> list[Exposures]:
    """Bands at `TRUTH`, with exposures and a sky like those of the light curve."""
    rng = np.random.default_rng(seed)
    exposure, ratio = rng.uniform(12, 84, NUM_BINS), rng.uniform(0.0085, 0.0147, NUM_BINS)
    bands = []
    for mu, s, level in zip(TRUTH["mu"], TRUTH["s"], (720.0, 510.0, 220.0), strict=True):
        rate, sky = np.exp(mu + s * rng.standard_normal(NUM_BINS)), level * rng.uniform(0.95, 1.05, NUM_BINS)
        S, B = rng.poisson(rate * exposure + sky * ratio).astype("float64"), rng.poisson(sky).astype("float64")
        bands.append({"S": S, "B": B, "exposure": exposure, "ratio": ratio})
    return bands


def alone(bins: Exposures) -> Exposures:
    """The bins with a prior that says little."""
    return {**bins, **{name: np.full(len(bins["S"]), value) for name, value in ALONE.items()}}


@dataclass(frozen=True)
class Band:
    """The posterior of a band.

    Args:
        mean, sd: Of (mu, s), `(2,)`.
        rates: Mean and standard deviation of each bin's log rate, `(2, bins)`.
        s: Draws of s, or the density on a grid: `(points,)` or `(2, points)`.
    """

    mean: np.ndarray
    sd: np.ndarray
    rates: np.ndarray
    s: np.ndarray


def log_level(bins: Exposures) -> float:
    """Log rate of all bins together, less the sky."""
    return float(np.log(np.sum(bins["S"] - bins["ratio"] * bins["B"]) / bins["exposure"].sum()))


def exact_band(bins: Exposures) -> Band:
    """By quadrature over all latent numbers."""
    level = log_level(bins)
    grid = level + np.linspace(-9, 6, 1501)
    likelihood = log_likelihood(bins, np.tile(grid, (len(bins["S"]), 1)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    log_weights = np.log(weights / weights.sum())
    mus, spreads = level + np.linspace(-2, 2, 41), 3.0 * (np.arange(40) + 0.5) / 40
    for is_last in (False, True):
        at = mus[:, None, None] + spreads[:, None] * nodes
        each = np.array([special.logsumexp(np.interp(at, grid, row) + log_weights, axis=2) for row in likelihood])
        log_density = each.sum(0) - 0.5 * (mus[:, None] / 3) ** 2 - 0.5 * spreads**2
        density = np.exp(log_density - log_density.max())
        if not is_last:
            inside = density > 1e-8
            near = mus[inside.any(1)]
            mus = np.linspace(near[0] - 0.1, near[-1] + 0.1, 81)
            spreads = (spreads[inside.any(0)][-1] + 0.075) * (np.arange(100) + 0.5) / 100
    density /= density.sum()
    moments = []
    for row, evidence in zip(likelihood, each, strict=True):
        inner = np.exp(np.interp(at, grid, row) + log_weights - evidence[..., None])
        first, second = (np.sum(density * np.sum(inner * at**power, axis=2)) for power in (1, 2))
        moments.append((first, np.sqrt(second - first**2)))
    points = np.stack(np.meshgrid(mus, spreads, indexing="ij"))
    mean = np.sum(density * points, axis=(1, 2))
    sd = np.sqrt(np.sum(density * (points - mean[:, None, None]) ** 2, axis=(1, 2)))
    return Band(mean, sd, np.array(moments).T, np.stack([spreads, density.sum(0) / (spreads[1] - spreads[0])]))
