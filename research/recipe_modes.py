"""Where one network of `bdl.recipes.instead_of_ensemble` stays behind five twins: is it the test set, or the one mode?

MNIST and Fashion-MNIST with LeNet-5. Each split holds another fifth of the training images out and trains five twins
and two networks of the recipe on the rest, with the budget of `contest.py`; all are scored on the held-out images and
on the test set. A gap that only the test set shows would be the test set's; a gap that two networks close, three fewer
than five, is due to the one mode that a posterior around one network has. Printed are accuracy, NLL (nats per
example), Brier score and AUROC of epistemic uncertainty against the other of the two sets, ± the standard error over
splits, and the differences to the five, paired. The test set has no part in any choice. Data come from the folder of
`--data`, and `benchmarks/data.py` names their sources.

    python -m research.recipe_modes run --data DIR     # 40 minutes, resumable, on two processes
    python -m research.recipe_modes report --write     # the table goes into research/defaults.md
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import typer

from benchmarks.data import folder_of, hold_out
from benchmarks.runs import Row, cell, grouped, markdown, rows_of_run, run_all
from research import contest
from research.record import RUNS, DataFolder, Output, Run, Write, publish

app = typer.Typer(add_completion=False)
RUN = RUNS / "recipe_modes.jsonl"
SPLITS = {"fashion": 4, "mnist": 2}
NETWORKS = {"twin": contest.ENSEMBLE_SIZE, "instead_of_ensemble": 2}
NAMES = {
    "twin": "one twin",
    "twin together": "five twins",
    "instead_of_ensemble": "one recipe",
    "instead_of_ensemble together": "two recipes",
}
BY = ("data", "images", "network")
FIGURES = ("accuracy", "nll", "brier", "auroc_partner/epistemic")


@dataclass(frozen=True)
class Case:
    """The networks of one data set on one split.

    Args:
        data: `"fashion"` or `"mnist"`.
        split: Seed of the held-out fifth; the networks' seeds follow from it.
    """

    data: str
    split: int


@app.command()
def run(data: DataFolder = None, output: Output = RUN) -> None:
    """Trains what is not there yet."""
    cases = [Case(name, split) for name, splits in SPLITS.items() for split in range(splits)]
    run_all(partial(train, folder=folder_of(data)), cases, output, backend="tensorflow")


def train(case: Case, folder: Path | None) -> Row:
    """Figures by set and contestant, such as `test/twin together/nll`."""
    whole = contest.load(contest.Case(case.data, "lenet5", "twin", 0), folder)
    x, y, x_held, y_held = hold_out(whole.x, whole.y, case.split)
    part = replace(whole, x=x, y=y)
    images = {"held out": x_held, "test": whole.x_test, "partner": whole.unseen["partner"]}
    row: Row = {}
    for contestant, number in NETWORKS.items():
        seeds = range(case.split * number, (case.split + 1) * number)
        members = [predictions(contest.Case(case.data, "lenet5", contestant, seed), part, images) for seed in seeds]
        for name, labels in (("held out", y_held), ("test", whole.y_test)):
            found = [{"test": member[name], "partner": member["partner"]} for member in members]
            single = [contest.figures(each, labels) for each in found]
            together = contest.figures(contest.ensemble(found), labels)
            for figure in FIGURES:
                row[f"{name}/{contestant}/{figure}"] = float(np.mean([each[figure] for each in single]))
                row[f"{name}/{contestant} together/{figure}"] = together[figure]
    return row


def predictions(case: contest.Case, data: contest.Data, images: dict[str, np.ndarray]) -> dict[str, contest.Prediction]:
    """What one network, trained on `data`, predicts of sets of images."""
    import bdl

    model, _ = contest.trained(case, data)
    samples = 1 if case.contestant in contest.ENSEMBLES else contest.NUM_SAMPLES
    likelihood = bdl.likelihoods.Categorical()
    return {name: contest.predict_one(model, likelihood, x, samples) for name, x in images.items()}


@app.command()
def report(run: Run = RUN, write: Write = False) -> None:
    """Prints the table."""
    rows = apart(rows_of_run(run))
    figures = (*FIGURES, *(f"{figure} - five twins" for figure in FIGURES))
    publish("recipe-modes", table(rows), rows, BY, figures, write)


def apart(rows: Iterable[Row]) -> list[Row]:
    """A row for each split, set of images and network; of recipes with the difference to five twins, paired."""
    found = []
    for (data,), group in grouped(rows, ["data"]).items():
        for images in ("held out", "test"):
            for contestant, network in NAMES.items():
                for row in group:
                    own: Row = {"data": data, "images": images, "network": network}
                    for figure in FIGURES:
                        if contestant == "twin" and figure.endswith("epistemic"):
                            continue  # one network without noise has none
                        own[figure] = row[f"{images}/{contestant}/{figure}"]
                        if contestant.startswith("instead_of_ensemble"):
                            own[f"{figure} - five twins"] = own[figure] - row[f"{images}/twin together/{figure}"]
                    found.append(own)
    return found


def table(rows: list[Row]) -> str:
    """A line for each data set, set of images and network."""
    lines = [
        [*key, str(len(group)), *(beside_five(group, figure) for figure in FIGURES)]
        for key, group in grouped(rows, BY).items()
    ]
    header = ["data", "images", "network", "splits", "accuracy", "NLL", "Brier", "AUROC partner"]
    return markdown(header, lines)


def beside_five(rows: list[Row], figure: str) -> str:
    """A figure, and for networks of the recipe in brackets the difference to five twins."""
    difference = cell(rows, f"{figure} - five twins", sign="+")
    return f"{cell(rows, figure)} ({difference})" if difference else cell(rows, figure)


if __name__ == "__main__":
    app()
