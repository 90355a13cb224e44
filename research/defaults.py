"""Which prior and posterior should be the default? A search on validation data.

Every candidate (prior and posterior) trains on every task at T = 1 with `compile("adam")`: digits with two hidden
layers (relu of width 32 and 512, tanh of width 128), scikit-learn's diabetes and, with `--data`, three UCI regressions
with one hidden layer of 50 units. A fifth of the training part of a split is held out and scores; the test part of
that split is not touched. (Splits of other seeds, on which other scripts report, divide the same examples anew.)

The rule: candidates whose mean accuracy on each task of digits is within 0.5 points of the deterministic twin's are
ordered by the mean rank of their validation NLL over all tasks, digits and regression weighing the same. Those whose
rank is within one standard error of the best one's (over tasks and seeds, paired) count as equal to it, and of these
the choice is free: the docs say what was chosen and why.
UCI's data come from the folder of `--data`, and `benchmarks/data.py` names their sources.
`vary` then changes one thing at a time: initial scale, warm-up, depth, width, activation, size of the data.

    python -m research.defaults search --data DIR        # resumable, on two processes
    python -m research.defaults vary
    python -m research.defaults report --write           # table and figure into research/defaults.md
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.data import folder_of, hold_out, uci_split
from benchmarks.runs import (
    Row,
    cell,
    change_of,
    grouped,
    key_of,
    markdown,
    mean_and_error,
    rows_of_run,
    run_all,
    write_csv,
)
from research.contest import digits
from research.record import IMAGES, RESULTS, RUNS, DataFolder, Output, Run, Write, publish

app = typer.Typer(add_completion=False)
RUN = RUNS / "defaults.jsonl"
FIGURE = IMAGES / "defaults.png"
NUM_SAMPLES = 64
MAX_ACCURACY_GAP = 0.005
TASK = ("task", "width", "activation")
FIGURES = ("accuracy", "nll")
BASE = {"width": 128, "depth": 2}  # of the variations
SEARCHED = ((32, "relu"), (512, "relu"), (128, "tanh"))  # width and activation on digits
UCI_TASKS = ("boston", "concrete", "wine-red")
# Names of candidates: the default, and the one before it, whose spread is the same at every width.
BY_WIDTH = "tied mean by width, mean prior N(0, 3^2)"
FIXED_SPREAD = "tied mean 0.5, mean prior N(0, 3^2)"


@dataclass(frozen=True)
class Case:
    """One training.

    Args:
        task: `"digits"`, `"diabetes"` or the name of a UCI regression.
        candidate: Name of a prior and posterior.
        seed: Of the weights and the split.
        width, depth, activation: Of the hidden layers.
        initial_scale: In units of 1 / sqrt(fan_in); 0 takes the posterior's own.
        spread: Of the prior around fitted means, in the same unit; 0 takes the candidate's own.
        warmup: Part of the training over which T rises; 0 is T = 1 throughout.
        cycles: Number of warm-ups in a row.
        fraction: Part of the training data that is used.
        objective, num_samples: Of `VariationalModel`.
    """

    task: str
    candidate: str
    seed: int
    width: int = 50
    depth: int = 1
    activation: str = "relu"
    initial_scale: float = 0.0
    warmup: float = 0.85
    fraction: float = 1.0
    cycles: int = 1
    objective: str = "elbo"
    num_samples: int = 1
    spread: float = 0.0


def candidates() -> dict[str, tuple[str, dict[str, Any]]]:
    """Kind of dense layer and its arguments, by name; the twin is Keras' own layer."""
    from bdl.posteriors import LowRankNormal, MatrixNormal
    from bdl.priors import EmpiricalBayes, FanInNormal, Horseshoe, Laplace, Normal, ScaleMixture, TiedMean, WidthNormal

    local, rank1 = "DenseLocalReparameterization", "DenseRank1"
    weak = Normal(0.0, 3.0)
    narrow = {"input_factor_prior": Normal(1.0, 0.3), "output_factor_prior": Normal(1.0, 0.3)}
    broad = {**narrow, "input_factor_prior": Normal(1.0, 10.0)}
    tied = TiedMean(FanInNormal(0.5), mean_prior=weak)
    priors: dict[str, Any] = {
        "normal": Normal(),
        "fan-in normal": FanInNormal(),
        "Laplace": Laplace(scale="fan_in"),
        "scale mixture": ScaleMixture(relative_to="fan_in"),
        "scale mixture, learned": ScaleMixture(relative_to="fan_in", learned=True),
        "horseshoe, rows": Horseshoe("row"),
        "horseshoe, columns": Horseshoe("column"),
        "empirical Bayes, layer": EmpiricalBayes("layer"),
        "empirical Bayes, rows": EmpiricalBayes("row"),
        "empirical Bayes, columns": EmpiricalBayes("column"),
        "empirical Bayes, row x column": EmpiricalBayes("row_column"),
        "empirical Bayes, row x column, no hyperprior": EmpiricalBayes("row_column", pseudo_count=0.0),
        "tied mean 1": TiedMean(FanInNormal(1.0)),
        "tied mean 0.5": TiedMean(FanInNormal(0.5)),
        "tied mean 0.3": TiedMean(FanInNormal(0.3)),
        FIXED_SPREAD: tied,
        BY_WIDTH: TiedMean(WidthNormal(), mean_prior=weak),
        "tied mean 0.5, mean prior N(0, 1)": TiedMean(FanInNormal(0.5), mean_prior=Normal(0.0, 1.0)),
    }
    return {
        "twin": ("Dense", {}),
        **{name: (local, {"kernel_prior": prior}) for name, prior in priors.items()},
        "matrix normal, tied mean 0.5": (local, {"kernel_prior": tied, "kernel_posterior": MatrixNormal()}),
        "matrix normal, empirical Bayes": (
            local,
            {"kernel_prior": EmpiricalBayes(), "kernel_posterior": MatrixNormal()},
        ),
        "low rank, tied mean 0.5": (
            "DenseReparameterization",
            {"kernel_prior": tied, "kernel_posterior": LowRankNormal()},
        ),
        "rank-1, N(1, 1)": (rank1, {}),
        "rank-1, N(1, 0.3^2)": (rank1, narrow),
        "rank-1, N(1, 0.3^2), weights N(0, 3^2)": (rank1, {**narrow, "kernel_prior": weak}),
        "rank-1, N(1, 0.3^2), weights N(0, 1)": (rank1, {**narrow, "kernel_prior": Normal(0.0, 1.0)}),
        "rank-1, N(1, 0.3^2), broad inputs": (rank1, {**narrow, "first": broad}),
    }


