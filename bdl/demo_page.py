"""What the demonstration found, as a table and as a page: the words around the numbers of `demo.py`."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence

import keras
import numpy as np

import bdl
from bdl import plots
from bdl.calibration import reliability_bins
from bdl.demo import BATCH_SIZE, BAYESIAN, NUM_SAMPLES, TWIN, DemoResult, Detection, Outcome
from bdl.report import Figure, Page, Paragraph, Row, Section, Table

NUM_EXAMPLE_IMAGES = 8
NO_VALUE = "none"


def comparison_table(result: DemoResult) -> Table:
    """The figures of both networks side by side, with a sentence on each."""
    bayesian, twin = result.bayesian, result.twin
    scores = [
        Row("Accuracy", _cells(bayesian.accuracy, twin.accuracy), "Share of the test digits named rightly."),
        Row(
            "NLL [nats]",
            _cells(bayesian.nll, twin.nll),
            "Mean surprise at the true label, lower is better; a network that only guesses has 2.303.",
        ),
        Row(
            "Brier score",
            _cells(bayesian.brier, twin.brier),
            "Squared distance between probabilities and truth, from 0 (best) to 2.",
        ),
        Row(
            "ECE",
            _cells(bayesian.ece, twin.ece),
            "Mean gap between confidence and accuracy over 15 bins, lower is better; up to 0.02 is chance here.",
        ),
    ]
    conditions = [
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
    return Table((BAYESIAN, TWIN), [*scores, *_detection_rows(bayesian, twin), *conditions])


def build_page(result: DemoResult) -> Page:
    """The whole page."""
    return Page(
        title="How sure is the network?",
        summary=_summary(result),
        sections=[
            _comparison_section(result),
            _unfamiliar_section(result),
            _reliability_section(result),
            _training_section(result),
            _examples_section(result),
        ],
        footer=_footer(result),
    )


def _cells(bayesian: float, twin: float) -> tuple[str, str]:
    return f"{bayesian:.3f}", f"{twin:.3f}"


def _detection_rows(bayesian: Outcome, twin: Outcome) -> list[Row]:
    epistemic, entropy = bayesian.detection_by_epistemic, bayesian.detection_by_entropy
    twin_entropy = twin.detection_by_entropy
    chance = "1 is always, 0.5 is chance, less is worse than chance."
    return [
        Row(
            "AUROC of epistemic uncertainty, rotated",
            (f"{epistemic.rotated:.3f}", NO_VALUE),
            f"How often a digit turned by 90 degrees has more of it than a test digit; {chance}",
        ),
        Row(
            "AUROC of epistemic uncertainty, noise",
            (f"{epistemic.noise:.3f}", NO_VALUE),
            "The same for images of uniform noise; the twin has no epistemic part.",
        ),
        Row(
            "AUROC of predictive entropy, rotated",
            _cells(entropy.rotated, twin_entropy.rotated),
            "The same by total uncertainty, the only one that the twin can offer.",
        ),
        Row("AUROC of predictive entropy, noise", _cells(entropy.noise, twin_entropy.noise), "The same for noise."),
    ]


def _summary(result: DemoResult) -> str:
    epistemic, entropy = result.bayesian.detection_by_epistemic, result.twin.detection_by_entropy
    return (
        f"On {len(result.digits.y_test)} handwritten digits that training never saw, the Bayesian network is right on "
        f"{result.bayesian.accuracy:.1%}, its deterministic twin on {result.twin.accuracy:.1%}. "
        "Then both are shown pictures that are no upright digits. The Bayesian network's epistemic uncertainty ranks "
        f"them above a test digit in {_rates(epistemic)} of all pairs; the twin's entropy, the only uncertainty that "
        f"it has, in {_rates(entropy)}. Chance is 50%."
    )


def _rates(detection: Detection) -> str:
    return f"{detection.noise:.1%} (noise) and {detection.rotated:.1%} (digits turned by 90 degrees)"


def _comparison_section(result: DemoResult) -> Section:
    return Section(
        "Both networks in figures",
        [
            Paragraph(
                f"Two convolutional networks of the same sizes were trained for {result.epochs} epochs at batch size "
                f"{BATCH_SIZE} by Adam on {len(result.digits.y_train):,} digits; one of them is Bayesian. Its "
                f"prediction is the mean over {NUM_SAMPLES} random draws of the network."
            ),
            comparison_table(result),
            Paragraph(
                "What is Bayesian here: every layer multiplies its inputs and outputs by random factors, and these "
                "have a posterior distribution (rank-1 layers). The weights themselves are point estimates, fitted by "
                "maximum likelihood: variational EM, not full Bayes. The factors on the inputs of the first dense "
                "layer have a broad prior. The data narrow those that they need; those of features that digits never "
                "use stay broad, so that an unfamiliar image, which does use them, gets another answer in every draw."
            ),
        ],
    )


def _unfamiliar_section(result: DemoResult) -> Section:
    epistemic = result.bayesian.epistemic
    scores = {"test digits": epistemic["test"], "rotated digits": epistemic["rotated"], "noise": epistemic["noise"]}
    histogram = Figure(
        plots.score_histograms(scores, xlabel="epistemic uncertainty [nats]"),
        "Epistemic uncertainty of the Bayesian network: the part of its doubt that more data could remove, measured as "
        "the mutual information of label and network. Test digits should lie on the left, the others on the right. "
        "Some rotated digits are digits still: a 0 stays a 0.",
        "Histograms of epistemic uncertainty for test digits, rotated digits and noise.",
    )
    return Section("Does it know what it has never seen?", [histogram])


def _reliability_section(result: DemoResult) -> Section:
    outcomes = {BAYESIAN: result.bayesian, TWIN: result.twin}
    bins = [reliability_bins(result.digits.y_test, outcome.probabilities) for outcome in outcomes.values()]
    diagram = Figure(
        plots.reliability_diagram(bins, list(outcomes)),
        "Accuracy against confidence on the test digits. A network whose probabilities mean what they say lies on the "
        "diagonal; below it is overconfident, above it too modest. The area of a point is the share of digits in its "
        "bin, also drawn on top; small points stand for few digits and are mostly chance.",
        "Reliability diagram of both networks.",
    )
    return Section("Do the probabilities mean what they say?", [diagram])


def _training_section(result: DemoResult) -> Section:
    curves = Figure(
        plots.elbo_parts(result.bayesian.history, num_examples=len(result.digits.y_train)),
        "What the Bayesian network minimised, epoch by epoch: its misfit to the data (NLL) and the distance of its "
        "posterior from the prior (KL divergence, per training digit N). On top, the temperature T by which the KL "
        "counts: it rises over the first 85 % of training, so that the network finds the data first, and is 1 after "
        "that. Their sum, -ELBO, is always drawn at T = 1.",
        "Curves of negative ELBO, KL divergence per example and negative log likelihood over epochs.",
    )
    return Section("How the Bayesian network learned", [curves])


def _examples_section(result: DemoResult) -> Section:
    order = np.argsort(result.bayesian.entropy["test"], kind="stable")
    most_certain, least_certain = order[:NUM_EXAMPLE_IMAGES], order[::-1][:NUM_EXAMPLE_IMAGES]
    probabilities = result.bayesian.probabilities[least_certain]
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


def _image_figure(result: DemoResult, indices: Sequence[int] | np.ndarray, caption: str) -> Figure:
    titles = []
    for index in indices:
        p = result.bayesian.probabilities[index]
        titles.append(f"says {p.argmax()} ({p.max():.2f})\nis {result.digits.y_test[index]}")
    images = result.digits.x_test[np.asarray(indices)]
    description = "Digits: " + "; ".join(title.replace("\n", ", ") for title in titles) + "."
    return Figure(plots.image_grid(images, titles, columns=4), caption, description)


def _footer(result: DemoResult) -> str:
    backend_version = getattr(importlib.import_module(result.backend), "__version__", "")
    return (
        f"Made by `bdl demo` with seed {result.seed} and {result.epochs} epochs in {result.seconds:.0f} s. "
        f"bdl {bdl.__version__}, Keras {keras.__version__} on {result.backend} {backend_version}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}. Data: scikit-learn's digits (UCI Optical "
        "Recognition of Handwritten Digits), 30 % of each class held out for testing. Page and figures stand alone; "
        "nothing is loaded from elsewhere."
    )
