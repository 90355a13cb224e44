"""Reports of local latent variables: they reach a collector, and only with values that are there."""

import keras
import numpy as np
import pytest
from keras import ops

from bdl.layers import Alignment, GaussianCode, collect_latents, report_latent

pytestmark = pytest.mark.core

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


class Code(keras.layers.Layer):
    """A code of one unit for each feature."""

    def call(self, x):
        report_latent(self, GaussianCode(x, 0.5))
        return x


class Attention(keras.layers.Layer):
    def call(self, x):
        report_latent(self, Alignment(ops.softmax(x), key_mask=np.array([True, True, True, False])))
        return x


def test_reports_carry_the_layers_names_and_arrays_of_one_shape():
    inputs = keras.Input((4,))
    network = keras.Model(inputs, Attention(name="align")(Code(name="code")(inputs)))
    with collect_latents() as reports:
        network(X)
    assert [report.layer for report in reports] == ["code", "align"]
    code, alignment = (report.latent for report in reports)
    np.testing.assert_array_equal(code.mean, X)
    np.testing.assert_array_equal(code.scale, np.full_like(X, 0.5))
    assert alignment.key_mask.shape == alignment.probabilities.shape == X.shape
    assert alignment.query_mask is None
    assert all(isinstance(values, np.ndarray) for values in (code.mean, alignment.probabilities))


def test_a_layer_called_twice_reports_twice():
    inputs, layer = keras.Input((4,)), Code(name="code")
    with collect_latents() as reports:
        keras.Model(inputs, layer(layer(inputs)))(X)
    assert [report.layer for report in reports] == ["code", "code"]


def test_without_a_collector_nothing_is_kept_and_an_inner_collector_has_its_own_list():
    layer = Code()
    layer(X)
    with collect_latents() as outer:
        with collect_latents() as inner:
            layer(X)
        assert (len(outer), len(inner)) == (0, 1)
        layer(X)
    layer(X)
    assert (len(outer), len(inner)) == (1, 1)


def test_symbolic_calls_and_compiled_functions_leave_nothing():
    with collect_latents() as reports:
        network = keras.Sequential([keras.Input((4,)), Code(), Attention(), keras.layers.Dense(1)])
        network.compile("sgd", "mse")
        network.fit(X, X[:, :1], verbose=0)
        network.predict(X, verbose=0)
    # Torch runs without a compiler here, op by op.
    assert reports == [] or keras.backend.backend() == "torch"
    assert all(isinstance(report.latent, (GaussianCode, Alignment)) for report in reports)


def test_training_is_the_same_with_and_without_a_collector():
    def trained(collects):
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), Code(), keras.layers.Dense(1)])
        network.compile("sgd", "mse")
        if collects:
            with collect_latents():
                network.fit(X, X[:, :1], verbose=0)
        else:
            network.fit(X, X[:, :1], verbose=0)
        return ops.convert_to_numpy(network.layers[0].kernel)

    np.testing.assert_array_equal(trained(True), trained(False))


def test_half_precision_is_reported():
    with collect_latents() as reports:
        Code(dtype="bfloat16")(X)
    np.testing.assert_allclose(reports[0].latent.mean.astype("float64"), X, rtol=0.01)
