"""Large smooth regression at a small budget: 40 epochs of batches of 32, one hidden layer of 50 units (100 of `rough`).

Generated sets of the sizes that are common in the literature: `arm`, 8,192 distances of the end of an eight-link arm
from a point, with noise of .22 standard deviations (R^2 .95); `plant`, 11,934 readings of 16 sensors that mostly follow
a load and a little the wear that is to be found, with noise of .001; `rough`, 45,730 examples of 9 inputs, with noise
of .5; and `power`, UCI's power plant on its given splits (--data). Contestants: `twin`, the deterministic network under
Adam at 1e-3; `twin_decay`, the same under the optimizer of `regression`; `default`, bdl's layers under Adam at 1e-3;
`default_decay`, the same under Adam with `DecayOverFit(3e-3)`; and the recipes `small_data` and `regression`. Normal
with a learned scale, but for `small_data_student` and `regression_student`, which have `StudentT()`.

NLL is per example in nats, and RMSE, both in units of the training targets' standard deviation. ± is the standard error
over seeds, which make data, split and network. Differences are paired.

    python -m research.smooth_regression run --data DIR   # resumable
    python -m research.smooth_regression report --write   # into research/defaults.md
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.data import folder_of, standardised, uci_split
from benchmarks.runs import Row, cell, grouped, markdown, rows_of_run, run_all
from research.record import NO_DATA, RUNS, DataFolder, Output, Run, Workers, Write, publish, subtract

app = typer.Typer(add_completion=False)
RUN = RUNS / "smooth_regression.jsonl"
FIGURES = ("nll", "nll - default", "rmse", "coverage", "noise")
NUM_SAMPLES = 128
SETS = ("arm", "plant", "rough", "power")
CONTESTANTS = (
    "twin",
    "twin_decay",
    "default",
    "default_decay",
    "small_data",
    "small_data_student",
    "regression",
    "regression_student",
)
Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One training."""

    data: str
    seed: int
    contestant: str
    epochs: int = 40


@app.command()
def run(
    data: DataFolder = None,
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ",".join(SETS),
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 5,
    contestants: Annotated[str, typer.Option(help="Contestants, separated by commas.")] = ",".join(CONTESTANTS),
    workers: Workers = 2,
    output: Output = RUN,
) -> None:
    """Trains what is not there yet."""
    cases = [
        Case(name, seed, contestant)
        for seed in range(seeds)
        for name in sets.split(",")
        for contestant in contestants.split(",")
    ]
    run_all(partial(train, folder=folder_of(data)), cases, output, workers)


def train(case: Case, folder: Path | None = None) -> Row:
    """Trains and scores one network."""
    import keras

    import bdl

    x, y, x_test, y_test = split_of(case.data, case.seed, folder)
    keras.backend.clear_session()
    keras.utils.set_random_seed(case.seed)
    start = time.perf_counter()
    name, is_student, _ = case.contestant.partition("_student")
    likelihood = bdl.likelihoods.StudentT() if is_student else bdl.likelihoods.Normal()
    model = compiled(name, x.shape[1], 100 if case.data == "rough" else 50, likelihood)
    model.fit(x, y, batch_size=32, epochs=case.epochs, verbose=0)
    seconds = time.perf_counter() - start
    samples = 1 if case.contestant.startswith("twin") else NUM_SAMPLES
    prediction = model.predict_distribution(x_test, samples, batch_size=1024, seed=0)
    low, high = prediction.quantile([0.05, 0.95])
    return {
        "nll": float(-prediction.log_prob(y_test).mean()),
        "rmse": float(np.sqrt(np.mean((prediction.mean - y_test) ** 2))),
        "coverage": float(np.mean((low <= y_test) & (y_test <= high))),
        "noise": float(np.sqrt(prediction.aleatoric.mean())),
        "seconds": seconds,
    }


