"""Which messages should a moderator read?
=======================================

A network sorts messages. It passes on those it doubts, and should notice messages of kinds that it was not trained on.

::

    python examples/moderation.py --figure moderation.png      # made messages, whose exact probabilities are known
    python examples/moderation.py --data DIR                    # questions of TREC; a few minutes

The made messages have 3 to 12 words, drawn independently from the words of one of four subjects. So Bayes' rule gives
the exact probabilities, and no classifier has fewer errors on average. TREC's questions ask for a description, a thing,
an abbreviation, a person, a number or a place. Each data set has strangers. One kind is a subject that training never
saw (of TREC the questions for places). Another is a language most of whose words are unknown: for TREC, Spanish
speeches of a parliament (Europarl), whose English speeches are a third kind. Words that occur once in training, or
never, are one word, "unknown". So the network has met it.

The network averages the vectors of the words, and has one hidden layer. Its Bayesian form is
`bdl.recipes.instead_of_ensemble`: random factors of each word, and of inputs and outputs of the dense layers, fitted by
the ELBO, at T = 1 in the end. It is compared with the plain network, its twin. Both are fitted with three seeds.

Doubt is the total uncertainty, the entropy of the mean probabilities, or its epistemic part, the mutual information of
label and weights. `wrong` is the share of errors among the messages that are kept, and the area is that under this
share as more messages are kept. Numbers are means over the seeds. The difference is that of total uncertainty. Its
standard error is by a bootstrap over messages, the same for both, and does not cover the spread over seeds.

TREC:

.. code-block:: text

                                 twin  Bayes, total  Bayes, epistemic  total less twin
    ───────────────────────────────────────────────────────────────────────────────────
    NLL, nats                   0.564         0.303             0.303   -0.261 ± 0.046
    wrong, 0% passed on, %     13.126        11.138            11.138   -1.989 ± 0.933
    wrong, 10% passed on, %     9.802         6.366             9.019   -3.436 ± 0.900
    wrong, 20% passed on, %     9.753         2.587             6.468   -7.166 ± 1.125
    wrong, 30% passed on, %     7.622         1.706             3.413   -5.916 ± 1.404
    area under the curve, %     4.339         2.238             2.950   -2.101 ± 0.539
    errors ranked, AUROC        0.787         0.891             0.828   +0.104 ± 0.027
    a subject left out, AUROC   0.708         0.828             0.793   +0.120 ± 0.022
    speeches, English, AUROC    0.717         0.853             0.814   +0.136 ± 0.014
    speeches, Spanish, AUROC    0.726         0.934             0.742   +0.208 ± 0.014

Made messages:

.. code-block:: text

                                 twin  Bayes, total  Bayes, epistemic  total less twin   exact
    ───────────────────────────────────────────────────────────────────────────────────────────
    NLL, nats                   1.048         0.713             0.713   -0.335 ± 0.029   0.524
    wrong, 0% passed on, %     27.400        25.533            25.533   -1.867 ± 0.585  21.300
    wrong, 10% passed on, %    22.481        20.630            21.259   -1.852 ± 0.557  15.556
    wrong, 20% passed on, %    18.208        15.833            18.417   -2.375 ± 0.603  11.750
    wrong, 30% passed on, %    14.762        11.476            14.381   -3.286 ± 0.680   6.857
    area under the curve, %     9.316         7.581             8.527   -1.736 ± 0.275   4.816
    errors ranked, AUROC        0.836         0.861             0.827   +0.025 ± 0.008   0.895
    a subject left out, AUROC   0.687         0.733             0.753   +0.046 ± 0.009
    another language, AUROC     0.794         0.802             0.715   +0.009 ± 0.007

On TREC the Bayesian network, by total uncertainty, is ahead in every figure, by two standard errors or more. With a
fifth of the questions passed on, 2.6 % of the others are wrong, and 9.8 % of the twin's: the twin is sure of many of
its errors. Not all of this is due to Bayes: the recipe also averages its last iterates, and the twin, which has as many
steps, is not stopped early.

On made messages the twin's area under the curve is 4.5 points above that of the exact probabilities, and the Bayesian
network's 2.8: with 2,000 messages the subjects' words are not known well. The Bayesian network notices another language
no better than the twin does. Nearly all of its words are "unknown", a word that was met in training.

Total uncertainty ranks errors better than its epistemic part. Many errors are probably of messages that say little
about their subject, and the weights are not in doubt there.

.. image:: /images/moderation.png
   :alt: Accuracy among the messages that are kept, by the share passed on; and the uncertainty of strangers

The figure is of TREC. See also :ref:`sphx_glr_gallery_referrals.py`, for measurements of tumours, where the twin ranks
its errors as well as the Bayesian network does.
"""

