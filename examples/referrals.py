"""Which samples should a person look at?
======================================

A network reads measurements of cell nuclei and says whether a tumour is malignant. Which samples does it pass on to a
person?

::

    python examples/referrals.py --figure referrals.png

The data are scikit-learn's: thirty measurements of nuclei in images of fine needle aspirates of 569 breast masses, 212
of them malignant (Wolberg, Street and Mangasarian, Wisconsin 1995). A classifier that can say "I do not know" passes
its most doubtful samples on to a person. Two questions decide whether this helps:

1. **Are errors ranked?** How many of the samples that the classifier keeps are wrong, and how many of all malignant
   tumours does it miss?
2. **Are strangers noticed?** Two kinds are made of the test samples. In the first, the decimal point of one measurement
   slipped to the right. In the second, half of the measurements are those of another patient: each number is as usual,
   but their combination is not.

Half of the samples train and half test, in five random splits. There are four models: logistic regression; a network
with one hidden layer of 32 units, the deterministic twin; the same network by `bdl.recipes.instead_of_ensemble`, with
random factors of the inputs and outputs of layers (rank-1), which `bdl.recipes.recommend` names for classification; and
by `fully_gaussian`, where each weight is Gaussian. The last two are fitted by the ELBO, at T = 1 in the end.

Doubt is the total uncertainty (t), the entropy of the mean probabilities, or its epistemic part (e), the mutual
information of label and weights, which is how much the draws of the network disagree. `distance` is the Mahalanobis
distance from the training samples, which uses no labels. The area is that under the share of errors as more samples are
kept. Numbers are means over the splits. The standard error of a difference allows for splits that share samples (Nadeau
and Bengio 2003, "Inference for the generalization error").

.. code-block:: text

                              logistic t  twin t  rank-1 t  rank-1 e  Gaussian t  Gaussian e  rank-1 t - twin  distance
    ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
    NLL, nats                      0.090   0.135     0.098     0.098       0.100       0.100   -0.037 ± 0.024
    wrong, 0% passed on, %         2.456   2.877     2.456     2.456       2.947       2.947   -0.421 ± 0.501
    wrong, 5% passed on, %         1.476   1.624     1.476     1.402       1.624       2.288   -0.148 ± 0.221
    wrong, 10% passed on, %        0.859   0.781     0.859     0.938       1.016       1.562   +0.078 ± 0.358
    wrong, 20% passed on, %        0.263   0.263     0.351     0.351       0.351       0.789   +0.088 ± 0.215
    missed, 0% passed on, %        5.094   5.660     4.717     4.717       5.660       5.660   -0.943 ± 1.033
    missed, 5% passed on, %        3.585   3.585     3.208     3.019       3.585       4.151   -0.377 ± 0.566
    missed, 10% passed on, %       2.075   1.887     2.075     2.264       2.453       3.208   +0.189 ± 0.865
    missed, 20% passed on, %       0.566   0.566     0.755     0.755       0.755       1.698   +0.189 ± 0.462
    area under the curve, %        0.271   0.306     0.297     0.303       0.375       0.488   -0.009 ± 0.077
    errors ranked, AUROC           0.920   0.924     0.916     0.912       0.913       0.878   -0.008 ± 0.007
    point slipped, AUROC           0.346   0.398     0.677     0.706       0.839       0.923   +0.280 ± 0.039     0.994
    patients mixed, AUROC          0.633   0.642     0.659     0.667       0.679       0.704   +0.018 ± 0.006     0.938

**All four models rank their errors about equally well** by total uncertainty. With none passed on, 2.5 to 2.9 % of
the samples are wrong, and 4.7 to 5.7 % of the malignant tumours are missed. With a tenth passed on, these are 0.8 to
1.0 % and 1.9 to 2.5 %. The twin's own softmax is enough, and so is logistic regression. The errors of the rank-1
network and of its twin differ nowhere by two standard errors. The epistemic part of the Gaussian network ranks
errors worst. Most errors probably lie where the two classes overlap, and the weights are not in doubt there.

**Strangers are another matter.** A slipped point throws a sample far from all others, and yet the twin is more certain
there than for true samples: its AUROC is .40, below that of chance, and logistic regression's .35. The rank-1 network
has .68 to .71. The epistemic part of the Gaussian network has .92, but it ranks errors worst. No network notices mixed
patients well: they have .64 to .70.

**Take both.** The distance from the training samples finds both kinds, with .99 and .94. Where strangers show in the
thirty numbers themselves, a check of the inputs belongs before the classifier, whatever its uncertainty.

.. image:: /images/referrals.png
   :alt: Accuracy among the samples that are kept, by the share passed on; and AUROC of strangers

See also :ref:`sphx_glr_gallery_doubtful_digits.py` and :ref:`sphx_glr_gallery_unseen_inputs.py`, for images. The data
are of one hospital. Nothing here says how a classifier fares on another's images, and this is no medical device.
"""

# sphinx_gallery_thumbnail_path = "images/referrals.png"

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import special
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler

