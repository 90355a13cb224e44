"""Replaced attributes come back, whatever happens."""

import keras
import numpy as np
import pytest

from bdl.convert.rewiring import Replacement, replaced


def test_attributes_come_back_after_an_error_too():
    layer = keras.layers.Dense(2)
    x = np.ones((1, 3), "float32")
    expected = keras.ops.convert_to_numpy(layer(x))

    def fail() -> None:
        with replaced([Replacement(layer, "call", lambda inputs: inputs), Replacement(layer, "units", 5)]):
            assert layer(x).shape == (1, 3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert layer.units == 2
    assert "call" not in vars(layer)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), expected)


def test_replacements_nest():
    layer = keras.layers.Dense(2)
    with replaced([Replacement(layer, "units", 5)]):
        with replaced([Replacement(layer, "units", 7)]):
            assert layer.units == 7
        assert layer.units == 5
    assert layer.units == 2
