"""Gradients of likelihood and KL by layer, also where a backend's are sparse."""

import keras
import numpy as np
import pytest
from keras import layers
from numpy.testing import assert_allclose

import bdl
from bdl.diagnostics.gradients import _gradients, with_gradients
from bdl.diagnostics.quantities import LayerHealth
from bdl.diagnostics.weights import weight_posteriors


@pytest.mark.core
def test_gradients_of_looked_up_tables_are_whole():
    """d/dw of the sum of w[token]^2 is 2 w times how often the token stands there; TensorFlow's own is sparse."""
    tokens = np.array([[1, 3, 1]])
    network = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(4, 2)])
    table = network.layers[0].embeddings
    (found,) = _gradients(
        lambda: keras.ops.sum(keras.ops.square(network(keras.ops.convert_to_tensor(tokens)))), [table]
    )
    counts = np.array([0, 2, 0, 1])[:, None]
    assert_allclose(found, 2 * keras.ops.convert_to_numpy(table) * counts, rtol=1e-6)


@pytest.mark.core
def test_what_depends_on_no_variable_has_gradients_of_zero():
    """The KL of a network without layers that know theirs, for one."""
    layer = layers.Dense(2)
    layer.build((None, 3))
    for gradient, variable in zip(
        _gradients(lambda: keras.ops.zeros(()), layer.variables), layer.variables, strict=True
    ):
        assert_allclose(gradient, np.zeros(variable.shape), atol=0)


def test_a_network_with_factors_of_tokens_is_measured():
    embedding = bdl.layers.EmbeddingRank1(7, 3, seed=0, name="words")
    parts = [keras.Input((4,), dtype="int32"), embedding, layers.GlobalAveragePooling1D(), layers.Dense(2)]
    network = keras.Sequential(parts)
    tokens, labels = np.array([[1, 2, 3, 1], [5, 5, 2, 0]]), np.array([0, 1])
    posteriors = weight_posteriors(network)
    (measured,) = with_gradients(
        (LayerHealth("words"),),
        posteriors,
        network,
        tokens,
        labels,
        bdl.likelihoods.Categorical(),
        num_examples=10,
    )
    assert measured.gradient_ratio > 0
    assert -1 <= measured.gradient_cosine <= 1
