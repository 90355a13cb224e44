"""The variational embeddings: table, factors, masks, default prior and what tokens that never occur keep."""

import keras
import numpy as np
import pytest
from gradients import weight_gradients
from keras import layers, ops
from layer_contract import array, reset_noise
from numpy.testing import assert_allclose, assert_array_equal
from sampled_twins import sampled_twin
from standard_errors import assert_mean

import bdl
from bdl.estimators.weights import whole_functions
from bdl.layers import DenseReparameterization, EmbeddingRank1, EmbeddingReparameterization
from bdl.posteriors import MeanFieldNormal
from bdl.priors import EmpiricalBayes

TOKENS = np.array([[1, 2, 1, 0], [2, 2, 3, 1]])


@pytest.mark.tensorflow
@pytest.mark.parametrize("make", [EmbeddingRank1, EmbeddingReparameterization])
def test_rows_of_different_length_are_the_padded_rows_without_their_padding(make):
    tf = pytest.importorskip("tensorflow")
    tokens = tf.ragged.constant([[1, 2, 1], [2], [3, 1, 2, 2], [0, 4]], dtype="int32")
    layer = make(5, 3, seed=0)
    layer.build((4, None))
    reset_noise(layer, 0)
    padded = array(layer(tokens.to_tensor()))
    reset_noise(layer, 0)
    found = layer(tokens)
    assert found.row_lengths().numpy().tolist() == [3, 1, 4, 2]
    for row, length in enumerate([3, 1, 4, 2]):
        assert_allclose(array(found[row]), padded[row, :length], rtol=1e-6)


