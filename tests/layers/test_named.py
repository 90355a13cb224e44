"""What the named drop-ins add to `Variational`: their arguments, signature and configuration."""

import inspect

import keras
import numpy as np
import pytest
from layer_contract import CASES, named_layers

import bdl
from bdl.layers import DenseFlipout, DenseRank1, SeparableConv1DFlipout
from bdl.posteriors import MeanFieldNormal, Rank1
from bdl.priors import Normal

MEAN_FIELD_ARGUMENTS = ["kernel_prior", "kernel_posterior", "bias_prior", "bias_posterior", "seed"]
RANK1_ARGUMENTS = ["input_factor_prior", "output_factor_prior", "initial_scale", "kernel_prior", "seed"]
EMBEDDING_ARGUMENTS = ["embeddings_prior", "embeddings_posterior", "seed"]
NORMALIZATION_ARGUMENTS = ["gamma_prior", "gamma_posterior", "seed"]


@pytest.mark.parametrize("name", named_layers())
def test_signature_is_that_of_the_keras_layer_then_ours(name: str):
    layer_class = getattr(bdl.layers, name)
    theirs = inspect.signature(layer_class.keras_layer).parameters
    ours = inspect.signature(layer_class).parameters
    # One seed serves the noise and the Keras layer's own dropout.
    expected = [parameter for parameter in theirs if parameter not in ("kwargs", "seed")]
    assert list(ours)[: len(expected)] == expected
    assert all(ours[parameter].default == theirs[parameter].default for parameter in expected)
    kinds = {"Rank1": RANK1_ARGUMENTS, "Embedding": EMBEDDING_ARGUMENTS, "Normalization": NORMALIZATION_ARGUMENTS}
    own = next((arguments for kind, arguments in kinds.items() if kind in name), MEAN_FIELD_ARGUMENTS)
    assert list(ours)[len(expected) :] == [*own, "kwargs"]


@pytest.mark.parametrize("name", named_layers())
def test_name_says_what_it_wraps(name: str):
    layer_class = getattr(bdl.layers, name)
    ending = name.removeprefix(layer_class.keras_layer.__name__)
    assert ending == "".join(part.capitalize() for part in layer_class.estimator_name.split("_"))
    assert layer_class.__doc__.startswith(f"`keras.layers.{layer_class.keras_layer.__name__}` with")


def test_arguments_reach_the_keras_layer():
    layer = DenseFlipout(3, "relu", use_bias=False, kernel_initializer="ones", dtype="mixed_float16", name="mine")
    assert (layer.name, layer.dtype_policy.name, layer.layer.dtype_policy.name) == ("mine", *["mixed_float16"] * 2)
    assert layer.layer.units == 3
    assert layer.layer.activation is keras.activations.relu
    assert not layer.layer.use_bias
    with pytest.raises(ValueError, match="units"):
        DenseFlipout(-1)
    with pytest.raises(ValueError, match="Unrecognized keyword arguments"):
        DenseFlipout(3, kernel_priors="normal")


@pytest.mark.parametrize("name", named_layers())
def test_arguments_of_the_keras_layer_can_be_read(name: str):
    case = next(case for case in CASES if case.name == name)
    layer = case.built()
    known = layer.layer.get_config()
    expected = {key: value for key, value in vars(layer.layer).items() if key in known}
    ours = ("name", "dtype", "trainable", "seed", "activity_regularizer")
    for argument, value in expected.items():
        assert argument in ours or getattr(layer, argument) is value, argument
    assert all(hasattr(layer, argument) for argument in known if hasattr(layer.layer, argument))


def test_prior_and_posterior_reach_their_weight():
    layer = DenseFlipout(3, kernel_prior=Normal(scale=2.0), kernel_posterior=MeanFieldNormal(0.5), bias_prior="normal")
    layer.build((None, 4))
    kernel, bias = layer.sampled_weights["kernel"], layer.sampled_weights["bias"]
    assert (kernel.prior, kernel.posterior) == (Normal(scale=2.0), MeanFieldNormal(0.5))
    assert (bias.prior, bias.posterior) == (Normal(), MeanFieldNormal())
    assert kernel.index != bias.index, "equal indices would share their noise"


