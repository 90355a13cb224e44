"""What is looked at says what was measured, in words, in tables and for those who see neither."""

import re

import numpy as np
import pytest
from scipy import stats

import bdl
from bdl.evaluation import MEANINGS
from bdl.report import Figure, Paragraph, Table

RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.ones(3), size=400)
Y = np.array([RANDOM.choice(3, p=row) for row in P])
SHARP = P**3 / np.sum(P**3, axis=1, keepdims=True)
CLASSES = bdl.evaluate(Y, {"as it is": P, "tOO_sure": SHARP, "flat": np.full_like(P, 1 / 3)}, num_resamples=200)

MEAN, SCALE = RANDOM.normal(size=400), RANDOM.uniform(0.5, 2.0, size=400)
TARGET = MEAN + SCALE * RANDOM.normal(size=400)
TARGETS = bdl.evaluate(
    TARGET, {"right": {"mean": MEAN, "scale": SCALE}, "narrow": {"mean": MEAN, "scale": SCALE / 2}}, num_resamples=200
)


def figures(evaluation):
    return [block for section in evaluation.page().sections for block in section.blocks if isinstance(block, Figure)]


def values(evaluation, score):
    return {name: model.scores[score].value for name, model in evaluation.models.items()}


def scores_of(evaluation):
    return list(next(iter(evaluation.models.values())).scores)


# Which is best


@pytest.mark.parametrize("evaluation", [CLASSES, TARGETS], ids=["classes", "targets"])
def test_the_best_value_of_each_score_with_an_order_is_found(evaluation):
    goals = {"accuracy": 1.0, "error_auroc": 1.0, "coverage_50%": 0.5, "coverage_90%": 0.9}
    without_order = {"debiased_ce", "aleatoric", "epistemic", "width_50%", "width_90%", "sharpness"}
    for score in scores_of(evaluation):
        found = values(evaluation, score)
        distances = {name: abs(value - goals.get(score, -10.0)) for name, value in found.items()}
        expected = [name for name, distance in distances.items() if distance == min(distances.values())]
        is_draw = score in without_order or len(expected) == len(found)
        assert evaluation.best(score) == ([] if is_draw else expected), score


def test_without_a_difference_that_can_be_read_none_is_best():
    assert bdl.evaluate(Y, {"one": P, "same": P}, num_resamples=0).best("nll") == []
    assert bdl.evaluate(Y, P, num_resamples=0).best("nll") == []
    three = bdl.evaluate(Y, {"one": P, "same": P, "other": SHARP}, num_resamples=0)
    assert three.best("nll") == ["one", "same"]


@pytest.mark.parametrize("evaluation", [CLASSES, TARGETS], ids=["classes", "targets"])
def test_page_and_notebook_mark_the_best_of_each_score(evaluation):
    for row, score in zip(
        evaluation.table().rows, evaluation.models[next(iter(evaluation.models))].scores, strict=True
    ):
        assert row.name == MEANINGS[score].title
        assert [list(evaluation.models)[place] for place in row.best] == evaluation.best(score)
    html = evaluation._repr_html_()
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    columns = re.findall(r'<th scope="col">(.*?)</th>', html)
    assert [name for name, _ in rows] == list(evaluation.models)
    for name, cells in rows:
        strong = ["<strong>" in cell for cell in re.findall("<td.*?</td>", cells)]
        assert strong == [name in evaluation.best(score) for score in columns]


# In a few lines


@pytest.mark.parametrize("evaluation", [CLASSES, TARGETS], ids=["classes", "targets"])
def test_it_prints_short(evaluation):
    lines = repr(evaluation).splitlines()
    assert len(lines) == len(evaluation.models) + 3
    assert max(map(len, lines)) <= 100
    name, model = next(iter(evaluation.models.items()))
    assert re.split("  +", lines[2])[:2] == [name, f"{next(iter(model.scores.values())).value:.4g}"]


