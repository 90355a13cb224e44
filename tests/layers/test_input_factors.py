"""InputFactors: one random factor for each entry of an example, exact under local reparameterization."""

import keras
import numpy as np
import pytest
from layer_contract import array
from numpy.testing import assert_allclose

import bdl
from bdl.layers import InputFactors
from bdl.layers.input_factors import DEFAULT_INPUT_POSTERIOR, DEFAULT_INPUT_PRIOR
from bdl.priors import Normal, normal_kl

pytestmark = pytest.mark.core


def test_outputs_have_the_moments_of_the_factors():
    layer = InputFactors(seed=0)
    x = np.full((20_000, 2, 3), 2.0, "float32")
    y = array(layer(x))
    error = 2.0 * 0.1 / np.sqrt(len(x))
    assert_allclose(y.mean(axis=0), 2.0, atol=4.5 * error)
    assert_allclose(y.std(axis=0), 0.2, rtol=4.5 / np.sqrt(2 * len(x)))


def test_each_entry_and_each_example_has_noise_of_its_own():
    y = array(InputFactors(seed=1)(np.ones((4000, 2, 2), "float32"))).reshape(4000, 4)
    correlation = np.corrcoef(np.concatenate([y[::2], y[1::2]], axis=1).T) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(2000)


def test_a_zero_input_stays_zero_with_a_finite_gradient():
    network = keras.Sequential([keras.Input((3,)), InputFactors(seed=0), keras.layers.Dense(1)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal())
    model.compile("sgd")
    model.fit(np.zeros((8, 3)), np.ones((8, 1)), verbose=0)
    assert all(np.isfinite(array(weight)).all() for weight in model.weights)


def test_divergence_is_that_of_independent_factors():
    layer = InputFactors(prior=Normal(1.0, 10.0))
    layer.build((None, 4, 5))
    one = array(normal_kl(1.0, 0.1, 1.0, 10.0))
    assert_allclose(array(layer.kl_divergence()), 20 * one, rtol=1e-5)


def test_factors_of_features_that_are_always_zero_keep_the_prior():
    """Those that the data use become certain."""
    generator = np.random.default_rng(0)
    x = np.where(np.arange(6) < 3, generator.normal(size=(512, 6)), 0.0).astype("float32")
    y = (x[:, :3].sum(axis=1) > 0).astype(int)
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6,)), InputFactors(seed=0), keras.layers.Dense(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, y, epochs=60, batch_size=64, verbose=0)
    weight = network.layers[0].sampled_weights["kernel"]
    scale = array(weight.posterior.scale(weight.variables))
    assert (scale[:3] < 2.0).all()
    assert_allclose(scale[3:], 3.0, rtol=0.05)


def test_it_is_saved_and_loaded(tmp_path):
    network = keras.Sequential([keras.Input((2, 2, 1)), InputFactors(seed=3), keras.layers.Flatten()])
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    (weight,) = loaded.layers[0].sampled_weights.values()
    assert (weight.prior, weight.posterior) == (DEFAULT_INPUT_PRIOR, DEFAULT_INPUT_POSTERIOR)
    x = np.ones((2, 2, 2, 1), "float32")
    assert_allclose(array(loaded(x)), array(network(x)), rtol=1e-6)


def test_the_mean_is_the_inputs():
    layer = InputFactors(seed=0)
    x = np.arange(6, dtype="float32").reshape(2, 3)
    layer(x)
    with bdl.mean_weights(layer):
        assert_allclose(array(layer(x)), x)
