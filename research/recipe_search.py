"""How `bdl.recipes.instead_of_ensemble` is made: what one change of it does, on validation data.

Digits, TREC, Fashion-MNIST and MNIST, each with its network and budget of `contest.py`; of the training part a fifth
is held out, and test data have no part in it (digits are split anew by each seed, so that a test example of another
seed may have been among them). `report` prints validation accuracy, NLL (nats per example) with its paired difference
to the recipe's, and AUROC of epistemic uncertainty against noise; ± is the standard error over seeds.

The rule: a change is for the better when the mean over data sets of log(NLL / the recipe's NLL) is below zero by more
than its standard error, and neither accuracy nor AUROC fall by more than .005 on any of them.

The recipe is the one that these changes were tried on, with input factors `N(1, 10^2)`. A second table is why they are
`N(1, 3^2)` now: they trade detection against robustness. It has AUROC against noise, turned images and the partner of
MNIST and Fashion-MNIST (each other), and the NLL of images that are noisy, blurred or of low contrast, mean of the
three at severity 3 (`shifts.py`). Five twins stand beside them, where `mnist.py` has trained them.
Digits are scikit-learn's; the others come from the folder of `--data`, and `benchmarks/data.py` names the sources.

    python -m research.mnist run --data DIR --split validation --contestants twin --sets mnist,fashion
    python -m research.mnist run --split validation --contestants twin --sets digits --seeds 5
    python -m research.mnist report --split validation  # makes ensembles of the twins
    python -m research.recipe_search run --data DIR     # resumable, on two processes
    python -m research.recipe_search report --write     # the tables go into research/defaults.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.data import folder_of
from benchmarks.runs import Row, cell, change_of, grouped, key_of, markdown, read, rows_of_run, run_all, write_csv
from research import contest, shifts
from research.mnist import ENSEMBLE_RUN, NETWORKS
from research.record import RESULTS, RUNS, DataFolder, Output, Run, Write, publish

app = typer.Typer(add_completion=False)
RUN = RUNS / "recipe_search.jsonl"
SEEDS = {"digits": 5, "trec": 2, "fashion": 2, "mnist": 2}
MORE_SEEDS = {"trec": 5, "fashion": 5}  # where the change may be for the better
BACKENDS = {"digits": "jax", "trec": "tensorflow", "fashion": "tensorflow", "mnist": "tensorflow"}
MAX_FALL = 0.005
HARMLESS, SEVERITY = ("noise", "blur", "contrast"), 3
INPUT_FIGURES = ("accuracy", "nll", "auroc_noise", "auroc_rotated", "auroc_partner", "harmless/nll")
TWIN = "is_twin True"  # the change that is no variant of the recipe

# One change each, and the data sets whose network it changes.
SMALL = ("digits", "trec", "fashion")
WITH_CONVOLUTIONS = ("trec", "fashion")
IMAGES = ("digits", "fashion", "mnist")
INPUTS = (0.0, 1.0, 3.0)
CHANGES: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({}, tuple(SEEDS)),
    ({"is_twin": True}, tuple(SEEDS)),
    ({"dense": "gaussian"}, SMALL),
    ({"convolution": "rank1"}, WITH_CONVOLUTIONS),
    ({"estimator": "flipout"}, WITH_CONVOLUTIONS),
    ({"spread": 0.5}, (*WITH_CONVOLUTIONS, "mnist")),
    ({"spread": 2.0}, WITH_CONVOLUTIONS),
    ({"factors": 0.3}, SMALL),
    ({"factors": 1.0}, SMALL),
    ({"words": 0.0}, ("trec",)),
    ({"words": 1.0}, ("trec",)),
    *(({"inputs": scale}, IMAGES) for scale in INPUTS),
    ({"learning_rate": 1e-3}, SMALL),
    ({"learning_rate": 5e-3}, SMALL),
    ({"momentum": 0.0}, SMALL),
)
CLOSE: tuple[dict[str, Any], ...] = (
    {},
    {"spread": 0.5},
    {"learning_rate": 5e-3},
    *({"inputs": scale} for scale in INPUTS),
)


@dataclass(frozen=True)
class Case:
    """One training; the defaults are those of the recipe, but for `inputs`, which the second table made 3.

    Args:
        data: `"digits"`, `"trec"`, `"fashion"` or `"mnist"`.
        seed: Of the weights; digits are split by it.
        is_twin: Whether the network has no posterior, and Adam at 1e-3.
        dense: `"rank1"`, or `"gaussian"` for kernels around fitted means.
        convolution: `"gaussian"` or `"rank1"`.
        estimator: Of Gaussian kernels.
        spread: Of Gaussian kernels, `N(m, spread^2 / fan-in)`.
        factors: Standard deviation of rank-1 factors' prior.
        words: Standard deviation of the prior of factors of words; 0 for an embedding without.
        inputs: Standard deviation of the prior of input factors; 0 for none.
        learning_rate: Of Adam.
        momentum: Of the average of the iterates; 0 for none.
    """

    data: str
    seed: int
    is_twin: bool = False
    dense: str = "rank1"
    convolution: str = "gaussian"
    estimator: str = "reparameterization"
    spread: float = 1.0
    factors: float = 0.5
    words: float = 2.0
    inputs: float = 10.0
    learning_rate: float = 3e-3
    momentum: float = 0.99


@app.command()
def run(
    data: DataFolder = None,
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ",".join(SEEDS),
    output: Output = RUN,
) -> None:
    """Trains what is not there yet."""
    for name in sets.split(","):
        run_all(partial(train, folder=folder_of(data)), cases(name), output, backend=BACKENDS[name])


def cases(name: str) -> Iterator[Case]:
    """All changes of one data set."""
    for seed in range(max(SEEDS[name], MORE_SEEDS.get(name, 0))):
        for change, names in CHANGES:
            if name in names and (seed < SEEDS[name] or change in CLOSE):
                yield Case(name, seed, **change)


def train(case: Case, folder: Path | None) -> Row:
    """Figures of one training."""
    import bdl

    contestant = "twin" if case.is_twin else "instead_of_ensemble"
    origin = contest.Case(case.data, NETWORKS[case.data], contestant, case.seed, split="validation")
    data = contest.load(origin, folder)
    model, _ = contest.trained(origin, data, None if case.is_twin else partial(compiled, case))
    samples = 1 if case.is_twin else contest.NUM_SAMPLES
    sets = {"test": data.x_test, **data.unseen}
    if case.data in IMAGES:
        some = data.x_test[: contest.NUM_SHIFTED]
        noise_seed = contest.evaluation_seed(origin)
        sets |= {f"{name}_{SEVERITY}": shifts.SHIFTS[name](some, SEVERITY, noise_seed) for name in HARMLESS}
    likelihood = bdl.likelihoods.Categorical()
    found = {name: contest.predict_one(model, likelihood, x, samples) for name, x in sets.items()}
    return contest.figures(found, data.y_test)


def compiled(case: Case, origin: contest.Case, data: contest.Data) -> Any:
    """The Bayesian model of a case, ready to fit."""
    import keras

    import bdl
    from bdl.priors import FanInNormal, Normal, TiedMean

    def layers(layer: Any) -> bool:
        is_plain = isinstance(layer, keras.layers.Embedding) and not case.words
        return not is_plain and bdl.convert.variational.can_be_variational(layer)

    network = contest.build(origin, data)
    around_means = TiedMean(FanInNormal(case.spread), mean_prior=Normal(0.0, 3.0))
    converted = bdl.convert.to_variational(network, layers, case.estimator, around_means, partial(posterior, case))
    if case.inputs and case.data in IMAGES:
        entry = keras.Input(network.input_shape[1:])
        converted = keras.Model(entry, converted(bdl.layers.InputFactors(Normal(1.0, case.inputs))(entry)))
    model = bdl.VariationalModel(converted, bdl.likelihoods.Categorical())
    optimizer = contest.averaging_adam(case.learning_rate, case.momentum)
    model.compile(optimizer, jit_compile=contest.jit_of(NETWORKS[case.data]))
    return model


def posterior(case: Case, layer: Any) -> Any:
    """The posterior of a layer."""
    import keras

    from bdl.posteriors import MeanFieldNormal, Rank1
    from bdl.priors import Normal

    if isinstance(layer, keras.layers.Embedding):
        return Rank1(Normal(1.0, case.words), Normal(1.0, 0.5))
    kind = case.dense if isinstance(layer, keras.layers.Dense) else case.convolution
    factors = Normal(1.0, case.factors)
    return Rank1(factors, factors) if kind == "rank1" else MeanFieldNormal()


@app.command()
def report(
    run: Run = RUN,
    ensembles: Annotated[Path, typer.Option(help="File of five twins that `mnist` made.")] = ENSEMBLE_RUN,
    write: Write = False,
) -> None:
    """Prints the tables, and which changes are for the better by the rule."""
    rows = rows_of_run(run)
    changes = beside_the_recipe(rows)
    figures = ("accuracy", "nll", "nll change", "auroc_noise/epistemic", "ratio")
    publish("recipe-search", table(changes), changes, ["change", "data"], figures, write)
    if write:
        ratios = {name: mean_ratio(group) for (name,), group in grouped(changes, ["change"]).items()}
        lines = [(name, *ratio) for name, ratio in ratios.items() if name != "none"]
        write_csv(RESULTS / "recipe_search_ratios.csv", ("change", "log ratio", "error"), lines)
    fives = [row for row in read(ensembles) if row["split"] == "validation" and row["contestant"] == "ensemble"]
    named = by_inputs(rows, fives)
    publish("input-factors", table_of_inputs(named), named, ["data", "name"], INPUT_FIGURES, write)


def beside_the_recipe(rows: list[Row]) -> list[Row]:
    """Rows in the order of the table, with their `change` and what it changes, beside the recipe of the same seed."""
    plain = {(row["data"], row["seed"]): row for row in rows if row["key"] == key_of(Case(row["data"], row["seed"]))}
    usual = {field.name: field.default for field in fields(Case) if field.name not in ("data", "seed")}
    found = []
    for row in rows:
        base = plain.get((row["data"], row["seed"]))
        if base is None:  # of an interrupted run
            continue
        more = {f"{name} change": row[name] - base[name] for name in ("nll", "accuracy", "auroc_noise/epistemic")}
        more["ratio"] = np.log(row["nll"] / base["nll"])
        found.append({**row, **more, "change": change_of(row, usual)})
    return sorted(found, key=lambda row: (row["change"] != "none", row["change"] != TWIN, row["change"]))


def table(rows: list[Row]) -> str:
    """A line for each change: the mean log ratio of the NLL, and for each data set what it reaches."""
    lines, better = [], []
    for (name,), group in grouped(rows, ["change"]).items():
        by_data = grouped(group, ["data"])
        ratio, error = mean_ratio(group)
        falls = [
            float(np.mean([row[f"{figure} change"] for row in own])) < -MAX_FALL
            for own in by_data.values()
            for figure in ("accuracy", "auroc_noise/epistemic")
        ]
        if name not in ("none", TWIN) and ratio < -error and not any(falls):
            better.append(name)
        cells = [entry(by_data.get((data,), []), name) for data in SEEDS]
        lines.append([name, "" if name == "none" else f"{ratio:+.3f} ± {error:.3f}", *cells])
    header = ["change", "log ratio", *(f"{data}: accuracy, NLL (difference), AUROC" for data in SEEDS)]
    return f"{markdown(header, lines)}\n\nFor the better by the rule: {', '.join(better) or 'none'}."


def mean_ratio(rows: list[Row]) -> tuple[float, float]:
    """Mean over data sets of the mean log ratio over seeds, and its standard error."""
    ratios = [np.array([row["ratio"] for row in group]) for group in grouped(rows, ["data"]).values()]
    variances = [ratio.var(ddof=1) / len(ratio) if len(ratio) > 1 else np.nan for ratio in ratios]
    return float(np.mean([ratio.mean() for ratio in ratios])), float(np.sqrt(np.sum(variances)) / len(ratios))


def entry(group: list[Row], name: str) -> str:
    """Accuracy, NLL with its difference to the recipe's, and AUROC against noise; empty where nothing changes."""
    if not group:
        return ""
    difference = "" if name == "none" else f" ({np.mean([row['nll change'] for row in group]):+.4f})"
    auroc = "" if name == TWIN else f", {cell(group, 'auroc_noise/epistemic', 3)}"
    return f"{cell(group, 'accuracy', 3)}, {cell(group, 'nll', 3)}{difference}{auroc}"


