"""UCI regression on the twenty given splits: one hidden layer of 50 units, test NLL and RMSE beside published ones.

Contestants, all with the same epochs (400, of power 40) and batches of 32: the deterministic twin, MC dropout at rate
0.05, an ensemble of five twins and bdl's layers at their defaults with Adam at 1e-3, recipes with their own optimizer,
and `twin_averaged`, a twin with that of `small_data`. Likelihoods: Normal with a learned scale, Normal with a predicted
one (heteroscedastic), Student's t with either. NLL is per example in the targets' own unit, in nats, RMSE in
that unit; ± is the standard error over splits. The difference to the MC-dropout authors' own results is paired over
the same splits. Test data are used once, for the table. Data and splits come from the
folder of `--data`, and `benchmarks/data.py` names their sources.

    python -m research.uci run --data DIR        # resumable, on two processes
    python -m research.uci report --data DIR     # prints the tables; --write puts them into research/defaults.md
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.data import UCI, UCISplit, folder_of, uci_split
from benchmarks.runs import Row, cell, grouped, markdown, rows_of_run, run_all
from research.record import NO_DATA, RUNS, DataFolder, Output, Run, Write, publish

app = typer.Typer(add_completion=False)
RUN = RUNS / "uci.jsonl"
NUM_SPLITS = 20
NUM_SAMPLES = 256
WIDTH = 50
ENSEMBLE_SIZE = 5
DROPOUT_RATE = 0.05
PLAIN = ("twin", "twin_averaged", "mc_dropout")
# Mean test NLL of uncertainty-baselines' VI, and of the MC-dropout grid search (Mukhoti et al. 2018).
PUBLISHED = {
    "boston": (3.12, 2.40),
    "concrete": (3.22, 2.93),
    "energy": (0.93, 1.21),
    "power": (2.85, 2.80),
    "wine-red": (1.00, 0.93),
    "yacht": (2.01, 1.25),
}
FIGURES = ("nll", "paired", "rmse")


@dataclass(frozen=True)
class Case:
    """One training; `member` numbers the twins of an ensemble."""

    data: str
    split: int
    contestant: str
    likelihood: str = "normal"
    member: int = 0


@app.command()
def run(
    data: DataFolder = None,
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ",".join(PUBLISHED),
    splits: Annotated[int, typer.Option(help="Number of splits, from 0.")] = NUM_SPLITS,
    contestants: Annotated[
        str, typer.Option(help="Contestants, separated by commas.")
    ] = "twin,mc_dropout,default,small_data",
    likelihoods: Annotated[
        str, typer.Option(help="normal, heteroscedastic, student, student_heteroscedastic")
    ] = "normal,heteroscedastic",
    members: Annotated[int, typer.Option(help="Twins on a split.")] = ENSEMBLE_SIZE,
    output: Output = RUN,
) -> None:
    """Trains what is not there yet."""
    folder = folder_of(data)
    if folder is None:
        raise SystemExit(NO_DATA.format("UCI regression"))
    cases = [
        Case(name, split, contestant, likelihood, member)
        for split in range(splits)
        for name in sets.split(",")
        for likelihood in likelihoods.split(",")
        for contestant in contestants.split(",")
        for member in range(members if contestant == "twin" and likelihood == "normal" else 1)
    ]
    run_all(partial(train, folder=folder), cases, output)


def train(case: Case, folder: Path) -> Row:
    """Trains and scores one network."""
    import keras

    import bdl

    data = uci_split(folder, case.data, case.split)
    keras.backend.clear_session()
    keras.utils.set_random_seed(1000 * case.member + case.split)
    likelihood = likelihood_of(case.likelihood)
    start = time.perf_counter()
    model = compiled(case.contestant, data.x.shape[1], likelihood)
    epochs = 400 if len(data.x) < 2000 else 40
    history = model.fit(data.x, data.y[:, None], batch_size=32, epochs=epochs, verbose=0).history
    seconds = time.perf_counter() - start
    network = bdl.convert.to_mc_dropout(model.network, seed=case.split) if case.contestant == "mc_dropout" else model
    samples = 1 if case.contestant in ("twin", "twin_averaged") else NUM_SAMPLES
    prediction = bdl.predict_distribution(network, data.x_test, likelihood, samples, batch_size=1024)
    nll = np.log(data.scale) - np.ravel(prediction.log_prob(data.y_test[:, None]))
    mean = data.scale * np.ravel(prediction.mean)
    of_examples = {"nlls": nll.round(3).tolist(), "means": mean.round(3).tolist()}  # which ensembles are made of
    return {
        **scores(nll, mean, data),
        **(of_examples if case.contestant == "twin" and case.likelihood == "normal" else {}),
        "elbo": history["elbo"][-1],
        "temperature": history["temperature"][-1],
        "seconds": seconds,
    }


def scores(nll: np.ndarray, mean: np.ndarray, data: UCISplit) -> Row:
    """Mean NLL and root mean square error in the targets' unit, and the NLL's difference to the published one."""
    error = np.sqrt(np.mean((mean - data.scale * data.y_test) ** 2))
    return {"nll": float(nll.mean()), "rmse": float(error), "paired": float(nll.mean()) - data.reference_nll}


def likelihood_of(name: str) -> Any:
    """A likelihood by its name in the results."""
    import bdl

    kinds: dict[str, Callable[[], Any]] = {
        "normal": bdl.likelihoods.Normal,
        "heteroscedastic": partial(bdl.likelihoods.Normal, heteroscedastic=True),
        "student": bdl.likelihoods.StudentT,
        "student_heteroscedastic": partial(bdl.likelihoods.StudentT, heteroscedastic=True),
    }
    return kinds[name]()


def compiled(contestant: str, inputs: int, likelihood: Any) -> Any:
    """The model of a contestant, ready to fit."""
    import warnings

    import keras

    import bdl

    outputs = 2 if likelihood.heteroscedastic else 1
    if contestant not in (*PLAIN, "default"):
        return getattr(bdl.recipes, contestant)(plain(inputs, outputs), likelihood)
    layer = bdl.layers.DenseLocalReparameterization if contestant == "default" else keras.layers.Dense
    rate = DROPOUT_RATE if contestant == "mc_dropout" else 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`network` has no variational layer")  # the twin has none
        model = bdl.VariationalModel(plain(inputs, outputs, layer, rate), likelihood)
    averaging = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.995)
    model.compile(averaging if contestant == "twin_averaged" else "adam")
    return model


def plain(inputs: int, outputs: int, layer: Any = None, rate: float = 0.0) -> Any:
    """One hidden layer of 50 units, of Keras' or of other layers."""
    import keras

    layer = layer or keras.layers.Dense
    hidden = [layer(WIDTH, activation="relu")]
    if rate:
        hidden = [keras.layers.Dropout(rate), *hidden, keras.layers.Dropout(rate)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layer(outputs)])


