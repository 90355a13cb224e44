"""The length of a fit reaches what runs over it: here the learning rate."""

import keras
import numpy as np
import pytest
from layer_contract import array
from numpy.testing import assert_allclose

import bdl
from bdl.schedules import DecayOverFit

X, Y = np.ones((4, 1), "float32"), np.ones((4, 1), "float32")


def one_weight(rate) -> bdl.VariationalModel:
    """One weight w, from 0, whose gradient is w - 1."""
    layer = bdl.layers.DenseLocalReparameterization(
        1, use_bias=False, kernel_initializer="zeros", kernel_posterior=bdl.posteriors.MeanFieldNormal(1e-7)
    )
    network = keras.Sequential([keras.Input((1,)), layer])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), num_examples=4, kl_weight=0.0)
    model.compile(keras.optimizers.SGD(DecayOverFit(rate)))
    return model


def descended(weight: float, rate: float, steps: int) -> float:
    """The weight after gradient steps at a rate along half a cosine."""
    for step in range(steps):
        weight += 0.5 * rate * (1.0 + np.cos(np.pi * step / steps)) * (1.0 - weight)
    return weight


@pytest.mark.core
def test_the_rate_falls_over_each_fit_whatever_its_length(tmp_path):
    model, expected = one_weight(0.1), 0.0
    for epochs in (3, 3, 5):  # the second has the first's compiled step, the third needs one of its own
        model.fit(X, Y, batch_size=2, epochs=epochs, verbose=0)
        expected = descended(expected, 0.1, 2 * epochs)
        assert_allclose(array(model.network.layers[0].layer.kernel), [[expected]], rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(X, Y, batch_size=4, epochs=6, initial_epoch=2, verbose=0)
    expected = descended(expected, 0.1, 4)
    assert_allclose(array(loaded.network.layers[0].layer.kernel), [[expected]], rtol=1e-5)


def test_without_a_length_the_rate_cannot_fall():
    model = one_weight(0.1)
    model.train_on_batch(X, Y)  # at the full rate
    assert_allclose(array(model.network.layers[0].layer.kernel), [[0.1]], rtol=1e-5)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given where the data do not tell their length"):
        model.fit(iter([(X, Y)]), verbose=0)