def test_bias_is_a_point_estimate_by_default():
    layer = DenseFlipout(3)
    layer.build((None, 4))
    assert list(layer.sampled_weights) == ["kernel"]
    assert [weight.path.rsplit("/", 1)[-1] for weight in layer.trainable_weights] == ["kernel_rho", "kernel", "bias"]


def test_separable_convolutions_sample_both_kernels():
    layer = SeparableConv1DFlipout(3, 2)
    layer.build((None, 5, 2))
    assert list(layer.sampled_weights) == ["depthwise_kernel", "pointwise_kernel"]


def test_rank1_factors_take_their_priors():
    layer = DenseRank1(3, input_factor_prior=Normal(1.0, 10.0), output_factor_prior=Normal(1.0, 0.5), initial_scale=0.2)
    layer.build((None, 4))
    posterior = layer.sampled_weights["kernel"].posterior
    assert posterior == Rank1(Normal(1.0, 10.0), Normal(1.0, 0.5), 0.2)
    shapes = {weight.path.rsplit("/", 1)[-1]: weight.shape for weight in layer.trainable_weights}
    assert shapes["kernel_input_factor_mean"] == shapes["kernel_input_factor_rho"] == (4,)
    assert shapes["kernel_output_factor_mean"] == shapes["kernel_output_factor_rho"] == (3,)


def test_configuration_keeps_every_argument_of_ours():
    layer = DenseFlipout(
        3,
        kernel_prior=Normal(0.5, 2.0),
        kernel_posterior=MeanFieldNormal(0.3),
        bias_prior="fan_in_normal",
        bias_posterior=MeanFieldNormal(0.2),
        seed=9,
    )
    twin = DenseFlipout.from_config(layer.get_config())
    for argument in MEAN_FIELD_ARGUMENTS:
        assert getattr(twin, argument) == getattr(layer, argument)
    for kernel_prior in (None, Normal(scale=2.0)):
        rank1 = DenseRank1(
            3,
            input_factor_prior=Normal(1.0, 10.0),
            output_factor_prior="tied_mean",
            initial_scale=0.3,
            kernel_prior=kernel_prior,
        )
        twin = DenseRank1.from_config(rank1.get_config())
        for argument in RANK1_ARGUMENTS:
            assert getattr(twin, argument) == getattr(rank1, argument)


def test_a_rank1_layer_loads_beside_a_likelihood_of_the_same_class_name():
    """`bdl.priors.Normal` and `bdl.likelihoods.Normal` once shared one registered name."""
    config = keras.saving.serialize_keras_object(DenseRank1(3, input_factor_prior=Normal(1.0, 10.0)))
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded.input_factor_prior == Normal(1.0, 10.0)
    likelihood = keras.saving.serialize_keras_object(bdl.likelihoods.Normal())
    assert isinstance(keras.saving.deserialize_keras_object(likelihood), bdl.likelihoods.Normal)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`bias_posterior` was given without `bias_prior`"):
        DenseFlipout(3, bias_posterior="mean_field")
    for argument in ("kernel_prior", "bias_prior"):
        with pytest.raises(ValueError, match=f"`{argument}` must be a bdl.priors.Prior or one of the names"):
            DenseFlipout(3, **{argument: "normals"})
    with pytest.raises(ValueError, match=r"`kernel_posterior` must be a bdl.posteriors.Posterior"):
        DenseFlipout(3, kernel_posterior=Normal())
    with pytest.raises(ValueError, match="`input_factor_prior` must be"):
        DenseRank1(3, input_factor_prior=1.0)
    with pytest.raises(ValueError, match="`initial_scale` must be a finite positive number"):
        DenseRank1(3, initial_scale=0.0)


def test_a_subclass_keeps_its_class():
    class Mine(DenseFlipout):
        """A user's own."""

    layer = Mine.from_config(Mine(3, activation="relu").get_config())
    assert type(layer) is Mine
    assert layer(np.ones((2, 4))).shape == (2, 3)
