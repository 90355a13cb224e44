"""The contract of `layer_contract.py` over every layer, and the options of the Keras layers."""

import itertools
from typing import Any

import keras
import layer_contract as contract
import numpy as np
import pytest
from keras import layers, ops
from layer_contract import CASES, Case, array
from numpy.testing import assert_allclose

import bdl
from bdl.layers import Variational

ALL_CASES = [pytest.param(case, id=case.name, marks=[pytest.mark.core] if case.is_core else []) for case in CASES]
ON_ONE_BACKEND = [pytest.param(case, id=case.name) for case in CASES]  # where no tensor is computed
# Training compiles under JAX, which takes seconds a layer.
KERAS_CASES = [
    pytest.param(case, id=case.name, marks=[pytest.mark.core] if case.name in ("DenseFlipout", "DenseRank1") else [])
    for case in CASES
]
# In turn, so that of two estimators of a Keras layer, and of two layers of an estimator, each has another one.
HALF_PRECISION = [
    pytest.param(case, policy, id=f"{case.name}-{policy}", marks=[pytest.mark.core] if case.is_core else [])
    for case, policy in zip(CASES, itertools.cycle(["mixed_bfloat16", "mixed_float16"]))
]


def test_the_catalogue_holds_every_layer():
    named = {case.name for case in CASES if case.is_named}
    assert named == set(contract.named_layers())
    estimators = ("Reparameterization", "Flipout", "LocalReparameterization", "Rank1")
    assert all(name.endswith(estimators) for name in named)


# Keras' own test trains from a generator, which its `fit` warns about.
@pytest.mark.filterwarnings("ignore:.*shuffle=True. was passed, but will be ignored:UserWarning")
@pytest.mark.filterwarnings("ignore::bdl.uncounted.UncountedKLWarning")  # it knows of no KL
@pytest.mark.parametrize("case", KERAS_CASES)
def test_as_keras_does(case: Case):
    contract.check_as_keras_does(case)


@pytest.mark.parametrize("case", ON_ONE_BACKEND)
def test_config_round_trip(case: Case):
    contract.check_config_round_trip(case)


@pytest.mark.parametrize("case", ALL_CASES)
def test_save_and_load(case: Case):
    contract.check_save_and_load(case)


@pytest.mark.parametrize("case", ON_ONE_BACKEND)
def test_clone_and_summary(case: Case):
    contract.check_clone_and_summary(case)


@pytest.mark.parametrize(("case", "policy"), HALF_PRECISION)
def test_half_precision(case: Case, policy: str):
    contract.check_half_precision(case, policy)


@pytest.mark.parametrize("case", ALL_CASES)
def test_mean_weights(case: Case):
    contract.check_mean_weights(case)


@pytest.mark.parametrize("case", ALL_CASES)
def test_gradients_with_a_zero_row(case: Case):
    contract.check_gradients_with_a_zero_row(case)


@pytest.mark.parametrize("case", ON_ONE_BACKEND)
def test_regularizers(case: Case):
    contract.check_regularizers(case)


@pytest.mark.parametrize("case", ALL_CASES)
def test_freezing(case: Case):
    contract.check_freezing(case)


