"""Posteriors: their variables, scales, draws and divergences."""

import math
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays
from keras import ops
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal
from standard_errors import assert_moments

from bdl import posteriors, random
from bdl.posteriors import INITIAL_RELATIVE_SCALE, MeanFieldNormal, Posterior, Rank1
from bdl.priors import EmpiricalBayes, FanInNormal, Normal, TiedMean


def variables_of(posterior: Posterior, shape: tuple[int, ...], input_axes: tuple[int, ...] = ()) -> tuple[Any, Any]:
    layer = keras.layers.Layer()
    mean = layer.add_weight(name="kernel", shape=shape, initializer="random_normal")
    return mean, posterior.create(layer, "kernel", mean, input_axes)


@settings(max_examples=25, deadline=None)
@given(hypothesis_arrays.array_shapes(max_dims=4, max_side=5), st.floats(1e-4, 10.0), st.sampled_from([1.0, 30.0]))
def test_initial_scale_is_what_was_asked_for(shape: tuple[int, ...], initial_scale: float, speed: float):
    posterior = MeanFieldNormal(initial_scale, speed)
    _, variables = variables_of(posterior, shape)
    # The exponential of a large argument loses relative accuracy in float32: eps * |log scale| <= 2e-6 here.
    assert_allclose(array(posterior.scale(variables)), np.full(shape, initial_scale), rtol=5e-6)


@pytest.mark.parametrize("input_axes", [(0,), (0, 1), ()])
def test_default_scale_is_relative_to_the_fan_in(input_axes: tuple[int, ...]):
    shape = (4, 5, 3)
    posterior = MeanFieldNormal()
    _, variables = variables_of(posterior, shape, input_axes)
    fan_in = np.prod([shape[axis] for axis in input_axes])
    expected = INITIAL_RELATIVE_SCALE / np.sqrt(fan_in)
    assert_allclose(array(posterior.scale(variables)), np.full(shape, expected), rtol=5e-6)
    assert variables["rho"].path.endswith("kernel_rho")


def test_speed_multiplies_what_an_optimizer_moves():
    slow, fast = MeanFieldNormal(0.1, speed=1.0), MeanFieldNormal(0.1, speed=30.0)
    scales = []
    for posterior in (slow, fast):
        _, variables = variables_of(posterior, (1,))
        variables["rho"].assign_add(np.array([0.01]))
        scales.append(array(posterior.scale(variables))[0])
    expected = [0.1 * math.exp(0.01), 0.1 * math.exp(0.3)]
    assert_allclose(scales, expected, rtol=5e-6)


def test_divergence_is_finite_where_the_scale_underflows():
    posterior = MeanFieldNormal(0.1, speed=1.0)
    mean, variables = variables_of(posterior, (2, 3))
    variables["rho"].assign(np.full((2, 3), -1e4))
    assert_array_equal(array(posterior.scale(variables)), np.zeros((2, 3), "float32"))
    for prior in (Normal(), EmpiricalBayes()):
        assert array(posterior.kl(mean, variables, prior, (0,))) == pytest.approx(6e4, rel=1e-2)


@pytest.mark.core
def test_perturbations_have_the_scale_and_follow_the_key():
    posterior = MeanFieldNormal(0.3)
    _, variables = variables_of(posterior, (100, 200))
    variables["rho"].assign_add(np.linspace(0, 0.02, 200) * np.ones((100, 1)))
    key = random.draw_key(3)
    draw = array(posterior.perturbation(variables, key))
    assert_moments((draw / array(posterior.scale(variables))).ravel(), 0.0, 1.0)
    assert_array_equal(array(posterior.perturbation(variables, key)), draw)
    assert not np.allclose(array(posterior.perturbation(variables, random.draw_key(4))), draw)


@pytest.mark.core
@pytest.mark.parametrize("prior", [Normal(0.2, 0.5), FanInNormal(), EmpiricalBayes(), TiedMean()], ids=repr)
def test_mean_field_divergence_is_that_of_its_prior(prior: Any):
    posterior = MeanFieldNormal(0.3)
    mean, variables = variables_of(posterior, (4, 3), (0,))
    expected = array(prior.kl(ops.convert_to_tensor(mean), posterior.scale(variables), (0,)))
    observed = posterior.kl(mean, variables, prior, (0,))
    assert_allclose(array(observed), expected, rtol=1e-6)
    assert observed.shape == ()


