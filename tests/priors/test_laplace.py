"""The Laplace prior: its divergence against quadrature, its gradients where scales vanish."""

import itertools
from typing import Any

import numpy as np
import pytest
from gradients import gradients
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose
from scipy import integrate, stats

from bdl.priors import Laplace


def quadrature(mean: float, scale: float, prior: Any) -> float:
    """KL(N(mean, scale^2) || prior) by quadrature, in nats."""
    q = stats.norm(mean, scale)
    edges = sorted(
        {mean - 12 * scale, mean + 12 * scale, *(p for p in (prior.mean(), mean) if abs(p - mean) < 12 * scale)}
    )
    return sum(
        integrate.quad(lambda w: q.pdf(w) * (q.logpdf(w) - prior.logpdf(w)), low, high, epsabs=1e-10)[0]
        for low, high in itertools.pairwise(edges)
    )


@pytest.mark.core
@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 0.2, 0.7, 50.0])
def test_divergence_is_that_of_quadrature(mean: float, scale: float):
    observed = array(Laplace(0.2, 0.5).kl(np.full(1, mean, "float32"), np.full(1, scale, "float32")))
    expected = quadrature(mean, scale, stats.laplace(0.2, 0.5))
    assert_allclose(observed, expected, rtol=1e-5, atol=1e-5)
    assert expected >= 0


@pytest.mark.core
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-3, 1.0])
@pytest.mark.parametrize("mean", [-1e3, 0.0, 1e-20, 1.0])
def test_gradients_are_exact_and_finite_for_every_scale(mean: float, scale: float):
    values = [ops.convert_to_tensor(np.full(1, number, "float32")) for number in (mean, scale)]
    # The scale's own logarithm is handed in, as posteriors do: what is tested is the mean distance.
    found = gradients(lambda parts: Laplace(scale=0.5).kl(*parts, log_scale=np.zeros(1, "float32")), values)
    ratio = mean / scale
    expected = [2 * (2 * stats.norm.cdf(ratio) - 1), 2 * 2 * stats.norm.pdf(ratio)]
    assert_allclose([array(part)[0] for part in found], expected, rtol=1e-4, atol=1e-6)


def test_a_fan_in_scale_is_a_standard_deviation():
    mean, scale = np.ones((8, 3), "float32"), np.ones((8, 3), "float32")
    assert Laplace(scale="fan_in").parameters(mean, scale, (0,)) == pytest.approx((0.0, 1 / np.sqrt(8)))
    assert Laplace(1.0, 2.0).parameters(mean, scale, (0,)) == pytest.approx((1.0, stats.laplace(1, 2).std()))
    same = Laplace(scale=1 / np.sqrt(16)).kl(mean, scale, (0,))
    assert_allclose(array(Laplace(scale="fan_in").kl(mean, scale, (0,))), array(same), rtol=1e-6)


@pytest.mark.parametrize("scale", [0, -1.0, np.nan, "fanin", None, True])
def test_bad_scales_are_named(scale: Any):
    with pytest.raises(ValueError, match='`scale` must be "fan_in" or a finite positive number'):
        Laplace(scale=scale)