def by_inputs(rows: list[Row], fives: list[Row]) -> list[Row]:
    """Rows of the twin, five twins, and each prior of the input factors, as `name`, in the table's order."""
    harmless = [f"{name}_{SEVERITY}/nll" for name in HARMLESS]
    usual = {field.name: field.default for field in fields(Case) if field.name not in ("data", "seed", "inputs")}
    named = [{**row, "name": "five twins"} for row in fives if row["data"] in IMAGES]
    for row in [row for row in rows if row["data"] in IMAGES]:
        change = change_of(row, usual)
        if change == TWIN:
            named.append({**row, "name": "twin"})
        elif change == "none":
            named.append({**row, "name": f"N(1, {row['inputs']:g}^2)" if row["inputs"] else "no input factors"})
    for row in named:
        kind = "total" if row["name"] == "twin" else "epistemic"  # one network without noise has nothing else
        row |= {f"auroc_{unseen}": row.get(f"auroc_{unseen}/{kind}") for unseen in ("noise", "rotated", "partner")}
        row["harmless/nll"] = float(np.mean([row[figure] for figure in harmless]))
    return sorted(named, key=_order)


def table_of_inputs(rows: list[Row]) -> str:
    """For each data set a line for each network."""
    lines = []
    for (data, name), group in grouped(rows, ["data", "name"]).items():
        cells = [cell(group, figure, 3) for figure in INPUT_FIGURES[:-1]]
        lines.append([data, name, str(len(group)), *cells, cell(group, INPUT_FIGURES[-1], 2)])
    header = ["data", "network", "seeds", "accuracy", "NLL", "AUROC noise", "turned", "partner", "NLL, harmless shift"]
    return markdown(header, lines)


def _order(row: Row) -> tuple[int, int, float]:
    """By data, then the twins, then the width of the input factors' prior."""
    twins = ("twin", "five twins")
    place = twins.index(row["name"]) if row["name"] in twins else len(twins)
    return list(SEEDS).index(row["data"]), place, row.get("inputs", 0.0)


if __name__ == "__main__":
    app()
