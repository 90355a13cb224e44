"""What the demonstration adds to the page of its evaluation: how the networks came about, and what is unfamiliar."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Sequence

import keras
import numpy as np

from bdl import plots
from bdl.demo import BATCH_SIZE, BAYESIAN, NUM_SAMPLES, TWIN, DemoResult, Detection
from bdl.evaluation import MEANINGS, Evaluation
from bdl.report import Figure, Page, Paragraph, Row, Section, Table

NUM_EXAMPLE_IMAGES = 8
NO_VALUE = "none"


def comparison_table(result: DemoResult) -> Table:
    """All scores of the evaluation, and what a demonstration adds to them."""
    scores, added = result.evaluation.table(), _added_rows(result)
    return dataclasses.replace(scores, rows=[*scores.rows, *added])


def build_page(result: DemoResult) -> Page:
    """The page of the evaluation with the demonstration's own sections around it."""
    page = result.evaluation.page("How sure is the network?")
    return dataclasses.replace(
        page,
        summary="\n".join([page.summary, _comparison(result.evaluation), _detection(result)]),
        sections=[
            _networks(result),
            *page.sections,
            _unfamiliar(result),
            _training(result),
            _examples(result),
        ],
        footer=f"{_made_by(result)} {page.footer}",
    )


def _comparison(evaluation: Evaluation) -> str:
    """Where the Bayesian network is better than its twin, and where it is worse, with the figures."""
    sides: dict[str, list[str]] = {BAYESIAN: [], TWIN: []}
    for score in evaluation.models[BAYESIAN].scores:
        for winner in evaluation.best(score):
            bayesian, twin = (evaluation.models[name].scores[score].value for name in (BAYESIAN, TWIN))
            sides[winner].append(f"{MEANINGS[score].title} ({bayesian:.3g} against {twin:.3g})")
    better, worse = (", ".join(sides[name]) or "none" for name in (BAYESIAN, TWIN))
    return (
        f"Scores in which the Bayesian network is better than its twin: {better}. Scores in which it is worse: {worse}."
    )


def _detection(result: DemoResult) -> str:
    epistemic, entropy = result.bayesian.detection_by_epistemic, result.twin.detection_by_entropy
    return (
        "Then both are shown pictures that are no upright digits. The Bayesian network's epistemic uncertainty ranks "
        f"them above a test digit in {_rates(epistemic)} of all pairs; the twin's entropy, the only uncertainty that "
        f"it has, in {_rates(entropy)}. Chance is 50%."
    )


def _rates(detection: Detection) -> str:
    return f"{detection.noise:.1%} (noise) and {detection.rotated:.1%} (digits turned by 90 degrees)"


def _added_rows(result: DemoResult) -> list[Row]:
    bayesian, twin = result.bayesian, result.twin
    epistemic, entropy = bayesian.detection_by_epistemic, bayesian.detection_by_entropy
    twin_entropy = twin.detection_by_entropy
    chance = "1 is always, 0.5 is chance, less is worse than chance."
    return [
        _detection_row(
            "AUROC of epistemic uncertainty, rotated",
            (epistemic.rotated,),
            f"How often a digit turned by 90 degrees has more of it than a test digit; {chance}",
        ),
        _detection_row(
            "AUROC of epistemic uncertainty, noise",
            (epistemic.noise,),
            "The same for images of uniform noise; the twin has no epistemic part.",
        ),
        _detection_row(
            "AUROC of predictive entropy, rotated",
            (entropy.rotated, twin_entropy.rotated),
            "The same by total uncertainty, the only one that the twin can offer.",
        ),
        _detection_row(
            "AUROC of predictive entropy, noise", (entropy.noise, twin_entropy.noise), "The same for noise."
        ),
        Row(
            "Temperature T at the end",
            (f"{bayesian.history['temperature'][-1]:.2f}", NO_VALUE),
            "Weight of the KL divergence in the last epoch; 1 is Bayes' rule.",
        ),
        Row(
            "Trainable parameters",
            (f"{bayesian.num_parameters:,}", f"{twin.num_parameters:,}"),
            "The Bayesian network adds the means and scales of its random factors.",
        ),
        Row("Training [s]", (f"{bayesian.seconds:.1f}", f"{twin.seconds:.1f}"), "Wall time, compilation included."),
    ]


def _detection_row(name: str, values: Sequence[float], meaning: str) -> Row:
    """A row of both networks, or of the Bayesian one alone; the better is marked."""
    shown = [f"{value:.3f}" for value in values]
    best = [place for place, text in enumerate(shown) if len(set(shown)) > 1 and text == max(shown)]
    return Row(name, [*shown, NO_VALUE][:2], meaning, best)


