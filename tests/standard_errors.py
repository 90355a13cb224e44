"""Comparisons of a simulation with its expectation, bounded by standard errors and by nothing else."""

from typing import Any

import numpy as np


def assert_within_standard_errors(observed: Any, expected: Any, standard_error: Any, k: float = 5) -> None:
    """Fails where `observed` is further than `k` standard errors from `expected`.

    With k = 5 one correct comparison in 1.7 million fails by chance; the seeds are fixed, so it then fails always.
    """
    observed, expected, standard_error = (
        np.asarray(value, "float64") for value in (observed, expected, standard_error)
    )
    assert np.all(standard_error > 0), "a standard error of zero is a comparison by equality; use one"
    distance = np.abs(observed - expected) / standard_error
    worst = np.unravel_index(np.argmax(distance), distance.shape)
    assert np.all(distance <= k), (
        f"{distance[worst]:.1f} standard errors away at {worst}: observed "
        f"{np.broadcast_to(observed, distance.shape)[worst]:.6g}, expected "
        f"{np.broadcast_to(expected, distance.shape)[worst]:.6g} (largest of {distance.size})"
    )


def assert_mean(samples: Any, expected: Any, k: float = 5) -> None:
    """Compares the mean over the first axis of independent samples with its expectation."""
    samples = np.asarray(samples, "float64")
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert_within_standard_errors(samples.mean(axis=0), expected, error, k)


def assert_covariance(samples: Any, mean: Any, expected: Any, k: float = 5) -> None:
    """Compares the covariance of the last axis, over independent samples on the first, with its expectation.

    Args:
        samples: `(n, d)`.
        mean: The known mean, `(d,)`, so that each product of deviations is an unbiased draw of its covariance.
        expected: Covariance matrix, `(d, d)`.
        k: Standard errors allowed.
    """
    deviations = np.asarray(samples, "float64") - np.asarray(mean, "float64")
    assert_mean(deviations[:, :, None] * deviations[:, None, :], expected, k)


def assert_moments(samples: Any, mean: Any, variance: Any, k: float = 5) -> None:
    """Compares mean and variance of independent samples, on the first axis, with their expectations."""
    assert_mean(samples, mean, k)
    assert_mean(np.square(np.asarray(samples, "float64") - mean), variance, k)


def assert_uncorrelated(one: Any, other: Any, k: float = 4) -> None:
    """Fails where the correlation of independent pairs is further than `k` standard errors from 0."""
    assert np.std(one) > 0, "numbers that are all the same have no correlation"
    assert_within_standard_errors(np.corrcoef(one, other)[0, 1], 0.0, 1 / np.sqrt(len(one)), k)