def rank1_variables(posterior: Rank1) -> dict[str, Any]:
    return posterior.create_factors(keras.layers.Layer(), "kernel", {"input": (4,), "output": (1, 3)})


def test_rank1_starts_with_factors_of_one():
    posterior = Rank1(initial_scale=0.2)
    variables = rank1_variables(posterior)
    for side, shape in (("input", (4,)), ("output", (1, 3))):
        zero, one = (array(posterior.factor(variables, side, np.full(shape, noise, "float32"))) for noise in (0.0, 1.0))
        assert_array_equal(zero, np.ones(shape))
        assert_allclose(one - zero, np.full(shape, 0.2), rtol=1e-5)


@pytest.mark.core
def test_rank1_divergence_is_that_of_both_factors():
    posterior = Rank1(Normal(1.0, 10.0), Normal(1.0, 0.5), initial_scale=0.2)
    variables = rank1_variables(posterior)
    variables["input_mean"].assign(np.array([0.5, 1.0, 1.5, 2.0]))
    sigma = 0.2
    expected = sum(np.log(10 / sigma) + (sigma**2 + (m - 1) ** 2) / 200 - 0.5 for m in (0.5, 1.0, 1.5, 2.0))
    expected += 3 * (np.log(0.5 / sigma) + sigma**2 / 0.5 - 0.5)
    assert_allclose(array(posterior.kl(None, variables, None, ())), expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf, "small", True])
def test_numbers_must_be_positive_and_finite(value: Any):
    for build in (
        lambda: MeanFieldNormal(initial_scale=value),
        lambda: MeanFieldNormal(speed=value),
        lambda: Rank1(initial_scale=value),
        lambda: Rank1(speed=value),
    ):
        with pytest.raises(ValueError, match=r"`(initial_scale|speed)` must be .*a finite positive number"):
            build()


def test_factors_need_priors():
    for argument in ("input_factor_prior", "output_factor_prior"):
        with pytest.raises(ValueError, match=f"`{argument}` must be a bdl.priors.Prior, not 1.0"):
            Rank1(**{argument: 1.0})


def test_get_takes_names_objects_and_configurations():
    assert posteriors.get("mean_field") == MeanFieldNormal()
    assert posteriors.get("rank1") == Rank1()
    rank1 = Rank1(Normal(1.0, 10.0), initial_scale=0.2)
    assert posteriors.get(rank1) is rank1
    assert posteriors.get(keras.saving.serialize_keras_object(rank1)) == rank1
    for bad in ("full", 0.1, Normal()):
        with pytest.raises(ValueError, match=r"`q` must be a bdl.posteriors.Posterior or one of"):
            posteriors.get(bad, "q")


def test_the_base_class_names_what_a_posterior_must_have():
    for call in (lambda: Posterior().create(None, "kernel", None, ()), lambda: Posterior().kl(None, {}, None, ())):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.core
def test_initial_ratio_starts_the_scales_at_a_share_of_the_weights():
    values = np.array([[2.0, -0.5, 0.0], [1.0, 0.0, -1.0]])
    layer = keras.layers.Layer()
    mean = layer.add_weight(shape=(2, 3), initializer="zeros")
    mean.assign(values)
    posterior = MeanFieldNormal(initial_ratio=0.1)
    variables = posterior.create(layer, "kernel", mean, (0,))
    floor = 0.01 * np.sqrt(np.mean(values**2))
    assert_allclose(array(posterior.scale(variables)), 0.1 * np.maximum(np.abs(values), floor), rtol=1e-5)
    with pytest.raises(ValueError, match=r"`initial_scale`=0.1 and `initial_ratio`=0.2"):
        MeanFieldNormal(initial_scale=0.1, initial_ratio=0.2)
    with pytest.raises(ValueError, match="`initial_ratio`"):
        MeanFieldNormal(initial_ratio=0.0)
