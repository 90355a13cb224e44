"""Where a prior alone would hold a weight: there its divergence has no gradient, by backpropagation."""

from typing import Any

import keras
import numpy as np
import pytest
from gradients import gradients
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose

from bdl.priors import EmpiricalBayes, FanInNormal, Horseshoe, Laplace, Moped, Normal, Prior, ScaleMixture, TiedMean

PRIORS: list[Prior] = [
    Normal(0.3, 0.7),
    FanInNormal(0.5),
    Laplace(0.3, 0.5),
    Laplace(scale="fan_in"),
    ScaleMixture(),
    ScaleMixture((0.2, 0.3, 0.5), (2.0, 0.5, 0.1), "fan_in", learned=True),
    Horseshoe("row", 0.3),
    Horseshoe("weight"),
    EmpiricalBayes("column", pseudo_count=10.0),
    TiedMean(Laplace()),
    TiedMean(0.2),
    Moped(Laplace()),
]


def at_rest(prior: Prior, start: float) -> tuple[Any, Any, Any]:
    """Means, scales and the prior's variables; a prior that follows the weights moves along until both are at rest."""
    layer = keras.layers.Layer()
    mean = layer.add_weight(
        name="kernel", shape=(4, 3), initializer=keras.initializers.RandomNormal(stddev=0.1 * start)
    )
    variables = prior.create(layer, "kernel", mean)
    values, scale = ops.convert_to_tensor(mean), start * ops.ones((4, 3))
    for _ in range(100):
        values, scale = (part + ops.zeros((4, 3)) for part in prior.resting_place(values, scale, (0,), variables))
    return values, scale, variables


@pytest.mark.core
@pytest.mark.parametrize("start", [0.003, 0.5])
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_the_divergence_has_no_gradient_at_rest(prior: Prior, start: float):
    mean, scale, variables = at_rest(prior, start)
    by_mean, by_log_scale = gradients(
        lambda parts: prior.kl(parts[0], scale * ops.exp(parts[1]), (0,), variables=variables),
        [mean, ops.zeros((4, 3))],
    )
    # A weight's slope is 1 - (scale / rest)^2, each of whose terms is rounded a few times.
    assert_allclose(array(by_log_scale), np.zeros((4, 3)), atol=1e-5)
    assert_allclose(array(by_mean) * array(scale), np.zeros((4, 3)), atol=1e-5)


@pytest.mark.parametrize("start", [0.003, 0.5])
def test_a_mixture_holds_a_weight_at_the_component_that_it_is_given_to(start: float):
    """Components are far apart: of the precision, the one that a weight is not given to has less than a hundredth."""
    _, scale, _ = at_rest(ScaleMixture((0.5, 0.5), (1.0, 0.0025)), start)
    assert_allclose(array(scale), np.full((4, 3), 1.0 if start == 0.5 else 0.0025), rtol=1e-2)