@app.command()
def report(run: Run = RUN, data: DataFolder = None, write: Write = False) -> None:
    """Prints the tables of what is there."""
    rows = rows_of_run(run)
    single = [row for row in rows + ensembles(rows, folder_of(data)) if row["member"] == 0]
    text = "\n\n".join(table(name, group) for (name,), group in grouped(single, ["data"]).items())
    publish("uci", text, single, ["data", "likelihood", "contestant"], FIGURES, write)


def ensembles(rows: list[Row], folder: Path | None) -> list[Row]:
    """Rows of ensembles of five twins of one split: equal mixtures of their predictive distributions."""
    if folder is None:
        raise SystemExit(NO_DATA.format("An ensemble"))
    twins = [row for row in rows if row["contestant"] == "twin" and row["likelihood"] == "normal"]
    found = []
    for (name, split), members in grouped(twins, ["data", "split"]).items():
        if len(members) < ENSEMBLE_SIZE:
            continue
        nll = -np.logaddexp.reduce([-np.array(row["nlls"]) for row in members]) + np.log(len(members))
        mean = np.mean([row["means"] for row in members], axis=0)
        own = {"contestant": "ensemble", "data": name, "split": split, "likelihood": "normal", "member": 0}
        found.append({**own, **scores(nll, mean, uci_split(folder, name, split))})
    return found


def table(name: str, rows: list[Row]) -> str:
    """The table of one data set."""
    lines = []
    for (likelihood, contestant), group in grouped(rows, ["likelihood", "contestant"]).items():
        figures = [cell(group, figure, 3) for figure in FIGURES]
        lines.append([contestant, likelihood, str(len(group)), *figures])
    variational, dropout = PUBLISHED[name]
    title = (
        f"**{name}** (published mean NLL: uncertainty-baselines' VI {variational:.2f}, MC-dropout grid {dropout:.2f})"
    )
    header = ["contestant", "likelihood", "splits", "NLL", "NLL - MC-dropout grid", "RMSE"]
    return f"{title}\n\n{markdown(header, sorted(lines, key=lambda line: line[1] != 'normal'))}"


if __name__ == "__main__":
    assert set(PUBLISHED) == set(UCI)
    app()
