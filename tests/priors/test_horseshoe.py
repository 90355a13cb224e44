"""The horseshoe's bound against the half-Cauchy itself, integrated numerically, and against optimisation."""

from typing import Any

import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose
from scipy import optimize, special, stats

from bdl.priors import Horseshoe


def bound_of(moment: float, size: int, free: Any) -> float:
    """The divergence without the weights' entropy, for any `q(lambda^2) = IG(a, b)`, `q(a) = IG(c, d)`, term by term.

    Args:
        moment: `sum E_q[w^2] / (2 tau^2)`.
        size: Weights in the group.
        free: Logarithms of shape and rate of both inverse gammas.
    """
    a, b, c, d = np.exp(free)
    log_square, precision = np.log(b) - special.digamma(a), a / b
    log_a, inverse_a = np.log(d) - special.digamma(c), c / d
    of_weights = 0.5 * size * np.log(2 * np.pi) + 0.5 * size * log_square + moment * precision

    def expected_log_density(shape: float, log_rate: float, rate: float, log_value: float, inverse: float) -> float:
        return shape * log_rate - special.gammaln(shape) - (shape + 1) * log_value - rate * inverse

    own = expected_log_density(a, np.log(b), b, log_square, precision)
    own += expected_log_density(c, np.log(d), d, log_a, inverse_a)
    prior = expected_log_density(0.5, -log_a, inverse_a, log_square, precision)  # rate 1/a, independent of lambda
    prior += expected_log_density(0.5, 0.0, 1.0, log_a, inverse_a)
    return of_weights + own - prior


def observed(mean: Any, scale: Any, groups: str = "row", tau: float = 1.0) -> float:
    shape = (1, np.size(mean))
    mean, scale = np.reshape(mean, shape).astype("float32"), np.reshape(scale, shape).astype("float32")
    return float(array(Horseshoe(groups, tau).kl(mean, scale, (0,))))


def entropy(scale: Any) -> float:
    return float(np.sum(0.5 * np.log(2 * np.pi * np.e * np.square(scale))))


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("mean", [0.0, 0.3, 20.0])
@pytest.mark.parametrize("scale", [1e-3, 0.5, 5.0])
def test_it_is_the_least_over_all_inverse_gammas(size: int, mean: float, scale: float):
    means, scales = np.full(size, mean), np.full(size, scale)
    moment = float(np.sum(means**2 + scales**2)) / 2
    found = optimize.minimize(
        lambda free: bound_of(moment, size, free),
        np.log([size, 2 * moment, 2.0, 1.0 + 1.0 / moment]),  # of the right size
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 20_000, "maxfev": 20_000},
    )
    assert_allclose(observed(means, scales), found.fun - entropy(scales), rtol=1e-5, atol=1e-4)


def true_divergence(mean: Any, scale: Any) -> float:
    """KL of independent Gaussians from the horseshoe of `tau = 1`: half-Cauchy by quadrature, weights by sampling."""
    mean, scale = np.atleast_1d(mean), np.atleast_1d(scale)
    if len(mean) == 1:
        nodes = np.linspace(-8, 8, 4_000)
        draws, probabilities = mean + scale * nodes[:, None], stats.norm.pdf(nodes) * (nodes[1] - nodes[0])
    else:
        draws = mean + scale * np.random.default_rng(0).normal(size=(20_000, len(mean)))
        probabilities = np.full(len(draws), 1 / len(draws))
    grid = np.linspace(-25, 25, 601)  # log lambda: a smooth integrand, to ten digits
    log_lambda = stats.halfcauchy.logpdf(np.exp(grid)) + grid + np.log(grid[1] - grid[0])
    squares = np.sum(draws**2, axis=1)[:, None]
    log_w = -0.5 * squares * np.exp(-2 * grid) - len(mean) * (grid + 0.5 * np.log(2 * np.pi))
    log_prior = special.logsumexp(log_w + log_lambda, axis=1)
    return -entropy(scale) - float(probabilities @ log_prior)


