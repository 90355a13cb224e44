"""Priors centred on weights: tied to the posterior's means, or kept from the start."""

from typing import Any

import keras
import numpy as np
import pytest
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal

from bdl import priors
from bdl.priors import EmpiricalBayes, FanInNormal, Horseshoe, Laplace, Moped, Normal, ScaleMixture, TiedMean

MEAN, SCALE = np.full((4, 2), 0.3, "float32"), np.full((4, 2), 0.1, "float32")
DEVIATIONS = [Normal(scale=0.2), FanInNormal(0.5), Laplace(scale=0.4), ScaleMixture(), Horseshoe()]


def created(prior: Any, value: Any) -> Any:
    return prior.create(keras.layers.Layer(), "kernel", keras.Variable(value))


@pytest.mark.core
@pytest.mark.parametrize("spread", [*DEVIATIONS, EmpiricalBayes(), ScaleMixture(learned=True)], ids=repr)
def test_moped_is_its_spread_around_the_centre(spread: Any):
    prior = Moped(spread)
    variables = created(prior, np.full((4, 2), 0.1, "float32"))
    assert variables["centre"].path.endswith("kernel_centre")
    assert not variables["centre"].trainable
    own = {key: value for key, value in variables.items() if key != "centre"}
    observed = array(prior.kl(MEAN, SCALE, (0,), variables=variables))
    assert_allclose(observed, array(spread.kl(MEAN - 0.1, SCALE, (0,), variables=own)), rtol=1e-5)
    centre, width = prior.parameters(MEAN, SCALE, (0,), variables)
    assert_allclose(array(centre), np.full((4, 2), 0.1), rtol=1e-6)
    expected = spread.parameters(MEAN - np.float32(0.1), SCALE, (0,), own)[1]
    assert_allclose(np.broadcast_to(array(width), (4, 2)), np.broadcast_to(array(expected), (4, 2)), rtol=1e-5)


def test_moped_needs_its_centre_and_a_spread_at_zero():
    assert priors.get("moped") == Moped(FanInNormal(1.0))
    for call in (Moped().kl, lambda *arguments: Moped().penalty(arguments[0])):
        with pytest.raises(ValueError, match=r"pass `variables` as `Moped.create` made them"):
            call(MEAN, SCALE)
    for wrong in (TiedMean(), Moped(), "normal", Normal(1.0), Laplace(-1.0)):
        with pytest.raises(ValueError, match=r"`spread` must be a bdl.priors.Prior with a centre of its own at 0"):
            Moped(wrong)


@pytest.mark.core
@pytest.mark.parametrize("deviation", DEVIATIONS, ids=repr)
def test_a_tied_mean_pays_for_its_scales_only(deviation: Any):
    expected = array(deviation.kl(np.zeros_like(MEAN), SCALE, (0,)))
    for mean in (MEAN, MEAN * 100):
        assert_allclose(array(TiedMean(deviation).kl(mean, SCALE, (0,))), expected, rtol=1e-5)
        at, width = TiedMean(deviation).parameters(mean, SCALE, (0,))
        assert_array_equal(at, mean)
        stand_in = deviation.parameters(np.zeros_like(mean), SCALE, (0,))[1]
        assert_allclose(np.broadcast_to(array(width), mean.shape), np.broadcast_to(array(stand_in), mean.shape))


@pytest.mark.core
def test_a_mean_prior_adds_its_penalty():
    """The hierarchical model w ~ N(m, s^2), m ~ mean_prior, with m at its mode."""
    tied = array(TiedMean(FanInNormal(0.5)).kl(MEAN, SCALE, (0,)))
    assert_allclose(tied, array(TiedMean(0.25).kl(MEAN, SCALE, (0,))), rtol=1e-6)
    prior = TiedMean(FanInNormal(0.5), Normal(0.0, 2.0))
    assert_allclose(array(prior.kl(MEAN, SCALE, (0,))) - tied, 8 * 0.09 / 8, rtol=1e-4)
    around = TiedMean(0.25, Moped(Normal(scale=0.1)))
    variables = created(around, np.full((4, 2), 0.1, "float32"))
    assert_allclose(array(around.kl(MEAN, SCALE, (0,), variables=variables)) - tied, 8 * 0.04 / 0.02, rtol=1e-4)


def test_what_cannot_be_tied_is_named():
    for follows in (EmpiricalBayes(), ScaleMixture(learned=True)):
        with pytest.raises(ValueError, match=r"`scale` must not be .* at no cost"):
            TiedMean(follows)
    for wrong in (Moped(), TiedMean(), Normal(1.0)):
        with pytest.raises(ValueError, match=r"`scale` must be a bdl.priors.Prior with a centre of its own at 0"):
            TiedMean(wrong)
    with pytest.raises(ValueError, match=r"`scale` must not be EmpiricalBayes.* would follow the posterior's scales"):
        TiedMean(EmpiricalBayes())
    with pytest.raises(ValueError, match='`scale` must be "fan_in" or a finite positive number'):
        TiedMean("normal")
    for wrong in (EmpiricalBayes(), Horseshoe(), TiedMean()):
        with pytest.raises(ValueError, match=r"`mean_prior` is the prior of point estimates, which .* is not: "):
            TiedMean(mean_prior=wrong)
    with pytest.raises(ValueError, match=r"`mean_prior` must be None or a bdl.priors.Prior, not 'normal'"):
        TiedMean(mean_prior="normal")