def compiled(contestant: str, inputs: int, width: int, likelihood: Any) -> Any:
    """The model of a contestant, ready to fit."""
    import keras

    import bdl
    from bdl.schedules import DecayOverFit

    is_default = contestant.startswith("default")
    layer = bdl.layers.DenseLocalReparameterization if is_default else keras.layers.Dense
    network = keras.Sequential([keras.Input((inputs,)), layer(width, activation="relu"), layer(1)])
    optimizers = {
        "twin_decay": lambda: keras.optimizers.Adam(DecayOverFit(1e-2)),
        "default_decay": lambda: keras.optimizers.Adam(DecayOverFit(3e-3)),
    }
    if contestant in ("small_data", "regression"):
        return getattr(bdl.recipes, contestant)(network, likelihood)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`network` has no variational layer")  # the twin has none
        model = bdl.VariationalModel(network, likelihood)
    model.compile(optimizers.get(contestant, lambda: "adam")())
    return model


def split_of(name: str, seed: int, folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Standardised inputs and targets: nine tenths to train, one tenth to test."""
    if name == "power":
        if folder is None:
            raise SystemExit(NO_DATA.format(name))
        split = uci_split(folder, name, seed)
        return split.x, split.y, split.x_test, split.y_test
    generator = np.random.default_rng(100 + seed)
    x, y = {"arm": arm, "plant": plant, "rough": rough}[name](generator)
    order = generator.permutation(len(x))
    kept, held = order[: 9 * len(x) // 10], order[9 * len(x) // 10 :]
    x, y = (standardised(values, kept).astype("float32") for values in (x, y))
    return x[kept], y[kept], x[held], y[held]


def arm(generator: np.random.Generator) -> Arrays:
    """Distance of the end of a planar arm of eight links from a point."""
    x = generator.uniform(-1.1, 1.1, (8_192, 8))
    angle = np.cumsum(x, axis=1)
    distance = np.hypot(np.cos(angle).mean(axis=1) - 0.1, np.sin(angle).mean(axis=1) - 0.1)
    return x, distance + 0.22 * distance.std() * generator.normal(size=len(x))


def plant(generator: np.random.Generator) -> Arrays:
    """Wear of a machine, from sensors that tell its load and, a hundredth as much, the wear of two parts."""
    load, wear, other = generator.integers(1, 10, 11_934) / 9, *generator.uniform(-1.0, 1.0, (2, 11_934))
    columns = []
    for _ in range(15):
        power, bend = generator.uniform(0.5, 3.0), 0.5 * generator.normal()
        a, b, both = generator.normal(size=3) * (0.01, 0.01, 0.005)
        columns.append(load**power + bend * load**2 + (a * wear + b * other + both * wear * other) * (0.3 + load))
    return np.stack([*columns, load], axis=1), wear + 0.001 * generator.normal(size=len(wear))


def rough(generator: np.random.Generator) -> Arrays:
    """A random network of two layers that bends sharply, with heavy-tailed noise."""
    x = generator.normal(size=(45_730, 9))
    hidden = x
    for units in (40, 30):
        weights = 1.6 * generator.normal(size=(hidden.shape[1], units)) / np.sqrt(hidden.shape[1])
        hidden = np.tanh(hidden @ weights)
    y = hidden @ generator.normal(size=30)
    return x, y / y.std() + 0.5 * generator.standard_t(4, size=len(x)) / np.sqrt(2.0)


@app.command()
def report(run: Run = RUN, write: Write = False) -> None:
    """Prints the table of what is there."""
    rows = rows_of_run(run)
    subtract(rows, "default", ["data", "seed"], ["nll"])
    rows.sort(key=lambda row: (SETS.index(row["data"]), CONTESTANTS.index(row["contestant"])))
    publish("smooth-regression", table(rows), rows, ["data", "contestant"], FIGURES, write)


def table(rows: list[Row]) -> str:
    """A line for each set and contestant."""
    lines = []
    for (name, contestant), group in grouped(rows, ["data", "contestant"]).items():
        figures = [cell(group, "nll", 3), cell(group, "nll - default", 3, "+"), cell(group, "rmse", 4)]
        figures += [cell(group, "coverage", 3), cell(group, "noise", 4)]
        lines.append([name, contestant, str(len(group)), *figures])
    header = ["data", "contestant", "seeds", "NLL", "NLL - default", "RMSE", "coverage of 90 %", "noise scale"]
    return markdown(header, lines)


if __name__ == "__main__":
    app()