@pytest.mark.core
@pytest.mark.parametrize("name", [name for name in contract.named_layers() if name.startswith("Dense")])
def test_masks_pass_through_dense_layers(name: str):
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    model = keras.Sequential([layers.Embedding(5, 4, mask_zero=True), getattr(bdl.layers, name)(3)])
    output = model(tokens)
    assert np.array_equal(ops.convert_to_numpy(output._keras_mask), tokens != 0)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_masks_reach_the_wrapped_layer(kind: str):
    layer = Variational(getattr(layers, kind)(3, return_sequences=True))
    x = np.random.default_rng(0).normal(size=(2, 4, 2)).astype("float32")
    mask = np.array([[True, True, False, False], [True, False, True, True]])
    layer(x)
    with bdl.mean_weights(layer):
        assert_allclose(array(layer(x, mask=mask)), array(layer.layer(x, mask=mask)), rtol=1e-6, atol=1e-6)
        assert not np.allclose(array(layer(x, mask=mask)), array(layer(x)))
    # A masked step repeats the output before it, for whatever weights were sampled.
    first = array(layer(x, mask=mask))[0]
    assert_allclose(first[2:], first[1:3])
    assert np.array_equal(layer.compute_mask(x, mask), layer.layer.compute_mask(x, mask))


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Dense", {"use_bias": False, "activation": "relu"}),
    ("EinsumDense", {"bias_axes": None}),
    ("EinsumDense", {"equation": "...x,xy->...y", "output_shape": 3, "bias_axes": "y"}),
    ("EinsumDense", {"equation": "abc,cde->abde", "output_shape": (None, 2, 3), "bias_axes": "e"}),
    ("Conv1D", {"padding": "causal", "dilation_rate": 2}),
    ("Conv1D", {"padding": "same", "strides": 2}),
    ("Conv1D", {"data_format": "channels_first"}),
    ("Conv2D", {"padding": "same", "strides": 2, "use_bias": False}),
    ("Conv2D", {"dilation_rate": (2, 1), "activation": "relu"}),
    ("Conv2D", {"groups": 2, "filters": 4}),
    ("Conv2D", {"data_format": "channels_first"}),
    ("Conv3D", {"padding": "same", "strides": (1, 2, 1)}),
    ("Conv3D", {"data_format": "channels_first"}),
    ("Conv1DTranspose", {"strides": 2, "padding": "same"}),
    ("Conv1DTranspose", {"data_format": "channels_first", "strides": 2}),
    ("Conv2DTranspose", {"strides": 2, "output_padding": 1}),
    ("Conv2DTranspose", {"dilation_rate": 2, "use_bias": False}),
    ("Conv3DTranspose", {"strides": 2, "padding": "same"}),
    ("DepthwiseConv1D", {"depth_multiplier": 3, "padding": "same"}),
    ("DepthwiseConv2D", {"depth_multiplier": 3, "strides": 2, "padding": "same"}),
    ("DepthwiseConv2D", {"dilation_rate": 2, "use_bias": False}),
    ("DepthwiseConv2D", {"data_format": "channels_first"}),
    ("SeparableConv1D", {"depth_multiplier": 3, "padding": "same"}),
    ("SeparableConv1D", {"strides": 2, "padding": "same", "activation": "relu"}),
    ("SeparableConv1D", {"data_format": "channels_first"}),
    ("SeparableConv2D", {"depth_multiplier": 2, "strides": 2, "padding": "same"}),
    ("SeparableConv2D", {"dilation_rate": 2, "use_bias": False}),
    ("SeparableConv2D", {"data_format": "channels_first"}),
    ("LSTM", {"return_sequences": True, "go_backwards": True, "activation": "relu"}),
    ("LSTM", {"use_bias": False, "unroll": True}),
    ("GRU", {"reset_after": False, "return_sequences": True}),
    ("GRU", {"use_bias": False}),
    ("SimpleRNN", {"activation": "relu", "go_backwards": True}),
    ("LayerNormalization", {"axis": (1, 2), "center": False}),
    ("GroupNormalization", {"groups": -1, "axis": 1}),
    ("RMSNormalization", {"epsilon": 0.5}),
]


@pytest.mark.parametrize(
    ("kind", "options"), [pytest.param(*option, id=f"{option[0]}-{'-'.join(option[1])}") for option in OPTIONS]
)
def test_options_of_the_keras_layer(kind: str, options: dict[str, Any]):
    """At zero noise equal to the Keras layer with the same weights; with noise, of the same shape."""
    for case in (case for case in CASES if case.is_named and case.keras_layer.__name__ == kind):
        rank = len(case.input_shape)
        shape = (2, *(4 + axis for axis in range(rank - 2)), 2) if rank > 2 else case.input_shape
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        twin = case.keras_layer(**{**case.arguments, **options})
        expected_shape = contract.call_where_possible(twin, x).shape
        layer = case.layer(**options)
        assert layer(x).shape == layer(x, training=True).shape == expected_shape
        assert layer.compute_output_shape(shape) == twin.compute_output_shape(shape)
        twin.set_weights([array(weight) + 0.1 for weight in twin.weights])
        layer.layer.set_weights(twin.get_weights())
        with bdl.mean_weights(layer):
            for training in (True, False):
                assert_allclose(array(layer(x, training=training)), array(twin(x)), rtol=1e-5, atol=1e-5)
