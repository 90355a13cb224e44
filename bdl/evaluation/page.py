"""The evaluation as a page: the words around the numbers."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdl import plots
from bdl.calibration.metrics import observed_coverage
from bdl.evaluation.scores import ModelEvaluation, Surprise
from bdl.report import Block, Figure, Page, Paragraph, Row, Section, Table

if TYPE_CHECKING:
    from bdl.evaluation.evaluation import Evaluation


def build_page(evaluation: Evaluation, title: str) -> Page:
    """The whole page."""
    is_classification = evaluation.kind == "classification"
    sections = [Section("All scores", [evaluation.table()])]
    sections.append(_reliability(evaluation) if is_classification else _calibration_of_targets(evaluation))
    sections.append(_ranking(evaluation))
    split = _split(evaluation)
    if split:
        sections.append(Section("What the uncertainty is made of", split))
    sections.append(_surprises(evaluation))
    return Page(title, _summary(evaluation), sections, _footer())


def build_page_of_outputs(evaluations: Mapping[str, Evaluation], title: str) -> Page:
    """One page for several outputs: the sections of each, under its name."""
    pages = {name: build_page(evaluation, title) for name, evaluation in evaluations.items()}
    sections = [
        Section(f"{name}: {section.title}", section.blocks) for name, page in pages.items() for section in page.sections
    ]
    summary = " ".join(f"Output {name}. {page.summary}" for name, page in pages.items())
    return Page(title, summary, sections, _footer())


def _summary(evaluation: Evaluation) -> str:
    return " ".join(
        (_classes_in_words if evaluation.kind == "classification" else _targets_in_words)(name, model, evaluation)
        for name, model in evaluation.models.items()
    )


def _classes_in_words(name: str, model: ModelEvaluation, evaluation: Evaluation) -> str:
    scores, bins = model.scores, model.bins
    if bins is None:
        return ""
    confidence = float(np.nansum(bins.share * np.nan_to_num(bins.confidence)))
    gap = confidence - scores["accuracy"].value
    low = scores["debiased_ce"].low
    if not low > 0:
        verdict = "no miscalibration that these data could tell from chance"
    elif gap > 0:
        verdict = f"overconfident by {gap:.1%} on average"
    else:
        verdict = f"underconfident by {-gap:.1%} on average"
    return (
        f"{_capital(name)}: right on {scores['accuracy'].value:.1%} of {evaluation.num_events:,} labels, "
        f"with a mean confidence of {confidence:.1%}: {verdict}."
    )


def _targets_in_words(name: str, model: ModelEvaluation, evaluation: Evaluation) -> str:
    observed = model.scores["coverage_90%"]
    if observed.low <= 0.9 <= observed.high:
        verdict = "as promised, within chance"
    elif observed.value < 0.9:
        verdict = "fewer than promised: the uncertainty is too small"
    else:
        verdict = "more than promised: the uncertainty is too large"
    return (
        f"{_capital(name)}: 90 % intervals hold {observed.value:.1%} of {evaluation.num_events:,} targets, {verdict}."
    )


def _reliability(evaluation: Evaluation) -> Section:
    bins = [model.bins for model in evaluation.models.values() if model.bins is not None]
    diagram = Figure(
        plots.reliability_diagram(bins, _names(evaluation), level=evaluation.level),
        "Accuracy against confidence. Probabilities that mean what they say lie on the diagonal; below it they are "
        f"overconfident, above it too modest. Whiskers are the {evaluation.level:.0%} interval of each bin's accuracy; "
        "a bin whose whiskers reach the diagonal does not contradict it. On top, how many labels each bin holds.",
        "Reliability diagram with confidence bands and counts.",
    )
    return Section("Do the probabilities mean what they say?", [diagram])


def _calibration_of_targets(evaluation: Evaluation) -> Section:
    names, count = _names(evaluation), evaluation.num_events
    heights = [model.pit for model in evaluation.models.values() if model.pit is not None]
    figures: list[Block] = [
        Figure(
            plots.pit_histogram(heights, count, names, level=evaluation.level),
            "Where the targets fell in their predictive distributions. Flat is calibrated; a valley in the middle "
            "means distributions that are too narrow, a hill too wide ones, a slope a bias. The grey band is what "
            "chance does to a calibrated model.",
            "Histogram of probability integral transforms.",
        )
    ]
    shares = [model.coverage for model in evaluation.models.values() if model.coverage is not None]
    if len(shares) == len(evaluation.models):
        levels = observed_coverage([0.5])[1]
        figures.append(
            Figure(
                plots.interval_coverage(levels, shares, count, names, level=evaluation.level),
                "The share of targets inside central intervals against the share promised, for every level. Below the "
                "diagonal intervals are too narrow. The grey band is chance.",
                "Observed against promised coverage of intervals.",
            )
        )
    return Section("Do the intervals hold what they promise?", figures)


def _ranking(evaluation: Evaluation) -> Section:
    is_classification = evaluation.kind == "classification"
    kept_by = "1 - confidence" if is_classification else "the predictive standard deviation"
    curve = Figure(
        plots.risk_coverage(
            [model.risk_coverage for model in evaluation.models.values()],
            _names(evaluation),
            ylabel="error rate of those kept" if is_classification else "mean absolute error of those kept",
        ),
        f"What remains of the errors when the least certain predictions, by {kept_by}, are set aside: the further the "
        "curve falls to the left, the better the uncertainty ranks. Dotted is a perfect ranking of the same errors.",
        "Risk against coverage.",
    )
    return Section("Does the uncertainty know the errors?", [curve])


def _split(evaluation: Evaluation) -> list[Block]:
    blocks: list[Block] = []
    unit = "nats" if evaluation.kind == "classification" else "standard deviation"
    for name, model in evaluation.models.items():
        if model.parts is not None:
            blocks.append(
                Figure(
                    plots.uncertainty_split(*model.parts, unit=unit),
                    f"{_capital(name)}: noise in the data, which no training removes, and doubt of the model, which "
                    "more data could.",
                    f"Aleatoric and epistemic uncertainty of {name}.",
                )
            )
    return blocks


def _surprises(evaluation: Evaluation) -> Section:
    is_classification = evaluation.kind == "classification"
    blocks: list[Block] = []
    for name, model in evaluation.models.items():
        rows = [_surprise_row(surprise, is_classification) for surprise in model.surprises]
        if not rows:
            blocks.append(Paragraph(f"{_capital(name)} made no error."))
            continue
        columns = ("said", "is", "confidence") if is_classification else ("predicted", "is", "standard deviations off")
        blocks.append(Table(columns, rows, f"{_capital(name)}. Rows are counted from 0."))
    title = "The most confident errors" if is_classification else "The most surprising targets"
    return Section(title, blocks)


def _surprise_row(surprise: Surprise, is_classification: bool) -> Row:
    if is_classification:
        cells: Sequence[str] = (f"{surprise.said:.0f}", f"{surprise.truth:.0f}", f"{surprise.confidence:.4f}")
    else:
        has_spread = surprise.confidence > 0
        off = f"{(surprise.truth - surprise.said) / surprise.confidence:+.1f}" if has_spread else "no spread"
        cells = (f"{surprise.said:.4g} ± {surprise.confidence:.2g}", f"{surprise.truth:.4g}", off)
    return Row(f"row {surprise.index:,}", cells)


def _names(evaluation: Evaluation) -> list[str] | None:
    return None if list(evaluation.models) == ["model"] else list(evaluation.models)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _footer() -> str:
    return (
        f"Made by bdl {importlib.metadata.version('bdl')} with NumPy {np.__version__}, Python "
        f"{platform.python_version()}. Page and figures stand alone; nothing is loaded from elsewhere."
    )
