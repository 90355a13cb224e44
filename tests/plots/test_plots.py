"""Figures show the numbers they were given, in any axes, and leave no trace in matplotlib's global state."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.colors
import matplotlib.figure
import matplotlib.style
import matplotlib.text
import numpy as np
import pytest
from contrast import contrast
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from bdl import plots
from bdl.calibration import reliability_bins, risk_coverage_curve
from bdl.plots.health import health_curves
from bdl.report import Figure, Page, Section, render

Array = NDArray[Any]  # axes are Any too: the stubs of matplotlib know less than its artists do

MINUS = "\N{MINUS SIGN}"
HISTORY = {
    "nll": [0.9, 0.5, 0.4],
    "kl": [50.0, 80.0, 90.0],
    "elbo": [-1.4, -1.3, -1.3],
    "temperature": [0.5, 1.0, 1.0],
}
BINS = reliability_bins([1, 0, 1, 1], [0.9, 0.2, 0.6, 0.3], num_bins=5)
CURVE = risk_coverage_curve([0, 0, 1, 0], [0.1, 0.4, 0.5, 0.9])
IMAGES = np.linspace(0, 1, 3 * 4 * 4).reshape(3, 4, 4)
POSTERIOR = {"mean": np.linspace(-1, 1, 20), "effect": np.linspace(0, 3, 40).reshape(20, 2) ** 2}
SCORES = {"test": np.array([0.0, 0.1, 0.2, 0.2]), "noise": np.array([0.9, 1.0])}

FIGURES: dict[str, Callable[..., Any]] = {
    "reliability_diagram": lambda ax=None: plots.reliability_diagram(BINS, ax=ax),
    "elbo_parts": lambda ax=None: plots.elbo_parts(HISTORY, num_examples=100, ax=ax),
    "image_grid": lambda ax=None: plots.image_grid(IMAGES, ["a", "b", "c"], ax=ax),
    "interval_coverage": lambda ax=None: plots.interval_coverage([0.5, 0.9], [0.4, 0.8], num_targets=50, ax=ax),
    "marginals": lambda ax=None: plots.marginals(POSTERIOR, POSTERIOR, ax=ax),
    "pairs": lambda ax=None: plots.pairs(POSTERIOR, POSTERIOR, ax=ax),
    "pit_histogram": lambda ax=None: plots.pit_histogram([0.2, 0.3, 0.5], num_targets=50, ax=ax),
    "predictive_check": lambda ax=None: plots.predictive_check([0.1, 0.5], [[0.2, 0.3], [0.1, 0.9]], ax=ax),
    "risk_coverage": lambda ax=None: plots.risk_coverage(CURVE, ax=ax),
    "score_histograms": lambda ax=None: plots.score_histograms(SCORES, ax=ax),
    "uncertainty_split": lambda ax=None: plots.uncertainty_split([0.1, 0.2, 0.3], [0.3, 0.0, 0.1], ax=ax),
    "rank_ecdf": lambda ax=None: plots.rank_ecdf({"a": np.arange(100) % 10}, 9, ax=ax),
}
EPOCHS = [{"epoch": t, "nll": 2.0 / t, "loss": 3.0 / t, "kl": 50.0, "val_accuracy": 0.5} for t in (1, 2, 3)]
OTHERS = {"health_curves": lambda ax=None: health_curves(EPOCHS, 10, ax=ax)}
every_figure = pytest.mark.parametrize("draw", (FIGURES | OTHERS).values(), ids=FIGURES | OTHERS)


NAMES = ["logistic", "ensemble of 5", "MC dropout", "variational", "Laplace"]

COMPARISONS: dict[str, Callable[..., Any]] = {
    "reliability_diagram": lambda names, ax=None: plots.reliability_diagram([BINS] * len(names), names, ax=ax),
    "interval_coverage": lambda names, ax=None: plots.interval_coverage(
        [0.5, 0.9], [[0.4, 0.8]] * len(names), 50, names, ax=ax
    ),
    "pit_histogram": lambda names, ax=None: plots.pit_histogram([[0.2, 0.3, 0.5]] * len(names), 50, names, ax=ax),
    "risk_coverage": lambda names, ax=None: plots.risk_coverage([CURVE] * len(names), names, ax=ax),
    "score_histograms": lambda names, ax=None: plots.score_histograms({name: [0.1, 0.2] for name in names}, ax=ax),
}
every_comparison = pytest.mark.parametrize("draw", COMPARISONS.values(), ids=COMPARISONS)


def line(ax: Any, label: str) -> Array:
    """The curve that the legend explains by this label."""
    legend = ax.get_legend()
    place = [text.get_text() for text in legend.get_texts()].index(label)
    key = legend.legend_handles[place]
    look = ("get_color", "get_linestyle", "get_linewidth")
    (found,) = [each for each in ax.lines if all(getattr(each, of)() == getattr(key, of)() for of in look)]
    return np.asarray(found.get_ydata())


def legend_texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def texts(ax: Any) -> list[Any]:
    """All that is written in the figure."""
    ax.figure.draw_without_rendering()
    found = ax.figure.findobj(lambda artist: isinstance(artist, matplotlib.text.Text))
    without_axis = [part for part in (ax, *ax.child_axes) if not part.axison]
    hidden = [artist for part in without_axis for axis in (part.xaxis, part.yaxis) for artist in axis.findobj()]
    return [text for text in found if text.get_visible() and text.get_text().strip() and text not in hidden]


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


@pytest.mark.parametrize(("style", "ground"), [("default", "white"), ("dark_background", "black")])
@every_figure
def test_what_is_drawn_can_be_seen_in_the_style_in_force(draw: Callable[..., Any], style: str, ground: str) -> None:
    with matplotlib.style.context(style):
        ax = draw()
        given = matplotlib.figure.Figure().add_subplot()
    draw(given)  # axes that were made in a style keep to it
    for axes in (ax, given):
        assert axes.get_facecolor() == matplotlib.colors.to_rgba(ground)
        assert all(contrast(text.get_color(), ground) >= 4.5 for text in texts(axes))  # WCAG 2.2, level AA
        lines = [line for part in (axes, *axes.child_axes) for line in part.lines]
        assert all(contrast(line.get_color(), ground) >= 3 for line in lines)  # the same, for graphics
        legend = axes.get_legend()
        assert legend is None or contrast(legend.get_frame().get_facecolor(), ground) == 1


@every_figure
def test_on_a_phone_all_text_of_a_page_is_as_large_as_in_a_newspaper(draw: Callable[..., Any]) -> None:
    """Shown 348 pixels wide, what a page of 390 leaves between its margins; 10.5 pixels are 8 points."""
    drawn: list[Any] = []
    render(Page("t", "s", [Section("one", [Figure(lambda: drawn.append(draw()) or drawn[-1], "", "")])]))
    for ax in drawn:
        shrunk = min(1.0, 348 / (96 * ax.figure.get_figwidth()))
        assert min(text.get_fontsize() for text in texts(ax)) * 96 / 72 * shrunk >= 10.5


# What holds of every comparison


def boxes(ax: Any) -> list[Any]:
    """Where something is drawn or written, apart from the legend."""
    parts = [ax, *ax.child_axes]
    found = [box for part in parts for box in (part.bbox, part.xaxis.get_tightbbox(), part.yaxis.get_tightbbox())]
    return [box for box in found if box is not None]


@pytest.mark.parametrize("num_models", [1, 4, 5])
@every_comparison
def test_a_legend_covers_nothing_and_takes_no_room_from_the_drawing(draw: Callable[..., Any], num_models: int) -> None:
    ax = draw(NAMES[:num_models])
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert not any(legend.overlaps(box) for box in boxes(ax))
    assert all(ax.figure.bbox.contains(*corner) for corner in legend.corners())
    assert ax.bbox.height / ax.figure.dpi > 2


@every_comparison
def test_without_a_layout_engine_the_legend_stays_where_it_can_be_seen(draw: Callable[..., Any]) -> None:
    ax: Any = matplotlib.figure.Figure().add_subplot()
    draw(NAMES[:2], ax)
    ax.figure.draw_without_rendering()
    assert all(ax.figure.bbox.contains(*corner) for corner in ax.get_legend().get_window_extent().corners())


@pytest.mark.parametrize(
    "names",
    [("cost_$5_vs_$6", "_private"), ("$\\frac{", "[red]x"), ("a" * 100, "two  spaces & <b>")],
    ids=["dollars", "formula", "long"],
)
@every_comparison
def test_names_are_written_as_they_are(draw: Callable[..., Any], names: tuple[str, ...]) -> None:
    ax = draw(names)
    ax.figure.draw_without_rendering()
    for name in names:
        assert any(name in text.replace("\n", "") for text in legend_texts(ax))
    assert ax.bbox.height / ax.figure.dpi > 2


def test_what_a_terminal_obeys_is_replaced() -> None:
    ax = plots.risk_coverage(CURVE, ["a\x1b[31mb"])
    ax.figure.savefig(io.BytesIO(), dpi=30)
    assert legend_texts(ax)[0].startswith("a\N{REPLACEMENT CHARACTER}[31mb")


@every_comparison
def test_dotted_is_the_ideal_and_nothing_else(draw: Callable[..., Any]) -> None:
    """The diagonal, the flat histogram and a perfect ranking."""
    ax = draw(NAMES)
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    best = [tuple(line.get_ydata()) for line in dotted]
    assert set(best) <= {(0, 1), (1, 1), tuple(CURVE.best_risk), ()}
    keys = [key for key in ax.get_legend().legend_handles if getattr(key, "get_linestyle", str)() == ":"]
    assert len(keys) == ("perfect ranking" in legend_texts(ax)[-1])


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
    assert_allclose(line(ax, f"{MINUS}ELBO"), [1.4, 1.3, 1.3])
    assert_allclose(line(ax, "NLL") + line(ax, "KL / N"), line(ax, f"{MINUS}ELBO"))
    assert ax.get_ylabel() == "nats per example"
    strip = ax.child_axes[0]
    assert strip.get_ylabel() == "T"
    assert any(np.array_equal(curve.get_ydata(), HISTORY["temperature"]) for curve in strip.lines)


def test_validation_curves_are_drawn_if_there_are_any() -> None:
    ax: Any = plots.elbo_parts(HISTORY | {"val_nll": [1, 2, 3], "val_elbo": [-2, -3, -4]}, num_examples=100)
    assert_allclose(line(ax, "NLL, validation"), [1, 2, 3])
    assert_allclose(line(ax, f"{MINUS}ELBO, validation"), [2, 3, 4])


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
    with pytest.raises(ValueError, match=r"`history` .*one value per epoch.*'val_nll': \(1,\).*validation_freq=1"):
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


def test_a_title_of_an_image_is_no_formula() -> None:
    ax: Any = plots.image_grid(IMAGES, ["$5", "$\\frac{", "_"])
    ax.figure.savefig(io.BytesIO(), dpi=30)
    assert [cell.get_title() for cell in ax.child_axes] == ["$5", "$\\frac{", "_"]


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
    ideal = "a perfect ranking of the same errors"
    assert legend_texts(ax) == [*(f"{name}  AURC {CURVE.area:.4f}" for name in ("one", "other")), ideal]


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
