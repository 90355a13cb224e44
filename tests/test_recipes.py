"""Recipes: what they set, on every kind of network, and that they train, save and end at T = 1."""

import keras
import numpy as np
import pytest
from keras import layers
from layer_contract import array
from numpy.testing import assert_allclose

import bdl
from bdl import recipes
from bdl.keras_internals import flatten_layers, rate_schedule
from bdl.layers import InputFactors, Variational
from bdl.posteriors import MeanFieldNormal, Rank1
from bdl.priors import EmpiricalBayes, FanInNormal, InputNormal, Moped, Normal, TiedMean

RECIPES = list(recipes.BY_NAME.values())


def test_every_recipe_can_be_asked_for_by_its_name():
    returned = {
        name
        for name, found in vars(recipes).items()
        if getattr(found, "__annotations__", {}).get("return") == "VariationalModel"
    }
    assert {name for name in returned if not name.startswith("_")} == set(recipes.BY_NAME)


def dense() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layers.Dense(5, "relu"), layers.Dense(3)])


def images() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(3, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    )


def text() -> keras.Model:
    words = keras.Input((5,), dtype="int32")
    return keras.Model(words, layers.Dense(3)(layers.LSTM(4)(layers.Embedding(7, 3)(words))))


def weights(model: keras.Model) -> list:
    """Sampled weights."""
    found = [layer for layer in flatten_layers(model) if isinstance(layer, Variational)]
    return [weight for layer in found for weight in layer.sampled_weights.values()]


