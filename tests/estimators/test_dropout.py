"""The noise of each kind of dropout: moments, shapes of the mask, whole functions, strength zero."""

from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from layer_contract import array
from numpy.testing import assert_allclose, assert_array_equal
from standard_errors import assert_moments

from bdl import random
from bdl.estimators.dropout import apply_dropout
from bdl.estimators.weights import whole_functions

pytestmark = pytest.mark.core

KINDS = [
    layers.Dropout(0.3),
    layers.GaussianDropout(0.3),
    layers.GaussianNoise(0.5),
    layers.AlphaDropout(0.3),
]


def drawn(layer: Any, x: np.ndarray, seed: int = 0, strength: float = 1.0) -> np.ndarray:
    return array(apply_dropout(layer, ops.convert_to_tensor(x), random.draw_key(seed), strength))


@pytest.mark.parametrize(
    ("layer", "variance"), [(KINDS[0], 9 * 0.3 / 0.7), (KINDS[1], 9 * 0.3 / 0.7), (KINDS[2], 0.25)], ids=str
)
def test_moments_are_those_of_the_layer(layer: Any, variance: float):
    values = drawn(layer, np.full((40_000, 1), 3.0, "float32")).astype("float64")
    assert_moments(values, np.full(1, 3.0), np.full(1, variance))


def test_alpha_dropout_keeps_mean_zero_and_variance_one():
    x = np.random.default_rng(0).normal(size=(200_000, 1)).astype("float32")
    assert_moments(drawn(KINDS[3], x).astype("float64"), np.zeros(1), np.ones(1))


@pytest.mark.parametrize("layer", KINDS, ids=str)
def test_no_strength_is_the_identity_and_a_key_is_a_draw(layer: Any):
    x = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
    assert_array_equal(drawn(layer, x, strength=0.0), x)
    assert_array_equal(drawn(layer, x, seed=1), drawn(layer, x, seed=1))
    assert np.any(drawn(layer, x, seed=1) != drawn(layer, x, seed=2))


@pytest.mark.parametrize("layer", KINDS, ids=str)
def test_whole_functions_treat_all_examples_alike(layer: Any):
    x = np.ones((6, 9), "float32")
    with whole_functions():
        values = drawn(layer, x)
    assert_array_equal(values, values[:1].repeat(6, axis=0))


@pytest.mark.parametrize(
    ("layer", "shape", "shared"),
    [
        (layers.SpatialDropout1D(0.5), (8, 5, 16), (1,)),
        (layers.SpatialDropout2D(0.5), (8, 4, 3, 16), (1, 2)),
        (layers.SpatialDropout2D(0.5, data_format="channels_first"), (8, 16, 4, 3), (2, 3)),
        (layers.SpatialDropout3D(0.5), (8, 2, 3, 2, 16), (1, 2, 3)),
        (layers.Dropout(0.5, noise_shape=(None, 1, None)), (8, 5, 16), (1,)),
    ],
)
def test_masks_are_shared_where_the_layer_shares_them(layer: Any, shape: tuple[int, ...], shared: tuple[int, ...]):
    mask = drawn(layer, np.ones(shape, "float32"))
    first = np.take(mask, [0], axis=shared[0])
    for axis in shared[1:]:
        first = np.take(first, [0], axis=axis)
    assert_array_equal(mask, np.broadcast_to(first, shape))
    assert 0.2 < np.mean(first == 0) < 0.8


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.floats(0.0, 0.9),
)
@settings(max_examples=20, deadline=None)
def test_shape_and_dtype_are_the_inputs(shape: list[int], dtype: str, rate: float):
    x = ops.ones(tuple(shape), dtype=dtype)
    found = apply_dropout(layers.Dropout(rate), x, random.draw_key(0))
    assert tuple(found.shape) == tuple(shape)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    values = array(ops.cast(found, "float32"))
    assert_allclose(values[values != 0], 1.0 / (1.0 - rate), rtol=1e-2)


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="dropout layer of Keras"):
        drawn(layers.Dense(3), np.ones((2, 2), "float32"))
