"""Curves of a training's health."""

import pytest

from bdl.plots.health import health_curves

EPOCHS = [
    {"epoch": t, "nll": 2.0 / t, "kl": 50.0 * t, "elbo": -2.0 / t - 0.5 * t, "val_accuracy": 0.5} for t in (1, 2, 3)
]


def test_curves_are_per_example_and_skip_what_is_missing():
    ax = health_curves([*EPOCHS, {"epoch": 4, "nll": 0.1, "kl": None}], num_examples=100)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    curves = dict(zip(labels, ax.get_lines(), strict=True))
    assert list(curves["KL / N"].get_ydata()) == [0.5, 1.0, 1.5]
    assert list(curves["NLL"].get_xdata()) == [1, 2, 3, 4]
    assert ax.child_axes[0].get_title(loc="left") == "accuracy"


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no loss, nll, kl or elbo"):
        health_curves([{"epoch": 1, "seconds": 1.0}], 10)


def test_the_compiled_loss_stands_in_where_its_parts_are_not_known():
    ax = health_curves([{"epoch": t, "loss": 3.0 / t, "seconds": 1.0} for t in (1, 2, 3)], 10)
    (line,) = ax.get_lines()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss, as compiled"]
    assert list(line.get_ydata()) == [3.0, 1.5, 1.0]
