"""Scores of counts against sums, closed forms and simulations."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from bdl.calibration import (
    count_negative_log_likelihood,
    count_probability_integral_transform,
    dawid_sebastiani_score,
    pit_histogram,
    ranked_probability_score,
)


def counts(seed=0, n=5000):
    random = np.random.default_rng(seed)
    rate = random.gamma(2.0, 1.5, size=n)
    return random.poisson(rate), rate


def test_the_log_score_is_that_of_scipy():
    y, rate = counts()
    assert_allclose(count_negative_log_likelihood(y, stats.poisson(rate)), -stats.poisson(rate).logpmf(y).mean())


def test_the_ranked_probability_score_is_the_crps_of_as_many_samples_as_there_are_probabilities():
    y, rate = np.array([0, 2, 7]), np.array([0.5, 3.0, 4.0])
    grid = np.arange(80)
    pmf = stats.poisson(rate[:, None]).pmf(grid)
    first = np.sum(pmf * np.abs(grid - y[:, None]), axis=1)
    second = np.einsum("ni,nj,ij->n", pmf, pmf, np.abs(grid[:, None] - grid))
    assert_allclose(ranked_probability_score(y, stats.poisson(rate)), np.mean(first - 0.5 * second), rtol=1e-9)


def test_the_histogram_of_calibrated_counts_is_flat_and_of_too_narrow_ones_is_not():
    y, rate = counts(n=20_000)
    heights = pit_histogram(*count_probability_integral_transform(y, stats.poisson(rate)))
    # A count spreads its mass, so that a bin varies less than if each fell into one of them.
    assert np.all(np.abs(heights - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(y)))
    narrow = stats.binom(200, np.full(len(y), rate.mean() / 200))  # the counts are overdispersed
    shape = pit_histogram(*count_probability_integral_transform(y, narrow))
    assert shape[0] > 0.2
    assert shape[-1] > 0.15


def test_the_histogram_of_real_targets_counts_them():
    pit = np.random.default_rng(1).uniform(size=1000)
    assert_allclose(pit_histogram(pit, num_bins=7), np.histogram(pit, np.arange(8) / 7)[0] / 1000)


def test_the_dawid_sebastiani_score_is_twice_the_normal_log_loss_but_for_a_constant():
    y, rate = counts()
    expected = -2 * stats.norm(rate, np.sqrt(rate)).logpdf(y).mean() - np.log(2 * np.pi)
    assert_allclose(dawid_sebastiani_score(y, rate, np.sqrt(rate)), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranked_probability_score([-1], stats.poisson(1.0)), r"`y` must hold counts.*not -1"),
        (lambda: count_negative_log_likelihood([0.5], stats.poisson(1.0)), r"`y` must hold counts.*not 0\.5"),
        (lambda: pit_histogram([0.5], [0.4]), r"`lower` and `upper` must be probabilities"),
        (lambda: pit_histogram([1.5]), r"`lower` and `upper` must be probabilities"),
    ],
)
def test_bad_arguments_are_refused_with_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
