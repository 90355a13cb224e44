"""`bdl.sklearn` beside scikit-learn's own estimators, at default settings, on the data sets that scikit-learn brings.

Each case is a data set and a seed, which decides the test fifth and everything that an estimator draws. All estimators
of a case are trained one after the other in one process of one thread, on standardised inputs. Printed are means over
the seeds ± the standard error, and in brackets the paired difference to bdl: what a peer has more. NLL (nats per
example and target) and RMSE are of targets in standard deviations of the training part. Time is CPU time of fit and
prediction, compilation included, as the ratio of bdl's to the peer's in each case (median, least and greatest).

    python benchmarks/sklearn_table.py run              # ten minutes of CPU time, resumable
    python benchmarks/sklearn_table.py report --write   # the tables go into docs/explain/sklearn.md
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from runs import Row, cell, grouped, markdown, replace_section, rows_of_run, run_all, write_summary
from scipy import stats
from sklearn import datasets
from sklearn.base import BaseEstimator
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

app = typer.Typer(add_completion=False)
HERE = Path(__file__).parent
RUN = HERE / "runs" / "sklearn_table.jsonl"
PAGE = HERE.parent / "docs" / "explain" / "sklearn.md"
SEEDS = 5
SLOW_CLASSES = 1_000
"""Examples from which the Gaussian process classifier, which needs their cube in time, takes no part."""
CLASSES: dict[str, Callable[..., Any]] = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}
TARGETS = ("diabetes", "friedman1", "linnerud", "60 of diabetes", "60 of friedman1")
FEW = 60
"""Training examples of tasks that begin with this number."""
LOW, HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Case:
    """A data set and a seed.

    Args:
        data: Name of the data set.
        seed: Decides the split and what estimators draw.
    """

    data: str
    seed: int


@dataclass(frozen=True)
class Gaussian:
    """Predictions of an estimator that gives a mean and a standard deviation."""

    mean: np.ndarray
    std: np.ndarray

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density of targets, in nats."""
        return stats.norm(self.mean, self.std).logpdf(y)

    def quantile(self, levels: Sequence[float]) -> np.ndarray:
        """`(levels, n, targets)`."""
        return np.stack([stats.norm(self.mean, self.std).ppf(level) for level in levels])


@app.command()
def run(output: Annotated[Path, typer.Option(help="File of JSON lines.")] = RUN, workers: int = 1) -> None:
    """Trains what is not there yet."""
    cases = [Case(data, seed) for seed in range(SEEDS) for data in (*CLASSES, *TARGETS)]
    run_all(train, cases, output, workers)


def train(case: Case) -> Row:
    """Figures of all estimators, such as `bdl/nll`."""
    warnings.simplefilter("ignore")  # of bounds and iterations, by scikit-learn
    if case.data in CLASSES:
        x, y = CLASSES[case.data](return_X_y=True)
        parts = train_test_split(x, y, test_size=0.2, random_state=case.seed, stratify=y)
        found = {name: classify(estimator, *parts) for name, estimator in classifiers(case.seed, len(x)).items()}
    else:
        x, y = load_targets(case)
        size = {"train_size": FEW} if case.data.startswith(f"{FEW} of ") else {"test_size": 0.2}
        parts = train_test_split(x, y, **size, random_state=case.seed)
        estimators = regressors(case.seed, *parts[0].shape)
        found = {name: regress(name, estimator, *parts) for name, estimator in estimators.items()}
    return {f"{name}/{figure}": value for name, row in found.items() for figure, value in row.items()}