# sphinx_gallery_thumbnail_path = "images/moderation.png"

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Callable, Sequence
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

import bdl
from bdl.calibration import out_of_distribution_auroc, risk_coverage_curve
from bdl.prediction import ClassificationPrediction

MAX_WORDS = 32
UNKNOWN = 1
"""Number of all words that training met less than twice; 0 pads."""
SHARES = (0.0, 0.1, 0.2, 0.3)
"""Of the messages that are passed on."""
NUM_CLASSES, NUM_WORDS = 5, 400
"""Of the messages that are made."""
HELD_OUT = {"made": 4, "TREC": 4}
"""Class that training never sees: a fifth subject, and questions for places."""


@dataclass(frozen=True)
class Messages:
    """Numbers of words, and classes.

    Args:
        x, y: To train on, `(n, MAX_WORDS)` and `(n,)`.
        x_test, y_test: To test on.
        strangers: Messages of other kinds, by name.
        best: Exact probabilities of the test messages' classes, where they are known.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    strangers: dict[str, np.ndarray]
    best: np.ndarray | None = None


def numbered(texts: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """Texts as numbers of their words."""
    x = np.zeros((len(texts), MAX_WORDS), "int32")
    for row, text in zip(x, texts, strict=True):
        words = text.lower().split()[:MAX_WORDS]
        row[: len(words)] = [numbers.get(word, UNKNOWN) for word in words]
    return x


def vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """Numbers of the words that occur twice or more."""
    counts = Counter(word for text in texts for word in text.lower().split())
    return {word: number for number, word in enumerate(sorted(w for w, n in counts.items() if n > 1), UNKNOWN + 1)}


def read(path: Path, what: str) -> list[list[str]]:
    """The lines of a table, without the first."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It holds {what}.")
    with gzip.open(path, "rt") as file:
        return [line.rstrip("\n").split("\t") for line in file][1:]


def load(folder: Path) -> Messages:
    """Questions of TREC but for those that ask for a place; these, and speeches of a parliament, are strangers."""
    rows = read(folder / "text" / "trec.tsv.gz", "TREC's question classification, as split, label and text")
    speeches = read(folder / "align_europarl_en_es" / "dev.tsv.gz", "Europarl's sentence pairs, English and Spanish")
    held_out = str(HELD_OUT["TREC"])
    parts = {
        split: [(int(label), text) for each, label, text in rows if each == split and label != held_out]
        for split in ("train", "test")
    }
    numbers = vocabulary([text for _, text in parts["train"]])
    (y, x), (y_test, x_test) = (
        (_without_gap(np.array([label for label, _ in part])), numbered([text for _, text in part], numbers))
        for part in parts.values()
    )
    places = [text for split, label, text in rows if split == "test" and label == held_out]
    strangers = {
        "a subject left out": numbered(places, numbers),
        "speeches, English": numbered([row[0] for row in speeches], numbers),
        "speeches, Spanish": numbered([row[1] for row in speeches], numbers),
    }
    return Messages(x, y, x_test, y_test, strangers)


def _without_gap(labels: np.ndarray) -> np.ndarray:
    """Classes 0, 1, ... without the one left out."""
    return labels - (labels > HELD_OUT["TREC"])


def generate(number: int, seed: int) -> Messages:
    """Messages of 3 to 12 words, which are independent given the subject: Bayes' rule tells the exact probabilities."""
    rng = np.random.default_rng(seed)
    common = rng.dirichlet(np.full(NUM_WORDS, 0.3))
    own = rng.dirichlet(np.full(NUM_WORDS, 0.05), NUM_CLASSES)
    chances = 0.75 * common + 0.25 * own
    held_out = HELD_OUT["made"]

    def messages(count: int, subjects: np.ndarray) -> tuple[list[str], np.ndarray]:
        texts, logits = [], np.zeros((count, NUM_CLASSES))
        for row, subject in enumerate(subjects):
            words = rng.choice(NUM_WORDS, rng.integers(3, 13), p=chances[subject])
            texts.append(" ".join(f"word{word}" for word in words))
            logits[row] = np.log(chances[:, words]).sum(1)
        return texts, special.softmax(logits[:, :held_out], axis=1)

    y, y_test = rng.integers(0, held_out, number), rng.integers(0, held_out, 1000)
    texts, _ = messages(number, y)
    tests, best = messages(1000, y_test)
    others, _ = messages(300, np.full(300, held_out))
    foreign = [" ".join(word if rng.random() < 0.15 else "palabra" for word in text.split()) for text in tests[:300]]
    numbers = vocabulary(texts)
    strangers = {"a subject left out": numbered(others, numbers), "another language": numbered(foreign, numbers)}
    return Messages(numbered(texts, numbers), y, numbered(tests, numbers), y_test, strangers, best)


