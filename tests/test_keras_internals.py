"""The private Keras names that bdl leans on: these tests fail first when Keras changes them."""

import inspect

import keras
import numpy as np
import pytest
from distribution_libraries import array, double, float64, single
from keras import layers, ops
from networks import NETWORKS, made

import bdl
from bdl import keras_internals
from bdl.keras_internals import (
    adopt_signatures,
    flatten_layers,
    input_signature_of,
    keras_mask,
    num_replicas,
    output_spec,
    set_signature,
    view,
)

pytestmark = pytest.mark.core


def test_flatten_layers_finds_each_layer_once_at_any_depth():
    shared = layers.Dense(2)
    inputs = keras.Input((2,))
    inner = keras.Sequential([keras.Input((2,)), shared, layers.TimeDistributed(layers.Dense(1))][:2])
    model = keras.Model(inputs, layers.Add()([inner(inputs), shared(shared(inputs))]))
    found = flatten_layers(model)
    assert found[0] is model
    assert len(found) == len({id(layer) for layer in found})
    assert sum(layer is shared for layer in found) == 1
    assert any(layer is inner for layer in found)


def test_flatten_layers_looks_into_wrappers_and_plain_layers():
    class Plain(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inside = [layers.Dense(2)]

    plain = Plain()
    wrapper = layers.TimeDistributed(plain)
    assert {id(layer) for layer in flatten_layers(wrapper)} == {id(wrapper), id(plain), id(plain.inside[0])}


def test_keras_mask_reads_what_embedding_attached():
    tokens = np.array([[1, 2, 0]])
    masked = layers.Embedding(3, 2, mask_zero=True)(tokens)
    assert np.array_equal(ops.convert_to_numpy(keras_mask(masked)), tokens != 0)
    assert keras_mask(layers.Embedding(3, 2)(tokens)) is None
    assert keras_mask(np.ones(2)) is None


def test_set_signature_is_what_inspect_shows():
    class Anything:
        def __init__(self, **kwargs: object) -> None: ...

    set_signature(Anything, inspect.signature(lambda units, activation=None: None))
    assert str(inspect.signature(Anything)) == "(units, activation=None)"


class Forwarder(layers.Layer):
    """Hands everything to the layer inside and notes what it got."""

    def __init__(self, layer: layers.Layer):
        super().__init__()
        self.layer = layer
        self.supports_masking = layer.supports_masking
        adopt_signatures(self, layer)

    def build(self, *shapes: object, **named_shapes: object) -> None:
        self.layer.build(*shapes, **named_shapes)

    def call(self, *args: object, training: bool | None = None, **kwargs: object) -> object:
        self.received = {**kwargs, "training": training}
        return self.layer(*args, **kwargs)


def test_a_wrapper_with_the_layers_signatures_is_built_and_called_as_the_layer():
    x = np.ones((2, 3, 4), "float32")
    tokens = np.array([[1, 2, 0]])
    wrapper = Forwarder(layers.MultiHeadAttention(1, 2))
    wrapper(value=x[:, :2], query=x, training=True)
    assert wrapper.received["training"] is True
    assert wrapper.get_build_config() == {"shapes_dict": {"query_shape": (2, 3, 4), "value_shape": (2, 2, 4)}}
    embedded = layers.Embedding(3, 4, mask_zero=True)(tokens)
    wrapper(embedded, embedded)
    assert np.array_equal(ops.convert_to_numpy(wrapper.received["value_mask"]), tokens != 0)
    # A layer without a training argument keeps it from its own call, but the wrapper knows.
    wrapper = Forwarder(layers.Conv1D(1, 2))
    wrapper(x, training=True)
    assert wrapper.received == {"training": True}
    assert wrapper.get_build_config() == {"input_shape": (2, 3, 4)}
    with pytest.raises(TypeError, match="mask"):
        wrapper(x, mask=None)


def test_one_replica_without_a_strategy():
    assert num_replicas() == 1


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="distribution strategies are TensorFlow's")
def test_replicas_under_a_strategy():
    import tensorflow as tf

    devices = tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        with tf.distribute.MirroredStrategy(devices[:2]).scope():
            assert num_replicas() == 2
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        assert num_replicas() == 1


def test_a_view_differs_in_its_attributes_alone_and_leaves_its_layer_as_it_was():
    layer = layers.LSTM(2, dropout=0.5, unroll=True)
    x = np.ones((1, 2, 4), "float32")
    layer(x)
    before, tracked = dict(vars(layer)), len(flatten_layers(layer))
    cell = view(layer.cell, dropout=0.1)
    other = view(layer, cell=cell)
    assert (other.dropout, layer.dropout, other.units) == (0.1, 0.5, 2)
    assert [id(weight) for weight in other.variables] == [id(weight) for weight in layer.variables]
    np.testing.assert_array_equal(ops.convert_to_numpy(other(x)), ops.convert_to_numpy(layer(x)))
    assert vars(layer).keys() == before.keys()
    assert len(flatten_layers(layer)) == tracked
    layer.cell.kernel.assign(0.5 * ops.convert_to_tensor(layer.cell.kernel))
    np.testing.assert_array_equal(ops.convert_to_numpy(other(x)), ops.convert_to_numpy(layer(x)))


