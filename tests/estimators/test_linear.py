"""The affine part of every layer that has one: its stages, axes and fan-in."""

from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from layer_contract import array
from numpy.testing import assert_allclose

from bdl.estimators import linear

LINEAR_LAYERS = [
    pytest.param(layers.Dense, {"units": 3}, (2, 4), id="Dense"),
    pytest.param(layers.Dense, {"units": 3, "use_bias": False}, (2, 3, 4), id="Dense without bias"),
    pytest.param(
        layers.EinsumDense, {"equation": "ab,bcd->acd", "output_shape": (3, 2), "bias_axes": "cd"}, (2, 4), id="Einsum"
    ),
    pytest.param(layers.Conv1D, {"filters": 3, "kernel_size": 2, "padding": "causal"}, (2, 4, 2), id="Conv1D"),
    pytest.param(layers.Conv2D, {"filters": 4, "kernel_size": 2, "groups": 2}, (2, 4, 3, 2), id="Conv2D"),
    pytest.param(layers.Conv3D, {"filters": 3, "kernel_size": 2}, (2, 3, 2, 3, 2), id="Conv3D"),
    pytest.param(layers.Conv1DTranspose, {"filters": 3, "kernel_size": 2, "strides": 2}, (2, 3, 2), id="1DTranspose"),
    pytest.param(layers.Conv2DTranspose, {"filters": 3, "kernel_size": 2}, (2, 3, 2, 2), id="Conv2DTranspose"),
    pytest.param(layers.DepthwiseConv1D, {"kernel_size": 2, "depth_multiplier": 2}, (2, 4, 2), id="DepthwiseConv1D"),
    pytest.param(layers.SeparableConv1D, {"filters": 3, "kernel_size": 2}, (2, 4, 2), id="SeparableConv1D"),
    pytest.param(
        layers.SeparableConv2D, {"filters": 3, "kernel_size": 2, "depth_multiplier": 2}, (2, 4, 3, 2), id="Separable2D"
    ),
]


def build(layer_class: type[keras.Layer], arguments: dict[str, Any], shape: tuple[int, ...]) -> keras.Layer:
    layer = layer_class(**arguments, bias_initializer="random_normal", activation="tanh")
    layer.build(shape)
    return layer


def evaluate(layer: keras.Layer, x: np.ndarray) -> np.ndarray:
    values = {linear.weight_name(weight): array(weight) for weight in layer.weights}
    for stage in linear.stages(layer):
        x = stage.apply({name: values[name] for name in stage.weights}, x)
    return array(x)


@pytest.mark.core
@pytest.mark.parametrize(("layer_class", "arguments", "shape"), LINEAR_LAYERS)
def test_stages_make_up_the_layer_before_its_activation(layer_class: Any, arguments: Any, shape: tuple[int, ...]):
    layer = build(layer_class, arguments, shape)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    assert_allclose(np.tanh(evaluate(layer, x)), array(layer(x)), rtol=1e-5, atol=1e-6)
    assert layer.activation is keras.activations.tanh


@pytest.mark.parametrize(("layer_class", "arguments", "shape"), LINEAR_LAYERS)
def test_each_stage_is_linear_in_its_weights_and_misses_count_as_zero(
    layer_class: Any, arguments: Any, shape: tuple[int, ...]
):
    layer = build(layer_class, arguments, shape)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    generator = np.random.default_rng(1)
    sizes = {linear.weight_name(weight): weight.shape for weight in layer.weights}
    for stage in linear.stages(layer):
        one, two = (
            {name: generator.normal(size=sizes[name]).astype("float32") for name in stage.weights} for _ in range(2)
        )
        both = {name: one[name] - 2 * two[name] for name in one}
        expected = array(stage.apply(one, x)) - 2 * array(stage.apply(two, x))
        assert_allclose(array(stage.apply(both, x)), expected, rtol=1e-4, atol=1e-4)
        if "bias" in stage.weights:
            kernel = stage.weights[0]
            without = array(stage.apply({kernel: one[kernel]}, x))
            again = array(stage.add_bias(without, one["bias"]))
            assert_allclose(again, array(stage.apply(one, x)), rtol=1e-4, atol=1e-5)
        x = array(stage.apply(one, x))


@pytest.mark.parametrize(("layer_class", "arguments", "shape"), LINEAR_LAYERS)
def test_fan_in_counts_the_weights_behind_one_output(layer_class: Any, arguments: Any, shape: tuple[int, ...]):
    """A kernel of ones and inputs of ones: the largest output is the number of weights that are summed."""
    if layer_class is layers.Conv1DTranspose:
        arguments = {**arguments, "strides": 1}
    layer = build(layer_class, arguments, shape)
    x = np.ones(shape, "float32")
    for stage in linear.stages(layer):
        name = stage.weights[0]
        kernel = next(weight for weight in layer.weights if linear.weight_name(weight) == name)
        outputs = array(stage.apply({name: np.ones(kernel.shape, "float32")}, x))
        axes = linear.kernel_input_axes(layer, name, kernel.shape)
        assert np.prod([kernel.shape[axis] for axis in axes]) == outputs.max()
        x = np.ones(outputs.shape, "float32")