def search_cases(folder: Path | None, seeds: int, names: list[str]) -> Iterator[Case]:
    """All candidates on all tasks."""
    for seed in range(seeds):
        for name in names:
            for width, activation in SEARCHED:
                yield Case("digits", name, seed, width, 2, activation)
            yield Case("diabetes", name, seed)
            for task in UCI_TASKS if folder is not None else ():
                yield Case(task, name, seed)


def variations(name: str, seeds: int) -> Iterator[Case]:
    """One candidate and its twin with one thing changed at a time, on digits."""
    changes: list[dict[str, Any]] = [
        *({"width": width} for width in (32, 128, 512, 1024)),
        *({"activation": activation} for activation in ("tanh", "gelu")),
        *({"depth": depth} for depth in (1, 3, 4)),
        *({"fraction": fraction} for fraction in (0.1, 0.3)),
        *({"activation": "tanh", "width": width} for width in (32, 1024)),
    ]
    own: list[dict[str, Any]] = [
        *({"initial_scale": scale} for scale in (0.01, 0.03, 0.3)),
        *({"warmup": warmup} for warmup in (0.0, 0.3, 0.6)),
        *(
            {"spread": spread, "width": width, "activation": activation}
            for spread in (0.25, 1.0)
            for width in (32, 1024)
            for activation in ("relu", "tanh")
        ),
        {"cycles": 4},
        {"num_samples": 4},
        *({"num_samples": 4, "width": width} for width in (32, 1024)),
        {"num_samples": 4, "objective": "multi_sample"},
    ]
    for seed in range(seeds):
        for change in (*changes, *own):
            candidate = FIXED_SPREAD if "spread" in change else name
            yield Case("digits", candidate, seed, **{**BASE, **change})
        for change in changes:
            yield Case("digits", "twin", seed, **{**BASE, **change})


