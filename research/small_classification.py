"""Few labelled examples: which recipe, if any, is better than the deterministic twin on 60, 100 and 200 of them?

scikit-learn's iris, wine, breast cancer and digits. A split takes a stratified sample of the given size to train on and
scores on all other examples; inputs are standardised by the training part (digits: pixels / 16). An MLP with one hidden
layer of 50 relu units, batches of 32, 1,000 steps for each contestant, 64 prediction samples. Printed are NLL (nats per
example) and accuracy, ± the standard error over splits, and the differences to the twin, paired over splits.

    python -m research.small_classification run               # resumable, on two processes
    python -m research.small_classification report --write    # the table, into research/defaults.md
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.runs import Row, cell, grouped, markdown, rows_of_run, run_all
from research.networks import mlp
from research.record import RUNS, Output, Run, Workers, Write, publish, subtract

app = typer.Typer(add_completion=False)
RUN = RUNS / "small_classification.jsonl"
BY = ("data", "size", "contestant")
FIGURES = {"nll": "", "nll - twin": "+", "accuracy": "", "accuracy - twin": "+"}  # with the sign of differences
SETS = ("iris", "wine", "breast_cancer", "digits")
SIZES = (60, 100, 200)
RECIPES = ("small_data", "instead_of_ensemble", "last_layer")
CONTESTANTS = ("twin", "default", *RECIPES)
LEAST_TEST = 50  # examples left to score on
WIDTH = 50
BATCH_SIZE = 32
STEPS = 1_000
NUM_SAMPLES = 64


@dataclass(frozen=True)
class Case:
    """One training: `size` examples of a data set, in a split that the seed makes."""

    data: str
    size: int
    contestant: str
    seed: int


def cases(seeds: int) -> list[Case]:
    """All trainings; a set that is too small for a size has none of it."""
    from sklearn import datasets

    totals = {name: len(getattr(datasets, f"load_{name}")().target) for name in SETS}
    return [
        Case(name, size, contestant, seed)
        for seed in range(seeds)
        for name in SETS
        for size in SIZES
        if totals[name] >= size + LEAST_TEST
        for contestant in CONTESTANTS
    ]


def split(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test inputs and labels."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    x, y = getattr(datasets, f"load_{case.data}")(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, train_size=case.size, random_state=case.seed, stratify=y)
    centre, scale = (0.0, 16.0) if case.data == "digits" else (x.mean(axis=0), x.std(axis=0) + 1e-6)
    x, x_test = (((part - centre) / scale).astype("float32") for part in (x, x_test))
    return x, y, x_test, y_test


def train(case: Case) -> Row:
    """Trains and scores one network."""
    import keras

    import bdl

    x, y, x_test, y_test = split(case)
    keras.backend.clear_session()
    keras.utils.set_random_seed(case.seed)
    network = mlp(x.shape[1:], WIDTH, 1, int(y.max()) + 1)
    likelihood = bdl.likelihoods.Categorical()
    model: Any
    if case.contestant == "twin":
        model = network
        model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    elif case.contestant == "default":
        model = bdl.VariationalModel(bdl.convert.to_variational(network), likelihood)
        model.compile("adam")
    else:
        model = getattr(bdl.recipes, case.contestant)(network, likelihood)
    start = time.perf_counter()
    epochs = math.ceil(STEPS / math.ceil(case.size / BATCH_SIZE))
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    samples = 1 if case.contestant == "twin" else NUM_SAMPLES
    probabilities = bdl.predict_distribution(model, x_test, likelihood, samples, batch_size=512).probabilities
    return {
        "accuracy": float(bdl.calibration.accuracy(y_test, probabilities)),
        "nll": float(bdl.calibration.negative_log_likelihood(y_test, probabilities)),
        "seconds": seconds,
    }


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="Number of splits, from 0.")] = 5,
    workers: Workers = 2,
    output: Output = RUN,
) -> None:
    """Trains what is not there yet."""
    run_all(train, cases(seeds), output, workers)


@app.command()
def report(run: Run = RUN, write: Write = False) -> None:
    """Prints the table."""
    rows = rows_of_run(run)
    subtract(rows, "twin", ["data", "size", "seed"], ["nll", "accuracy"])
    rows.sort(key=lambda row: (SETS.index(row["data"]), row["size"], CONTESTANTS.index(row["contestant"])))
    publish("small-classification", table(rows), rows, BY, tuple(FIGURES), write)


def table(rows: list[Row]) -> str:
    """A line for each data set, size and contestant."""
    lines = [
        [data, str(size), contestant, str(len(group))] + [cell(group, name, 3, sign) for name, sign in FIGURES.items()]
        for (data, size, contestant), group in grouped(rows, BY).items()
    ]
    header = ["data", "examples", "network", "splits", "NLL", "NLL - twin", "accuracy", "accuracy - twin"]
    return markdown(header, lines)


if __name__ == "__main__":
    app()