@pytest.mark.tensorflow
def test_a_prediction_of_rows_of_different_length_does_not_depend_on_the_batch_size():
    tf = pytest.importorskip("tensorflow")
    tokens = tf.ragged.constant([[1, 2, 1], [2], [3, 1, 2, 2], [0, 4], [1]], dtype="int32")
    inputs = keras.Input((None,), dtype="int32", ragged=True)
    hidden = layers.GlobalAveragePooling1D()(EmbeddingRank1(5, 3)(inputs))
    model = bdl.VariationalModel(keras.Model(inputs, layers.Dense(2)(hidden)), bdl.likelihoods.Categorical())
    model.compile("sgd")
    model.fit(tokens, np.array([0, 1, 0, 1, 0]), verbose=0)
    expected = model.predict_distribution(tokens, 4, seed=1).probabilities
    assert_allclose(model.predict_distribution(tokens, 4, batch_size=2, seed=1).probabilities, expected, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("training", [True, False])
def test_one_table_serves_every_place(training: bool):
    layer = EmbeddingReparameterization(5, 3, seed=0)
    layer.build(TOKENS.shape)
    twin = sampled_twin(layer, TOKENS.shape)
    vectors = array(layer(TOKENS, training=training))
    assert_allclose(vectors, array(twin(TOKENS)), rtol=1e-6)
    assert_array_equal(vectors[0, 0], vectors[0, 2])
    assert_array_equal(vectors[0, 1], vectors[1, 0])


def test_defaults_are_one_scale_for_the_table_and_small_noise():
    layer = EmbeddingReparameterization(1_000, 8, seed=0)
    layer.build((None, 4))
    weight = layer.sampled_weights["embeddings"]
    assert (weight.prior, weight.posterior) == (EmpiricalBayes("layer"), MeanFieldNormal(initial_scale=0.005))
    assert weight.input_axes == ()
    scale = array(weight.posterior.scale(weight.variables))
    assert_allclose(scale, 0.005, rtol=1e-5)
    _, prior_scale = weight.prior.parameters(ops.convert_to_tensor(weight.mean), scale, weight.input_axes)
    assert_allclose(array(prior_scale), array(prior_scale).ravel()[0])
    # The table's own size, but for the hyperprior's one weight of size 1.
    expected = (np.sum(array(weight.mean) ** 2 + scale**2) + 1) / (8_000 + 1)
    assert_allclose(array(prior_scale).ravel()[0] ** 2, expected, rtol=1e-4)


@pytest.mark.core
def test_a_token_that_never_occurs_moves_by_the_divergence_alone():
    layer = EmbeddingReparameterization(5, 3, embeddings_prior="normal")
    layer.build(TOKENS.shape)
    for path, gradient in weight_gradients(layer, TOKENS, lambda y: ops.sum(ops.square(y - 1.0))).items():
        assert np.all(np.isfinite(gradient)), path
        assert np.all(gradient[:4] != 0), path
        assert np.all(gradient[4] == 0), path


@pytest.mark.core
def test_masks_are_those_of_the_keras_layer_and_padding_changes_nothing():
    layer = EmbeddingReparameterization(5, 3, mask_zero=True, seed=0)
    assert np.array_equal(array(layer(TOKENS)._keras_mask), TOKENS != 0)
    assert np.array_equal(array(layer.compute_mask(TOKENS)), TOKENS != 0)
    assert layer.supports_masking
    assert not EmbeddingReparameterization(5, 3).supports_masking
    model = keras.Sequential([keras.Input((None,)), layer, layers.LSTM(2)])
    reset_noise(model, 3)
    short = array(model(np.array([[1, 2, 1]])))
    reset_noise(model, 3)
    assert_allclose(array(model(TOKENS[:1])), short, rtol=1e-5, atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_token_numbers_are_not_rounded_in_half_precision(policy: str):
    layer = EmbeddingReparameterization(3_000, 2, dtype=policy, seed=0)
    tokens = np.array([[2_049.0, 2_050.0, 257.0]], "float32")  # beyond the integers of either half precision
    layer(tokens)
    with bdl.mean_weights(layer):
        expected = array(layer.layer.embeddings)[tokens.astype(int)]
        assert_allclose(array(layer(tokens)), expected, rtol=1e-2)


def test_a_table_given_as_weights_is_the_mean():
    table = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    layer = EmbeddingReparameterization(5, 3, weights=[table])
    layer.build((None, 4))
    assert_array_equal(array(layer.sampled_weights["embeddings"].mean), table)


@pytest.mark.core
def test_a_shared_table_draws_for_each_call_and_counts_once():
    layer = EmbeddingReparameterization(5, 3, seed=0)
    one, other = keras.Input((4,), dtype="int32"), keras.Input((4,), dtype="int32")
    model = keras.Model([one, other], [layer(one), layer(other)])
    first, second = map(array, model([TOKENS, TOKENS]))
    assert not np.allclose(first, second, atol=1e-4)
    assert array(bdl.elbo.kl_divergence(model)) == array(layer.kl_divergence())


@pytest.mark.core
def test_a_text_model_trains_and_its_tokens_matter():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, size=(200, 6))
    labels = np.any(tokens == 7, axis=1).astype("float32")[:, None]
    network = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            EmbeddingReparameterization(20, 4, seed=0),
            layers.GlobalMaxPooling1D(),
            DenseReparameterization(1, seed=1),
        ]
    )
    model = bdl.VariationalModel(network, bdl.likelihoods.Bernoulli())
    model.compile(keras.optimizers.Adam(0.01))
    history = model.fit(tokens, labels, epochs=5, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert history["nll"][-1] < history["nll"][0]


def factors_of_tokens(seed: int = 0) -> EmbeddingRank1:
    """Five tokens with factors of different means and scales."""
    layer = EmbeddingRank1(5, 3, seed=seed)
    layer.build((None, 4))
    factors = layer.sampled_weights["embeddings"].variables
    generator = np.random.default_rng(1)
    speed = layer.sampled_weights["embeddings"].posterior.speed
    layer.layer.embeddings.assign(generator.uniform(0.5, 1.5, (5, 3)))
    for side, shape in (("input", (5,)), ("output", (1, 3))):
        factors[f"{side}_mean"].assign(generator.uniform(0.5, 1.5, factors[f"{side}_mean"].shape))
        scales = generator.uniform(0.1, 0.5, factors[f"{side}_rho"].shape)
        factors[f"{side}_rho"].assign(np.log(scales) / speed)
        assert tuple(factors[f"{side}_mean"].shape) == shape
    return layer


@pytest.mark.core
def test_factors_of_tokens_and_features_have_their_moments():
    """y = r e s with independent r and s: E y = E r e E s, E y^2 = E r^2 e^2 E s^2."""
    layer = factors_of_tokens()
    weight = layer.sampled_weights["embeddings"]
    means, scales = (
        {side: array(weight.variables[f"{side}_{part}"]).ravel() for side in ("input", "output")}
        for part in ("mean", "rho")
    )
    scales = {side: np.exp(weight.posterior.speed * rho) for side, rho in scales.items()}
    table = array(weight.mean)
    y = array(layer(np.full((20_000, 1), 3)))[:, 0]
    for power in (1, 2):
        moment = {
            side: means[side] ** power + (scales[side] ** 2 if power == 2 else 0.0) for side in ("input", "output")
        }
        expected = moment["input"][3] * table[3] ** power * moment["output"]
        assert_mean(y**power, expected, k=4.5)


@pytest.mark.core
def test_places_draw_tokens_by_themselves_and_whole_functions_do_not():
    layer = factors_of_tokens()
    tokens = np.array([[1, 2, 1], [1, 1, 2]])
    ratios = array(layer(tokens)) / array(layer.layer(tokens))
    by_place = ratios[..., 0] / ratios[:, :1, 0]  # the output's factor is that of the example
    assert len(np.unique(np.round(by_place, 5))) == 5  # 1 for both first places, and four of their own
    with whole_functions():
        vectors = array(layer(tokens))
    assert_array_equal(vectors[0, 0], vectors[0, 2])
    assert_array_equal(vectors[0, 0], vectors[1, 1])
    assert_array_equal(vectors[0, 1], vectors[1, 2])


def test_the_factor_of_a_rare_token_stays_near_its_prior():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 10, size=(400, 5))
    tokens[:2, 0] = 11  # twice; token 12 never
    labels = np.any(tokens == 7, axis=1).astype("float32")[:, None]
    embedding = EmbeddingRank1(13, 4, seed=0)
    parts = [keras.Input((5,), dtype="int32"), embedding, layers.GlobalMaxPooling1D(), layers.Dense(1)]
    keras.utils.set_random_seed(0)
    model = bdl.VariationalModel(keras.Sequential(parts), bdl.likelihoods.Bernoulli())
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(tokens, labels, epochs=40, verbose=0)
    weight = embedding.sampled_weights["embeddings"]
    scales = np.exp(weight.posterior.speed * array(weight.variables["input_rho"]))
    assert scales[7] < 0.3
    assert_allclose(scales[[0, 12]], 1.0, atol=0.05)  # the prior's
    assert scales[11] > 0.8


def test_factors_fold_into_the_table():
    layer = factors_of_tokens()
    model = keras.Sequential([keras.Input((4,), dtype="int32"), layer])
    plain = bdl.convert.to_deterministic(model)
    with bdl.mean_weights(model):
        assert_allclose(array(plain(TOKENS)), array(model(TOKENS)), rtol=1e-6)
    assert type(plain.layers[-1]) is layers.Embedding
