"""Score modes against NumPy, and what they refuse."""

import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose

from bdl.layers.latent_attention.scores import SCORE_MODES, AlignmentScore

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(2, 3, 4)).astype("float32")
KEY = RNG.normal(size=(2, 5, 4)).astype("float32")
LONG_KEY = RNG.normal(size=(2, 5, 6)).astype("float32")


def built(mode, key=KEY, **arguments):
    """A layer with weights that are not at their initial values."""
    layer = AlignmentScore(mode, **arguments)
    layer.build(QUERY.shape, key.shape)
    for weight in layer.weights:
        weight.assign(RNG.normal(size=weight.shape))
    return layer


def weights(layer):
    return {weight.name: np.asarray(ops.convert_to_numpy(weight), "float64") for weight in layer.weights}


def reference(mode, query, key, scale=1.0, concat_score_weight=None, kernel=None, **additive):
    query, key = query.astype("float64"), key.astype("float64")
    if mode == "dot":
        return scale * np.einsum("bqd,bkd->bqk", query, key)
    if mode == "scaled_dot":
        return scale * np.einsum("bqd,bkd->bqk", query, key) / np.sqrt(key.shape[-1])
    if mode == "concat":
        return concat_score_weight * np.tanh(scale * (query[:, :, None] + key[:, None])).sum(axis=-1)
    if mode == "general":
        return np.einsum("bqd,de,bke->bqk", query, kernel, key)
    hidden = (query @ additive["query_kernel"])[:, :, None] + (key @ additive["key_kernel"])[:, None]
    return np.tanh(hidden) @ additive["score_kernel"][:, 0]


def assert_is_reference(layer, key):
    found = layer(QUERY, key)
    assert tuple(found.shape) == layer.compute_output_shape(QUERY.shape, key.shape) == (2, 3, 5)
    assert_allclose(ops.convert_to_numpy(found), reference(layer.mode, QUERY, key, **weights(layer)), rtol=1e-4)


@pytest.mark.parametrize("mode", SCORE_MODES)
def test_each_mode_is_its_formula(mode):
    assert_is_reference(built(mode), KEY)


@pytest.mark.parametrize("mode", ["dot", "scaled_dot", "concat"])
def test_the_scale_multiplies(mode):
    assert_is_reference(built(mode, use_scale=True), KEY)


@pytest.mark.parametrize("mode", ["general", "additive"])
def test_modes_with_kernels_take_keys_of_another_dimension(mode):
    assert_is_reference(built(mode, LONG_KEY), LONG_KEY)


def test_the_width_of_additive_is_that_of_the_keys_or_given():
    assert built("additive", LONG_KEY).query_kernel.shape == (4, 6)
    layer = built("additive", LONG_KEY, units=3)
    assert layer.key_kernel.shape == (6, 3)
    assert_is_reference(layer, LONG_KEY)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"`score_mode` must be one of .*'scaled_dot'.*, not 'cosine'"):
        AlignmentScore("cosine")


@pytest.mark.parametrize("mode", ["general", "additive"])
def test_a_second_scale_is_refused(mode):
    with pytest.raises(ValueError, match=rf"`use_scale=True` adds nothing to score_mode='{mode}'.*Drop it"):
        AlignmentScore(mode, use_scale=True)


@pytest.mark.parametrize("mode", ["dot", "concat", "scaled_dot"])
def test_queries_and_keys_of_different_dimensions_are_refused(mode):
    with pytest.raises(ValueError, match=rf"`score_mode='{mode}'` needs .* one dimension, not 4 and 6.*'general'"):
        built(mode, LONG_KEY)
