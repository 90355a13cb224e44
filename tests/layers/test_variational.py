"""The mechanism: what `Variational` accepts, adds, samples and puts back."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from layer_contract import array, reset_noise
from numpy.testing import assert_allclose, assert_array_equal

import bdl
from bdl.layers import Variational, mean_weights
from bdl.posteriors import MeanFieldNormal, Rank1
from bdl.priors import Normal

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": layers.Dense}, "`layer` must be a keras.Layer instance"),
        ({"estimator": "flip_out"}, "`estimator` must be one of .*'flipout'.*, not 'flip_out'"),
        ({"prior": "normals"}, "`prior` must be a bdl.priors.Prior or one of the names"),
        ({"posterior": 0.1}, r"`posterior` must be a bdl.posteriors.Posterior, .*FactorPosterior or one of the names"),
        ({"weights": "kernel"}, r"`weights` must name at least one weight, such as \('kernel',\)"),
        ({"weights": ()}, "`weights` must name at least one weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Variational(**{"layer": layers.Dense(2), **arguments})


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (layers.Dense(2), {"weights": ("weight",)}, "'weight' matches 0. Its trainable weights are"),
        (layers.BatchNormalization(), {"weights": ("moving_mean",)}, "'moving_mean' matches 0"),
        (layers.Dense(2, kernel_regularizer="l2"), {}, "`kernel_regularizer` .* the two would count twice"),
        (layers.BatchNormalization(), {"weights": ("gamma",), "estimator": "flipout"}, "must be linear in its kernel"),
        (layers.BatchNormalization(), {"weights": ("gamma",), "posterior": "rank1"}, "must be linear in its kernel"),
        (
            layers.Dense(2),
            {"weights": {"kernel": ("normal", "rank1"), "bias": ("normal", "mean_field")}},
            "Rank1 factors and sampled weights cannot be mixed",
        ),
        (layers.Dense(2), {"weights": ("bias",), "posterior": "rank1"}, "Rank1 factors need a layer with one kernel"),
    ],
    ids=["missing", "not trainable", "regularizer", "flipout", "rank1", "mixed", "rank1 bias"],
)
def test_what_building_refuses(layer: keras.Layer, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Variational(layer, **arguments).build((None, 3))


@pytest.mark.parametrize(
    ("layer", "weight", "argument"),
    [
        (layers.DepthwiseConv1D(2), "kernel", "depthwise_regularizer"),
        (layers.SeparableConv1D(2, 2), "depthwise_kernel", "depthwise_regularizer"),
        (layers.SeparableConv1D(2, 2), "pointwise_kernel", "pointwise_regularizer"),
        (layers.Embedding(3, 2), "embeddings", "embeddings_regularizer"),
        (layers.Conv1D(2, 2), "bias", "bias_regularizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refused_regularizer_is_named_as_the_keras_argument(layer: keras.Layer, weight: str, argument: str):
    layer = type(layer).from_config({**layer.get_config(), argument: "l2"})
    with pytest.raises(ValueError, match=f"`{argument}` .* {weight!r} has a prior"):
        Variational(layer, weights=(weight,)).build((None, 4, 3))


def test_a_rank1_kernel_may_be_regularized_for_it_is_a_point_estimate():
    layer = Variational(layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5)), posterior="rank1")
    layer(X)
    assert_allclose(sum(map(array, layer.losses)), 0.5 * np.sum(array(layer.layer.kernel) ** 2), rtol=1e-5)


def test_inputs_are_checked_as_the_wrapped_layer_does():
    layer = Variational(layers.LSTM(3))
    with pytest.raises(ValueError, match="expected ndim=3, found ndim=2"):
        layer(X)
    assert layer.input_spec is layer.layer.input_spec


def test_ambiguous_weights_are_refused_and_a_longer_path_picks_one():
    network = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="one"), layers.Dense(2, name="two")])
    with pytest.raises(ValueError, match="'kernel' matches 2"):
        Variational(network).build((None, 3))
    layer = Variational(network, weights=("two/kernel",))
    layer.build((None, 3))
    assert layer.sampled_weights["two/kernel"].mean is network.layers[1].kernel
    assert not np.allclose(array(layer(X)), array(layer(X)))


@pytest.mark.core
def test_a_built_layer_keeps_its_weights_as_the_means():
    dense = layers.Dense(2, kernel_initializer="random_normal")
    expected = array(dense(X))
    kernel = array(dense.kernel)
    layer = Variational(dense)
    layer(X)
    assert_array_equal(array(layer.sampled_weights["kernel"].mean), kernel)
    with mean_weights(layer):
        assert_allclose(array(layer(X)), expected, rtol=1e-6)


def test_divergence_is_the_sum_over_weights_and_needs_a_built_layer():
    layer = Variational(
        layers.Dense(2), weights={"kernel": (Normal(scale=2.0), "mean_field"), "bias": ("normal", "mean_field")}
    )
    with pytest.raises(ValueError, match=r"has no weights yet: build it, or call it once, before kl_divergence"):
        layer.kl_divergence()
    layer(X)
    before = array(layer.kl_divergence())
    expected = 0.0
    for name, scale in (("kernel", 2.0), ("bias", 1.0)):
        weight = layer.sampled_weights[name]
        mean, sigma = array(weight.mean), array(weight.posterior.scale(weight.variables))
        expected += np.sum(np.log(scale / sigma) + (sigma**2 + mean**2) / (2 * scale**2) - 0.5)
    assert_allclose(before, expected, rtol=1e-5)
    layer(X)
    layer(X)
    assert array(layer.kl_divergence()) == before, "it depends on how often the layer was called"


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("DenseReparameterization", True),
        ("DenseReparameterization", False),
        ("DenseFlipout", True),
        ("DenseLocalReparameterization", True),
        ("DenseRank1", False),
        ("Conv1DFlipout", True),
        ("SeparableConv1DLocalReparameterization", True),
    ],
)
def test_sixteen_threads_get_what_one_gets(name: str, training: bool):
    """A call changes nothing that another call reads, not even for a moment: not the activation, for one."""
    is_dense = name.startswith("Dense")
    layer = getattr(bdl.layers, name)(*((3,) if is_dense else (3, 1)), activation="relu")
    x = ops.convert_to_tensor(X if is_dense else np.repeat(X[:, None], 2, axis=1))
    layer.build(x.shape)
    layer.layer.set_weights([np.random.default_rng(0).normal(size=each.shape) for each in layer.layer.weights])
    state = [
        [ops.convert_to_tensor(each) for each in part]
        for part in (layer.trainable_variables, layer.non_trainable_variables)
    ]

    def call(_: int) -> np.ndarray:
        return array(layer.stateless_call(*state, x, training=training)[0])

    serial = call(0)
    assert np.any(serial == 0)
    assert np.any(serial > 0)
    with ThreadPoolExecutor(16) as threads:
        for found in threads.map(call, range(64)):
            assert_array_equal(found, serial)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras' quantizers
@pytest.mark.parametrize("name", ["DenseReparameterization", "DenseFlipout", "DenseRank1"])
@pytest.mark.parametrize("change", ["quantize", "enable_lora"])
def test_a_layer_that_replaces_its_weights_is_refused_by_name(name: str, change: str):
    layer = getattr(bdl.layers, name)(2, name="the_layer")
    model = keras.Sequential([keras.Input((3,)), layer])
    if change == "quantize":
        with pytest.raises(ValueError, match="'the_layer' is not quantized to 'int8'"):
            layer.quantize("int8")
        assert np.all(np.isfinite(array(model(X)))), "the refusal changed the layer"
        model.quantize("int8", filters="mean")  # reaches the layer inside, whose class knows nothing of posteriors
    else:
        layer.layer.enable_lora(1)
    for evaluate in (lambda: model(X), lambda: model(X, training=True), layer.kl_divergence):
        with pytest.raises(ValueError, match="'the_layer' must have the weights that it had when its posterior was"):
            evaluate()


@pytest.mark.core
def test_lora_weights_may_have_posteriors_when_they_are_there_before():
    dense = layers.Dense(2)
    dense.build((None, 3))
    dense.enable_lora(1)
    layer = Variational(dense, weights=("lora_kernel_a", "lora_kernel_b"), prior="normal")
    layer(X)
    with mean_weights(layer):
        assert_allclose(array(layer(X)), array(dense(X)), rtol=1e-6, atol=1e-6)
    assert not np.allclose(array(layer(X)), array(layer(X)))
    assert array(layer.kl_divergence()) > 0


@pytest.mark.core
def test_a_layer_that_normalises_its_own_kernel_is_refused_by_name():
    layer = Variational(layers.SpectralNormalization(layers.Dense(2), name="spectral"))
    layer(X)  # it assigns in training only
    with pytest.raises(ValueError, match=r"'spectral' does with .*dense.*/kernel"):
        layer(X, training=True)


@pytest.mark.core
def test_attributes_of_the_wrapped_layer_can_be_read_and_others_are_missed():
    layer = Variational(layers.Conv1D(5, 3, strides=2, activation="relu"), name="outer")
    assert (layer.filters, layer.kernel_size, layer.strides) == (5, (3,), (2,))
    assert layer.activation is keras.activations.relu
    assert not hasattr(layer, "kernel")
    layer.build((None, 6, 2))
    assert layer.kernel is layer.layer.kernel is layer.sampled_weights["kernel"].mean
    assert layer.bias is layer.layer.bias
    assert (layer.name, layer.seed) == ("outer", None)
    for name in ("units", "rate", "_kernel", "noise", "enable_lora"):  # nor is a method of it the wrapper's
        assert not hasattr(layer, name)
    assert len(layer.weights) == len({id(weight) for weight in layer.weights}) == 4


def test_sampled_weights_is_a_copy():
    layer = Variational(layers.Dense(2))
    assert layer.sampled_weights == {}
    layer(X)
    layer.sampled_weights.clear()
    assert list(layer.sampled_weights) == ["kernel"]


@pytest.mark.core
def test_state_of_the_wrapped_layer_is_put_back():
    layer = Variational(layers.BatchNormalization(momentum=0.5), weights=("gamma",), prior="normal")
    layer(X, training=True)
    assert_allclose(array(layer.layer.moving_mean), 0.5 * X.mean(axis=0), rtol=1e-5, atol=1e-6)
    layer(X, training=False)
    assert_allclose(array(layer.layer.moving_mean), 0.5 * X.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_training_reaches_the_wrapped_layer():
    layer = Variational(keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dropout(0.9, seed=0)]))
    layer(X)
    with mean_weights(layer):
        assert_array_equal(array(layer(X, training=False)), array(layer.layer(X, training=False)))
        assert np.any(array(layer(X, training=True)) == 0)


def test_losses_inside_the_wrapped_layer_are_kept():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.ActivityRegularization(l2=1.0)])
    layer = Variational(inner)
    with_noise = layer(X)
    assert_allclose(sum(map(array, layer.losses)), np.sum(array(with_noise) ** 2) / len(X), rtol=1e-5)


@pytest.mark.core
def test_mean_weights_is_undone_also_after_an_error():
    layer = Variational(layers.Dense(2))
    layer(X)
    with pytest.raises(RuntimeError, match="stop"), mean_weights(layer):
        assert_array_equal(array(layer(X)), array(layer(X)))
        raise RuntimeError("stop")
    assert array(layer.noise_strength) == 1.0
    assert not np.allclose(array(layer(X)), array(layer(X)))


def test_mean_weights_reaches_every_layer_of_a_compiled_model_and_nests():
    model = keras.Sequential(
        [keras.Input((3,)), bdl.layers.DenseFlipout(4), keras.Sequential([bdl.layers.DenseRank1(2)])]
    )
    assert not np.allclose(model.predict(X, verbose=0), model.predict(X, verbose=0))
    with mean_weights(model):
        first = model.predict(X, verbose=0)
        with mean_weights(model):
            pass
        assert_array_equal(model.predict(X, verbose=0), first)
    assert not np.allclose(model.predict(X, verbose=0), first)


def test_mean_weights_without_a_variational_layer_is_refused():
    for model in (layers.Dense(2), Variational(layers.Dense(2))):
        with pytest.raises(ValueError, match="has no built layer with noise"), mean_weights(model):
            pass


def test_a_shared_layer_draws_anew_on_each_call():
    layer = Variational(layers.Dense(3, use_bias=False))
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [layer(inputs), layer(inputs)])
    one, two = map(array, model(X))
    assert not np.allclose(one, two)
    assert sum(weight.path.endswith("rho") for weight in model.trainable_weights) == 1


def test_weights_of_one_layer_have_noise_of_their_own():
    layer = Variational(layers.LSTM(3), weights=("kernel", "recurrent_kernel"))
    layer.build((2, 4, 3))  # both kernels are 3 x 12
    kernel, recurrent = layer.sampled_weights["kernel"], layer.sampled_weights["recurrent_kernel"]
    noise = bdl.estimators.weights.Noise(bdl.random.draw_key(0), ops.ones(()))
    assert not np.allclose(array(noise.perturbation(kernel)), array(noise.perturbation(recurrent)))
    assert_array_equal(array(noise.perturbation(kernel)), array(noise.perturbation(kernel)))


def test_fan_in_is_counted_by_the_layer_that_owns_the_weight():
    network = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2DTranspose(2, 3, name="up")])
    layer = Variational(network, weights=("up/kernel",))
    layer.build((None, 4, 4, 3))
    assert layer.sampled_weights["up/kernel"].input_axes == (0, 1, 3)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore::bdl.uncounted.UncountedKLWarning")  # the loss alone moves both
@pytest.mark.parametrize("posterior", [MeanFieldNormal(), Rank1()], ids=["mean_field", "rank1"])
def test_fit_moves_means_and_scales(posterior: Any):
    layer = Variational(layers.Dense(1), posterior=posterior, seed=0)
    model = keras.Sequential([keras.Input((3,)), layer])
    before = {weight.path: array(weight) for weight in model.trainable_weights}
    model.compile("sgd", "mse")
    model.fit(X, np.ones((4, 1)), verbose=0)
    for weight in model.trainable_weights:
        assert np.all(np.isfinite(array(weight)))
        assert np.any(array(weight) != before[weight.path]), weight.path


def test_noise_goes_on_between_compiled_calls_and_repeats_from_a_seed():
    model = keras.Sequential([keras.Input((3,)), bdl.layers.DenseReparameterization(2, seed=0)])
    reset_noise(model, 5)
    first, second = model.predict(X, verbose=0), model.predict(X, verbose=0)
    assert not np.allclose(first, second)
    reset_noise(model, 5)
    assert_array_equal(model.predict(X, verbose=0), first)
