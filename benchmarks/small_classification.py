"""Few labelled examples: which recipe, if any, is better than the deterministic twin on 60, 100 and 200 of them?

scikit-learn's iris, wine, breast cancer and digits. A split takes a stratified sample of the given size to train on and
scores on all other examples; inputs are standardised by the training part (digits: pixels / 16). An MLP with one hidden
layer of 50 relu units, batches of 32, 1,000 steps for each contestant, 64 prediction samples. Printed are NLL (nats per
example) and accuracy, ± the standard error over splits, and the differences to the twin, paired over splits.

    python benchmarks/small_classification.py run               # resumable, on two processes
    python benchmarks/small_classification.py report --write    # the table, into docs/defaults.md
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from networks import mlp
from runs import Row, cell, grouped, markdown, read, replace_section, run_all

app = typer.Typer(add_completion=False)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "small_classification.jsonl"
PAGE = HERE.parent / "docs" / "defaults.md"
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
    workers: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 2,
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
) -> None:
    """Trains what is not there yet."""
    run_all(train, cases(seeds), results, workers)


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
    write: Annotated[bool, typer.Option(help="Put the table into docs/defaults.md.")] = False,
) -> None:
    """Prints the table."""
    text = table(read(results))
    print(text)
    if write:
        replace_section(PAGE, "small-classification", text)


def table(rows: list[Row]) -> str:
    """A line for each data set, size and contestant."""
    twins = {(row["data"], row["size"], row["seed"]): row for row in rows if row["contestant"] == "twin"}
    for row in rows:
        twin = twins.get((row["data"], row["size"], row["seed"]))
        if twin is not None and row is not twin:
            row["nll_gap"] = row["nll"] - twin["nll"]
            row["gap"] = row["accuracy"] - twin["accuracy"]
    rows = sorted(
        rows, key=lambda row: (SETS.index(row["data"]), row["size"], CONTESTANTS.index(row["contestant"]), row["seed"])
    )
    lines = [
        [data, str(size), contestant, str(len(group))]
        + [cell(group, name, 3, sign) for name, sign in (("nll", ""), ("nll_gap", "+"), ("accuracy", ""), ("gap", "+"))]
        for (data, size, contestant), group in grouped(rows, ["data", "size", "contestant"]).items()
    ]
    header = ["data", "examples", "network", "splits", "NLL", "NLL - twin", "accuracy", "accuracy - twin"]
    return markdown(header, lines)


if __name__ == "__main__":
    app()
