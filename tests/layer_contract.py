"""What every variational layer promises: the catalogue of layers, and one check for each promise.

In the spirit of `keras.src.testing.TestCase.run_layer_test`, which `check_as_keras_does` runs; the others are ours.
Each check takes a `Case` and fails by assertion. `tests/layers/test_contract.py` runs all of them over all cases.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from gradients import weight_gradients
from keras import layers, ops
from keras.src.testing import TestCase
from numpy.testing import assert_allclose, assert_array_equal

import bdl
from bdl.layers.named import NamedVariational


@dataclass(frozen=True)
class Family:
    """A Keras layer to be made variational, and how to try it.

    Args:
        arguments: Small arguments of the Keras layer.
        input_shape: Shape of an input, the batch included.
        changed: Arguments that differ from the Keras layer's defaults and do not matter to the checks.
        regularizer: Its argument that regularizes a sampled weight, if there is one.
        shift: Name of its weight that is added and not sampled, if there is one.
        num_inputs: How many tensors of that shape it is called with.
        num_tokens: Its inputs are integers below this number; 0 for real numbers.
    """

    arguments: dict[str, Any]
    input_shape: tuple[int, ...]
    changed: dict[str, Any] = field(default_factory=lambda: {"activation": "relu", "bias_initializer": "ones"})
    regularizer: str | None = "kernel_regularizer"
    shift: str | None = "bias"
    num_inputs: int = 1
    num_tokens: int = 0


def _depthwise(arguments: dict[str, Any], input_shape: tuple[int, ...]) -> Family:
    return Family(arguments, input_shape, regularizer="depthwise_regularizer")


def _normalization(arguments: dict[str, Any], input_shape: tuple[int, ...]) -> Family:
    return Family(arguments, input_shape, {"beta_initializer": "ones"}, regularizer="gamma_regularizer", shift="beta")


_FAMILIES = {
    "Dense": Family({"units": 3}, (2, 4)),
    "EinsumDense": Family({"equation": "abc,cd->abd", "output_shape": (None, 3), "bias_axes": "d"}, (2, 3, 4)),
    "Conv1D": Family({"filters": 3, "kernel_size": 2}, (2, 4, 2)),
    "Conv2D": Family({"filters": 3, "kernel_size": 2}, (2, 4, 3, 2)),
    "Conv3D": Family({"filters": 3, "kernel_size": 2}, (2, 3, 2, 3, 2)),
    "Conv1DTranspose": Family({"filters": 3, "kernel_size": 2}, (2, 3, 2)),
    "Conv2DTranspose": Family({"filters": 3, "kernel_size": 2}, (2, 3, 2, 2)),
    "Conv3DTranspose": Family({"filters": 3, "kernel_size": 2}, (2, 2, 2, 2, 2)),
    "DepthwiseConv1D": _depthwise({"kernel_size": 2, "depth_multiplier": 2}, (2, 4, 2)),
    "DepthwiseConv2D": _depthwise({"kernel_size": 2, "depth_multiplier": 2}, (2, 4, 3, 2)),
    "SeparableConv1D": _depthwise({"filters": 3, "kernel_size": 2}, (2, 4, 2)),
    "SeparableConv2D": _depthwise({"filters": 3, "kernel_size": 2}, (2, 4, 3, 2)),
    "LSTM": Family({"units": 3}, (2, 4, 2)),
    "GRU": Family({"units": 3}, (2, 4, 2)),
    "SimpleRNN": Family({"units": 3}, (2, 4, 2)),
    "Embedding": Family(
        {"input_dim": 5, "output_dim": 3},
        (2, 4),
        {"embeddings_initializer": "ones"},
        regularizer="embeddings_regularizer",
        shift=None,
        num_tokens=5,
    ),
    # Without biases: attention does not depend on that of the keys, whose gradient is therefore zero.
    "MultiHeadAttention": Family(
        {"num_heads": 2, "key_dim": 3, "use_bias": False}, (2, 4, 6), {"dropout": 0.1}, shift=None, num_inputs=2
    ),
    "LayerNormalization": _normalization({}, (2, 3, 4)),
    "GroupNormalization": _normalization({"groups": 2}, (2, 3, 4)),
    "BatchNormalization": _normalization({}, (2, 3, 4)),
    "RMSNormalization": Family({}, (2, 3, 4), {"epsilon": 0.1}, regularizer=None, shift=None),
}

_CORE = {
    "DenseReparameterization",
    "DenseRank1",
    "EinsumDenseLocalReparameterization",
    "Conv1DFlipout",
    "SeparableConv1DLocalReparameterization",
    "Variational-LSTM-reparameterization",
    "LSTMReparameterization",
    "EmbeddingReparameterization",
    "EmbeddingRank1",
    "MultiHeadAttentionReparameterization",
    "LayerNormalizationReparameterization",
    "BatchNormalizationReparameterization",
}


@dataclass(frozen=True)
class Case:
    """One layer under test.

    Args:
        name: Name of the case.
        make: Builds the layer from arguments of the Keras layer, `name` and `seed`.
        keras_layer: The Keras layer that it makes variational.
        family: Arguments that `make` and the Keras layer need, and inputs.
    """

    name: str
    make: Callable[..., bdl.layers.Variational]
    keras_layer: type[keras.Layer]
    family: Family

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that `make` and the Keras layer need."""
        return self.family.arguments

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an input, the batch included."""
        return self.family.input_shape

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all inputs."""
        return [self.input_shape] * self.family.num_inputs

    @property
    def is_core(self) -> bool:
        """Whether it runs on all three backends."""
        return self.name in _CORE

    @property
    def is_named(self) -> bool:
        """Whether it is a drop-in class, and not `Variational` around a layer."""
        return not self.name.startswith("Variational")

    def layer(self, **arguments: Any) -> bdl.layers.Variational:
        """A layer of the case, not built."""
        return self.make(**{**self.arguments, **arguments})

    def built(self, **arguments: Any) -> bdl.layers.Variational:
        """A layer of the case, built."""
        layer = self.layer(**arguments)
        layer.build(*self.input_shapes)
        return layer

    def call(self, layer: keras.Layer, x: Any, **arguments: Any) -> Any:
        """Calls a layer on the input, in all places where it takes one."""
        return layer(*[x] * self.family.num_inputs, **arguments)

    def model(self, layer: keras.Layer, activation: str = "linear") -> keras.Model:
        """A functional model of a layer and an activation."""
        inputs = keras.Input(self.input_shape[1:], dtype="int32" if self.family.num_tokens else None)
        return keras.Model(inputs, layers.Activation(activation)(self.call(layer, inputs)))

    def input(self, seed: int = 0) -> np.ndarray:
        """A random input."""
        if self.family.num_tokens:
            return np.random.default_rng(seed).integers(self.family.num_tokens, size=self.input_shape)
        return np.random.default_rng(seed).normal(size=self.input_shape).astype("float32")