import bdl
from bdl.calibration import out_of_distribution_auroc, risk_coverage_curve

SHARES = (0.0, 0.05, 0.1, 0.2)
"""Of the samples that are passed on."""


@dataclass(frozen=True)
class Split:
    """Standardised measurements, labels 1 of malignant tumours, and strangers among the test samples.

    Args:
        x, y: To train on.
        x_test, y_test: To test on.
        strangers: Samples that no tumour gave, by what is wrong with them.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    strangers: dict[str, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What a model says of samples.

    Args:
        p: Probability of a malignant tumour.
        doubts: Scores to rank by, higher is less certain, by name.
    """

    p: np.ndarray
    doubts: dict[str, np.ndarray]


def splits(number: int) -> Iterator[Split]:
    """Half of the samples to train on, half to test on, in many ways."""
    measured, benign = load_breast_cancer(return_X_y=True)
    for seed in range(number):
        parts = train_test_split(measured, 1 - benign, test_size=0.5, random_state=seed, stratify=benign)
        raw, raw_test, y, y_test = parts
        scale = StandardScaler().fit(raw)
        rng = np.random.default_rng(seed)
        slipped = raw_test.copy()
        rows = np.arange(len(slipped))
        slipped[rows, rng.integers(0, slipped.shape[1], len(rows))] *= 10.0
        mixed = raw_test.copy()
        half = rng.permutation(raw.shape[1])[: raw.shape[1] // 2]
        mixed[:, half] = mixed[rng.permutation(len(mixed))][:, half]
        strangers = {"point slipped": slipped, "patients mixed": mixed}
        ready = {name: scale.transform(each).astype("float32") for name, each in strangers.items()}
        x, x_test = (scale.transform(each).astype("float32") for each in (raw, raw_test))
        yield Split(x, y, x_test, y_test, ready)


def network(seed: int) -> keras.Model:
    """Two classes from 30 measurements."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((30,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(2)])


Predict = Callable[[np.ndarray], Answer]


def fit_line(split: Split, epochs: int, seed: int) -> Predict:
    """Logistic regression, its penalty by cross-validation."""
    penalties = {"C": np.logspace(-3, 2, 11)}
    model = GridSearchCV(LogisticRegression(max_iter=2000), penalties, scoring="neg_log_loss", cv=5)
    model.fit(split.x, split.y)
    return lambda x: _certain(model.decision_function(x))


def fit_twin(split: Split, epochs: int, seed: int) -> Predict:
    """A network without uncertainty of its weights."""
    model = network(seed)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(split.x, split.y, batch_size=32, epochs=epochs, verbose=0)

    def predict(x: np.ndarray) -> Answer:
        logits = model.predict(x, verbose=0, batch_size=512).astype("float64")
        return _certain(logits[:, 1] - logits[:, 0])

    return predict


def _certain(log_odds: np.ndarray) -> Answer:
    """Ranked by the log odds: entropies of many samples round to zero."""
    return Answer(special.expit(log_odds), {"total": -np.abs(log_odds)})


def fit_bayes(recipe: Callable[..., bdl.VariationalModel]) -> Callable[[Split, int, int], Predict]:
    """The same network by a recipe of `bdl.recipes`."""

    def fit(split: Split, epochs: int, seed: int) -> Predict:
        model = recipe(network(seed), bdl.likelihoods.Categorical(), seed=seed)
        model.fit(split.x, split.y, batch_size=32, epochs=epochs, verbose=0)

        def predict(x: np.ndarray) -> Answer:
            found = model.predict_distribution(x, num_samples=256, seed=0)
            return Answer(found.probabilities[:, 1], {"total": found.total_uncertainty, "epistemic": found.epistemic})

        return predict

    return fit


MODELS = {
    "logistic": fit_line,
    "twin": fit_twin,
    "rank-1": fit_bayes(bdl.recipes.instead_of_ensemble),
    "Gaussian": fit_bayes(bdl.recipes.fully_gaussian),
}
COLUMNS = [
    ("logistic", "total"),
    ("twin", "total"),
    ("rank-1", "total"),
    ("rank-1", "epistemic"),
    ("Gaussian", "total"),
]
COLUMNS += [("Gaussian", "epistemic")]


@dataclass(frozen=True)
class Run:
    """A model on one split.

    Args:
        answer: Of the test samples.
        strangers: Of those, by kind.
    """

    answer: Answer
    strangers: dict[str, Answer]


def figures(run: Run, y: np.ndarray, score: str) -> dict[str, float]:
    """What the table has of a run."""
    p, doubt = run.answer.p.astype("float64"), run.answer.doubts[score]
    wrong, missed = (p > 0.5) != y, (p <= 0.5) & (y == 1)
    curve, of_missed = risk_coverage_curve(wrong, doubt), risk_coverage_curve(missed, doubt)
    found = {"NLL, nats": -np.mean(special.xlogy(y, p) + special.xlog1py(1 - y, -p))}
    for share in SHARES:
        kept = round((1 - share) * len(y))
        found[f"wrong, {share:.0%} passed on, %"] = 100 * curve.risk[kept - 1]
    for share in SHARES:
        kept = round((1 - share) * len(y))
        found[f"missed, {share:.0%} passed on, %"] = 100 * of_missed.risk[kept - 1] * kept / y.sum()
    found |= {"area under the curve, %": 100 * curve.area}
    found |= {"errors ranked, AUROC": out_of_distribution_auroc(doubt[~wrong], doubt[wrong])}
    for name, each in run.strangers.items():
        found[f"{name}, AUROC"] = out_of_distribution_auroc(doubt, each.doubts[score])
    return found


def standard_error(values: np.ndarray) -> float:
    """Of a mean over splits that share samples (Nadeau and Bengio 2003), with as many test as training samples."""
    return float(np.std(values, ddof=1) * np.sqrt(1 / len(values) + 1.0))


def distances(split: Split) -> dict[str, float]:
    """AUROC of strangers by the Mahalanobis distance of the inputs, which needs no network."""
    training = LedoitWolf().fit(split.x)
    test = training.mahalanobis(split.x_test)
    return {
        f"{name}, AUROC": out_of_distribution_auroc(test, training.mahalanobis(x))
        for name, x in split.strangers.items()
    }


def report(runs: dict[str, list[Run]], parts: list[Split]) -> None:
    """Means over splits, ranked by total (t) or epistemic (e) uncertainty, and a difference with its standard error."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", *(f"{model} {score[0]}" for model, score in COLUMNS), "rank-1 t - twin", "distance"):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    each = {
        column: [figures(run, part.y_test, column[1]) for run, part in zip(runs[column[0]], parts, strict=True)]
        for column in COLUMNS
    }
    distance = [distances(part) for part in parts]
    for key in each[COLUMNS[0]][0]:
        values = {column: np.array([one[key] for one in many]) for column, many in each.items()}
        gap = values["rank-1", "total"] - values["twin", "total"]
        cells = [f"{values[column].mean():.3f}" for column in COLUMNS]
        by_distance = f"{np.mean([one[key] for one in distance]):.3f}" if key in distance[0] else ""
        table.add_row(key, *cells, f"{gap.mean():+.3f} ± {standard_error(gap):.3f}", by_distance)
    Console(width=120).print(table)


