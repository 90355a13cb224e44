"""What `fit` and `evaluate` are given: plain lists become arrays, and data that do not fit are named."""

import keras
import numpy as np
import pytest
import scipy.sparse
from keras import layers

import bdl
from bdl.likelihoods import Categorical

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype("float32")
Y = RNG.integers(0, 3, 10)


def model_of(network):
    model = bdl.VariationalModel(network, Categorical(), num_examples=10, kl_weight=1.0)
    model.compile("sgd", run_eagerly=keras.backend.backend() != "jax")
    return model


def dense_model():
    return model_of(keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (({"a": X, "b": X[:6]}, Y), r"not 10 in x\['a'\], 6 in x\['b'\] and 10 in y"),
        ((X, Y[:8]), "`x` and `y` must have one row for each example, not 10 in x and 8 in y"),
        ((X, Y, np.ones(3)), "not 10 in x, 10 in y and 3 in sample_weight"),
        ((X.tolist(), Y[:8].tolist()), "not 10 in x and 8 in y"),
        ((scipy.sparse.csr_matrix(X), Y[:8]), "not 10 in x and 8 in y"),
    ],
)
def test_data_of_unequal_length_are_named_by_fit_and_evaluate(data, message):
    model = dense_model()
    x, y, *rest = data
    weights = {"sample_weight": rest[0]} if rest else {}
    for act in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message):
            act(x, y, verbose=0, **weights)


def test_plain_lists_and_sparse_matrices_train_and_evaluate():
    model = dense_model()
    lists = X.tolist(), Y.tolist()
    history = model.fit(*lists, sample_weight=[1.0] * 10, validation_data=lists, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    model.fit(scipy.sparse.csr_matrix(X), Y, verbose=0)
    with bdl.mean_weights(model):
        found = [model.evaluate(x, Y, verbose=0, return_dict=True)["nll"] for x in (X, scipy.sparse.csr_matrix(X))]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


class Shift(layers.Layer):
    """Adds a second input, where there is one."""

    def call(self, x, shift=None):
        return x if shift is None else x + shift

    def compute_output_spec(self, x, shift=None):
        return keras.KerasTensor(x.shape, x.dtype)


def test_an_optional_input_may_be_left_out_everywhere():
    first, second = keras.Input((4,), name="a"), keras.Input((4,), name="b", optional=True)
    model = model_of(keras.Model({"a": first, "b": second}, bdl.layers.DenseRank1(3)(Shift()(first, second))))
    without = {"a": X, "b": None}
    model.fit(without, Y, verbose=0)
    model.evaluate(without, Y, verbose=0)
    found, shifted, zeros = (
        model.predict_distribution(x, 4, seed=1).probabilities
        for x in (without, {"a": X, "b": X}, {"a": X, "b": 0 * X})
    )
    np.testing.assert_allclose(found, zeros, rtol=1e-5)
    assert np.abs(found - shifted).max() > 1e-3


def test_entries_without_an_input_change_nothing():
    """Keras alone takes the entries of a dict by their order, and "a" for the first input."""
    inputs = {name: keras.Input((4,), name=name) for name in ("b", "c")}
    model = model_of(keras.Model(inputs, bdl.layers.DenseFlipout(3)(layers.Subtract()(list(inputs.values())))))
    known = {"b": X, "c": 2 * X}
    more = {"a": np.zeros((10, 4), "float32"), "d": np.arange(10), **known}
    model.fit(more, Y, verbose=0)
    expected = model.predict_distribution(known, 4, seed=1).probabilities
    np.testing.assert_array_equal(model.predict_distribution(more, 4, seed=1).probabilities, expected)
    with bdl.mean_weights(model):
        assert model.evaluate(more, Y, verbose=0)[0] == pytest.approx(model.evaluate(known, Y, verbose=0)[0], rel=1e-6)
