"""The temperature layer: a division, saved, in any precision, on every backend."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose

import bdl
from bdl.convert import to_deterministic
from bdl.layers import TemperatureScaling

LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


def array(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.core
def test_logits_are_divided():
    assert_allclose(array(TemperatureScaling(2.0)(LOGITS)), LOGITS / 2, rtol=1e-6)


@pytest.mark.core
def test_it_is_not_trained_and_keeps_a_mask():
    layer = TemperatureScaling(1.5)
    assert layer.trainable_weights == []
    assert layer.supports_masking
    assert layer.compute_output_shape((None, 7, 3)) == (None, 7, 3)


@pytest.mark.core
def test_mixed_precision_computes_in_half_and_keeps_the_temperature_in_single():
    layer = TemperatureScaling(3.0, dtype="mixed_bfloat16")
    assert keras.backend.standardize_dtype(layer(LOGITS).dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(layer.temperature.dtype) == "float32"


@pytest.mark.core
def test_a_saved_model_has_the_temperature_of_today(tmp_path):
    model = keras.Sequential([keras.Input((3,)), TemperatureScaling(2.0)])
    model.layers[0].temperature.assign(4.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_allclose(loaded.predict(LOGITS, verbose=0), LOGITS / 4, rtol=1e-6)


def test_a_plain_model_keeps_it_as_a_rescaling():
    model = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3), TemperatureScaling(2.0)])
    plain = to_deterministic(model)
    x = np.ones((2, 4), "float32")
    with bdl.mean_weights(model):
        assert_allclose(array(plain(x)), array(model(x)), rtol=1e-5)
    assert type(plain.layers[1]).__name__ == "Rescaling"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), True])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be a positive number"):
        TemperatureScaling(temperature)
