"""Where one network of `bdl.recipes.instead_of_ensemble` stays behind five twins: is it the test set, or the one mode?

MNIST and Fashion-MNIST with LeNet-5. Each split holds another fifth of the training images out and trains five twins
and two networks of the recipe on the rest, with the budget of `contest.py`; all are scored on the held-out images and
on the test set. A gap that only the test set shows would be the test set's; a gap that two networks close, three fewer
than five, is due to the one mode that a posterior around one network has. Printed are accuracy, NLL (nats per
example), Brier score and AUROC of epistemic uncertainty against the other of the two sets, ± the standard error over
splits, and the differences to the five, paired. The test set has no part in any choice.

    python benchmarks/recipe_modes.py run --data DIR     # 40 minutes, resumable, on two processes
    python benchmarks/recipe_modes.py report --write     # the table goes into docs/defaults.md
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import contest
import numpy as np
import typer
from data import folder_of, hold_out
from runs import Row, cell, grouped, markdown, read, replace_section, run_all

app = typer.Typer(add_completion=False)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "recipe_modes.jsonl"
PAGE = HERE.parent / "docs" / "defaults.md"
SPLITS = {"fashion": 4, "mnist": 2}
NETWORKS = {"twin": contest.ENSEMBLE_SIZE, "instead_of_ensemble": 2}
NAMES = {
    "twin": "one twin",
    "twin together": "five twins",
    "instead_of_ensemble": "one recipe",
    "instead_of_ensemble together": "two recipes",
}
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
def run(
    data: Annotated[Path | None, typer.Option(help="Folder of real data; else BDL_DATA.")] = None,
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
) -> None:
    """Trains what is not there yet."""
    cases = [Case(name, split) for name, splits in SPLITS.items() for split in range(splits)]
    run_all(partial(train, folder=folder_of(data)), cases, results, backend="tensorflow")


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
def report(
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
    write: Annotated[bool, typer.Option(help="Put the table into docs.")] = False,
) -> None:
    """Prints the table."""
    text = table(read(results))
    print(text)
    if write:
        replace_section(PAGE, "recipe-modes", text)


def table(rows: Iterable[Row]) -> str:
    """A line for each data set, set of images and contestant."""
    lines = []
    for (data,), group in grouped(rows, ["data"]).items():
        for name in ("held out", "test"):
            for contestant, title in NAMES.items():
                cells = [difference_to_five(group, name, contestant, figure) for figure in FIGURES]
                lines.append([data, name, title, str(len(group)), *cells])
    header = ["data", "images", "network", "splits", "accuracy", "NLL", "Brier", "AUROC partner"]
    return markdown(header, lines)


def difference_to_five(rows: list[Row], name: str, contestant: str, figure: str) -> str:
    """A figure, and for networks of the recipe in brackets what it is less that of five twins, paired."""
    if contestant == "twin" and figure.endswith("epistemic"):
        return ""  # one network without noise has none
    value = cell(rows, f"{name}/{contestant}/{figure}")
    if not contestant.startswith("instead_of_ensemble"):
        return value
    five = f"{name}/twin together/{figure}"
    less = [{"difference": row[f"{name}/{contestant}/{figure}"] - row[five]} for row in rows]
    return f"{value} ({cell(less, 'difference', sign='+')})"


if __name__ == "__main__":
    app()
