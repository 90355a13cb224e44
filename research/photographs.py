"""Does `bdl.recipes.instead_of_ensemble` lose to its twin where every entry of the input carries something?

Photographs have no empty pixel, standardised tables no empty feature. `photographs` are pieces of Fashion-MNIST in
random colours, pasted at random places over patches of scikit-learn's two photographs: 3,200 images of 32 x 32 x 3 for
a small convolutional network. Breast cancer and wine are scikit-learn's, `power` the power plant's output in fifths,
each standardised, for two hidden layers of 64 units. Where empty pixels are worth something is in `mnist.py`.

Every contestant has the same network, epochs and batches, the twin and MC dropout Adam at 1e-3. `report` prints
accuracy, NLL and Brier score of test data with the difference to the twin, paired over seeds (which split the data and
begin the networks), and AUROC of epistemic uncertainty (of the twin total) against noise and, of images, their quarter
turn. Choices are made with `--split validation`, a fifth of the training data. Fashion-MNIST and
power come from the folder of `--data`, and `benchmarks/data.py` names their sources.

    python -m research.photographs run --data DIR        # resumable, on two processes
    python -m research.photographs report --write        # the table goes into research/defaults.md
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.data import fashion_mnist, folder_of, hold_out, standardised, uci
from benchmarks.runs import Row, cell, grouped, markdown, rows_of_run, run_all
from research import contest, shifts
from research.networks import mlp, small_cnn
from research.record import NO_DATA, RUNS, DataFolder, Output, Run, Workers, Write, publish, subtract

app = typer.Typer(add_completion=False)
RUN = RUNS / "photographs.jsonl"
NUM_TRAINING, NUM_TEST = 3200, 2000  # of photographs
SIZE = 32
NUM_CLASSES = {"photographs": 10, "breast-cancer": 2, "wine": 3, "power": 5}
# Epochs, batch size.
BUDGETS = {
    "photographs": (15, 64),
    "breast-cancer": (50, 32),
    "wine": (100, 32),
    "power": (20, 64),
}
BACKENDS = {"photographs": "tensorflow"}  # XLA's convolutions are slow on a CPU
CONTESTANTS = ("twin", "mc_dropout", "instead_of_ensemble", "N(1, 3^2) everywhere", "no input factors")
FIGURES = ("accuracy", "nll", "brier")
DIFFERENCES = ("accuracy", "nll")  # to the twin


@dataclass(frozen=True)
class Case:
    """One training.

    Args:
        data: A key of `NUM_CLASSES`.
        contestant: One of `CONTESTANTS`.
        seed: Of the split and of the weights.
        split: `"test"`, or `"validation"` for choices.
    """

    data: str
    contestant: str
    seed: int
    split: str = "test"


def load(case: Case, folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training data and those that score."""
    if case.data == "photographs":
        x, y, x_test, y_test = photographs(folder, case.seed)
    else:
        x, y, x_test, y_test = table(case, folder)
    return (x, y, x_test, y_test) if case.split == "test" else hold_out(x, y, 10_007 + case.seed)


