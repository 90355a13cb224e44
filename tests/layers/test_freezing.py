"""A posterior is trainable while its weight is: nothing of a frozen layer moves, and an unfrozen one trains again."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from layer_contract import CASES, Case, array
from numpy.testing import assert_array_equal

import bdl
from bdl.layers import ConcreteDropout, InputFactors, Variational, VariationalGaussianDropout
from bdl.layers.freezing import Followers
from bdl.priors import ScaleMixture

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(4, 1)).astype("float32")


def names(layer: keras.Layer) -> list[str]:
    return [weight.path for weight in layer.trainable_variables]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_every_posterior_follows_whichever_of_wrapper_and_layer_was_frozen(case: Case):
    layer = case.built()
    model = case.model(layer)
    everything = names(model)
    for frozen, thawed in ((layer.layer, layer.layer), (layer, layer), (layer, layer.layer)):
        frozen.trainable = False
        assert names(model) == [], "something of a frozen layer would train"
        assert {id(weight) for weight in model.non_trainable_variables} >= {id(weight) for weight in layer.weights}
        thawed.trainable = True
        assert names(model) == everything
        layer.trainable = True  # of the wrapper itself, which the last pair leaves frozen


POSTERIORS: dict[str, tuple[Callable[[], keras.Layer], Callable[[keras.Layer], keras.Layer]]] = {
    "named": (lambda: bdl.layers.DenseFlipout(3, bias_prior="normal"), lambda layer: layer.layer),
    "rank1": (lambda: bdl.layers.DenseRank1(3), lambda layer: layer.layer),
    "prior that learns": (
        lambda: bdl.layers.DenseReparameterization(3, kernel_prior=ScaleMixture(learned=True)),
        lambda layer: layer.layer,
    ),
    "around a network": (
        lambda: Variational(keras.Sequential([keras.Input((3,)), layers.Dense(3)])),
        lambda layer: layer.layer.layers[0],
    ),
    "input factors": (InputFactors, lambda layer: layer.layer),
    "concrete dropout": (lambda: ConcreteDropout(layers.Dense(3)), lambda layer: layer.layer),
    "gaussian dropout": (VariationalGaussianDropout, lambda layer: layer),
}


@pytest.mark.core
@pytest.mark.parametrize("kind", POSTERIORS)
def test_training_moves_nothing_of_a_frozen_layer_and_everything_of_another(kind: str):
    make, inside = POSTERIORS[kind]
    frozen, free = make(), make()
    network = keras.Sequential([keras.Input((3,)), frozen, free, layers.Dense(1)])
    inside(frozen).trainable = False
    assert names(frozen) == []
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), num_examples=4)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    held, moved = ([array(weight) for weight in layer.weights] for layer in (frozen, free))
    kl = [float(array(layer.kl_divergence())) for layer in (frozen, free)]
    model.fit(X, Y, epochs=2, verbose=0)  # the warm-up leaves the divergence out of the first step
    for weight, before in zip(frozen.weights, held, strict=True):
        assert_array_equal(array(weight), before, err_msg=weight.path)
    assert names(free)
    for weight, before in zip(free.weights, moved, strict=True):
        assert not weight.trainable or np.any(array(weight) != before), weight.path
    after = [float(array(layer.kl_divergence())) for layer in (frozen, free)]
    assert after[0] == kl[0] != 0
    assert after[1] != kl[1]


@pytest.mark.core
@pytest.mark.parametrize("posterior", ["mean_field", "rank1"])
def test_a_conversion_follows_its_network(posterior: str):
    network = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(1)])
    network.layers[0].trainable = False
    converted = bdl.convert.to_variational(network, posterior=posterior)
    one, two = converted.posteriors
    assert names(one) == []
    assert names(two)
    network.layers[0].trainable = True
    network.layers[1].trainable = False
    assert names(one)
    assert {path for path in names(converted)} == set(names(one))


def test_a_variable_that_was_frozen_by_itself_stays_frozen():
    layer = bdl.layers.DenseFlipout(2, bias_prior="normal")
    layer.build((None, 3))
    kernel, bias = (layer.sampled_weights[name].variables["rho"] for name in ("kernel", "bias"))
    kernel.trainable = False
    layer.layer.trainable = False
    assert names(layer) == []
    layer.layer.trainable = True
    assert not any(weight is kernel for weight in layer.trainable_weights)
    assert any(weight is bias for weight in layer.trainable_weights)


def test_of_two_posteriors_in_one_layer_the_one_of_a_frozen_weight_is_frozen():
    layer = bdl.layers.DenseFlipout(2, bias_prior="normal")
    layer.build((None, 3))
    layer.layer.bias.trainable = False
    assert [path.rsplit("/", 1)[-1] for path in names(layer)] == ["kernel_rho", "kernel"]


@pytest.mark.core
def test_freezing_before_building_and_through_a_file(tmp_path: Path):
    for own in (True, False):
        layer = bdl.layers.DenseReparameterization(2, name="frozen", trainable=own)
        layer.layer.trainable = False
        model = keras.Sequential([keras.Input((3,)), layer])
        assert names(model) == []
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert names(loaded) == []
        for one, other in zip(model.weights, loaded.weights, strict=True):
            assert_array_equal(array(one), array(other))
        for each in (model, loaded):
            each.layers[0].layer.trainable = True
            assert [path.rsplit("/", 1)[-1] for path in names(each)] == ["kernel_rho", "kernel", "bias"]


def test_a_posterior_made_frozen_freezes_the_layer_that_it_is_given():
    dense = layers.Dense(2)
    model = keras.Sequential([keras.Input((3,)), Variational(dense, trainable=False)])
    assert names(model) == []
    assert not dense.trainable


def test_followers_that_never_trained_are_left_alone():
    weight, constant = keras.Variable(1.0), keras.Variable(2.0, trainable=False)
    followers = Followers()
    followers.add([constant], weight)
    for trainable in (False, True):
        weight.trainable = trainable
        followers.update()
        assert not constant.trainable