def _named_case(name: str) -> Case:
    layer_class = getattr(bdl.layers, name)
    return Case(name, layer_class, layer_class.keras_layer, _FAMILIES[layer_class.keras_layer.__name__])


def _generic_case(kind: str, estimator: str, weights: tuple[str, ...] = ("kernel",)) -> Case:
    keras_layer = getattr(layers, kind)

    def make(
        name: str | None = None, seed: int | None = None, trainable: bool = True, **arguments: Any
    ) -> bdl.layers.Variational:
        layer = keras_layer(**arguments)
        ours = {"estimator": estimator, "weights": weights, "prior": "normal", "seed": seed}
        return bdl.layers.Variational(layer, **ours, name=name, trainable=trainable)

    return Case(f"Variational-{kind}-{estimator}", make, keras_layer, _FAMILIES[kind])


def named_layers() -> list[str]:
    """Names of all drop-in variational layer classes."""
    public = {name: getattr(bdl.layers, name) for name in bdl.layers.__all__}
    return [name for name, value in public.items() if isinstance(value, type) and issubclass(value, NamedVariational)]


CASES = [
    *(_named_case(name) for name in named_layers()),
    _generic_case("Dense", "reparameterization", ("kernel", "bias")),
    _generic_case("Dense", "local_reparameterization", ("kernel", "bias")),
    _generic_case("Conv2D", "flipout", ("kernel", "bias")),
    _generic_case("EinsumDense", "flipout"),
    _generic_case("LSTM", "reparameterization", ("kernel", "recurrent_kernel")),
    _generic_case("GRU", "reparameterization", ("kernel", "recurrent_kernel", "bias")),
]