def network(num_words: int, classes: int, seed: int) -> keras.Model:
    """The mean of the words' vectors, and two layers."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((MAX_WORDS,), dtype="int32"),
            keras.layers.Embedding(num_words, 64, mask_zero=True),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(classes),
        ]
    )


Predict = Callable[[np.ndarray], ClassificationPrediction]


@dataclass(frozen=True)
class Run:
    """What a model says.

    Args:
        p: Probabilities of the test messages' classes, `(n, classes)`.
        doubts: Of the test messages, by score, `(n,)`, in nats.
        strangers: The same of each kind of strangers.
    """

    p: np.ndarray
    doubts: dict[str, np.ndarray]
    strangers: dict[str, dict[str, np.ndarray]]

    @classmethod
    def of(cls, predict: Predict, data: Messages) -> Run:
        """All that is asked of a model."""
        test, others = predict(data.x_test), {name: predict(x) for name, x in data.strangers.items()}
        return cls(test.probabilities, _doubts(test), {name: _doubts(each) for name, each in others.items()})


def _doubts(found: ClassificationPrediction) -> dict[str, np.ndarray]:
    parts = {"total": found.total_uncertainty}
    return parts | ({"epistemic": found.epistemic} if found.num_samples > 1 else {})


def figures(run: Run, y: np.ndarray, score: str, rng: np.random.Generator | None = None) -> dict[str, float]:
    """What a table has of a run, of all messages or, with a generator, of a resample of them."""
    rows = np.arange(len(y)) if rng is None else rng.integers(0, len(y), len(y))
    p, y, doubt = run.p[rows], y[rows], run.doubts[score][rows]
    wrong = p.argmax(1) != y
    curve = risk_coverage_curve(wrong, doubt)
    found = {"NLL, nats": -np.mean(np.log(p[np.arange(len(y)), y]))}
    for share in SHARES:
        kept = round((1 - share) * len(y))
        found[f"wrong, {share:.0%} passed on, %"] = 100 * curve.risk[kept - 1]
    found |= {"area under the curve, %": 100 * curve.area}
    found |= {"errors ranked, AUROC": out_of_distribution_auroc(doubt[~wrong], doubt[wrong])}
    for name, doubts in run.strangers.items():
        others = doubts[score]
        others = others if rng is None else rng.choice(others, len(others))
        found[f"{name}, AUROC"] = out_of_distribution_auroc(doubt, others)
    return found


def fit_twin(data: Messages, epochs: int, seed: int) -> Predict:
    """A network without uncertainty of its weights."""
    model = network(int(data.x.max()) + 1, int(data.y.max()) + 1, seed)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.x, data.y, batch_size=50, epochs=epochs, verbose=0)
    return lambda x: bdl.predict_distribution(model, x, bdl.likelihoods.Categorical(), num_samples=1, seed=0)


def fit_bayes(data: Messages, epochs: int, seed: int) -> Predict:
    """The same network with random factors of words, inputs and outputs."""
    plain = network(int(data.x.max()) + 1, int(data.y.max()) + 1, seed)
    model = bdl.recipes.instead_of_ensemble(plain, bdl.likelihoods.Categorical(), seed=seed)
    model.fit(data.x, data.y, batch_size=50, epochs=epochs, verbose=0)
    return lambda x: model.predict_distribution(x, num_samples=64, seed=0)


def compared(runs: dict[str, list[Run]], y: np.ndarray, seed: int, resamples: int = 200) -> dict[str, np.ndarray]:
    """Each figure of twin, Bayesian network by total and by epistemic uncertainty, their difference and its error.

    Figures are means over the seeds of the fits. The difference is that of the second less the first; its standard
    error is by a bootstrap over messages, the same for both.
    """

    def row(number: int | None = None) -> dict[str, np.ndarray]:
        def drawn() -> np.random.Generator | None:  # the same resample for every run
            return None if number is None else np.random.default_rng([seed, number])

        columns = (("twin", "total"), ("Bayes", "total"), ("Bayes", "epistemic"))
        each = [[figures(run, y, score, drawn()) for run in runs[name]] for name, score in columns]
        return {key: np.array([np.mean([one[key] for one in many]) for many in each]) for key in each[0][0]}

    whole, resampled = row(), [row(number) for number in range(resamples)]
    error = {key: np.std([one[key][1] - one[key][0] for one in resampled], ddof=1) for key in whole}
    return {key: np.array([*values, values[1] - values[0], error[key]]) for key, values in whole.items()}


def report(found: dict[str, np.ndarray], best: dict[str, float] | None) -> None:
    """Prints the comparison."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", "twin", "Bayes, total", "Bayes, epistemic", "total less twin", *(["exact"] if best else [])):
        table.add_column(column, justify="right" if table.columns else "left", no_wrap=True)
    for key, (twin, total, epistemic, difference, error) in found.items():
        cells = [f"{each:.3f}" for each in (twin, total, epistemic)]
        exact = [f"{best[key]:.3f}" if key in best else ""] if best else []
        table.add_row(key, *cells, f"{difference:+.3f} ± {error:.3f}", *exact)
    Console(width=120).print(table)