def train(case: Case, folder: Path | None) -> Row:
    """Trains on four fifths of the training part and scores the last fifth."""
    import warnings

    import keras

    import bdl

    x, y, x_held, y_held, scale = load(case, folder)
    is_classifier = case.task == "digits"
    keras.backend.clear_session()
    keras.utils.set_random_seed(case.seed)
    likelihood = bdl.likelihoods.Categorical() if is_classifier else bdl.likelihoods.Normal()
    warmup = bdl.elbo.LinearWarmup(case.warmup) if case.warmup else 1.0
    kl_weight = bdl.elbo.CyclicalWarmup(case.cycles, case.warmup) if case.cycles > 1 else warmup
    objective = {"num_samples": case.num_samples, "objective": case.objective}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`network` has no variational layer")  # the twin has none
        made = network(case, x.shape[1], 10 if is_classifier else 1)
        model = bdl.VariationalModel(made, likelihood, kl_weight=kl_weight, **objective)
    model.compile("adam")
    start = time.perf_counter()
    epochs, batch_size = (100, 64) if is_classifier else (400, 32)
    history = model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0).history
    samples = 1 if case.candidate == "twin" else NUM_SAMPLES
    prediction = model.predict_distribution(x_held, num_samples=samples, batch_size=1024)
    row = {
        "nll": float(np.log(scale) - np.mean(prediction.log_prob(y_held))),
        "elbo": history["elbo"][-1],
        "temperature": history["temperature"][-1],
        "seconds": time.perf_counter() - start,
    }
    if is_classifier:
        return {**row, "accuracy": float(bdl.calibration.accuracy(y_held, prediction.probabilities))}
    error = np.sqrt(np.mean((np.ravel(prediction.mean) - np.ravel(y_held)) ** 2))
    return {**row, "rmse": float(scale * error)}


def load(case: Case, folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Training part, held-out part, and the targets' scale (1 for classes)."""
    scale = 1.0
    if case.task == "digits":
        x, y, _, _ = digits(case.seed)
        x = x.reshape(len(x), -1)
    elif case.task == "diabetes":
        from sklearn.datasets import load_diabetes
        from sklearn.preprocessing import scale as standardise

        x, y = load_diabetes(return_X_y=True)
        scale = float(y.std())
        x, y = standardise(x).astype("float32"), standardise(y).astype("float32")[:, None]
    else:
        assert folder is not None
        split = uci_split(folder, case.task, case.seed)
        x, y, scale = split.x, split.y[:, None], split.scale
    x, y, x_held, y_held = hold_out(x, y, 10_007 + case.seed)
    used = int(len(x) * case.fraction)
    return x[:used], y[:used], x_held, y_held, scale


def network(case: Case, inputs: int, outputs: int) -> Any:
    """The network of a case."""
    import keras

    import bdl

    kind, options = candidates()[case.candidate]
    layer = keras.layers.Dense if kind == "Dense" else getattr(bdl.layers, kind)
    first = options.get("first", options)
    others = {name: value for name, value in options.items() if name != "first"}
    sizes = [inputs, *[case.width] * case.depth]

    def made(number: int, units: int, activation: str | None) -> Any:
        own = dict(first if number == 0 else others)
        if case.spread:
            own["kernel_prior"] = replace(own["kernel_prior"], scale=bdl.priors.FanInNormal(case.spread))
        if case.initial_scale:
            own["kernel_posterior"] = bdl.posteriors.MeanFieldNormal(case.initial_scale / np.sqrt(sizes[number]))
        return layer(units, activation=activation, **own)

    hidden = [made(number, case.width, case.activation) for number in range(case.depth)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, made(case.depth, outputs, None)])


@app.command()
def search(
    data: DataFolder = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 2,
    names: Annotated[str, typer.Option(help="Candidates, separated by semicolons; all by default.")] = "",
    output: Output = RUN,
) -> None:
    """Trains all candidates on all tasks."""
    folder = folder_of(data)
    chosen = names.split(";") if names else list(candidates())
    run_all(partial(train, folder=folder), search_cases(folder, seeds, chosen), output)


