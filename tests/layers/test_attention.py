"""Variational attention: several inputs, masks and scores pass through one draw of the projections."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from gradients import weight_gradients
from keras import layers, ops
from layer_contract import array, reset_noise
from numpy.testing import assert_allclose, assert_array_equal
from sampled_twins import sampled_twin

import bdl
from bdl.layers import MultiHeadAttentionReparameterization, Variational

RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(2, 4, 6)).astype("float32")
VALUE = RNG.normal(size=(2, 5, 8)).astype("float32")
KEY = RNG.normal(size=(2, 5, 7)).astype("float32")
PROJECTIONS = ["query/kernel", "key/kernel", "value/kernel", "attention_output/kernel"]
CALLS: dict[str, dict[str, Any]] = {
    "query and value": {},
    "key": {"key": KEY},
    "causal": {"use_causal_mask": True},
    "attention mask": {"attention_mask": RNG.random((2, 4, 5)) > 0.3},
    "value mask": {"value_mask": np.arange(5)[None] < np.array([[5], [3]])},
    "scores": {"return_attention_scores": True},
    "training": {"training": True},
}


def built(**arguments: Any) -> MultiHeadAttentionReparameterization:
    layer = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3, seed=0, **arguments)
    layer.build(QUERY.shape, VALUE.shape)
    return layer


def assert_equal_outputs(one: Any, other: Any) -> None:
    one, other = keras.tree.flatten(one), keras.tree.flatten(other)
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert_allclose(array(mine), array(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_is_the_keras_layers_with_the_sampled_kernels(call: dict[str, Any]):
    shapes = [QUERY.shape, VALUE.shape, *([KEY.shape] if "key" in call else [])]
    layer = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3, seed=0)
    layer.build(*shapes)
    assert list(layer.sampled_weights) == PROJECTIONS
    twin = sampled_twin(layer, *shapes)
    assert_equal_outputs(layer(QUERY, VALUE, **call), twin(QUERY, VALUE, **call))
    with bdl.mean_weights(layer):
        assert_equal_outputs(layer(QUERY, VALUE, **call), layer.layer(QUERY, VALUE, **call))


@pytest.mark.core
def test_arguments_may_all_be_named():
    layer = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3, seed=0)
    outputs = layer(value=VALUE, query=QUERY, key=KEY)
    reset_noise(layer, 0)
    assert_equal_outputs(layer(QUERY, VALUE, KEY), outputs)
    assert layer.layer._key_dense.kernel.shape == (7, 2, 3)


@pytest.mark.core
def test_padding_does_not_change_the_result():
    layer, mask = built(), np.arange(5)[None] < np.array([[3], [3]])
    reset_noise(layer, 3)
    short = array(layer(QUERY, VALUE[:, :3]))
    reset_noise(layer, 3)
    assert_allclose(array(layer(QUERY, VALUE, value_mask=mask)), short, rtol=1e-4, atol=1e-5)
    reset_noise(layer, 3)
    assert not np.allclose(array(layer(QUERY, VALUE)), short, atol=1e-3)


@pytest.mark.core
def test_masks_of_an_embedding_reach_the_layer_and_go_on():
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])
    layer = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3, seed=0)
    inputs = keras.Input((None,), dtype="int32")
    embedded = layers.Embedding(5, 6, mask_zero=True)(inputs)
    model = keras.Model(inputs, layer(embedded, embedded))
    reset_noise(layer, 3)
    padded = model(tokens)
    assert np.array_equal(array(padded._keras_mask), tokens != 0)
    reset_noise(layer, 3)
    assert_allclose(array(model(tokens[:1, :2])), array(padded)[:1, :2], rtol=1e-4, atol=1e-5)


def test_fan_in_is_that_of_each_projection():
    axes = {name: weight.input_axes for name, weight in built().sampled_weights.items()}
    assert axes == dict(zip(PROJECTIONS, [(0,), (0,), (0,), (0, 1)], strict=True))


def test_biases_and_the_gate_are_sampled_on_request():
    layer = built(bias_prior="normal", use_gate=True)
    names = [*PROJECTIONS, "gate/kernel"]
    assert list(layer.sampled_weights) == [*names, *(name.replace("kernel", "bias") for name in names)]
    with bdl.mean_weights(layer):
        assert_equal_outputs(layer(QUERY, VALUE), layer.layer(QUERY, VALUE))


def test_a_regularizer_of_the_kernels_is_refused():
    with pytest.raises(ValueError, match=r"`kernel_regularizer` of layer query .* 'query/kernel' has a prior"):
        built(kernel_regularizer="l2")


@pytest.mark.core
def test_symbolic_shapes_and_masks_of_several_inputs():
    query, value = keras.Input((4, 6)), keras.Input((None, 8))
    layer = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3)
    outputs, scores = layer(query, value, return_attention_scores=True)
    assert outputs.shape == (None, 4, 6)
    assert len(scores.shape) == 4
    assert layer.compute_output_shape(QUERY.shape, VALUE.shape) == QUERY.shape
    model = keras.Model([query, value], [outputs, scores])
    assert [tuple(output.shape) for output in model([QUERY, VALUE])] == [(2, 4, 6), (2, 2, 4, 5)]


@pytest.mark.core
def test_models_with_several_inputs_are_saved_with_their_noise(tmp_path: Path):
    query, value = keras.Input((4, 6)), keras.Input((5, 8))
    model = keras.Model([query, value], built(bias_prior="normal")(query, value))
    model([QUERY, VALUE])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_array_equal(array(loaded([QUERY, VALUE])), array(model([QUERY, VALUE])))


def test_a_subclassed_model_is_summarised_and_saved(tmp_path: Path):
    @keras.saving.register_keras_serializable(package="tests")
    class Block(keras.Model):
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.attention = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3, seed=0)

        def call(self, x: Any) -> Any:
            return x + self.attention(x, x)

    model = Block()
    model(QUERY)
    lines: list[str] = []
    model.summary(print_fn=lambda text, line_break=False: lines.append(text))
    assert "(2, 4, 6)" in "".join(lines)
    model.save(tmp_path / "model.keras")
    assert_array_equal(array(keras.saving.load_model(tmp_path / "model.keras")(QUERY)), array(model(QUERY)))


def test_a_layer_is_built_again_from_its_build_config():
    layer = built()
    config = {"shapes_dict": {"query_shape": QUERY.shape, "value_shape": VALUE.shape}}
    assert layer.get_build_config() == config
    twin = type(layer).from_config(layer.get_config())
    twin.build_from_config(config)
    assert [weight.shape for weight in twin.weights] == [weight.shape for weight in layer.weights]


@pytest.mark.core
def test_the_divergence_of_a_shared_layer_counts_once():
    layer = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3)
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, layer(layer(inputs, inputs), inputs))
    expected = sum(array(weight.kl()) for weight in layer.sampled_weights.values())
    assert_allclose(array(bdl.elbo.kl_divergence(model)), expected, rtol=1e-6)


@pytest.mark.core
def test_gradients_are_finite_where_a_query_sees_nothing():
    layer = Variational(layers.MultiHeadAttention(2, 3, use_bias=False), weights=[*PROJECTIONS], prior="normal", seed=0)
    inputs, mask = keras.Input((4, 6)), keras.Input((4, 4), dtype="bool")
    model = keras.Model([inputs, mask], layer(inputs, inputs, attention_mask=mask))
    visible = np.ones((2, 4, 4), bool)
    visible[0] = False

    class Masked(layers.Layer):
        def __init__(self):
            super().__init__()
            self.model = model
            self.built = True

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.model([x, ops.convert_to_tensor(visible)], training=training)

    found = weight_gradients(Masked(), QUERY, lambda y: ops.sum(ops.square(y - 1.0)))
    assert sum(path.endswith("rho") for path in found) == 4
    for path, gradient in found.items():
        assert np.all(np.isfinite(gradient)), path
        assert np.any(gradient != 0), path


@pytest.mark.core
def test_a_transformer_block_trains_on_the_elbo():
    inputs = keras.Input((4, 6))
    attended = MultiHeadAttentionReparameterization(num_heads=2, key_dim=3, seed=0)(inputs, inputs)
    hidden = bdl.layers.LayerNormalizationReparameterization(seed=1)(inputs + attended)
    outputs = bdl.layers.DenseReparameterization(1, seed=2)(layers.GlobalAveragePooling1D()(hidden))
    model = bdl.VariationalModel(keras.Model(inputs, outputs), bdl.likelihoods.Normal())
    x = np.random.default_rng(1).normal(size=(128, 4, 6)).astype("float32")
    model.compile(keras.optimizers.Adam(0.01))
    history = model.fit(x, x[:, 0, :1], epochs=5, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert history["nll"][-1] < history["nll"][0]
    prediction = model.predict_distribution(x[:3], num_samples=4, consistent=True)  # whole functions
    assert prediction.mean.shape == (3,)