def draw(path: Path, runs: dict[str, list[Run]], data: Messages) -> None:
    """The referral curves, and the uncertainty of messages and strangers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for (name, many), colour in zip(runs.items(), ("C1", "C0"), strict=True):
        curves = [risk_coverage_curve(run.p.argmax(1) != data.y_test, run.doubts["total"]) for run in many]
        right_share = 100 * (1 - np.array([curve.risk for curve in curves]))
        passed = 100 * (1 - curves[0].coverage)
        left.plot(
            passed, right_share.mean(0), color=colour, label={"twin": "deterministic twin", "Bayes": "Bayesian"}[name]
        )
        left.fill_between(passed, right_share.min(0), right_share.max(0), color=colour, alpha=0.2, lw=0)
    if data.best is not None:
        curve = risk_coverage_curve(data.best.argmax(1) != data.y_test, special.entr(data.best).sum(1))
        left.plot(100 * (1 - curve.coverage), 100 * (1 - curve.risk), color="0.3", ls=":", label="exact probabilities")
    left.set(xlim=(0, 60), ylim=(None, 100.5), xlabel="passed on to a person [%]", ylabel="right among the others [%]")
    left.set_title("Referrals: mean and range over fits")
    left.legend(frameon=False, loc="lower right")
    first = runs["Bayes"][0]
    shown = {"messages": first.doubts["total"], **{name: each["total"] for name, each in first.strangers.items()}}
    ends = np.linspace(0, max(each.max() for each in shown.values()), 31)
    for number, (name, values) in enumerate(shown.items()):
        style: dict = {"histtype": "stepfilled", "alpha": 0.3} if number == 0 else {"histtype": "step", "lw": 1.6}
        right.hist(values, ends, density=True, color=("0.4", "C0", "C1", "C2")[number], label=name, **style)
    right.set(xlabel="total uncertainty [nats]", ylabel="density", title="Strangers: the Bayesian network")
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with text/trec.tsv.gz; else BDL_DATA.")] = None,
    rows: Annotated[int, typer.Option(help="Messages to train on that are made where there are no data.")] = 2000,
    epochs: Annotated[int, typer.Option(help="Passes over the messages.")] = 12,
    fits: Annotated[int, typer.Option(help="Fits of each network, with seeds of their own.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the first fit, and of what is made.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG of the referral curves.")] = None,
) -> None:
    """Fits both networks, and compares whom they pass on."""
    folder = data or (Path(os.environ["BDL_DATA"]) if "BDL_DATA" in os.environ else None)
    messages = load(folder) if folder else generate(rows, seed)
    print(f"{len(messages.y):,} messages to train on, {len(messages.y_test):,} to test on", flush=True)
    runs: dict[str, list[Run]] = {"twin": [], "Bayes": []}
    for number in range(seed, seed + fits):
        for name, fit in {"twin": fit_twin, "Bayes": fit_bayes}.items():
            runs[name].append(Run.of(fit(messages, epochs, number), messages))
    best = None
    if messages.best is not None:
        best = figures(Run(messages.best, {"exact": special.entr(messages.best).sum(1)}, {}), messages.y_test, "exact")
    report(compared(runs, messages.y_test, seed), best)
    if figure is not None:
        draw(figure, runs, messages)


if __name__ == "__main__":
    typer.run(main)
