"""Figures show the numbers they were given, in any axes, and leave no trace in matplotlib's global state."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from bdl import plots
from bdl.calibration import reliability_bins, risk_coverage_curve

Array = NDArray[Any]  # axes are Any too: the stubs of matplotlib know less than its artists do

HISTORY = {
    "nll": [0.9, 0.5, 0.4],
    "kl": [50.0, 80.0, 90.0],
    "elbo": [-1.4, -1.3, -1.3],
    "temperature": [0.5, 1.0, 1.0],
}
BINS = reliability_bins([1, 0, 1, 1], [0.9, 0.2, 0.6, 0.3], num_bins=5)
CURVE = risk_coverage_curve([0, 0, 1, 0], [0.1, 0.4, 0.5, 0.9])
IMAGES = np.linspace(0, 1, 3 * 4 * 4).reshape(3, 4, 4)
SCORES = {"test": np.array([0.0, 0.1, 0.2, 0.2]), "noise": np.array([0.9, 1.0])}

FIGURES: dict[str, Callable[..., Any]] = {
    "reliability_diagram": lambda ax=None: plots.reliability_diagram(BINS, ax=ax),
    "elbo_parts": lambda ax=None: plots.elbo_parts(HISTORY, num_examples=100, ax=ax),
    "image_grid": lambda ax=None: plots.image_grid(IMAGES, ["a", "b", "c"], ax=ax),
    "interval_coverage": lambda ax=None: plots.interval_coverage([0.5, 0.9], [0.4, 0.8], num_targets=50, ax=ax),
    "pit_histogram": lambda ax=None: plots.pit_histogram([0.2, 0.3, 0.5], num_targets=50, ax=ax),
    "risk_coverage": lambda ax=None: plots.risk_coverage(CURVE, ax=ax),
    "score_histograms": lambda ax=None: plots.score_histograms(SCORES, ax=ax),
    "uncertainty_split": lambda ax=None: plots.uncertainty_split([0.1, 0.2, 0.3], [0.3, 0.0, 0.1], ax=ax),
}
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def line(ax: Any, label: str) -> Array:
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(found.get_ydata())


def legend_texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


# What holds of every figure


def test_every_public_figure_is_tested() -> None:
    assert sorted(FIGURES) == sorted(plots.__all__)


@every_figure
def test_given_axes_are_drawn_into_and_returned(draw: Callable[..., Any]) -> None:
    ax = matplotlib.figure.Figure().add_subplot()
    assert draw(ax) is ax
    assert ax.has_data() or ax.child_axes


@every_figure
def test_a_new_figure_renders_without_a_warning(draw: Callable[..., Any]) -> None:
    png = io.BytesIO()
    draw().figure.savefig(png, dpi=30)
    assert png.getvalue().startswith(b"\x89PNG")


def test_matplotlib_loads_at_the_first_drawing_and_pyplot_never() -> None:
    program = """