def load_targets(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `(n, targets)`."""
    name = case.data.removeprefix(f"{FEW} of ")
    if name == "friedman1":
        x, y = datasets.make_friedman1(n_samples=500, noise=1.0, random_state=case.seed)
    else:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x, y.reshape(len(y), -1)


def classifiers(seed: int, num_examples: int) -> dict[str, BaseEstimator]:
    """Estimators by name."""
    from bdl.sklearn import BayesianClassifier

    found = {
        "bdl": BayesianClassifier(random_state=seed),
        "MLPClassifier": scaled(MLPClassifier((50,), max_iter=1_000, random_state=seed)),
        "LogisticRegression": scaled(LogisticRegression(max_iter=1_000)),
    }
    if num_examples < SLOW_CLASSES:
        found["GaussianProcessClassifier"] = scaled(GaussianProcessClassifier(ConstantKernel() * RBF()))
    return found


def regressors(seed: int, num_examples: int, num_features: int) -> dict[str, BaseEstimator]:
    """Estimators by name; the Gaussian process learns a length scale for each input, and the noise."""
    from bdl.recommendation import FEW_TARGETS
    from bdl.sklearn import BayesianRegressor

    other = "small_data" if num_examples < FEW_TARGETS else "fully_gaussian"  # than the one by default
    kernel = ConstantKernel() * RBF(np.ones(num_features)) + WhiteKernel()
    return {
        "bdl": BayesianRegressor(random_state=seed),
        f"bdl, {other}": BayesianRegressor(recipe=other, random_state=seed),
        "BayesianRidge": scaled(BayesianRidge()),
        "GaussianProcessRegressor": scaled(GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)),
    }


def scaled(estimator: BaseEstimator) -> BaseEstimator:
    """An estimator behind standardisation, which bdl's do themselves."""
    return make_pipeline(StandardScaler(), estimator)


def classify(estimator: BaseEstimator, x: np.ndarray, x_test: np.ndarray, y: np.ndarray, y_test: np.ndarray) -> Row:
    """Accuracy, NLL and seconds."""
    start = time.process_time()
    p = estimator.fit(x, y).predict_proba(x_test)
    seconds = time.process_time() - start
    return {"accuracy": float(np.mean(p.argmax(1) == y_test)), "nll": float(log_loss(y_test, p)), "seconds": seconds}


def regress(
    name: str, estimator: BaseEstimator, x: np.ndarray, x_test: np.ndarray, y: np.ndarray, y_test: np.ndarray
) -> Row:
    """RMSE, NLL, coverage of central 90 % intervals and seconds."""
    start = time.process_time()
    prediction = predict(name, estimator, x, x_test, y)
    mean, *interval = (values.reshape(y_test.shape) for values in (prediction.mean, *prediction.quantile([LOW, HIGH])))
    seconds = time.process_time() - start
    log_p = prediction.log_prob(y_test.reshape(prediction.mean.shape)).reshape(y_test.shape)
    unit = y.std(axis=0)
    return {
        "rmse": float(np.sqrt(np.mean(((mean - y_test) / unit) ** 2))),
        "nll": float(-np.mean(log_p + np.log(unit))),
        "coverage": float(np.mean((interval[0] <= y_test) & (y_test <= interval[1]))),
        "seconds": seconds,
    }


def predict(name: str, estimator: BaseEstimator, x: np.ndarray, x_test: np.ndarray, y: np.ndarray) -> Any:
    """The predictive distribution of an estimator after its training."""
    if name.startswith("bdl"):
        return estimator.fit(x, y).predict_distribution(x_test)
    if name == "BayesianRidge":  # of one target at a time
        found = [estimator.fit(x, target).predict(x_test, return_std=True) for target in y.T]
        return Gaussian(*(np.stack(parts, axis=1) for parts in zip(*found, strict=True)))
    return Gaussian(*estimator.fit(x, y).predict(x_test, return_std=True))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="File of JSON lines that `run` made.")] = RUN,
    write: Annotated[bool, typer.Option(help="Put the tables into docs, and into benchmarks/results.")] = False,
) -> None:
    """Prints the tables."""
    rows = rows_of_run(run)
    for section, names, figures in (
        ("classes", tuple(CLASSES), ("accuracy", "nll")),
        ("targets", TARGETS, ("rmse", "nll", "coverage")),
    ):
        own = [row for row in rows if row["data"] in names]
        text = table(own, figures)
        print(text, end="\n\n")
        if write:
            replace_section(PAGE, f"sklearn-{section}", text)
            compared = (*figures, *(f"{figure} - bdl" for figure in figures), "seconds")
            file = HERE / "results" / f"sklearn_{section}.csv"
            write_summary(file, by_estimator(own, figures), ["data", "estimator"], compared)


def names_of(row: Row) -> list[str]:
    """The estimators of a row."""
    return [key.removesuffix("/nll") for key in row if key.endswith("/nll")]


def by_estimator(rows: Sequence[Row], figures: Sequence[str]) -> list[Row]:
    """A row for each case and estimator, with the paired differences to bdl."""
    return [
        {
            "data": row["data"],
            "estimator": name,
            **{figure: row[f"{name}/{figure}"] for figure in (*figures, "seconds")},
            **(
                {f"{figure} - bdl": row[f"{name}/{figure}"] - row[f"bdl/{figure}"] for figure in figures}
                if name != "bdl"
                else {}
            ),
        }
        for row in rows
        for name in names_of(row)
    ]


def table(rows: Sequence[Row], figures: Sequence[str]) -> str:
    """A line for each data set and estimator."""
    lines = []
    for (data,), group in grouped(rows, ["data"]).items():
        for name in names_of(group[0]):
            lines.append([data, name, *(against_bdl(group, name, figure) for figure in figures), time_of(group, name)])
    return markdown(["data", "estimator", *figures, "bdl's time / its time"], lines)


def against_bdl(rows: Sequence[Row], name: str, figure: str) -> str:
    """A figure, and in brackets what it is more than bdl's, paired; coverage is compared with .9 by the reader."""
    value = cell(rows, f"{name}/{figure}", 3)
    if name == "bdl" or figure == "coverage":
        return value
    more = [{"more": row[f"{name}/{figure}"] - row[f"bdl/{figure}"]} for row in rows]
    return f"{value} ({cell(more, 'more', 3, sign='+')})"


def time_of(rows: Sequence[Row], name: str) -> str:
    """The seconds of bdl, and for peers the ratio of bdl's to theirs: median (least to greatest)."""
    if name == "bdl":
        seconds = [row["bdl/seconds"] for row in rows]
        return f"{np.median(seconds):.1f} s"
    ratios = [row["bdl/seconds"] / row[f"{name}/seconds"] for row in rows]
    return f"{np.median(ratios):.3g} ({min(ratios):.3g}-{max(ratios):.3g})"


if __name__ == "__main__":
    app()
