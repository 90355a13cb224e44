"""Normalisation layers with a sampled scale: a prior around one, and statistics as Keras keeps them."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from layer_contract import array, reset_noise
from numpy.testing import assert_allclose
from sampled_twins import sampled_twin

import bdl
from bdl.layers import (
    BatchNormalizationReparameterization,
    GroupNormalizationReparameterization,
    LayerNormalizationReparameterization,
    RMSNormalizationReparameterization,
)
from bdl.priors import Normal

KINDS = [
    pytest.param(LayerNormalizationReparameterization, {}, "gamma", id="layer"),
    pytest.param(RMSNormalizationReparameterization, {}, "scale", id="rms"),
    pytest.param(GroupNormalizationReparameterization, {"groups": 2}, "gamma", id="group"),
    pytest.param(BatchNormalizationReparameterization, {}, "gamma", id="batch"),
]
X = np.random.default_rng(0).normal(2.0, 3.0, size=(8, 5, 4)).astype("float32")


@pytest.mark.core
@pytest.mark.parametrize(("kind", "arguments", "name"), KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_one_scale_serves_all_examples_and_positions(kind: Any, arguments: dict[str, Any], name: str, training: bool):
    layer = kind(**arguments, seed=0)
    layer.build(X.shape)
    assert list(layer.sampled_weights) == [name]
    twin = sampled_twin(layer, X.shape)
    assert_allclose(array(layer(X, training=training)), array(twin(X, training=training)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "arguments", "name"), KINDS)
def test_the_prior_is_around_one(kind: Any, arguments: dict[str, Any], name: str):
    layer = kind(**arguments)
    layer.build(X.shape)
    weight = layer.sampled_weights[name]
    assert weight.prior == layer.gamma_prior == Normal(1.0, 1.0)
    at_one = array(layer.kl_divergence())
    scale = 0.1
    assert_allclose(at_one, 4 * (-np.log(scale) + scale**2 / 2 - 0.5), rtol=1e-5)
    for value in (0.0, 2.0):
        weight.mean.assign(np.full(4, value))
        assert_allclose(array(layer.kl_divergence()), at_one + 4 * 0.5, rtol=1e-5)


def test_prior_and_posterior_can_be_chosen():
    layer = LayerNormalizationReparameterization(gamma_prior=Normal(1.0, 0.2), gamma_posterior=_small())
    layer.build(X.shape)
    weight = layer.sampled_weights["gamma"]
    assert (weight.prior, weight.posterior.initial_scale) == (Normal(1.0, 0.2), 0.01)
    with pytest.raises(ValueError, match="`gamma_prior` must be"):
        LayerNormalizationReparameterization(gamma_prior="norm")


def _small() -> dict[str, Any]:
    return keras.saving.serialize_keras_object(bdl.posteriors.MeanFieldNormal(initial_scale=0.01))


def test_without_a_scale_there_is_nothing_to_sample():
    with pytest.raises(ValueError, match="'gamma' matches 0"):
        LayerNormalizationReparameterization(scale=False).build(X.shape)


def test_a_regularizer_of_the_scale_is_refused():
    with pytest.raises(ValueError, match="`gamma_regularizer` of layer mean"):
        BatchNormalizationReparameterization(gamma_regularizer="l2").build(X.shape)


@pytest.mark.core
def test_moving_statistics_are_those_of_the_keras_layer():
    layer = BatchNormalizationReparameterization(momentum=0.5, seed=0)
    twin = layers.BatchNormalization(momentum=0.5)
    mask = np.arange(5)[None] < np.arange(1, 9)[:, None] % 5 + 1
    for arguments in ({"training": True}, {"training": True, "mask": mask}, {"training": False}):
        layer(X, **arguments)
        twin(X, **arguments)
        for name in ("moving_mean", "moving_variance"):
            mine, theirs = (array(getattr(inner, name)) for inner in (layer.layer, twin))
            assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not np.allclose(mine, 1.0)


@pytest.mark.core
def test_fit_moves_the_statistics_and_predict_does_not():
    layer = BatchNormalizationReparameterization(momentum=0.5, seed=0)
    network = keras.Sequential([keras.Input((5, 4)), layer, layers.Flatten(), bdl.layers.DenseReparameterization(1)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal())
    model.compile("sgd")
    model.fit(X, np.zeros((8, 1)), batch_size=8, epochs=2, verbose=0)
    mean = array(layer.layer.moving_mean)
    assert_allclose(mean, 0.75 * X.mean(axis=(0, 1)), rtol=1e-4)
    assert np.any(array(layer.sampled_weights["gamma"].variables["rho"]) != np.log(0.1) / 10)
    model.predict_distribution(X, num_samples=3)
    assert_allclose(array(layer.layer.moving_mean), mean)


def test_frozen_batch_normalisation_keeps_its_statistics_and_samples():
    layer = BatchNormalizationReparameterization(momentum=0.5, seed=0)
    layer(X, training=True)
    mean = array(layer.layer.moving_mean)
    layer.trainable = False
    outputs = [array(layer(X, training=True)) for _ in range(2)]
    assert_allclose(array(layer.layer.moving_mean), mean)
    assert not np.allclose(*outputs)
    reset_noise(layer, 3)
    one = array(layer(X, training=True))
    reset_noise(layer, 3)
    assert_allclose(array(layer(X, training=False)), one, rtol=1e-5, atol=1e-5)