def data(network: keras.Model, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (n, *network.input_shape[1:])
    is_text = "int" in keras.backend.standardize_dtype(network.inputs[0].dtype)
    x = generator.integers(0, 7, shape) if is_text else generator.normal(size=shape).astype("float32")
    return x, generator.integers(0, 3, n)


# Networks other than dense ones matter to the recipe that treats their layers and inputs differently.
@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        *((recipe, dense) for recipe in RECIPES),
        (recipes.instead_of_ensemble, images),
        (recipes.instead_of_ensemble, text),
        (recipes.small_data, text),
    ],
)
def test_every_recipe_trains_and_is_saved(recipe, make, tmp_path):
    network = make()
    model = recipe(network, bdl.likelihoods.Categorical(), seed=0)
    # Every recipe is compiled once; of other networks a few steps take less time than a compiler, as on TensorFlow.
    is_compiled = make is dense or keras.backend.backend() != "tensorflow"
    model.run_eagerly = not is_compiled
    x, y = data(network)
    history = model.fit(x, y, epochs=8, batch_size=8 if is_compiled else 24, verbose=0).history
    assert history["temperature"][-1] == 1.0
    assert np.isfinite(history["loss"]).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    # A call draws once, by the seeds, which the file has too.
    ours, theirs = (each.predict(x, num_samples=3) if is_compiled else array(each(x)) for each in (model, loaded))
    assert_allclose(theirs, ours, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("recipe", [recipes.small_data, recipes.instead_of_ensemble])
def test_a_recipe_that_averages_may_be_fitted_again(recipe):
    model = recipe(dense(), bdl.likelihoods.Categorical(), seed=0)
    x, y = data(dense())
    for _ in range(3):
        assert np.isfinite(model.fit(x, y, batch_size=8, epochs=2, verbose=0).history["loss"]).all()


@pytest.mark.core
def test_the_network_keeps_its_weights():
    """So that a trained network is where training starts."""
    for recipe in RECIPES:
        network = dense()
        x, _ = data(network)
        before = array(network(x))
        model = recipe(network, bdl.likelihoods.Categorical(), seed=0)
        with bdl.mean_weights(model):
            assert_allclose(array(model(x)), before, rtol=1e-5, atol=1e-6)


def test_small_data_is_mean_field_around_fitted_means():
    model = recipes.small_data(dense(), bdl.likelihoods.Categorical())
    expected = TiedMean(FanInNormal(0.5), mean_prior=Normal(0.0, 3.0))
    assert [(weight.prior, weight.posterior) for weight in weights(model)] == [
        (expected, MeanFieldNormal(speed=3.0))
    ] * 2
    assert model.optimizer.use_ema


def test_regression_is_small_data_at_a_rate_that_falls():
    likelihood = bdl.likelihoods.Categorical()
    model = recipes.regression(dense(), likelihood)
    families = [(weight.prior, weight.posterior) for weight in weights(model)]
    assert families == [(weight.prior, weight.posterior) for weight in weights(recipes.small_data(dense(), likelihood))]
    model.fit(*data(dense()), epochs=3, batch_size=8, verbose=0)
    schedule = rate_schedule(model.optimizer)
    assert (schedule.rate, schedule.num_steps) == (1e-2, 9)
    assert not model.optimizer.use_ema


def test_instead_of_ensemble_draws_pixels_factors_kernels_of_convolutions_and_factors_of_dense_layers():
    model = recipes.instead_of_ensemble(images(), bdl.likelihoods.Categorical())
    (factors,) = [layer for layer in flatten_layers(model) if isinstance(layer, InputFactors)]
    assert tuple(factors.layer.kernel.shape) == (6, 6, 1)
    (pixels,) = factors.sampled_weights.values()
    assert pixels.prior == InputNormal(widest=3.0)
    by_shape = {len(weight.mean.shape): weight for weight in weights(model) if weight.mean is not pixels.mean}
    assert by_shape[4].prior == TiedMean(FanInNormal(1.0), mean_prior=Normal(0.0, 3.0))
    assert by_shape[4].posterior == MeanFieldNormal(speed=1.0)
    assert by_shape[2].posterior == Rank1(Normal(1.0, 0.5), Normal(1.0, 0.5))


def test_the_factors_of_input_and_first_layer_are_independent():
    """Layers of one seed draw the same noise: no two of a network may have one."""
    network = keras.Sequential([keras.Input((4,)), layers.Dense(4, use_bias=False, kernel_initializer="identity")])
    model = recipes.instead_of_ensemble(network, bdl.likelihoods.Categorical(), seed=0)
    seeds = [
        tuple(array(layer.seed_generator.state)) for layer in flatten_layers(model) if isinstance(layer, Variational)
    ]
    assert len(set(seeds)) == len(seeds) == 2


@pytest.mark.parametrize("shape", [(None, 4), (None, None, 1)])
def test_instead_of_ensemble_without_factors_where_the_shape_is_not_known(shape):
    network = keras.Sequential([keras.Input(shape), layers.Conv1D(2, 2) if len(shape) == 2 else layers.Conv2D(2, 2)])
    model = recipes.instead_of_ensemble(network, bdl.likelihoods.Categorical())
    assert not [layer for layer in flatten_layers(model) if isinstance(layer, InputFactors)]


def test_num_examples_reaches_the_model():
    for recipe in RECIPES:
        assert recipe(dense(), bdl.likelihoods.Categorical(), num_examples=50).num_examples == 50


def test_the_prior_of_input_factors_is_the_users_to_choose():
    model = recipes.instead_of_ensemble(dense(), bdl.likelihoods.Categorical(), input_prior=Normal(1.0, 10.0))
    (factors,) = [layer for layer in flatten_layers(model) if isinstance(layer, InputFactors)]
    (weight,) = factors.sampled_weights.values()
    assert weight.prior == Normal(1.0, 10.0)
    without = recipes.instead_of_ensemble(dense(), bdl.likelihoods.Categorical(), input_prior=None)
    assert not [layer for layer in flatten_layers(without) if isinstance(layer, InputFactors)]


def test_instead_of_ensemble_has_a_factor_for_each_word():
    model = recipes.instead_of_ensemble(text(), bdl.likelihoods.Categorical())
    assert not [layer for layer in flatten_layers(model) if isinstance(layer, InputFactors)]
    posteriors = [weight.posterior for weight in weights(model)]
    assert posteriors.count(Rank1(Normal(1.0, 2.0), Normal(1.0, 0.5))) == 1  # the embedding
    assert posteriors.count(Rank1(Normal(1.0, 0.5), Normal(1.0, 0.5))) == 1  # the dense layer
    assert posteriors.count(MeanFieldNormal(speed=1.0)) == 2  # kernel and recurrent kernel


def test_priors_of_the_other_recipes():
    gaussian = weights(recipes.fully_gaussian(dense(), bdl.likelihoods.Categorical()))
    assert [weight.prior for weight in gaussian] == [EmpiricalBayes("row_column")] * 2
    assert len(weights(recipes.last_layer(dense(), bdl.likelihoods.Categorical()))) == 1
    tuned = weights(recipes.fine_tuning(dense(), bdl.likelihoods.Categorical()))
    assert all(isinstance(weight.prior, Moped) for weight in tuned)
    chosen = recipes.fine_tuning(dense(), bdl.likelihoods.Categorical(), layers="last")
    assert len(weights(chosen)) == 1


def test_a_network_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="built"):
        recipes.small_data(keras.Sequential([layers.Dense(3)]), bdl.likelihoods.Categorical())