def array(tensor: Any) -> np.ndarray:
    """A tensor of any backend and precision as a NumPy array, half precisions in float32."""
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def reset_noise(model: keras.Layer, seed: int) -> None:
    """Sets the seeds of all variational layers in a model."""
    for layer in model._flatten_layers():
        if isinstance(layer, bdl.layers.Variational):
            layer.seed_generator.state.assign(np.array([seed, 0]))


def call_where_possible(keras_layer: keras.Layer, x: np.ndarray) -> Any:
    """Calls a plain Keras layer; where TensorFlow has no kernel for it on this processor the test is skipped."""
    if keras.backend.backend() != "tensorflow":
        return keras_layer(x)
    import tensorflow as tf

    try:
        return keras_layer(x)
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError) as error:
        pytest.skip(f"plain Keras cannot evaluate {keras_layer!r} on this processor: {str(error)[:200]}")


def check_as_keras_does(case: Case) -> None:
    """Build, shapes, dtype, symbolic and eager call, serialisation, one compiled training step, mixed precision."""
    keras_layer = case.keras_layer(**case.arguments)
    several = case.family.num_inputs > 1
    TestCase().run_layer_test(
        case.make,
        {**case.arguments, "seed": 1},
        input_shape={"query_shape": case.input_shape, "value_shape": case.input_shape} if several else case.input_shape,
        input_dtype="int32" if case.family.num_tokens else None,
        expected_output_shape=keras_layer.compute_output_shape(*case.input_shapes),
        expected_output_dtype="float32",
        expected_num_seed_generators=1 + hasattr(keras_layer, "cell"),  # a cell has one for its dropout
        expected_num_losses=0,
        supports_masking=keras_layer.supports_masking,
        run_training_check=not several,
    )


def check_config_round_trip(case: Case) -> None:
    """`from_config(get_config())` gives an equal configuration, with arguments that are not the defaults."""
    layer = case.layer(name="renamed", seed=5, trainable=False, **case.family.changed)
    config = layer.get_config()
    twin = type(layer).from_config(layer.get_config())
    assert twin.get_config() == config
    assert (twin.name, twin.seed, twin.trainable) == ("renamed", 5, False)
    changed, default = twin.layer.get_config(), case.layer().layer.get_config()
    assert all(changed[name] != default[name] for name in case.family.changed)


def check_save_and_load(case: Case) -> None:
    """A `.keras` file of a sequential and of a functional model gives parameters, configuration and samples back."""
    models = [case.model(case.layer(), activation="tanh")]
    if case.family.num_inputs == 1:
        models.append(keras.Sequential([keras.Input(case.input_shape[1:]), case.layer()]))
    x = case.input()
    for model in models:
        for weight in model.trainable_weights:  # move the posterior away from its start
            weight.assign_add(np.full(weight.shape, 0.01))
        model(x)
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.keras")
            loaded = keras.saving.load_model(Path(folder) / "model.keras")
        # Through JSON, where Keras' own tuples become lists.
        assert json.loads(json.dumps(loaded.get_config())) == json.loads(json.dumps(model.get_config()))
        assert len(loaded.weights) == len(model.weights)
        for one, other in zip(model.weights, loaded.weights, strict=True):
            assert_array_equal(array(one), array(other))
        # The file holds where the noise is: the loaded model draws what the saved one would.
        first = array(model(x))
        assert_array_equal(array(loaded(x)), first)
        assert not np.array_equal(array(loaded(x)), first), "the layer does not sample"


def check_clone_and_summary(case: Case) -> None:
    """`clone_model` gives new weights of the same configuration; `summary` names the layer and counts its weights."""
    model = case.model(case.layer(name="the_layer"))
    clone = keras.models.clone_model(model)
    assert clone.get_layer("the_layer").get_config() == model.get_layer("the_layer").get_config()
    assert {id(weight) for weight in clone.weights}.isdisjoint(id(weight) for weight in model.weights)
    assert clone(case.input()).shape == model(case.input()).shape
    lines: list[str] = []
    model.summary(print_fn=lambda text, line_break=False: lines.append(text))
    assert "the_layer" in "".join(lines)
    assert f"Total params: {model.count_params():,}" in "".join(lines)