def _networks(result: DemoResult) -> Section:
    return Section(
        "The two networks",
        [
            Paragraph(
                f"Two convolutional networks of the same sizes were trained for {result.epochs} epochs at batch size "
                f"{BATCH_SIZE} by Adam on {len(result.digits.y_train):,} digits; one of them is Bayesian. Its "
                f"prediction is the mean over {NUM_SAMPLES} random draws of the network. Both are scored on "
                f"{len(result.digits.y_test)} digits that training never saw."
            ),
            Paragraph(
                "What is Bayesian here: every layer multiplies its inputs and outputs by random factors, and these "
                "have a posterior distribution (rank-1 layers). The weights themselves are point estimates, fitted by "
                "maximum likelihood: variational EM, not full Bayes. The factors on the inputs of the first dense "
                "layer have a broad prior. The data narrow those that they need; those of features that digits never "
                "use stay broad, so that an unfamiliar image, which does use them, gets another answer in every draw."
            ),
        ],
    )


def _unfamiliar(result: DemoResult) -> Section:
    epistemic, detection = result.bayesian.epistemic, result.bayesian.detection_by_epistemic
    scores = {"test digits": epistemic["test"], "rotated digits": epistemic["rotated"], "noise": epistemic["noise"]}
    histogram = Figure(
        functools.partial(plots.score_histograms, scores, xlabel="epistemic uncertainty [nats]"),
        "Epistemic uncertainty of the Bayesian network: the part of its doubt that more data could remove, measured as "
        "the mutual information of label and network. Test digits should lie on the left, the others on the right. "
        "Some rotated digits are digits still: a 0 stays a 0.",
        "Histograms of epistemic uncertainty. It tells test digits from rotated digits with an AUROC of "
        f"{detection.rotated:.3f}, and from noise with {detection.noise:.3f}.",
    )
    table = Table((BAYESIAN, TWIN), _added_rows(result))
    return Section("Does it know what it has never seen?", [histogram, table])


def _training(result: DemoResult) -> Section:
    history, num_examples = result.bayesian.history, len(result.digits.y_train)
    first_and_last = [
        f"{name} from {values[0]:.3g} to {values[-1]:.3g}"
        for name, values in (
            ("negative ELBO", [-elbo for elbo in history["elbo"]]),
            ("KL divergence per example", [kl / num_examples for kl in history["kl"]]),
            ("negative log likelihood", history["nll"]),
        )
    ]
    curves = Figure(
        functools.partial(plots.elbo_parts, history, num_examples=num_examples),
        "What the Bayesian network minimised, epoch by epoch: its misfit to the data (NLL) and the distance of its "
        "posterior from the prior (KL divergence, per training digit N). On top, the temperature T by which the KL "
        "counts: it rises over the first 85 % of training, so that the network finds the data first, and is 1 after "
        "that. Their sum, -ELBO, is always drawn at T = 1.",
        f"Curves over {result.epochs} epochs, in nats: {', '.join(first_and_last)}.",
    )
    return Section("How the Bayesian network learned", [curves])


def _examples(result: DemoResult) -> Section:
    order = np.argsort(result.bayesian.entropy["test"], kind="stable")
    most_certain, least_certain = order[:NUM_EXAMPLE_IMAGES], order[::-1][:NUM_EXAMPLE_IMAGES]
    probabilities = result.bayesian.predictions["test"].probabilities[least_certain]
    num_right = int(np.sum(probabilities.argmax(axis=1) == result.digits.y_test[least_certain]))
    return Section(
        "The most and the least certain test digits",
        [
            _image_figure(
                result, most_certain, "The most certain: the lowest predictive entropy of the Bayesian network."
            ),
            _image_figure(
                result,
                least_certain,
                "The least certain: the highest. Each shows the predicted digit with its probability, and the true "
                f"one; {num_right} of these {len(least_certain)} predictions are right.",
            ),
        ],
    )


def _image_figure(result: DemoResult, indices: np.ndarray, caption: str) -> Figure:
    titles = []
    for index in indices:
        p = result.bayesian.predictions["test"].probabilities[index]
        titles.append(f"says {p.argmax()}, {p.max():.0%}\nis {result.digits.y_test[index]}")
    description = "Digits: " + "; ".join(title.replace("\n", ", ") for title in titles) + "."
    draw = functools.partial(plots.image_grid, result.digits.x_test[indices], titles, columns=4)
    return Figure(draw, caption, description)


def _made_by(result: DemoResult) -> str:
    backend_version = getattr(importlib.import_module(result.backend), "__version__", "")
    return (
        f"Made by `bdl demo` with seed {result.seed} and {result.epochs} epochs in {result.seconds:.0f} s, by Keras "
        f"{keras.__version__} on {result.backend} {backend_version}. Data: scikit-learn's digits (UCI Optical "
        "Recognition of Handwritten Digits), 30 % of each class held out for testing."
    )
