"""The finite-sample quantile that all conformal methods share, and how many calibration examples it needs."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import ArrayLike

from bdl.calibration._validation import check_scores, check_share

# Fractions of smaller denominators are what a user can have meant by a float; none has another as near as its rounding.
LARGEST_DENOMINATOR = 10**12


def conformal_quantile(scores: ArrayLike, coverage: float = 0.9) -> float:
    """Return the `k`-th smallest of `n` scores, `k = ceil((n + 1) coverage)`.

    This is the empirical quantile at `ceil((n + 1) coverage) / n` (Romano et al. 2019, eq. 8), the smallest threshold
    with `P(new score <= threshold) >= coverage` for exchangeable scores; without ties the probability is exactly
    `k / (n + 1)`, less than `coverage + 1 / (n + 1)`. `coverage` is taken as the decimal number written, where floats
    would round `100 * 0.55` up to 56.

    Args:
        scores: Shape `(n,)`, of the calibration examples.
        coverage: Probability wanted, between 0 and 1.

    Returns:
        One of the scores.

    Raises:
        ValueError: if an argument is not valid, or there are too few scores for the coverage.

    Example:
    >>> from bdl.calibration.conformal import conformal_quantile
    >>> conformal_quantile([0.5, 0.1, 0.4, 0.3, 0.2, 0.6, 0.7, 0.9, 0.8], coverage=0.8)  # the 8th of 9
    0.8
    """
    values = check_scores("scores", scores)
    share = check_share("coverage", coverage)
    check_calibration_size(len(values), share)
    rank = conformal_rank(len(values), share)
    return float(np.partition(values, rank - 1)[rank - 1])


def conformal_rank(num_examples: int, coverage: float) -> int:
    """Return `ceil((n + 1) coverage)`, the rank of the threshold among `n` scores; `n + 1` where they are too few."""
    return ceil((num_examples + 1) * _written(coverage))


def calibration_size_needed(coverage: float) -> int:
    """Return the fewest calibration examples that allow a coverage, `n >= coverage / (1 - coverage)`.

    Example:
    >>> from bdl.calibration.conformal import calibration_size_needed
    >>> [calibration_size_needed(coverage) for coverage in (0.5, 0.9, 0.95, 0.99)]
    [1, 9, 19, 99]
    """
    share = _written(check_share("coverage", coverage))
    return ceil(share / (1 - share))


def check_calibration_size(num_examples: int, coverage: float, num_tails: int = 1) -> None:
    """Say that there are too few calibration examples for a coverage, of which `num_tails` thresholds each miss a part.

    Raises:
        ValueError: if they are too few.
    """
    needed = calibration_size_needed(1 - (1 - coverage) / num_tails)
    if num_examples < needed:
        highest = highest_coverage(num_examples, num_tails)
        raise ValueError(
            f"`coverage` of {coverage} needs at least {needed} calibration examples, not {num_examples}. "
            + (f"Ask for a coverage of at most {highest:g}, or calibrate" if highest else "Calibrate")
            + " on more examples."
        )


def highest_coverage(num_examples: int, num_tails: int = 1) -> float:
    """Return the highest coverage that the calibration examples allow, `1 - tails / (n + 1)`, cut to six digits."""
    return max(num_examples + 1 - num_tails, 0) * 10**6 // (num_examples + 1) / 10**6


def _written(coverage: float) -> Fraction:
    """The decimal number that was written as this float: 0.55, and not 0.55000000000000004."""
    exact = Fraction(coverage)
    simple = exact.limit_denominator(LARGEST_DENOMINATOR)
    return simple if 0 < simple < 1 else exact