def photographs(folder: Path | None, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `(n, 32, 32, 3)` in [0, 1] and ten classes; background of test images from parts of their own."""
    from sklearn.datasets import load_sample_images

    images = fashion_mnist(_required(folder))
    views = [view[::2, ::2].astype("float32") / 255.0 for view in load_sample_images().images]
    halves = [[view[:, :220] for view in views], [view[:, 220:] for view in views]]
    generator = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    for (x, y), number, half in zip((images[:2], images[2:]), (NUM_TRAINING, NUM_TEST), halves, strict=True):
        chosen = generator.choice(len(x), number, replace=False)
        pasted = [paste(x[i] / 255.0, half[generator.integers(len(half))], generator) for i in chosen]
        parts += [np.stack(pasted).astype("float32"), y[chosen].astype("int32")]
    return parts[0], parts[1], parts[2], parts[3]


def paste(piece: np.ndarray, view: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A piece of clothing in a random colour, mirrored or not, over a patch of a photograph."""
    row, column = (generator.integers(size - SIZE) for size in view.shape[:2])
    patch = view[row : row + SIZE, column : column + SIZE].copy()
    row, column = generator.integers(SIZE - piece.shape[0] + 1, size=2)
    place = patch[row : row + piece.shape[0], column : column + piece.shape[1]]
    piece = piece[:, :: generator.choice([-1, 1]), None]
    cover = generator.uniform(0.4, 0.9) * np.minimum(3.0 * piece, 1.0)
    place[:] = (1.0 - cover) * place + cover * piece * generator.uniform(0.1, 1.0, 3)
    return patch


def table(case: Case, folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A standardised table, of which 30 % score."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    if case.data == "power":
        x, target = uci(_required(folder), "power")
        y = np.searchsorted(np.quantile(target, np.arange(1, 5) / 5), target)
    else:
        load_table = {"breast-cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[case.data]
        x, y = load_table(return_X_y=True)
    kept, held = train_test_split(np.arange(len(x)), test_size=0.3, random_state=case.seed, stratify=y)
    x, y = standardised(x.astype("float64"), kept).astype("float32"), y.astype("int32")
    return x[kept], y[kept], x[held], y[held]


def network(case: Case, shape: tuple[int, ...]) -> Any:
    """The plain network of a case."""
    rate = contest.DROPOUT_RATE if case.contestant == "mc_dropout" else 0.0
    classes = NUM_CLASSES[case.data]
    if case.data == "photographs":
        return small_cnn(shape, classes, rate)
    return mlp(shape, 64, 2, classes, rate=rate)


def model_of(case: Case, shape: tuple[int, ...]) -> Any:
    """The compiled model of a case."""
    import keras

    import bdl

    plain = network(case, shape)
    if case.contestant in ("twin", "mc_dropout"):
        plain.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return plain
    priors = {
        "N(1, 3^2) everywhere": {"input_prior": bdl.priors.Normal(1.0, 3.0)},
        "no input factors": {"input_prior": None},
    }
    model = bdl.recipes.instead_of_ensemble(
        plain, bdl.likelihoods.Categorical(), seed=case.seed, **priors.get(case.contestant, {})
    )
    return model


def train(case: Case, folder: Path | None) -> Row:
    """Figures of one training."""
    import keras

    import bdl

    x, y, x_test, y_test = load(case, folder)
    keras.backend.clear_session()
    keras.utils.set_random_seed(case.seed)
    model = model_of(case, x.shape[1:])
    model.compile(model.optimizer, model.loss, jit_compile=False if case.data == "photographs" else "auto")
    epochs, batch_size = BUDGETS[case.data]
    start = time.perf_counter()
    last = model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0).history
    seconds = time.perf_counter() - start
    if case.contestant == "mc_dropout":
        model = bdl.convert.to_mc_dropout(model, seed=case.seed)
    samples = 1 if case.contestant == "twin" else contest.NUM_SAMPLES
    sets = {"test": x_test, "noise": noise(x, x_test[: contest.NUM_UNSEEN], case.seed)}
    if x.ndim == 4:
        sets["rotated"] = shifts.quarter_turn(x_test[: contest.NUM_UNSEEN])
    likelihood = bdl.likelihoods.Categorical()
    found = {name: contest.predict_one(model, likelihood, part, samples) for name, part in sets.items()}
    parts = {f"training_{name}": last[name][-1] for name in ("nll", "kl") if name in last}
    return {**contest.figures(found, y_test), **parts, "seconds": seconds}


def noise(x: np.ndarray, like: np.ndarray, seed: int) -> np.ndarray:
    """Independent entries, as many and as large: uniform over the range of the training data."""
    return np.random.default_rng(seed).uniform(x.min(), x.max(), size=like.shape).astype("float32")


def _required(folder: Path | None) -> Path:
    if folder is None:
        raise SystemExit(NO_DATA.format("Photographs, as power,"))
    return folder


@app.command()
def run(
    data: DataFolder = None,
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ",".join(NUM_CLASSES),
    contestants: Annotated[str, typer.Option(help="Contestants, separated by semicolons.")] = ";".join(CONTESTANTS),
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    split: Annotated[str, typer.Option(help="test, or validation for choices.")] = "test",
    workers: Workers = 2,
    output: Output = RUN,
) -> None:
    """Trains what is not there yet."""
    for name in sets.split(","):
        cases = [Case(name, each, seed, split) for seed in range(seeds) for each in contestants.split(";")]
        backend = BACKENDS.get(name, "jax")
        run_all(partial(train, folder=folder_of(data)), cases, output, workers, backend)


@app.command()
def report(
    run: Run = RUN,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    write: Write = False,
) -> None:
    """Prints the table."""
    rows = [row for row in rows_of_run(run) if row["split"] == split]
    subtract(rows, "twin", ["data", "seed"], DIFFERENCES)
    for row in rows:
        kind = "total" if row["contestant"] == "twin" else "epistemic"
        row |= {f"auroc_{unseen}": row.get(f"auroc_{unseen}/{kind}") for unseen in ("noise", "rotated")}
    figures = (*FIGURES, *(f"{figure} - twin" for figure in DIFFERENCES), "auroc_noise", "auroc_rotated")
    publish("photographs", table_of(rows), rows, ["data", "contestant"], figures, write)


def table_of(rows: list[Row]) -> str:
    """A line for each data set and contestant, with paired differences to the twin."""
    lines = []
    for (data, contestant), group in grouped(rows, ["data", "contestant"]).items():
        cells = [cell(group, figure, 3) for figure in FIGURES]
        less = [cell(group, f"{figure} - twin", 3, "+") for figure in DIFFERENCES]
        detection = [cell(group, f"auroc_{unseen}", 2) for unseen in ("noise", "rotated")]
        lines.append([data, contestant, str(len(group)), *cells, *less, *detection])
    header = ["data", "contestant", "seeds", "accuracy", "NLL", "Brier"]
    header += ["accuracy - twin", "NLL - twin", "AUROC noise", "AUROC turned"]
    return markdown(header, lines)


if __name__ == "__main__":
    app()