def test_printed_whole_it_is_the_table():
    assert str(CLASSES) == str(CLASSES.table())
    assert str(CLASSES).splitlines()[0].split("  ")[-1].strip() == "flat"


# Words


@pytest.mark.parametrize("evaluation", [CLASSES, TARGETS], ids=["classes", "targets"])
def test_names_are_as_they_were_given(evaluation):
    page = evaluation.page()
    for name in evaluation.models:
        assert f"{name}: " in page.summary
        assert all(f"{name}: " in figure.description for figure in figures(evaluation))
    above_tables = [block.text for block in page.sections[-1].blocks if isinstance(block, Paragraph)]
    assert above_tables == [f"{name}:" for name in evaluation.models]


@pytest.mark.parametrize("evaluation", [CLASSES, TARGETS], ids=["classes", "targets"])
def test_numbers_and_their_errors_stay_on_a_line(evaluation):
    tables = [block for section in evaluation.page().sections for block in section.blocks if isinstance(block, Table)]
    cells = [cell for table in tables for row in table.rows for cell in (row.name, *row.cells)]
    assert any("\u00a0" in cell for cell in cells)
    assert not [cell for cell in cells if re.search(r"\d to | to \d|\d ±|± \d|row \d", cell)]


def test_a_single_model_has_no_name():
    page = bdl.evaluate(Y, P, num_resamples=50).page()
    assert page.summary.startswith("Right on ")
    assert "model:" not in page.summary


def test_descriptions_of_classes_say_the_result():
    reliability, risk = (figure.description for figure in figures(CLASSES))
    for name, model in CLASSES.models.items():
        assert f"{name}: ECE {model.scores['ece'].value:.3f}, " in reliability
        wrong = 1 - model.scores["accuracy"].value
        assert f"{name}: error rate {wrong:.3g} of all, " in risk
        assert f"AURC {model.scores['aurc'].value:.3g}." in risk
    confidence = SHARP.max(axis=1).mean()
    over = confidence - CLASSES.models["tOO_sure"].scores["accuracy"].value
    assert f"overconfident by {over:.1%} on average" in reliability
    # The flat forecast is never sure: its more certain half is any half.
    flat = 1 - CLASSES.models["flat"].scores["accuracy"].value
    assert f"flat: error rate {flat:.3g} of all, {flat:.3g} of the more certain half" in risk


def test_descriptions_of_targets_say_the_result():
    transforms, coverage, risk = (figure.description for figure in figures(TARGETS))
    u = stats.norm.cdf(TARGET, MEAN, SCALE / 2)
    outer = np.mean((u < 0.05) | (u >= 0.95))
    assert f"narrow: the two outermost of 20 bins hold {outer:.1%} of the targets, where 10% would be" in transforms
    assert f"the lower half holds {np.mean(u < 0.5):.1%}." in transforms
    inside = [np.mean(np.abs(u - 0.5) <= level / 2) for level in (0.5, 0.9)]
    assert f"narrow: 50 % intervals hold {inside[0]:.1%} of the targets, 90 % intervals {inside[1]:.1%}." in coverage
    error = np.abs(TARGET - MEAN)
    half = error[np.argsort(SCALE)[:200]].mean()
    assert f"right: mean absolute error {error.mean():.3g} of all, {half:.3g} of the more certain half" in risk


def test_descriptions_of_the_split_say_the_result():
    samples = RANDOM.dirichlet(np.ones(3), size=(8, 400))
    evaluation = bdl.evaluate(Y, {"samples": samples}, num_resamples=0)
    description = figures(evaluation)[-1].description
    assert f"{evaluation['aleatoric']:.3g} and {evaluation['epistemic']:.3g} on average [nats]" in description


def test_without_an_interval_no_verdict_is_given():
    """What is chance cannot be told."""
    summary = bdl.evaluate(TARGET, {"mean": MEAN, "scale": SCALE}, num_resamples=0).page().summary
    assert "without an interval" in summary
    assert "too" not in summary