import sys
from bdl import plots
assert "matplotlib" not in sys.modules
plots.score_histograms({"test": [0.0, 1.0]})
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    # bdl itself may import what it likes: here only the module counts, so its package is a bare one.
    package = (
        f"import types, sys; p = types.ModuleType('bdl'); p.__path__ = {[str(Path(plots.__file__).parents[1])]!r}; "
    )
    result = subprocess.run(
        [sys.executable, "-c", package + "sys.modules['bdl'] = p\n" + program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr


# Reliability diagram


def test_reliability_diagram_draws_the_filled_bins() -> None:
    ax: Any = plots.reliability_diagram(BINS)
    filled = BINS.count > 0
    (points,) = [c for c in ax.collections if type(c).__name__ == "PathCollection"]
    assert_array_equal(points.get_offsets(), np.stack([BINS.confidence, BINS.accuracy], axis=1)[filled])
    (histogram,) = ax.child_axes[0].patches
    assert_allclose(histogram.get_data().values, BINS.count)
    assert legend_texts(ax) == [f"ECE {BINS.expected_calibration_error:.3f}"]


def test_reliability_diagram_compares_several() -> None:
    ax: Any = plots.reliability_diagram([BINS, BINS], ["twin", "bayes"])
    assert [text.split()[0] for text in legend_texts(ax)] == ["twin", "bayes"]
    assert len(ax.child_axes[0].patches) == 2


def test_reliability_diagram_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match=r"at least one ReliabilityBins to draw, not none"):
        plots.reliability_diagram([])
    with pytest.raises(ValueError, match=r"`labels` must name each of the 2 .* not \['twin'\]"):
        plots.reliability_diagram([BINS, BINS], ["twin"])


# Parts of the ELBO


def test_elbo_parts_are_drawn_in_nats_per_example() -> None:
    ax: Any = plots.elbo_parts(HISTORY, num_examples=100)
    assert_allclose(line(ax, "NLL"), HISTORY["nll"])
    assert_allclose(line(ax, "KL / N"), [0.5, 0.8, 0.9])
    assert_allclose(line(ax, "$-$ELBO"), [1.4, 1.3, 1.3])
    assert_allclose(line(ax, "NLL") + line(ax, "KL / N"), line(ax, "$-$ELBO"))
    assert ax.get_ylabel() == "nats per example"
    strip = ax.child_axes[0]
    assert strip.get_ylabel() == "T"
    assert any(np.array_equal(curve.get_ydata(), HISTORY["temperature"]) for curve in strip.lines)


def test_validation_curves_are_drawn_if_there_are_any() -> None:
    ax: Any = plots.elbo_parts(HISTORY | {"val_nll": [1, 2, 3], "val_elbo": [-2, -3, -4]}, num_examples=100)
    assert_allclose(line(ax, "NLL, validation"), [1, 2, 3])
    assert_allclose(line(ax, "$-$ELBO, validation"), [2, 3, 4])


@pytest.mark.parametrize(
    ("kl", "scale"),
    [
        ([50.0, 80.0, 90.0], "linear"),
        ([50.0, 80.0, 9e5], "log"),
        ([50.0, np.inf, 9e5], "log"),
        ([50.0, np.nan, 9e5], "log"),
        ([50.0, 0.0, 9e5], "linear"),
    ],
)
def test_wide_positive_curves_get_a_logarithmic_axis(kl: list[float], scale: str) -> None:
    assert plots.elbo_parts(HISTORY | {"kl": kl}, num_examples=100).get_yscale() == scale


def test_a_diverged_or_negative_or_single_epoch_is_drawn() -> None:
    diverged = HISTORY | {"nll": [0.9, -50.0, np.nan]}
    assert plots.elbo_parts(diverged, num_examples=100).get_yscale() == "linear"
    ax: Any = plots.elbo_parts({key: values[:1] for key, values in HISTORY.items()}, num_examples=100)
    assert all(curve.get_marker() == "o" for curve in ax.lines)


def test_elbo_parts_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(
        ValueError, match=r"`history` must have the keys .* not \['kl', 'loss'\]: \['nll', 'elbo', 'temperature'\]"
    ):
        plots.elbo_parts({"loss": [1.0], "kl": [1.0]}, num_examples=100)
    with pytest.raises(ValueError, match=r"`history` .*one value an epoch.*'val_nll': \(1,\).*validation_freq=1"):
        plots.elbo_parts(HISTORY | {"val_nll": [1.0]}, num_examples=100)
    with pytest.raises(ValueError, match=r"`num_examples` must be positive, not 0"):
        plots.elbo_parts(HISTORY, num_examples=0)


# Image grid


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (IMAGES, IMAGES),
        (IMAGES[..., None], IMAGES),
        (np.stack([IMAGES] * 3, axis=-1), np.stack([IMAGES] * 3, axis=-1)),
    ],
    ids=["grey", "one channel", "colour"],
)
def test_image_grid_shows_each_image_under_its_title(images: Array, expected: Array) -> None:
    cells: list[Any] = plots.image_grid(images, ["a", "b", "c"]).child_axes
    assert [cell.get_title() for cell in cells] == ["a", "b", "c"]
    for cell, picture in zip(cells, expected, strict=True):
        assert_array_equal(cell.images[0].get_array(), picture)


def test_grey_images_share_one_scale() -> None:
    for cell in plots.image_grid(IMAGES, ["a", "b", "c"]).child_axes:
        assert cell.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("columns", [None, 1, 2, 10])
