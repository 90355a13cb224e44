"""A frozen mixture against sums over scipy's components, and its draws within standard errors."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, stats
from standard_errors import assert_mean

from bdl.likelihoods.frozen_mixture import FrozenMixture

RNG = np.random.default_rng(0)
LOCATION = RNG.normal(scale=2.0, size=(3, 4, 2))  # 3 events with 4 alignments and 2 targets
SCALE = RNG.uniform(0.3, 1.5, size=(3, 4, 2))
WEIGHT = RNG.dirichlet(np.ones(4), size=3)[..., None]
COMPONENTS = stats.norm(LOCATION, SCALE)
MIXTURE = FrozenMixture(COMPONENTS, np.log(WEIGHT), axis=-2)
RATE = RNG.uniform(0.5, 9.0, size=(3, 4, 2))
COUNTS = FrozenMixture(stats.poisson(RATE), np.log(WEIGHT), axis=-2)


def test_the_mean_and_variance_are_integrals_of_the_density():
    y = np.linspace(-15, 15, 6_001)
    density = np.sum(WEIGHT[..., None] * stats.norm(LOCATION[..., None], SCALE[..., None]).pdf(y), axis=-3)
    mean = integrate.simpson(y * density, x=y)
    assert_allclose(MIXTURE.mean(), mean, rtol=1e-8)
    assert_allclose(MIXTURE.var(), integrate.simpson((y - mean[..., None]) ** 2 * density, x=y), rtol=1e-8)


def test_densities_and_cumulative_probabilities_are_weighted_sums():
    y = RNG.normal(size=(3, 2))
    assert_allclose(MIXTURE.logpdf(y), np.log(np.sum(WEIGHT * COMPONENTS.pdf(y[:, None]), axis=1)), rtol=1e-10)
    assert_allclose(MIXTURE.cdf(y), np.sum(WEIGHT * COMPONENTS.cdf(y[:, None]), axis=1), rtol=1e-10)
    counts = RNG.poisson(3.0, size=(3, 2))
    expected = np.sum(WEIGHT * stats.poisson(RATE).pmf(counts[:, None]), axis=1)
    assert_allclose(COUNTS.logpmf(counts), np.log(expected), rtol=1e-10)


def test_an_alignment_of_no_weight_has_no_part():
    log_weight = np.log(WEIGHT)
    log_weight[:, 0] = -1e9
    found = FrozenMixture(COMPONENTS, log_weight, axis=-2)
    rest = FrozenMixture(stats.norm(LOCATION[:, 1:], SCALE[:, 1:]), log_weight[:, 1:], axis=-2)
    assert_allclose(found.logpdf(np.zeros((3, 2))), rest.logpdf(np.zeros((3, 2))), rtol=1e-10)


@pytest.mark.parametrize("level", [0.01, 0.5, 0.975])
def test_quantiles_invert_the_cumulative_probability(level):
    assert_allclose(MIXTURE.cdf(MIXTURE.ppf(level)), level, rtol=1e-10)
    quantile = COUNTS.ppf(level)
    assert np.all(quantile == np.floor(quantile))
    assert np.all(COUNTS.cdf(quantile) >= level)
    assert np.all(COUNTS.cdf(quantile - 1) < level)


def test_one_alignment_is_its_component():
    one = FrozenMixture(stats.norm([[2.0]], [[0.5]]), np.zeros((1, 1)), axis=-1)
    for found, expected in (
        (one.mean(), 2.0),
        (one.var(), 0.25),
        (one.ppf(0.9), stats.norm(2, 0.5).ppf(0.9)),
        (one.logpdf([1.0]), stats.norm(2, 0.5).logpdf(1.0)),
    ):
        assert_allclose(found, [expected], rtol=1e-12)


@pytest.mark.parametrize("mixture", [MIXTURE, COUNTS], ids=["normal", "poisson"])
def test_draws_have_the_mixtures_moments(mixture):
    random = np.random.default_rng(0)
    draws = np.stack([mixture.rvs(random_state=random) for _ in range(4_000)])
    assert draws.shape == (4_000, 3, 2)
    assert_mean(draws, mixture.mean(), k=4)
    assert_mean((draws - mixture.mean()) ** 2, mixture.var(), k=4)
    assert_mean(draws <= 1.0, mixture.cdf(np.ones((3, 2))), k=4)


def test_the_same_seed_draws_the_same():
    assert_allclose(MIXTURE.rvs(random_state=3), MIXTURE.rvs(random_state=3))
