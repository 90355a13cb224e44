"""MNIST, Fashion-MNIST, digits and TREC: one network of a bdl recipe against its twin, MC dropout and five twins.

`run` trains LeNet-5 on MNIST and Fashion-MNIST (each other's unseen data), MLPs of 400, 800 and 1,200 units on MNIST
(`--sets mnist --networks mlp400,mlp800,mlp1200`), an MLP of 512 on digits, and Kim's convolutional network
on TREC; with `--left-out` all again without one class. Every contestant has the same epochs and batches (`contest.py`).
`report` prints accuracy, NLL (nats per example), Brier score, ECE (15 bins), AUROC against unseen inputs, NLL and ECE
under shift by severity; ± is the standard error over seeds. What it costs is in `recipe_cost.py`.
Digits are scikit-learn's; the others come from the folder of `--data`, and `benchmarks/data.py` names the sources.

    python -m research.mnist run --data DIR              # resumable, on two processes
    python -m research.mnist report --write              # tables and figure into research/defaults.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.data import folder_of
from benchmarks.runs import Row, cell, grouped, markdown, mean_and_error, read, rows_of_run, run_all
from research import shifts
from research.contest import ENSEMBLE_SIZE, ENSEMBLES, MEMBER_STEP, Case, ensemble_number, ensemble_rows
from research.contest import run as run_case
from research.record import FOLDER, IMAGES, RUNS, DataFolder, Output, Run, Write, publish

app = typer.Typer(add_completion=False)
RUN = RUNS / "mnist.jsonl"
ENSEMBLE_RUN = RUNS / "mnist_ensembles.jsonl"
PREDICTIONS = FOLDER / "predictions"
FIGURE = IMAGES / "shift.png"
NETWORKS = {"digits": "mlp512", "fashion": "lenet5", "trec": "text_cnn", "mnist": "lenet5"}
LEFT_OUT = 4  # the class
AUROCS = ("noise", "rotated", "partner", "left_out")
QUALITY = ("accuracy", "nll", "brier", "ece")
UNDER_SHIFT = ("nll", "ece")
PAIRED = ("accuracy", "nll", "brier", "auroc_left_out/epistemic")
LESS = "instead_of_ensemble less ensemble"


@app.command()
def run(
    data: DataFolder = None,
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ",".join(NETWORKS),
    networks: Annotated[str, typer.Option(help="Networks, separated by commas; the set's own by default.")] = "",
    contestants: Annotated[
        str, typer.Option(help="Contestants, separated by commas.")
    ] = "twin,twin_averaged,mc_dropout,instead_of_ensemble",
    seeds: Annotated[int, typer.Option(help="Number of seeds; of ensembles, too.")] = 1,
    left_out: Annotated[bool, typer.Option(help="Train without one class.")] = False,
    split: Annotated[str, typer.Option(help="test, or validation for choices.")] = "test",
    backend: Annotated[str, typer.Option(help="Keras backend.")] = "tensorflow",
    output: Output = RUN,
) -> None:
    """Trains what is not there yet."""
    names = [(name, network) for name in sets.split(",") for network in (networks or NETWORKS[name]).split(",")]
    cases = [
        case
        for seed in range(seeds)
        for name, network in names
        for contestant in contestants.split(",")
        for case in _cases(name, network, contestant, seed, LEFT_OUT if left_out else -1, split)
    ]
    run_all(partial(run_case, folder=folder_of(data), predictions=PREDICTIONS), cases, output, backend=backend)


def _cases(name: str, network: str, contestant: str, seed: int, left_out: int, split: str) -> Iterator[Case]:
    """One case, or the five members of an ensemble."""
    if contestant not in ENSEMBLES:
        yield Case(name, network, contestant, seed, left_out, split)
        return
    for member in range(ENSEMBLE_SIZE):
        own = seed + MEMBER_STEP * member if name == "digits" else ENSEMBLE_SIZE * seed + member
        yield Case(name, network, contestant, own, left_out, split)


@app.command()
def report(
    run: Run = RUN,
    ensembles: Annotated[Path, typer.Option(help="File that ensembles of five twins are kept in.")] = ENSEMBLE_RUN,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    write: Write = False,
) -> None:
    """Prints the tables of what is there."""
    rows = [row for row in rows_of_run(run) if row["split"] == split]
    rows = single_twins(rows) + [row for row in kept_ensembles(rows, ensembles) if row["split"] == split]
    tables = [table(*key, group) for key, group in grouped(rows, ["data", "network"]).items()]
    images = [row for row in rows if row["data"] != "trec" and row["left_out"] < 0]
    shifted = [row for row in images if row["network"] == NETWORKS[row["data"]]]
    shift_tables = [shift_table(*key, group) for key, group in grouped(shifted, ["data", "network"]).items()]
    by = ["data", "network", "contestant", "left_out"]
    kinds = [f"auroc_{name}/{kind}" for name in AUROCS for kind in ("total", "epistemic")]
    differences = [row for group in grouped(rows, by[:2]).values() for row in paired(group)]
    publish("classifiers", "\n\n".join(tables), rows + differences, by, (*QUALITY, *kinds), write)
    figures = [
        f"{kind}_{severity}/{name}" for kind in shifts.SHIFTS for severity in shifts.SEVERITIES for name in UNDER_SHIFT
    ]
    publish("shift", "\n\n".join(shift_tables), shifted, by[:3], figures, write)
    if write:
        draw(shifted)


def kept_ensembles(rows: list[Row], place: Path) -> list[Row]:
    """Rows of ensembles; kept with the run, for predictions of the members stay where they were made."""
    kept = {row["key"]: row for row in [*read(place), *ensemble_rows(rows, PREDICTIONS)]}
    draft = place.with_suffix(".tmp")
    draft.write_text("".join(json.dumps(row) + "\n" for row in kept.values()))
    draft.replace(place)
    return list(kept.values())


def single_twins(rows: list[Row]) -> list[Row]:
    """Of the members of each ensemble one row with their mean figures: they share a split, or are as many draws."""
    found = []
    for (contestant, *_), members in grouped(rows, ["contestant", "data", "network", "left_out"]).items():
        if contestant not in ENSEMBLES:
            found += members
            continue
        numbered = [{**row, "seed": ensemble_number(row["data"], row["seed"])} for row in members]
        for own in grouped(sorted(numbered, key=lambda row: row["seed"]), ["seed"]).values():
            means = {name: mean_and_error(own, name)[0] for name, value in own[0].items() if isinstance(value, float)}
            found.append({**own[0], **means})
    return found


def table(data: str, network: str, rows: list[Row]) -> str:
    """Quality and detection of one network on one data set; detection by the better of the two uncertainties."""
    header = ["contestant", "seeds", "accuracy", "NLL", "Brier", "ECE", *(f"AUROC {name}" for name in AUROCS)]
    lines = []
    for (contestant,), group in grouped(rows, ["contestant"]).items():
        whole = [row for row in group if row["left_out"] < 0]
        aurocs = [
            f"{cell(group if name == 'left_out' else whole, f'auroc_{name}/total', 3)}"
            f" / {cell(group if name == 'left_out' else whole, f'auroc_{name}/epistemic', 3)}"
            if contestant not in ENSEMBLES
            else cell(group if name == "left_out" else whole, f"auroc_{name}/total", 3)
            for name in AUROCS
        ]
        quality = [cell(whole, name) for name in QUALITY]
        lines.append([contestant, str(len(whole)), *quality, *aurocs])
    title = f"**{data}, {network}** (AUROC of total / epistemic uncertainty)"
    return f"{title}\n\n{markdown(header, lines)}{paired_text(rows)}"


def paired(rows: list[Row]) -> list[Row]:
    """The recipe less the ensemble, over the seeds (of digits: splits) that both have."""
    recipes, fives = (
        {(row["seed"], row["left_out"]): row for row in rows if row["contestant"] == name}
        for name in ("instead_of_ensemble", "ensemble")
    )
    found = []
    for key, recipe in recipes.items():
        if key in fives:
            names = PAIRED[:-1] if key[1] < 0 else PAIRED[-1:]
            own = {name: recipe[name] - fives[key][name] for name in names}
            found.append(
                {**{name: recipe[name] for name in ("data", "network", "left_out")}, "contestant": LESS, **own}
            )
    return found


def paired_text(rows: list[Row]) -> str:
    """The figures of `paired` that have more than one seed."""
    differences = paired(rows)
    several = [name for name in PAIRED if sum(name in row for row in differences) > 1]
    parts = [f"{name} {cell(differences, name)}" for name in several]
    return f"\n\n{LESS}, paired: {', '.join(parts)}." if parts else ""


def shift_table(data: str, network: str, rows: list[Row]) -> str:
    """NLL and ECE by kind and severity of shift."""
    lines = []
    for name in shifts.SHIFTS:
        for (contestant,), group in grouped(rows, ["contestant"]).items():
            cells = []
            for severity in shifts.SEVERITIES:
                nll, ece = (mean_and_error(group, f"{name}_{severity}/{figure}")[0] for figure in UNDER_SHIFT)
                cells.append(f"{nll:.2f} ({ece:.2f})")
            lines.append([name, contestant, *cells])
    header = ["shift", "contestant", *(f"severity {severity}" for severity in shifts.SEVERITIES)]
    return f"**{data}, {network}: NLL (ECE) under shift**\n\n{markdown(header, lines)}"


def draw(rows: list[Row]) -> None:
    """NLL and ECE against severity, averaged over the kinds of shift, a column for each data set."""
    from matplotlib.figure import Figure

    sets = grouped(rows, ["data"])
    colors = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(row["contestant"] for row in rows))}
    figure = Figure((4 * len(sets), 6), layout="constrained")
    axes: Any = figure.subplots(2, len(sets), squeeze=False, sharex=True)
    for column, ((name,), group) in enumerate(sets.items()):
        for ax, figure_name, label in zip(axes[:, column], UNDER_SHIFT, ("NLL (nats per example)", "ECE"), strict=True):
            for (contestant,), members in grouped(group, ["contestant"]).items():
                values = [mean_and_error(members, figure_name)[0]]
                for severity in shifts.SEVERITIES:
                    means = [mean_and_error(members, f"{kind}_{severity}/{figure_name}")[0] for kind in shifts.SHIFTS]
                    values.append(sum(means) / len(means))
                ax.plot([0, *shifts.SEVERITIES], values, marker="o", color=colors[contestant], label=contestant)
            ax.set(ylabel=label)
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("severity (0: none)")
    lines = {line.get_label(): line for ax in axes[0] for line in ax.get_lines()}  # not every set has all contestants
    axes[0, 0].legend(handles=list(lines.values()), fontsize="small")
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    app()
