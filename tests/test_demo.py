"""The demonstration computes what its page says, the same for the same seed, and its page stands alone.

It runs twice: here, and by the command.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from bdl import demo
from bdl.demo import BAYESIAN, TWIN, DemoResult, build_network, load_digits, run_demo
from bdl.demo_page import NUM_EXAMPLE_IMAGES, build_page, comparison_table
from bdl.evaluation import MEANINGS
from bdl.layers import Variational
from bdl.report import Figure, render
from bdl_cli import app

pytestmark = pytest.mark.core

NAMES = {"bayesian": BAYESIAN, "twin": TWIN}
EPOCHS = 7  # the warm-up takes 85 %, so the last one is at T = 1


@pytest.fixture(scope="module")
def logged() -> list[tuple[str, int, dict[str, float]]]:
    return []


@pytest.fixture(scope="module")
def result(logged: list[tuple[str, int, dict[str, float]]]) -> DemoResult:
    def on_epoch(name: str, epoch: int, logs: Mapping[str, float]) -> None:
        logged.append((name, epoch, dict(logs)))

    return run_demo(seed=3, epochs=EPOCHS, on_epoch=on_epoch)


@pytest.fixture(scope="module")
def html(result: DemoResult) -> str:
    return render(build_page(result))


def test_digits_are_split_by_class_and_the_seed() -> None:
    digits, others = load_digits(0), load_digits(1)
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert digits.x_test.shape == digits.rotated.shape == digits.noise.shape == (540, 8, 8, 1)
    shares = np.bincount(digits.y_test) / np.bincount(np.concatenate([digits.y_train, digits.y_test]))
    np.testing.assert_allclose(shares, 0.3, atol=0.01)
    assert digits.x_train.min() == 0.0
    assert digits.x_train.max() == 1.0
    np.testing.assert_array_equal(np.rot90(digits.rotated, k=-1, axes=(1, 2)), digits.x_test)
    assert not np.array_equal(digits.x_test, others.x_test)
    assert not np.array_equal(digits.noise, others.noise)


def test_the_twin_has_the_architecture_of_the_bayesian_network() -> None:
    twin, bayesian = build_network(TWIN), build_network(BAYESIAN)
    assert [layer.output.shape for layer in twin.layers] == [layer.output.shape for layer in bayesian.layers]
    for plain, layer in zip(twin.layers, bayesian.layers, strict=True):
        inner = layer.layer if isinstance(layer, Variational) else layer
        assert type(inner) is type(plain)
        assert inner.get_config().get("activation") == plain.get_config().get("activation")
    assert sum(isinstance(layer, Variational) for layer in bayesian.layers) == 4
    assert not any(isinstance(layer, Variational) for layer in twin.layers)


def test_every_epoch_of_both_is_reported(result: DemoResult, logged: list[tuple[str, int, dict[str, float]]]) -> None:
    assert [(name, epoch) for name, epoch, _ in logged] == [
        (name, epoch) for name in (TWIN, BAYESIAN) for epoch in range(1, EPOCHS + 1)
    ]
    assert logged[-1][2]["nll"] == pytest.approx(result.bayesian.history["nll"][-1])
    assert "nll" not in logged[0][2]


@pytest.mark.parametrize("name", ["bayesian", "twin"])
def test_figures_are_in_their_ranges(result: DemoResult, name: str) -> None:
    outcome = getattr(result, name)
    scores = {score: each.value for score, each in result.evaluation.models[NAMES[name]].scores.items()}
    assert 0.2 < scores["accuracy"] <= 1  # above chance, after a few epochs
    assert 0 <= scores["nll"] < math.log(10)
    assert outcome.predictions["test"].probabilities.shape == (540, 10)
    for uncertainty in (outcome.entropy, outcome.epistemic):
        assert list(uncertainty) == ["test", "rotated", "noise"]
        assert all(np.all((part >= 0) & (part <= math.log(10) + 1e-5)) for part in uncertainty.values())
    for detection in (outcome.detection_by_entropy, outcome.detection_by_epistemic):
        assert 0 <= detection.rotated <= 1
        assert 0 <= detection.noise <= 1


@pytest.mark.parametrize("name", ["bayesian", "twin"])
def test_scores_are_those_of_the_test_digits(result: DemoResult, name: str) -> None:
    p, labels = getattr(result, name).predictions["test"].probabilities, result.digits.y_test
    scores = result.evaluation.models[NAMES[name]].scores
    assert scores["accuracy"].value == pytest.approx(np.mean(p.argmax(axis=1) == labels))
    assert scores["nll"].value == pytest.approx(-np.mean(np.log(p[np.arange(len(labels)), labels])), rel=1e-4)


def test_only_the_bayesian_network_has_epistemic_uncertainty(result: DemoResult) -> None:
    assert all(np.all(part == 0) for part in result.twin.epistemic.values())
    assert result.twin.detection_by_epistemic.noise == 0.5
    assert result.bayesian.epistemic["test"].mean() > 1e-3


def test_the_last_epoch_is_bayes(result: DemoResult) -> None:
    assert result.bayesian.history["temperature"][-1] == pytest.approx(1.0)


def test_the_command_prints_and_writes_the_same_figures_for_the_same_seed(
    result: DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []

    def kept(*args: Any, **kwargs: Any) -> DemoResult:
        results.append(run_demo(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(demo, "run_demo", kept)
    page = tmp_path / "page.html"
    page.write_text("old")
    options = ["--seed", "3", "--epochs", str(EPOCHS), "--output", str(page), "--overwrite"]
    printed = CliRunner().invoke(app, ["demo", *options], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    assert printed.exit_code == 0, printed.output
    for text in (BAYESIAN, TWIN, f"{EPOCHS}/{EPOCHS}", "Accuracy", "NLL [nats]", "Brier score", "ECE", "AUROC"):
        assert text in printed.stdout
    assert str(page) in printed.stdout
    written = page.read_text(encoding="utf-8")
    assert written.startswith("<!DOCTYPE html>")
    assert f" on {keras.config.backend()} " in written
    assert list(tmp_path.iterdir()) == [page]
    (again,) = results
    for name in ("bayesian", "twin"):
        np.testing.assert_allclose(
            getattr(again, name).predictions["test"].probabilities,
            getattr(result, name).predictions["test"].probabilities,
            rtol=1e-3,
            atol=1e-4,
        )
    assert again.bayesian.history["kl"] == pytest.approx(result.bayesian.history["kl"], rel=1e-4)


def test_the_table_says_what_it_does_not_know(result: DemoResult) -> None:
    rows = {row.name: row for row in comparison_table(result).rows}
    assert all(row.meaning.endswith(".") for row in rows.values())
    assert list(rows.values())[: len(result.evaluation.table().rows)] == result.evaluation.table().rows
    assert rows["AUROC of epistemic uncertainty, noise"].cells[1] == "none"
    assert rows["Epistemic [nats]"].cells[1] == "none"
    assert rows["AUROC of predictive entropy, noise"].cells[1] == f"{result.twin.detection_by_entropy.noise:.3f}"
    assert rows["Temperature T at the end"].cells == ("1.00", "none")


def test_the_page_is_the_evaluation_s_with_what_a_demonstration_adds(result: DemoResult) -> None:
    page, own = build_page(result), result.evaluation.page()
    titles = [section.title for section in own.sections]
    assert [section.title for section in page.sections if section.title in titles] == titles
    assert page.summary.startswith(own.summary)
    assert page.footer.endswith(own.footer)
    added = [section.title for section in page.sections if section.title not in titles]
    assert added == [
        "The two networks",
        "Does it know what it has never seen?",
        "How the Bayesian network learned",
        "The most and the least certain test digits",
    ]


def test_the_headline_does_not_leave_out_where_the_bayesian_network_is_worse(result: DemoResult) -> None:
    better, worse = build_page(result).summary.split("Scores in which ")[1:]
    assert worse.startswith("it is worse")
    scores = {name: result.evaluation.models[name].scores for name in (BAYESIAN, TWIN)}
    for score in scores[BAYESIAN].keys() & scores[TWIN].keys():
        bayesian, twin = (scores[name][score].value for name in (BAYESIAN, TWIN))
        best = result.evaluation.best(score)
        figures = f"{MEANINGS[score].title} ({bayesian:.3g} against {twin:.3g})"
        assert (figures in better) == (best == [BAYESIAN])
        assert (figures in worse) == (best == [TWIN])


def test_descriptions_say_the_result(result: DemoResult) -> None:
    *_, histogram, curves, certain, uncertain = figures(result)
    detection = result.bayesian.detection_by_epistemic
    assert f"{detection.rotated:.3f}, and from noise with {detection.noise:.3f}." in histogram.description
    nll = result.bayesian.history["nll"]
    assert f"negative log likelihood from {nll[0]:.3g} to {nll[-1]:.3g}." in curves.description
    assert "says " in certain.description
    assert "is " in uncertain.description


def figures(result: DemoResult) -> list[Figure]:
    return [block for section in build_page(result).sections for block in section.blocks if isinstance(block, Figure)]


def test_the_page_has_all_figures(result: DemoResult, html: str) -> None:
    drawn: list[Any] = [figure.draw() for figure in figures(result)]
    labels = [axes.get_xlabel() for axes in drawn]
    of_evaluation = ["confidence", "coverage", "predictions, from the most certain"]
    assert labels == [*of_evaluation, "epistemic uncertainty [nats]", "epoch", "", ""]
    assert all(len(grid.child_axes) == NUM_EXAMPLE_IMAGES for grid in drawn[-2:])
    assert html.count('<img src="data:image/png;base64,') == len(drawn)


def test_the_page_stands_alone(html: str) -> None:
    without_images = re.sub(r"data:image/png;base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|<script|<link|url\(|@import", without_images)
    assert len(html) < 2_000_000


def test_the_page_says_how_it_was_made(html: str) -> None:
    for fact in ("seed 3", f"{EPOCHS} epochs", keras.config.backend(), keras.__version__, "point estimates", "540"):
        assert fact in html


def test_the_images_shown_are_the_most_and_the_least_certain(result: DemoResult) -> None:
    entropy = np.sort(result.bayesian.entropy["test"])
    *_, certain, uncertain = [b for b in build_page(result).sections[-1].blocks if isinstance(b, Figure)]
    shown = {figure.caption.split(":")[0]: figure.draw().child_axes for figure in (certain, uncertain)}  # type: ignore[attr-defined]
    assert list(shown) == ["The most certain", "The least certain"]
    of_image = {
        image.tobytes(): value
        for image, value in zip(result.digits.x_test[..., 0], result.bayesian.entropy["test"], strict=True)
    }
    for axes, expected in zip(shown.values(), (entropy[:8], entropy[::-1][:8]), strict=True):
        drawn = [of_image[np.asarray(ax.images[0].get_array(), "float32").tobytes()] for ax in axes]
        np.testing.assert_array_equal(drawn, expected)