@pytest.mark.parametrize("mean", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("size", [1, 3])
def test_it_is_above_the_divergence_from_the_half_cauchy(size: int, mean: float, scale: float):
    means, scales = np.full(size, mean), np.full(size, scale)
    excess = observed(means, scales) - true_divergence(means, scales)
    # Below: the error of sampling. Above: what the class's docstring says.
    assert -0.03 <= excess < 1.5


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.floats(-6, 4), st.floats(-6, 4), st.integers(0, 100))
def test_it_is_not_negative(size: int, log_mean: float, log_scale: float, seed: int):
    generator = np.random.default_rng(seed)
    mean = 10.0**log_mean * generator.normal(size=size)
    scale = 10.0**log_scale * np.exp(generator.normal(size=size))
    value = observed(mean, scale)
    assert value > -1e-5 * size * (20 + abs(log_mean) + abs(log_scale))


@pytest.mark.core
@pytest.mark.parametrize("groups", ["weight", "row", "column"])
def test_groups_are_summed_and_scaled(groups: str):
    generator = np.random.default_rng(0)
    mean, scale = generator.normal(size=(4, 3)).astype("float32"), generator.uniform(0.1, 1, (4, 3)).astype("float32")
    parts = {
        "weight": [(m, s) for m, s in zip(mean.ravel(), scale.ravel(), strict=True)],
        "row": zip(mean, scale, strict=True),
    }
    parts["column"] = zip(mean.T, scale.T, strict=True)
    expected = sum(observed(m * 2, s * 2) for m, s in parts[groups])  # tau = 1/2: the weights in its units
    assert_allclose(array(Horseshoe(groups).kl(mean, scale, (0,))), expected, rtol=1e-5)
    assert_allclose(array(Horseshoe(groups, 0.5).kl(mean, scale, (0,))), expected, rtol=1e-5)
    # The conditional Gaussian is the stand-in, and the mean's gradient that of it.
    zero, stand_in = Horseshoe(groups).parameters(mean, scale, (0,))
    assert zero == 0.0
    assert stand_in.shape == (4, 3)
    values = [ops.convert_to_tensor(mean), ops.convert_to_tensor(scale)]
    by_mean, by_scale = gradients(lambda parts: Horseshoe(groups).kl(*parts, (0,)), values)
    assert_allclose(array(by_mean), mean / array(stand_in) ** 2, rtol=1e-4)
    assert_allclose(array(by_scale), scale / array(stand_in) ** 2 - 1 / scale, rtol=1e-3, atol=1e-4)


def test_the_stopped_gradient_is_the_whole_one():
    """Envelope theorem: differences of the value, whose scales move along, have the gradient at fixed scales."""
    mean, scale = np.array([0.3, -1.0, 2.0]), np.full(3, 0.4)
    found = gradients(
        lambda parts: Horseshoe("row", 1.0).kl(parts[0], scale[None].astype("float32"), (0,)),
        [ops.convert_to_tensor(mean[None].astype("float32"))],
    )
    step = np.array([0.0, 1e-2, 0.0])
    slope = (observed(mean + step, scale) - observed(mean - step, scale)) / 2e-2
    assert_allclose(array(found[0])[0, 1], slope, rtol=2e-3)


@pytest.mark.core
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e4])
def test_it_is_finite_with_its_gradients_at_the_extremes(scale: float):
    prior, mean = Horseshoe(), np.zeros((5, 700), "float32")
    values = [ops.convert_to_tensor(mean), ops.convert_to_tensor(np.full(mean.shape, scale, "float32"))]
    assert np.isfinite(array(prior.kl(*values, (0,))))
    for part in gradients(lambda parts: prior.kl(*parts, (0,)), values):
        assert np.all(np.isfinite(array(part)))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"`groups` must be one of \('weight', 'row', 'column'\), not 'layer'"):
        Horseshoe("layer")
    for scale in (0.0, "fan_out", None):
        with pytest.raises(ValueError, match='`global_scale` must be "fan_in" or a finite positive number'):
            Horseshoe(global_scale=scale)