@app.command()
def vary(
    name: Annotated[str, typer.Option(help="Candidate.")] = BY_WIDTH,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 3,
    output: Output = RUN,
) -> None:
    """Changes one thing at a time."""
    run_all(partial(train, folder=None), variations(name, seeds), output)


@app.command()
def report(run: Run = RUN, write: Write = False) -> None:
    """Prints the table of the search, the winner, and the variations; draws the figure."""
    rows = rows_of_run(run)
    places, ranks = ranking(grouped([row for row in rows if searched(row)], TASK))
    compared = [row for rows_of_task in places.values() for row in rows_of_task]
    publish("search", search_table(places, ranks), compared, ["candidate", *TASK], FIGURES, write)
    varied = beside_twins(rows)
    by = ["change", "candidate"]
    publish(
        "variations", variation_table(varied), varied, by, (*FIGURES, *(f"twin's {name}" for name in FIGURES)), write
    )
    if write:
        header = ("candidate", "mean rank", "to the best", "error", "accuracy gap", "equal to the best")
        write_csv(RESULTS / "search_ranks.csv", header, [astuple(rank) for rank in ranks])
        draw(rows)


def searched(row: Row) -> bool:
    """Whether a row belongs to the search, and not to the variations."""
    case = Case(row["task"], row["candidate"], row["seed"], row["width"], row["depth"], row["activation"])
    is_plain = key_of(case) == row["key"]
    return is_plain and (
        row["task"] != "digits" or (row["depth"] == 2 and (row["width"], row["activation"]) in SEARCHED)
    )


@dataclass(frozen=True)
class Rank:
    """A candidate's mean rank by validation NLL.

    Args:
        candidate: Its name.
        mean: Mean rank over tasks and seeds.
        to_best, error: Paired difference to the best, and its standard error.
        accuracy_gap: The largest distance of the mean accuracy to the twin's, over the tasks of digits.
        is_equal: Whether it counts as equal to the best by the rule.
    """

    candidate: str
    mean: float
    to_best: float
    error: float
    accuracy_gap: float
    is_equal: bool


Tasks = dict[tuple[Any, ...], list[Row]]


def ranking(tasks: Tasks) -> tuple[Tasks, list[Rank]]:
    """The tasks with the rows that all candidates have, and the candidates in the order of mean rank."""
    nll = {(row["candidate"], task, row["seed"]): row["nll"] for task, rows in tasks.items() for row in rows}
    counts = Counter((task, seed) for _, task, seed in nll)  # a place of the search has all, of the variations two
    places = sorted((place for place, count in counts.items() if 2 * count > max(counts.values())), key=str)
    tasks = {task: [row for row in rows if (task, row["seed"]) in places] for task, rows in tasks.items()}
    names = [name for name in dict.fromkeys(name for name, *_ in nll) if all((name, *place) in nll for place in places)]
    ranks = np.array([np.argsort(np.argsort([nll[name, *place] for name in names])) + 1 for place in places])
    is_digits = np.array([task[0] == "digits" for task, _ in places])
    weights = np.where(is_digits, 0.5 / max(is_digits.sum(), 1), 0.5 / max((~is_digits).sum(), 1))
    mean_rank = dict(zip(names, weights @ ranks, strict=True))
    gaps = {name: accuracy_gap(tasks, name) for name in names}
    order = sorted(names, key=lambda name: mean_rank[name])
    best = next(name for name in order if gaps[name] <= MAX_ACCURACY_GAP and name != "twin")
    found = []
    for name in order:
        differences = ranks[:, names.index(name)] - ranks[:, names.index(best)]
        mean = float(weights @ differences)
        error = float(np.sqrt(np.sum(weights**2 * (differences - mean) ** 2)))
        is_equal = mean <= error and gaps[name] <= MAX_ACCURACY_GAP and name != "twin"
        found.append(Rank(name, float(mean_rank[name]), mean, error, gaps[name], is_equal))
    return tasks, found


