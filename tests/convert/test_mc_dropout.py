"""`to_mc_dropout`: dropout of every kind on, everything else as at prediction, decoration found out."""

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from networks import NETWORKS, batch_statistics, made, outputs
from numpy.testing import assert_allclose, assert_array_equal
from standard_errors import assert_moments

import bdl
from bdl.convert import DecorativeDropoutWarning, to_mc_dropout
from bdl.estimators.weights import whole_functions

WITH_DROPOUT = list(NETWORKS)


@pytest.mark.core
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_is_on_at_prediction_and_nothing_else_changes(name: str):
    model, x = made(name)
    expected, statistics = outputs(model, x, training=False), batch_statistics(model)
    converted = to_mc_dropout(model, seed=3)
    draws = np.stack([outputs(converted, x, training=False) for _ in range(5)])
    assert draws.std(axis=0).max() > 1e-4
    with bdl.mean_weights(converted):
        assert_allclose(outputs(converted, x), expected, rtol=1e-5, atol=1e-6)
    assert_array_equal(outputs(model, x, training=False), expected)
    for before, after in zip(statistics, batch_statistics(converted), strict=True):
        assert_array_equal(after, before)


@pytest.mark.core
@pytest.mark.parametrize("name", ["images", "transformer", "tagger", "subclassed"])
def test_compiled_prediction_samples(name: str):
    model, x = made(name)
    likelihood = bdl.likelihoods.Categorical()
    for converted in (to_mc_dropout(model, seed=3), to_mc_dropout(model, rate=0.2, before="last", seed=3)):
        first = bdl.predict_distribution(converted, x, likelihood, num_samples=10, seed=1)
        again = bdl.predict_distribution(converted, x, likelihood, num_samples=10, seed=1)
        assert (first.epistemic > 0).any()
        assert_allclose(again.probabilities, first.probabilities, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_saving_keeps_weights_rates_and_samples(name: str, tmp_path: Any):
    model, x = made(name)
    converted = to_mc_dropout(model, rate=0.25, seed=3)
    converted.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_allclose(outputs(loaded, x), outputs(converted, x), rtol=1e-5, atol=1e-6)
    assert loaded.rate == 0.25


@pytest.mark.core
def test_weights_are_shared():
    model, _ = made("images")
    converted = to_mc_dropout(model)
    assert [id(variable) for variable in converted.trainable_variables] == [
        id(variable) for variable in model.trainable_variables
    ]


@pytest.mark.core
def test_batch_statistics_stay_bit_for_bit_through_a_hundred_predictions():
    model, x = made("images")
    converted = to_mc_dropout(model, seed=0)
    before = batch_statistics(model)
    prediction = bdl.predict_distribution(converted, x, bdl.likelihoods.Categorical(), num_samples=100)
    assert (prediction.epistemic > 0).all()
    for one, other in zip(before, batch_statistics(converted), strict=True):
        assert_array_equal(one, other)


@pytest.mark.core
@pytest.mark.parametrize(
    ("layer", "variance"),
    [
        (layers.Dropout(0.25), 0.25 / 0.75),
        (layers.GaussianDropout(0.2), 0.2 / 0.8),
        (layers.GaussianNoise(0.5), 0.25),
    ],
)
def test_noise_has_the_moments_of_the_layer(layer: Any, variance: float):
    model = keras.Sequential([keras.Input((50,)), layer])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecorativeDropoutWarning)
        converted = to_mc_dropout(model, seed=0)
    draws = np.concatenate([outputs(converted, np.ones((100, 50), "float32")) for _ in range(4)]).reshape(-1, 1)
    assert_moments(draws, np.ones(1), np.full(1, variance))