def draw(path: Path, runs: dict[str, list[Run]], parts: list[Split]) -> None:
    """Referral curves, and how strangers stand out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    colours = dict(zip(MODELS, ("0.4", "C1", "C0", "C2"), strict=True))
    for name, many in runs.items():
        curves = [
            risk_coverage_curve((run.answer.p > 0.5) != part.y_test, run.answer.doubts["total"])
            for run, part in zip(many, parts, strict=True)
        ]
        right_share = 100 * (1 - np.mean([curve.risk for curve in curves], axis=0))
        left.plot(100 * (1 - curves[0].coverage), right_share, color=colours[name], label=name)
    left.set(xlim=(0, 40), ylim=(None, 100.05), xlabel="passed on to a person [%]", ylabel="right among the others [%]")
    left.set_title(f"Referrals, by total uncertainty: mean of {len(parts)} splits")
    left.legend(frameon=False, loc="lower right")
    kinds = list(parts[0].strangers)
    shown = [("twin", "total"), ("rank-1", "total"), ("rank-1", "epistemic"), ("Gaussian", "epistemic")]
    for number, (model, score) in enumerate(shown):
        values = [
            [figures(run, part.y_test, score)[f"{kind}, AUROC"] for run, part in zip(runs[model], parts, strict=True)]
            for kind in kinds
        ]
        place = np.arange(len(kinds)) + 0.2 * (number - 1.5)
        style = {"color": colours[model], "alpha": 0.5 if (model, score) == ("rank-1", "total") else 1.0}
        ends = [standard_error(np.array(each)) for each in values]
        right.bar(place, np.mean(values, axis=1), 0.18, yerr=ends, label=f"{model}, {score}", **style)
    right.axhline(0.5, color="0.3", lw=1, ls=":")
    right.set(
        xticks=range(len(kinds)),
        xticklabels=kinds,
        ylim=(0, 1.25),
        yticks=np.linspace(0, 1, 6),
        ylabel="AUROC",
        title="Strangers told from samples",
    )
    right.legend(frameon=False, ncols=2, loc="upper center", fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    number: Annotated[int, typer.Option("--splits", help="Splits of the samples into halves.")] = 5,
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 80,
    figure: Annotated[Path | None, typer.Option(help="PNG of the referral curves.")] = None,
) -> None:
    """Fits all models on each split, and compares whom they pass on."""
    parts = list(splits(number))
    runs: dict[str, list[Run]] = {name: [] for name in MODELS}
    for seed, part in enumerate(parts):
        for name, fit in MODELS.items():
            predict = fit(part, epochs, seed)
            runs[name].append(Run(predict(part.x_test), {kind: predict(x) for kind, x in part.strangers.items()}))
    report(runs, parts)
    if figure is not None:
        draw(figure, runs, parts)


if __name__ == "__main__":
    typer.run(main)