def check_half_precision(case: Case, policy: str) -> None:
    """Outputs have the compute dtype and are finite; scales and the divergence stay float32, and their values exact."""
    layer, reference = case.built(dtype=policy), case.built()
    expected = keras.DTypePolicy(policy).compute_dtype
    for training in (True, False):
        output = case.call(layer, case.input(), training=training)
        assert keras.backend.standardize_dtype(output.dtype) == expected
        assert np.all(np.isfinite(array(output)))
    for weight in layer.weights:
        assert keras.backend.standardize_dtype(weight.dtype) == "float32", weight.path
    for one, other in zip(layer.weights, reference.weights, strict=True):
        one.assign(other)
    kl = layer.kl_divergence()
    assert keras.backend.standardize_dtype(kl.dtype) == "float32"
    assert array(kl) == array(reference.kl_divergence()) > 0


def check_mean_weights(case: Case) -> None:
    """Within `mean_weights` the layer is its Keras layer, in training and outside it."""
    layer, x = case.built(), case.input()
    with bdl.mean_weights(layer):
        for training in (True, False):
            expected = array(case.call(layer.layer, x, training=training))
            assert_allclose(array(case.call(layer, x, training=training)), expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(array(case.call(layer, x)), expected, rtol=1e-3, atol=1e-3)


def check_gradients_with_a_zero_row(case: Case) -> None:
    """An all-zero example leaves the gradient of every weight finite, and the other example moves every weight."""
    layer = case.model(case.built())
    x = case.input()
    x[0] = 0
    # The square of a distance from one, so that factors, means, scales and biases all matter.
    found = weight_gradients(layer, x, lambda y: ops.sum(ops.square(y - 1.0)))
    assert set(found) == {weight.path for weight in layer.trainable_weights}
    for path, gradient in found.items():
        assert np.all(np.isfinite(gradient)), path
        assert np.any(gradient != 0), path
    zero = weight_gradients(layer, np.zeros_like(x), lambda y: ops.sum(ops.square(y - 1.0)))
    for path, gradient in zero.items():
        assert np.all(np.isfinite(gradient)), path


def check_regularizers(case: Case) -> None:
    """A regularizer of a sampled weight is refused; those of the outputs and of other weights count once."""
    family = case.family
    regularizers: dict[str, Any] = {"activity_regularizer": keras.regularizers.L1(0.5)}
    if "Rank1" in case.name:  # its weights are point estimates
        assert family.regularizer
        regularizers[family.regularizer] = keras.regularizers.L2(0.125)
    elif family.regularizer:
        with pytest.raises(ValueError, match=f"`{family.regularizer}` .* has a prior: the two would count twice"):
            case.built(**{family.regularizer: "l2"})
    if family.shift and family.shift not in case.built().sampled_weights:
        regularizers[f"{family.shift}_regularizer"] = keras.regularizers.L2(0.25)
        regularizers[f"{family.shift}_initializer"] = "ones"
    layer, x = case.built(**regularizers), case.input()
    twin = case.keras_layer(**{**case.arguments, **regularizers})
    twin.build(*case.input_shapes)
    twin.set_weights(layer.layer.get_weights())
    for training in (True, False):
        case.call(twin, x, training=training)
        with bdl.mean_weights(layer):
            model = case.model(layer)
            model(x, training=training)
            assert_allclose(sum(map(array, model.losses)), sum(map(array, twin.losses)), rtol=1e-5)


def check_freezing(case: Case) -> None:
    """`trainable=False` freezes means and scales, before and after building, and does not change the distribution."""
    layer = case.built(trainable=False) if case.is_named else case.built()
    layer.trainable = True
    names = [weight.path for weight in layer.trainable_weights]
    x, kl = case.input(), array(layer.kl_divergence())
    assert any("rho" in name for name in names)
    samples = []
    # A frozen batch normalisation uses its moving statistics in training as well.
    modes = (False,) if case.keras_layer is layers.BatchNormalization else (True, False)
    for trainable in (True, False):
        layer.trainable = trainable
        assert [weight.path for weight in layer.trainable_weights] == (names if trainable else [])
        assert array(layer.kl_divergence()) == kl
        for training in modes:
            reset_noise(layer, 3)
            samples.append(array(case.call(layer, x, training=training)))
    before = [array(weight) for weight in layer.weights]
    assert_allclose(samples[len(modes) :], samples[: len(modes)], rtol=1e-6, atol=1e-6)
    for weight, value in zip(layer.weights, before, strict=True):
        assert_array_equal(array(weight), value)
