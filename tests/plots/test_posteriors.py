"""Figures of posteriors draw the draws they were given, name each number, and stay readable with many of them."""

from typing import Any

import matplotlib.figure
import matplotlib.text
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bdl import plots

RNG = np.random.default_rng(0)
DRAWS = {"mean": RNG.normal(size=400), "effect": RNG.normal(size=(400, 2, 2)).cumsum(0)}
REFERENCE = {"mean": RNG.normal(0.5, 2.0, size=900), "other": RNG.normal(size=900)}


def panel(ax: Any, name: str) -> Any:
    (found,) = [each for each in ax.child_axes if name in (each.get_title("left"), each.get_title("right"))]
    return found


def text_boxes(cell: Any) -> list[Any]:
    titles = [text for text in cell.get_children() if isinstance(text, matplotlib.text.Text) and text.get_text()]
    return [cell.xaxis.get_tightbbox(), *(text.get_window_extent() for text in titles)]


def offsets(cell: Any) -> list[Any]:
    return [np.asarray(cloud.get_offsets()) for cloud in cell.collections]


def test_each_number_has_a_density_over_the_bins_of_both() -> None:
    ax = plots.marginals(DRAWS, REFERENCE)
    names = ["mean", "effect[0, 0]", "effect[0, 1]", "effect[1, 0]", "effect[1, 1]"]
    assert [each.get_title("left") for each in ax.child_axes] == names
    guide, reference = (each.get_data() for each in panel(ax, "mean").patches)
    assert_array_equal(guide.edges, reference.edges)
    for drawn, values in ((guide, DRAWS["mean"]), (reference, REFERENCE["mean"])):
        counts, _ = np.histogram(values, drawn.edges)
        assert_allclose(drawn.values * np.diff(drawn.edges), counts / len(values))
    assert len(panel(ax, "effect[1, 0]").patches) == 1  # which the reference lacks
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["guide", "reference"]


def test_a_funnel_does_not_squeeze_what_most_draws_are() -> None:
    scale = RNG.normal(0.0, 3.0, size=2000)
    ax = plots.marginals({"x": np.exp(scale / 2) * RNG.normal(size=2000)})
    low, high = panel(ax, "x").get_xlim()
    values = np.exp(scale / 2) * RNG.normal(size=2000)
    assert np.mean((values > low) & (values < high)) > 0.75
    assert high - low < 0.2 * np.ptp(np.quantile(values, [0.002, 0.998]))


@pytest.mark.parametrize("number", [1, 10, 23])
def test_panels_do_not_overlap_and_stay_in_the_figure(number: int) -> None:
    values = 10.0 ** (np.arange(number) % 9) * (1 + 0.01 * RNG.normal(size=(50, number)))
    draws = {f"site_with_a_long_name_{place}": values[:, place] for place in range(number)}
    ax = plots.marginals(draws, draws)
    ax.figure.draw_without_rendering()
    written = [text_boxes(cell) for cell in ax.child_axes] + [[ax.get_legend().get_window_extent()]]
    for place, own in enumerate(written):
        others = [box for each in written[:place] for box in each] + [cell.bbox for cell in ax.child_axes[:place]]
        assert not any(box.overlaps(other) for box in own for other in others)
    figure = ax.figure.bbox.padded(1)
    assert all(figure.contains(*corner) for each in written for box in each for corner in box.corners())


def test_pairs_are_clouds_below_the_diagonal_with_shared_axes() -> None:
    x, y = RNG.normal(size=(2, 400))
    ax = plots.pairs({"x": x, "y": y}, {"x": y, "y": x})
    assert len(ax.child_axes) == 3
    reference, guide = offsets(ax.child_axes[1])
    assert_array_equal(guide, np.stack([x, y], axis=1))
    assert_array_equal(reference, np.stack([y, x], axis=1))
    assert ax.child_axes[1].get_xlim() == panel(ax, "x").get_xlim()
    assert ax.child_axes[1].get_ylim() == panel(ax, "y").get_xlim()


def test_of_a_long_cloud_some_draws_are_shown_together() -> None:
    draws = np.arange(20_000.0).reshape(10_000, 2)
    (cloud,) = offsets(plots.pairs({"x": draws}).child_axes[1])
    assert len(cloud) == 500
    assert_array_equal(cloud[:, 1] - cloud[:, 0], 1.0)  # the two numbers of one draw


