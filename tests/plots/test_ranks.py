"""The figure of ranks: what leaves the band has a name."""

import numpy as np
import pytest

from bdl.plots import rank_ecdf


def test_lines_that_leave_the_band_have_names():
    random = np.random.default_rng(0)
    uniform = {f"right {number}": random.integers(0, 100, 200) for number in range(7)}
    ax = rank_ecdf({**uniform, "wrong": random.integers(0, 60, 200)}, 99)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["99.88 % of uniform lines", "wrong"]
    assert len(ax.lines) == 9
    height = ax.lines[-1].get_ydata()
    np.testing.assert_allclose(height[[0, 60, 100]], [0.0, 0.4, 0.0], atol=1e-9)
    texts = [text.get_text() for text in rank_ecdf(uniform, 99).get_legend().get_texts()]
    assert texts[1:] == [f"right {number}" for number in range(6)]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({}, "must hold ranks"),
        ({"a": [1, 2], "b": [1]}, "must hold ranks of as many simulations"),
        ({"a": [0.5]}, "must be whole numbers from 0 to num_draws=9"),
        ({"a": [10]}, "must be whole numbers from 0 to num_draws=9"),
    ],
)
def test_ranks_that_are_none_are_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        rank_ecdf(ranks, 9)