@pytest.mark.parametrize("make", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_recurrent_layers_draw_one_mask_for_a_sequence(make: Any):
    """With a cell that forgets nothing and an input that repeats, dropped inputs stay dropped at every step."""
    recurrent = make(3, dropout=0.5, return_sequences=True, seed=0)
    model = keras.Sequential([keras.Input((6, 4)), recurrent])
    converted = to_mc_dropout(model, seed=1)
    cell = recurrent.cell
    seen = []
    original = cell.call

    def spy(inputs: Any, states: Any, training: bool = False) -> Any:
        mask = cell.get_dropout_mask(inputs)
        seen.append(keras.ops.convert_to_numpy(mask[0] if isinstance(mask, list) else mask))
        return original(inputs, states, training=training)

    recurrent.unroll = True
    cell.call = spy
    converted(np.ones((2, 6, 4), "float32"))
    assert len(seen) >= 6
    assert all(np.array_equal(mask, seen[0]) for mask in seen[-5:])


@pytest.mark.core
def test_whole_functions_share_masks_across_examples_and_batches():
    model, _ = made("shared and nested")
    converted = to_mc_dropout(model, seed=0)
    x = np.repeat(np.ones((1, 4), "float32"), 6, axis=0)
    with whole_functions():
        together = outputs(converted, x)
    assert_allclose(together, together[:1].repeat(6, axis=0), rtol=1e-6)
    apart = outputs(converted, x)
    assert np.abs(apart - apart[:1]).max() > 1e-4


@pytest.mark.core
def test_dropout_can_be_inserted_and_rates_replaced():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3)])
    x = np.ones((5, 4), "float32")
    for before in ("last", "all", layers.Dense, lambda layer: layer.units == 3):
        converted = to_mc_dropout(model, rate=0.3, before=before, seed=0)
        assert outputs(converted, x).std(axis=0).max() > 0
        with bdl.mean_weights(converted):
            assert_allclose(outputs(converted, x), outputs(model, x), rtol=1e-6)


@pytest.mark.core
def test_attention_keeps_its_own_dropout():
    query = keras.Input((3, 4))
    model = keras.Model(query, layers.Dense(2)(layers.Attention(dropout=0.4)([query, query])))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    converted = to_mc_dropout(model)
    assert np.abs(outputs(converted, x) - outputs(converted, x)).max() > 1e-4
    with bdl.mean_weights(converted):
        assert_allclose(outputs(converted, x), outputs(model, x), rtol=1e-5)


def sequential(*middle: Any) -> Any:
    return keras.Sequential([keras.Input((4,)), *middle])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sequential(layers.Dense(3)), "no dropout"),
        (lambda: sequential(layers.Dropout(0.0), layers.Dense(3)), "rates of `model` are zero"),
        (lambda: sequential(layers.Dense(3), layers.Dropout(0.3)), "last step"),
        (
            lambda: sequential(
                layers.Dense(8),
                layers.Dropout(0.3),
                layers.Dense(3, kernel_initializer="zeros", bias_initializer="ones"),
            ),
            "hardly reaches",
        ),
    ],
)
def test_decorative_dropout_is_found_out_in_one_warning(make: Any, message: str):
    keras.utils.set_random_seed(0)
    with pytest.warns(DecorativeDropoutWarning, match=message) as caught:
        to_mc_dropout(make())
    assert len([each for each in caught if issubclass(each.category, DecorativeDropoutWarning)]) == 1


def test_useful_dropout_draws_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in NETWORKS:
            to_mc_dropout(made(name)[0])
    assert not caught


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.0}, r"`rate` must be a number in \[0, 1\)"),
        ({"rate": -0.1}, "`rate`"),
        ({"rate": "high"}, "`rate`"),
        ({"before": "all"}, "needs a `rate`"),
        ({"before": "nonsense", "rate": 0.1}, "selects no layer"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        to_mc_dropout(made("images")[0], **arguments)


def test_models_that_cannot_be_converted_are_refused():
    with pytest.raises(ValueError, match="not built"):
        to_mc_dropout(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="Lambda"):
        to_mc_dropout(sequential(layers.Lambda(lambda x: x)))
    with pytest.raises(ValueError, match="embeddings"):
        to_mc_dropout(made("transformer")[0], rate=0.1, before=layers.Embedding)