def test_a_predictive_check_shows_the_data_over_the_band_of_simulated_ones() -> None:
    observed = RNG.normal(size=60)
    simulated = RNG.normal(size=(300, 60))
    observed[3] = np.nan
    ax = plots.predictive_check(observed, simulated, level=0.8, num_bins=10)
    band, middle, line = (each.get_data() for each in ax.patches)
    widths, kept = np.diff(band.edges), ~np.isnan(observed)
    assert_allclose(np.sum(line.values * widths), 1.0)  # what lies beyond counts in the outermost bins
    inner = slice(1, -1)
    counts = np.array([np.histogram(draw, band.edges)[0] for draw in simulated[:, kept]])[:, inner]
    shares = counts / kept.sum() / widths[inner]
    assert_allclose(band.baseline[inner], np.quantile(shares, 0.1, axis=0))
    assert_allclose(band.values[inner], np.quantile(shares, 0.9, axis=0))
    assert_allclose(middle.values[inner], np.median(shares, axis=0))


def test_whole_numbers_have_a_bin_each() -> None:
    ax = plots.predictive_check([0, 2, 2, 5], [[1, 2, 3, 4], [0, 0, 1, 5]])
    edges = ax.patches[0].get_data().edges
    assert_allclose(edges, np.arange(-0.5, 6))
    assert_allclose(ax.patches[2].get_data().values, [0.25, 0, 0.5, 0, 0, 0.25])


def test_constant_draws_are_drawn() -> None:
    assert plots.marginals({"x": np.ones(5)}).child_axes[0].get_xlim() == (0.5, 1.5)
    assert plots.predictive_check([0.5], [[0.5]]).get_xlim() == (0.0, 1.0)


def test_a_name_is_no_formula() -> None:
    ax = plots.marginals({"$\\frac{": np.arange(4.0), "a\x1b[31m": np.arange(4.0)})
    ax.figure.draw_without_rendering()
    assert [cell.get_title("left") for cell in ax.child_axes] == ["$\\frac{", "a\N{REPLACEMENT CHARACTER}[31m"]


def test_panels_in_given_axes_keep_their_place() -> None:
    ax: Any = matplotlib.figure.Figure(figsize=(6, 6)).add_subplot()
    plots.pairs({"x": RNG.normal(size=(50, 4))}, ax=ax)
    ax.figure.draw_without_rendering()
    bound = ax.get_window_extent().padded(0.5)
    assert all(bound.contains(*corner) for cell in ax.child_axes for corner in cell.bbox.corners())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.marginals({}), "`draws` must hold the draws of a site at least, not none"),
        (lambda: plots.marginals({"x": [1.0, np.nan]}), r"`draws\['x'\]` must be finite draws.*not finite"),
        (lambda: plots.marginals({"x": 1.0}), r"`draws\['x'\]` must be finite draws, two at least, not the shape \(\)"),
        (lambda: plots.marginals({"x": np.ones((3, 49))}), r"48 numbers at most .*not 49 .*draws\['x'\]\[:, :3\]"),
        (lambda: plots.marginals({"x": np.ones(3)}, {"y": np.ones(3)}), r"same sites, of their shapes, not \['y'\]"),
        (lambda: plots.marginals({"x": np.ones(3)}, {"x": np.ones((3, 2))}), r"\(\(\), \(2,\)\)"),
        (lambda: plots.marginals({"x": np.ones(3)}, labels=["a"]), "`labels` must be two names"),
        (lambda: plots.marginals({"x": np.ones(3)}, columns=0), "`columns` must be a positive integer, not 0"),
        (lambda: plots.pairs({"x": np.ones(3)}), r"must hold two numbers or more, not \['x'\]"),
        (lambda: plots.pairs({"x": np.ones((3, 7))}), "6 numbers at most in one figure, not 7"),
        (lambda: plots.predictive_check([1.0], [[1.0, 2.0]]), r"`simulated` must have the shape .* not \(1, 2\)"),
        (lambda: plots.predictive_check([np.nan], [[1.0]]), "must hold finite numbers, and NaN where nothing"),
        (lambda: plots.predictive_check([1.0], [[1.0]], level=90), r"in \(0, 1\), not 90"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
