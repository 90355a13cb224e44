"""The evaluation as a page: the words around the numbers."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdl import plots
from bdl.calibration.metrics import observed_coverage
from bdl.evaluation.scores import ModelEvaluation, Surprise
from bdl.evaluation.target_scores import COVERAGES
from bdl.report import Block, Figure, Page, Paragraph, Row, Section, Table

if TYPE_CHECKING:
    from bdl.evaluation.evaluation import Evaluation

TITLE = "How good is the uncertainty?"


def build_page(evaluation: Evaluation, title: str | None = None) -> Page:
    """The whole page."""
    is_classification = evaluation.kind == "classification"
    sections = [Section("All scores", [evaluation.table()])]
    sections.append(_reliability(evaluation) if is_classification else _calibration_of_targets(evaluation))
    sections.append(_ranking(evaluation))
    split = _split(evaluation)
    if split:
        sections.append(Section("What the uncertainty is made of", split))
    sections.append(_surprises(evaluation))
    in_words = _classes_in_words if is_classification else _targets_in_words
    return Page(title or TITLE, _of_each(evaluation, in_words, between="\n"), sections, _footer())


def build_page_of_outputs(evaluations: Mapping[str, Evaluation], title: str | None = None) -> Page:
    """One page for several outputs: the sections of each, under its name."""
    pages = {name: build_page(evaluation) for name, evaluation in evaluations.items()}
    sections = [
        Section(f"{name}: {section.title}", section.blocks) for name, page in pages.items() for section in page.sections
    ]
    lines = [f"Output {name}. {line}" for name, page in pages.items() for line in page.summary.split("\n")]
    return Page(title or TITLE, "\n".join(lines), sections, _footer())


def _of_each(evaluation: Evaluation, in_words: Callable[[ModelEvaluation, Evaluation], str], between: str = " ") -> str:
    """A sentence on each model, behind its name as it was given; without one if there is only one, which has none."""
    sentences = {name: in_words(model, evaluation) for name, model in evaluation.models.items()}
    if _names(evaluation) is None:
        (sentence,) = sentences.values()
        return sentence[:1].upper() + sentence[1:]
    return between.join(f"{name}: {sentence}" for name, sentence in sentences.items())


def _classes_in_words(model: ModelEvaluation, evaluation: Evaluation) -> str:
    accuracy, confidence = model.scores["accuracy"].value, _mean_confidence(model)
    return (
        f"right on {accuracy:.1%} of {evaluation.num_events:,} labels, with a mean confidence of {confidence:.1%}: "
        f"{_confidence_in_words(model)}."
    )


def _confidence_in_words(model: ModelEvaluation) -> str:
    gap = _mean_confidence(model) - model.scores["accuracy"].value
    if not model.scores["debiased_ce"].low > 0:
        return "no miscalibration that these data could tell from chance"
    return f"{'over' if gap > 0 else 'under'}confident by {abs(gap):.1%} on average"


def _mean_confidence(model: ModelEvaluation) -> float:
    bins = model.bins
    return float("nan") if bins is None else float(np.nansum(bins.share * np.nan_to_num(bins.confidence)))


def _targets_in_words(model: ModelEvaluation, evaluation: Evaluation) -> str:
    observed = model.scores["coverage_90%"]
    if math.isnan(observed.low):
        verdict = "without an interval that would say how much of that is chance"
    elif observed.low <= 0.9 <= observed.high:
        verdict = "as promised, within chance"
    elif observed.value < 0.9:
        verdict = "fewer than promised: the uncertainty is too small"
    else:
        verdict = "more than promised: the uncertainty is too large"
    return f"90 % intervals hold {observed.value:.1%} of {evaluation.num_events:,} targets, {verdict}."


def _reliability(evaluation: Evaluation) -> Section:
    bins = [model.bins for model in evaluation.models.values() if model.bins is not None]
    diagram = Figure(
        lambda: plots.reliability_diagram(bins, _names(evaluation), level=evaluation.level),
        "Accuracy against confidence. Probabilities that mean what they say lie on the diagonal; below it they are "
        f"overconfident, above it too modest. Whiskers are the {evaluation.level:.0%} interval of each bin's accuracy; "
        "a bin whose whiskers reach the diagonal does not contradict it. On top, how many labels each bin holds.",
        "Reliability diagram. " + _of_each(evaluation, _reliability_in_words),
    )
    return Section("Do the probabilities mean what they say?", [diagram])


def _reliability_in_words(model: ModelEvaluation, evaluation: Evaluation) -> str:
    return f"ECE {model.scores['ece'].value:.3f}, {_confidence_in_words(model)}."


def _calibration_of_targets(evaluation: Evaluation) -> Section:
    names, count = _names(evaluation), evaluation.num_events
    heights = [model.pit for model in evaluation.models.values() if model.pit is not None]
    figures: list[Block] = [
        Figure(
            lambda: plots.pit_histogram(heights, count, names, level=evaluation.level),
            "Where the targets fell in their predictive distributions. Flat is calibrated; a valley in the middle "
            "means distributions that are too narrow, a hill too wide ones, a slope a bias. The grey band is what "
            "chance does to a calibrated model.",
            "Histogram of probability integral transforms. " + _of_each(evaluation, _transforms_in_words),
        )
    ]
    shares = [model.coverage for model in evaluation.models.values() if model.coverage is not None]
    if len(shares) == len(evaluation.models):
        levels = observed_coverage([0.5])[1]
        figures.append(
            Figure(
                lambda: plots.interval_coverage(levels, shares, count, names, level=evaluation.level),
                "The share of targets inside central intervals against the share promised, for every level. Below the "
                "diagonal intervals are too narrow. The grey band is chance.",
                "Observed against promised coverage of intervals. " + _of_each(evaluation, _coverage_in_words),
            )
        )
    return Section("Do the intervals hold what they promise?", figures)


def _transforms_in_words(model: ModelEvaluation, evaluation: Evaluation) -> str:
    heights = model.pit if model.pit is not None else np.full(2, np.nan)
    ends, lower = heights[0] + heights[-1], heights[: len(heights) // 2].sum()
    return (
        f"the two outermost of {len(heights)} bins hold {ends:.1%} of the targets, where {2 / len(heights):.0%} would "
        f"be calibrated; the lower half holds {lower:.1%}."
    )


def _coverage_in_words(model: ModelEvaluation, evaluation: Evaluation) -> str:
    half, most = (model.scores[f"coverage_{nominal:.0%}"].value for nominal in COVERAGES)
    return f"50 % intervals hold {half:.1%} of the targets, 90 % intervals {most:.1%}."


def _ranking(evaluation: Evaluation) -> Section:
    is_classification = evaluation.kind == "classification"
    kept_by = "1 - confidence" if is_classification else "the predictive standard deviation"
    curve = Figure(
        lambda: plots.risk_coverage(
            [model.risk_coverage for model in evaluation.models.values()],
            _names(evaluation),
            ylabel="error rate of those kept" if is_classification else "mean absolute error of those kept",
        ),
        f"What remains of the errors when the least certain predictions, by {kept_by}, are set aside: the further the "
        "curve falls to the left, the better the uncertainty ranks. Dotted is a perfect ranking of the same errors.",
        "Risk against coverage. " + _of_each(evaluation, _ranking_in_words),
    )
    return Section("Does the uncertainty know the errors?", [curve])


def _ranking_in_words(model: ModelEvaluation, evaluation: Evaluation) -> str:
    curve = model.risk_coverage
    risk = "error rate" if evaluation.kind == "classification" else "mean absolute error"
    half = curve.risk[np.searchsorted(curve.coverage, 0.5)]
    return f"{risk} {curve.risk[-1]:.3g} of all, {half:.3g} of the more certain half; AURC {curve.area:.3g}."


def _split(evaluation: Evaluation) -> list[Block]:
    blocks: list[Block] = []
    unit = "nats" if evaluation.kind == "classification" else "standard deviation"
    for name, model in evaluation.models.items():
        if model.parts is not None:
            of_model = f"{name}: " if _names(evaluation) else ""
            noise, doubt = (float(np.mean(part)) for part in model.parts)
            blocks.append(
                Figure(
                    functools.partial(plots.uncertainty_split, *model.parts, unit=unit),
                    f"{of_model}noise in the data, which no training removes, and doubt of the model, which more data "
                    "could.",
                    f"Aleatoric and epistemic uncertainty. {of_model}{noise:.3g} and {doubt:.3g} on average [{unit}].",
                )
            )
    return blocks


def _surprises(evaluation: Evaluation) -> Section:
    is_classification = evaluation.kind == "classification"
    blocks: list[Block] = []
    for name, model in evaluation.models.items():
        rows = [_surprise_row(surprise, is_classification, model.classes) for surprise in model.surprises]
        if _names(evaluation):
            blocks.append(Paragraph(f"{name}:" if rows else f"{name}: no error."))
        elif not rows:
            blocks.append(Paragraph("No error."))
        columns = ("said", "is", "confidence") if is_classification else ("predicted", "is", "standard deviations off")
        blocks += [Table(columns, rows, "Rows are counted from 0.")] if rows else []
    title = "The most confident errors" if is_classification else "The most surprising targets"
    return Section(title, blocks)


def _surprise_row(surprise: Surprise, is_classification: bool, classes: Sequence[object] | None) -> Row:
    if is_classification:
        said, truth = (
            int(column) if classes is None else classes[int(column)] for column in (surprise.said, surprise.truth)
        )
        cells: Sequence[str] = (f"{said}", f"{truth}", f"{surprise.confidence:.4f}")
    else:
        has_spread = surprise.confidence > 0
        off = f"{(surprise.truth - surprise.said) / surprise.confidence:+.1f}" if has_spread else "no spread"
        cells = (f"{surprise.said:.4g}\u00a0±\u00a0{surprise.confidence:.2g}", f"{surprise.truth:.4g}", off)
    return Row(f"row\u00a0{surprise.index:,}", cells)


def _names(evaluation: Evaluation) -> list[str] | None:
    return None if list(evaluation.models) == ["model"] else list(evaluation.models)


def _footer() -> str:
    return (
        f"Made by bdl {importlib.metadata.version('keras-bdl')} with NumPy {np.__version__}, Python "
        f"{platform.python_version()}. Page and figures stand alone; nothing is loaded from elsewhere."
    )