def test_a_view_is_evaluated_by_its_class_whatever_stands_in_the_layer():
    layer = layers.Dense(1, activation="relu", kernel_initializer="ones")
    x = -np.ones((1, 2), "float32")
    layer(x)
    layer.call = lambda inputs: inputs
    assert float(ops.convert_to_numpy(view(layer, activation=None)(x))[0, 0]) == -2.0


@pytest.mark.parametrize("activation", [keras.activations.relu, layers.ReLU()], ids=["function", "layer"])
def test_a_view_without_an_activation_shares_the_variables_and_the_layer_is_saved_as_before(activation, tmp_path):
    layer = layers.Dense(2, activation=activation, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((3,)), layer])
    x = -np.ones((1, 3), "float32")
    stand_in = view(layer, activation=None)
    assert all(one is other for one, other in zip(stand_in.variables, layer.variables, strict=True))
    layer.kernel.assign(np.full((3, 2), 2.0))
    assert ops.convert_to_numpy(stand_in(x)).tolist() == [[-6.0, -6.0]]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert ops.convert_to_numpy(loaded(x)).tolist() == ops.convert_to_numpy(model(x)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_signature_of_inputs_is_that_of_the_data(name):
    network, x = made(name)
    (signature,) = input_signature_of(network)
    keras.tree.assert_same_structure(signature, x)
    for spec, leaf in zip(keras.tree.flatten(signature), keras.tree.flatten(x), strict=True):
        assert (spec.shape, spec.dtype) == ((None, *leaf.shape[1:]), str(leaf.dtype))


class Counted(layers.Layer):
    """Counts how often it is called or traced."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return ops.mean(inputs, axis=-1, keepdims=True)


@pytest.mark.parametrize("wrap", [lambda network: network, bdl.convert.to_mc_dropout], ids=["network", "conversion"])
def test_outputs_that_a_network_declares_are_known_without_tracing_it(wrap):
    counted = Counted()
    network = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5), layers.Dense(2), counted])
    model, before = wrap(network), counted.calls
    assert output_spec(model, keras.KerasTensor((5, 3))).shape[1:] == (1,)
    assert counted.calls == before


def test_a_call_of_its_own_tells_the_outputs():
    class Doubled(keras.Model):
        def __init__(self):
            inputs = keras.Input((3,))
            super().__init__(inputs, layers.Dense(2)(inputs))

        def call(self, inputs):
            outputs = super().call(inputs)
            return ops.concatenate([outputs, outputs], axis=-1)

    model = bdl.convert.to_mc_dropout(Doubled(), rate=0.1, before="all")
    assert output_spec(model, keras.KerasTensor((None, 3))).shape == (None, 4)


def test_a_call_of_its_own_tells_the_outputs_of_a_sequential_network():
    class Doubled(keras.Sequential):
        def call(self, inputs):
            outputs = super().call(inputs)
            return ops.concatenate([outputs, outputs], axis=-1)

    assert output_spec(Doubled([keras.Input((3,)), layers.Dense(2)]), keras.KerasTensor((None, 3))).shape == (None, 4)


def test_a_batch_that_is_declared_leaves_that_of_the_inputs():
    inputs = {name: keras.Input(batch_shape=(8, 3), name=name) for name in ("a", "b")}
    network = keras.Model(inputs, layers.Add()([inputs["a"], inputs["b"]]))
    given = {name: keras.KerasTensor((None, 3)) for name in inputs}
    assert output_spec(network, given).shape == (None, 3)


def test_outputs_that_depend_on_the_inputs_length_are_traced():
    inputs = keras.Input((None, 3), name="x")
    network = keras.Model({"x": inputs}, {"y": layers.ZeroPadding1D(1)(inputs)})
    assert output_spec(network, {"x": keras.KerasTensor((5, 4, 3))})["y"].shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (keras_internals.tanh, np.tanh),
        (keras_internals.arcsinh, np.arcsinh),
        (keras_internals.cumsum, lambda x: np.cumsum(x, axis=-1)),
        (lambda x: keras_internals.maximum(x, -x), np.abs),
        (lambda x: keras_internals.minimum(x, -x), lambda x: -np.abs(x)),
        (lambda x: keras_internals.matmul(x, x), lambda x: x @ x),
    ],
    ids=["tanh", "arcsinh", "cumsum", "maximum", "minimum", "matmul"],
)
def test_operations_keep_float64(function, reference):
    x = np.random.default_rng(0).normal(size=(3, 3))
    with float64():
        result = function(double(x))
        assert keras.backend.standardize_dtype(result.dtype) == "float64"
        np.testing.assert_allclose(array(result), reference(x), rtol=1e-13)
    assert keras.backend.standardize_dtype(function(single(x)).dtype) == "float32"


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="transforms of Torch")
def test_what_torch_maps_or_differentiates_is_not_there_to_be_read():
    import torch

    seen = []

    def square(x):
        seen.append(keras_internals.is_concrete(x))
        return x * x

    torch.func.vmap(square)(torch.ones(3))
    torch.func.grad(square)(torch.tensor(1.0))
    assert seen == [False, False]
    assert keras_internals.is_concrete(torch.ones(3, requires_grad=True))