def search_table(tasks: Tasks, ranks: list[Rank]) -> str:
    """The table of the search, in the order of mean rank, with the paired difference to the first."""
    lines = []
    for rank in ranks:
        cells = [
            cell(chosen, "nll", 3) + (f" ({mean_and_error(chosen, 'accuracy')[0]:.3f})" if task[0] == "digits" else "")
            for task, rows in tasks.items()
            for chosen in [[row for row in rows if row["candidate"] == rank.candidate]]
        ]
        difference = f"{rank.to_best:+.1f} ± {rank.error:.1f}"
        lines.append([rank.candidate, f"{rank.mean:.1f}", difference, f"{rank.accuracy_gap:.3f}", *cells])
    header = ["candidate", "mean rank", "to the best", "accuracy gap", *(" ".join(map(str, task)) for task in tasks)]
    equal = "; ".join(rank.candidate for rank in ranks if rank.is_equal)
    return f"{markdown(header, lines)}\n\nBest, or within one standard error of it: {equal}."


def accuracy_gap(tasks: Tasks, name: str) -> float:
    """The largest distance of the mean accuracy to the twin's, over the tasks of digits."""
    gaps = [0.0]
    for task, rows in tasks.items():
        if task[0] == "digits":
            own, twin = (
                mean_and_error([row for row in rows if row["candidate"] == each], "accuracy")[0]
                for each in (name, "twin")
            )
            gaps.append(twin - own)
    return max(gaps)


def beside_twins(rows: list[Row]) -> list[Row]:
    """Rows of digits in the order of the table, with their `change` and the figures of the twin of the same seed."""
    defaults = {field.name: field.default for field in fields(Case)}
    varied = [{**defaults, **row} for row in rows if row["task"] == "digits"]
    usual = {name: value for name, value in {**defaults, **BASE}.items() if name not in ("task", "candidate", "seed")}
    for row in varied:
        row["change"] = change_of(row, usual)
    twins = {(row["change"], row["seed"]): row for row in varied if row["candidate"] == "twin"}
    for row in varied:
        twin = twins.get((row["change"], row["seed"]), {})
        row |= {f"twin's {figure}": twin.get(figure) for figure in FIGURES}
    several = [
        row
        for (_, candidate), group in grouped(varied, ["change", "candidate"]).items()
        for row in group
        if candidate != "twin" and len(group) >= 2  # the search alone has one seed
    ]
    return sorted(several, key=lambda row: (row["change"] != "none", row["change"], row["candidate"]))


def variation_table(rows: list[Row]) -> str:
    """What changes when one thing changes, on digits, of the candidate and of the twin."""
    lines = [
        [*key, str(len(group)), *(cell(group, f"{of}{figure}", 3) for of in ("", "twin's ") for figure in FIGURES)]
        for key, group in grouped(rows, ["change", "candidate"]).items()
    ]
    return markdown(["change", "candidate", "seeds", "accuracy", "NLL", "twin's accuracy", "twin's NLL"], lines)


def draw(rows: list[Row]) -> None:
    """Validation NLL and accuracy against the width, of the candidates that have all four widths."""
    from matplotlib.figure import Figure

    plain = [key_of(Case("digits", row["candidate"], row["seed"], row["width"], 2, "relu")) for row in rows]
    chosen = [row for row, key in zip(rows, plain, strict=True) if row["key"] == key]
    figure = Figure((9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    groups = grouped(chosen, ["candidate"])
    wide = [name for name, group in groups.items() if len({row["width"] for row in group}) >= 4]
    for place, name in enumerate(wide):
        group = groups[name]
        widths = sorted({row["width"] for row in group})
        for ax, column in zip(axes, ("nll", "accuracy"), strict=True):
            points = [mean_and_error([row for row in group if row["width"] == width], column) for width in widths]
            means, errors = zip(*points, strict=True)
            beside = [width * 1.05**place for width in widths]  # so that no error bar hides another
            ax.errorbar(beside, means, errors, label=name[0], marker="o", capsize=3)
    for ax, label in zip(axes, ("validation NLL (nats per example)", "validation accuracy"), strict=True):
        ax.set(xscale="log", xlabel="hidden units", ylabel=label)
        ax.set_xticks([32, 128, 512, 1024], ["32", "128", "512", "1024"])
        ax.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    app()
