"""The conformal quantile against counting, and the sizes that its errors name."""

import re

import numpy as np
import pytest

from bdl.calibration.conformal import calibration_size_needed, conformal_quantile


@pytest.mark.parametrize(
    ("n", "coverage", "rank"),
    [(9, 0.9, 9), (10, 0.9, 10), (99, 0.55, 55), (19, 0.5, 10), (9, 0.1 + 0.2, 3), (4, 0.01, 1)],
)
def test_quantile_is_the_order_statistic_at_the_next_rank(n: int, coverage: float, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert conformal_quantile(scores, coverage) == rank


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1 / 3])
def test_size_needed_is_the_smallest_that_works(coverage: float) -> None:
    needed = calibration_size_needed(coverage)
    conformal_quantile(np.zeros(needed), coverage)
    if needed > 1:
        with pytest.raises(ValueError, match=rf"needs at least {needed} .*not {needed - 1}\."):
            conformal_quantile(np.zeros(needed - 1), coverage)


@pytest.mark.parametrize("n", [2, 9, 15, 99, 700])
def test_coverage_named_in_the_error_works(n: int) -> None:
    with pytest.raises(ValueError, match="at most") as error:
        conformal_quantile(np.zeros(n), 1 - 1e-9)
    named = re.search(r"at most ([\d.]+),", str(error.value))
    assert named is not None
    conformal_quantile(np.zeros(n), float(named[1]))


def test_quantile_refuses() -> None:
    with pytest.raises(ValueError, match="`coverage` must be between 0 and 1"):
        conformal_quantile([1, 2], 1)
    with pytest.raises(ValueError, match="`scores` must be finite"):
        conformal_quantile([1, np.nan], 0.5)
    with pytest.raises(ValueError, match="`coverage` must be between 0 and 1"):
        calibration_size_needed(0)
