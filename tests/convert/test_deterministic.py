"""`to_deterministic`: posterior means in plain Keras layers, which need no bdl."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from networks import made, outputs
from numpy.testing import assert_allclose

import bdl
from bdl.convert import to_deterministic, to_mc_dropout, to_variational
from bdl.keras_internals import flatten_layers


def needs_bdl(model: Any) -> bool:
    return any(type(layer).__module__.startswith("bdl.") for layer in flatten_layers(model))


def variational() -> Any:
    inputs = keras.Input((6, 6, 2))
    x = bdl.layers.Conv2DFlipout(4, 3, activation="relu")(inputs)
    x = bdl.layers.Conv2DRank1(4, 2)(layers.BatchNormalization()(x))
    x = layers.Flatten()(x)
    nested = keras.Sequential([keras.Input((36,)), bdl.layers.DenseRank1(5, activation="tanh")])
    return keras.Model(inputs, bdl.layers.DenseReparameterization(3)(nested(x)))


@pytest.mark.core
def test_a_functional_model_becomes_plain_with_the_posterior_means():
    keras.utils.set_random_seed(0)
    model = variational()
    for variable in model.trainable_variables:
        if "factor_mean" in variable.path:
            variable.assign(np.random.default_rng(0).normal(1.0, 0.2, variable.shape))
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 2)).astype("float32")
    plain = to_deterministic(bdl.VariationalModel(model, bdl.likelihoods.Categorical(), num_examples=10))
    assert not needs_bdl(plain)
    with bdl.mean_weights(model):
        assert_allclose(outputs(plain, x), outputs(model, x), rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]


@pytest.mark.core
@pytest.mark.parametrize("convert", [to_variational, to_mc_dropout])
def test_a_conversion_gives_its_network_back(convert: Any):
    model, _ = made("subclassed")
    assert to_deterministic(convert(model)) is model


def test_a_plain_model_is_itself():
    model, _ = made("images")
    assert to_deterministic(model) is model


@pytest.mark.core
@pytest.mark.filterwarnings("ignore")  # the exporters' own, of many kinds
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="tf2onnx takes no jax2tf graph of today")
@pytest.mark.parametrize("build", ["functional", "sequential"])
def test_it_exports_to_onnx(tmp_path: Any, build: str):
    pytest.importorskip("tf2onnx" if keras.backend.backend() == "tensorflow" else "onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = variational()
    if build == "sequential":
        model = keras.Sequential([keras.Input((6, 6, 2)), bdl.layers.Conv2DFlipout(4, 3), layers.Flatten()])
    x = np.random.default_rng(1).normal(size=(1, 6, 6, 2)).astype("float32")
    plain = to_deterministic(model)
    plain.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (exported,) = session.run(None, {session.get_inputs()[0].name: x})
    assert_allclose(exported, outputs(plain, x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModel is TensorFlow's")
def test_it_exports_as_a_saved_model(tmp_path: Any):
    import tensorflow as tf

    model = variational()
    plain = to_deterministic(model)
    plain.export(tmp_path / "saved", verbose=False)
    x = np.ones((2, 6, 6, 2), "float32")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    assert_allclose(np.asarray(loaded.serve(x)), outputs(plain, x), rtol=1e-5)


@pytest.mark.core
def test_a_conversion_behind_input_factors_becomes_plain():
    """As `bdl.recipes.instead_of_ensemble` makes it: the factors' means become a rescaling."""
    network, x = made("images")
    model = bdl.recipes.instead_of_ensemble(network, bdl.likelihoods.Categorical(), num_examples=10)
    (factors,) = [layer for layer in flatten_layers(model) if isinstance(layer, bdl.layers.InputFactors)]
    for variable in (factors.layer.kernel, *(each for each in model.trainable_variables if "factor_mean" in each.path)):
        variable.assign(np.random.default_rng(0).normal(1.0, 0.2, variable.shape))
    plain = to_deterministic(model)
    assert not needs_bdl(plain)
    with bdl.mean_weights(model):
        assert_allclose(outputs(plain, x), outputs(model, x), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_made_plain_is_named():
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = bdl.layers.DenseFlipout(3)

        def call(self, inputs: Any) -> Any:
            return self.head(inputs)

    model = Own()
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match="Functional and Sequential"):
        to_deterministic(model)
    with pytest.raises(ValueError, match="must be a built"):
        to_deterministic(keras.Sequential([bdl.layers.DenseFlipout(3)]))
    with pytest.raises(ValueError, match="rank-1 factors"):
        to_deterministic(to_variational(made("several inputs and outputs")[0], posterior="rank1"))