def test_images_and_titles_do_not_overlap(columns: int | None) -> None:
    ax: Any = plots.image_grid(np.zeros((5, 8, 8)), ["two\nlines"] * 5, columns=columns)
    ax.figure.draw_without_rendering()
    boxes = [cell.get_tightbbox() for cell in ax.child_axes]
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(5) for j in range(i))
    assert all(ax.figure.bbox.fully_contains(*corner) for box in boxes for corner in box.corners())


def test_image_grid_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match=r"`images` must have shape .* not shape \(4, 4\)\."):
        plots.image_grid(IMAGES[0], ["a"])
    with pytest.raises(ValueError, match=r"`images` in colour .* not float64 from 0 to 255\. Divide by 255"):
        plots.image_grid(255 * np.stack([IMAGES] * 3, axis=-1), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"`titles` must name each of the 3 images, not 1 titles"):
        plots.image_grid(IMAGES, ["a"])
    with pytest.raises(ValueError, match=r"`columns` must be a positive integer or None, not 0"):
        plots.image_grid(IMAGES, ["a", "b", "c"], columns=0)


# Histograms of scores


def test_score_histograms_draw_densities_and_name_the_auroc() -> None:
    ax: Any = plots.score_histograms(SCORES, xlabel="mutual information [nats]")
    assert ax.get_xlabel() == "mutual information [nats]"
    assert legend_texts(ax) == ["test", "noise  AUROC 1.000"]
    familiar, unfamiliar = (patch.get_data() for patch in ax.patches)
    assert_array_equal(familiar.edges, unfamiliar.edges)
    for histogram in (familiar, unfamiliar):
        assert_allclose(np.sum(histogram.values * np.diff(histogram.edges)), 1)


def test_score_histograms_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match=r"`scores` must hold at least one array, not none"):
        plots.score_histograms({})
    with pytest.raises(ValueError, match=r"`scores\['noise'\]` must be finite, not nan at index 0"):
        plots.score_histograms({"test": [0.0], "noise": [np.nan]})


# Ranking, calibration of targets and the split


def test_risk_is_drawn_against_coverage_with_its_area() -> None:
    ax: Any = plots.risk_coverage([CURVE, CURVE], ["one", "other"])
    assert_allclose(ax.lines[0].get_ydata(), CURVE.risk)
    assert_allclose(ax.lines[1].get_ydata(), CURVE.best_risk)
    assert legend_texts(ax) == [f"{name}  AURC {CURVE.area:.4f}" for name in ("one", "other")]


def test_the_pit_histogram_is_a_density_beside_the_band_of_a_calibrated_one() -> None:
    ax: Any = plots.pit_histogram([0.2, 0.3, 0.5], num_targets=300)
    band, steps = ax.patches
    assert_allclose(steps.get_data().values, [0.6, 0.9, 1.5])
    low, high = band.get_extents().transformed(ax.transData.inverted()).intervaly
    # Each bin holds binomial(300, 1/3) targets; the normal interval is within one target of the binomial one.
    assert_allclose([low, high], 1 + np.array([-1, 1]) * 1.96 * np.sqrt(2 / 300), atol=0.01)


def test_observed_coverage_is_drawn_against_the_promised_one() -> None:
    ax: Any = plots.interval_coverage([0.5, 0.9], [[0.4, 0.8], [0.5, 0.9]], 50, ["narrow", "right"])
    assert_allclose(line(ax, "narrow"), [0.4, 0.8])


def test_the_bars_of_the_split_hold_the_mean_of_their_group() -> None:
    ax: Any = plots.uncertainty_split([0.3, 0.1, 0.2, 0.4], [0.0, 0.0, 0.2, 0.4], num_groups=2)
    noise, doubt = ax.patches
    assert_allclose(noise.get_data().values, [0.2, 0.3])
    assert_allclose(doubt.get_data().values - noise.get_data().values, [0.0, 0.3])
    assert ax.get_xlabel() == "predictions, from the most certain"


def test_the_split_refuses_parts_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"`aleatoric` and `epistemic` must have one length, not 1 and 2"):
        plots.uncertainty_split([0.1], [0.1, 0.2])