def test_a_frozen_layer_has_the_same_stages():
    layer = build(layers.Dense, {"units": 3}, (2, 4))
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    before = evaluate(layer, x)
    layer.trainable = False
    assert_allclose(evaluate(layer, x), before)
    values = {"kernel": np.zeros((4, 3), "float32")}
    assert_allclose(array(linear.stages(layer)[0].apply(values, x)), 0.0)


@pytest.mark.parametrize("make", [lambda: layers.LSTM(3), lambda: layers.BatchNormalization()], ids=["LSTM", "Norm"])
def test_a_layer_without_affine_part_is_refused(make: Any):
    layer = make()
    layer.build((2, 4, 2))
    with pytest.raises(ValueError, match=r"must be linear in its kernel .* Use estimator='reparameterization'"):
        linear.stages(layer)
    assert not linear.is_linear(layer)


def test_lora_is_refused():
    layer = build(layers.Dense, {"units": 3}, (2, 4))
    layer.enable_lora(2)
    with pytest.raises(ValueError, match="without LoRA"):
        linear.stages(layer)


def test_local_reparameterization_is_exact_for_dense_on_vectors_only():
    assert linear.is_exact_for_local_reparameterization(layers.Dense(2), np.ones((2, 3)))
    assert not linear.is_exact_for_local_reparameterization(layers.Dense(2), np.ones((2, 3, 3)))
    assert not linear.is_exact_for_local_reparameterization(layers.Conv1D(2, 1), np.ones((2, 3)))


@given(st.data())
def test_feature_shape_keeps_the_given_axes_and_drops_the_batch(data: st.DataObject):
    shape = tuple(data.draw(st.lists(st.integers(2, 9), min_size=2, max_size=6)))
    axes = tuple(data.draw(st.lists(st.integers(-len(shape) + 1, len(shape) - 1).filter(lambda axis: axis != 0))))
    factor = linear.feature_shape(shape, axes)
    assert len(factor) == len(shape) - 1
    assert np.broadcast_shapes((1, *factor), shape) == shape
    kept = {axis % len(shape) for axis in axes}
    assert [axis for axis, size in enumerate((1, *factor)) if size > 1] == sorted(kept)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_einsum_axes_for_any_equation(data: st.DataObject):
    """Input and output labels that the kernel shares are its axes; those that it sums over are its fan-in."""
    positions, summed, created = (data.draw(st.integers(low, 2)) for low in (0, 1, 1))
    letters = iter("bcdefgh")
    at, over, out = (tuple(next(letters) for _ in range(count)) for count in (positions, summed, created))
    tail_in = data.draw(st.permutations(at + over))
    tail_out = data.draw(st.permutations(at + out))
    kernel = data.draw(st.permutations(over + out))
    batch = data.draw(st.sampled_from(["a", "..."]))
    equation = f"{batch}{''.join(tail_in)},{''.join(kernel)}->{batch}{''.join(tail_out)}"
    sizes = {letter: number + 2 for number, letter in enumerate("bcdefgh")}
    layer = layers.EinsumDense(equation, output_shape=tuple(sizes[label] for label in tail_out))
    layer.build((5, *(sizes[label] for label in tail_in)))
    input_axes, output_axes = linear.feature_axes(layer)
    labels_in, labels_out = ("a", *tail_in), ("a", *tail_out)
    assert {labels_in[axis] for axis in input_axes} == set(over)
    assert {labels_out[axis] for axis in output_axes} == set(out)
    fan_in_axes = linear.kernel_input_axes(layer, "kernel", layer.kernel.shape)
    assert {kernel[axis] for axis in fan_in_axes} == set(over)
    assert all(layer.kernel.shape[axis] == sizes[kernel[axis]] for axis in fan_in_axes)


@pytest.mark.parametrize(
    ("layer", "name", "shape", "expected"),
    [
        (layers.Dense(3), "kernel", (4, 3), (0,)),
        (layers.Dense(3), "bias", (3,), ()),
        (layers.Embedding(4, 3), "embeddings", (4, 3), ()),
        (layers.Conv2D(8, 3), "kernel", (3, 3, 4, 8), (0, 1, 2)),
        (layers.Conv1DTranspose(8, 3), "kernel", (3, 8, 4), (0, 2)),
        (layers.DepthwiseConv2D(3), "kernel", (3, 3, 4, 2), (0, 1)),
        (layers.SeparableConv1D(8, 3), "depthwise_kernel", (3, 4, 2), (0,)),
        (layers.SeparableConv1D(8, 3), "pointwise_kernel", (1, 8, 8), (0, 1)),
        (layers.GRU(3), "recurrent_kernel", (3, 9), (0,)),
        (layers.GRU(3), "bias", (2, 9), ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else str(value),
)
def test_kernel_input_axes(layer: keras.Layer, name: str, shape: tuple[int, ...], expected: tuple[int, ...]):
    assert linear.kernel_input_axes(layer, name, shape) == expected
