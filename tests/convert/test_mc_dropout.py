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


@pytest.mark.parametrize("make", [layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell])
def test_recurrent_layers_draw_one_mask_for_a_sequence(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Each cell of a stack has masks of its own, from the conversion's seed, and the cell itself draws none."""
    cells = [make(3, dropout=0.5, seed=0), make(2, recurrent_dropout=0.5, seed=0)]
    model = keras.Sequential([keras.Input((6, 4)), layers.RNN(cells, unroll=True)])
    converted = to_mc_dropout(model, seed=1)
    own, seen = make.call, {3: [], 2: []}

    def spy(cell: Any, inputs: Any, states: Any, training: bool = False) -> Any:
        mask = cell.get_dropout_mask(inputs) if cell.units == 3 else cell.get_recurrent_dropout_mask(states[0])
        seen[cell.units].append(keras.ops.convert_to_numpy(keras.ops.stack(mask)))
        return own(cell, inputs, states, training=training)

    seeds = [keras.ops.convert_to_numpy(cell.seed_generator.state) for cell in cells]
    monkeypatch.setattr(make, "call", spy)
    converted(np.ones((20, 6, 4), "float32"))
    for masks in seen.values():
        assert len(masks) >= 6
        assert set(np.unique(masks[0])) == {0.0, 2.0}
        assert all(np.array_equal(mask, masks[0]) for mask in masks[-5:])
    assert_array_equal([keras.ops.convert_to_numpy(cell.seed_generator.state) for cell in cells], seeds)
    assert not [cell for cell in cells if "get_dropout_mask" in vars(cell)]


@pytest.mark.core
def test_a_rate_takes_the_place_of_those_that_recurrent_layers_have():
    """With an input of ones, kernels of ones and no recurrence, outputs count the inputs that are kept."""
    cell = layers.SimpleRNNCell(
        1, activation=None, kernel_initializer="ones", recurrent_initializer="zeros", dropout=0.1
    )
    model = keras.Sequential([keras.Input((1, 30)), layers.RNN(cell, unroll=True)])
    draws = outputs(to_mc_dropout(model, rate=0.4, seed=0), np.ones((2_000, 1, 30), "float32"))
    assert_moments(draws, np.full(1, 30.0), np.full(1, 30 * 0.4 / 0.6))


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
@pytest.mark.parametrize(("make", "causal"), [(layers.Attention, True), (layers.AdditiveAttention, False)])
def test_attention_is_the_layers_own_formula_with_a_mask_of_ours_on_its_weights(make: Any, causal: bool):
    query, values = keras.Input((3, 4)), keras.Input((5, 4))
    inside = [layers.Masking()(query), layers.Masking()(values)]
    model = keras.Model(
        [query, values], make(dropout=0.4)(inside, return_attention_scores=True, use_causal_mask=causal)
    )
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(100, length, 4)).astype("float32") for length in (3, 5)]
    x[0][:, 2] = x[1][:, 4] = 0.0  # masked
    exact, exact_weights = (keras.ops.convert_to_numpy(part) for part in model(x))
    converted = to_mc_dropout(model, seed=0)
    found, weights = (keras.ops.convert_to_numpy(part) for part in converted(x))
    is_kept = weights > 0
    assert_allclose(weights, np.where(is_kept, exact_weights / 0.6, 0.0), rtol=1e-5)
    is_open = exact_weights > 0
    assert_moments(is_kept[is_open].astype(float), 0.6, 0.24)
    expected = weights @ x[1]
    expected[:, 2] = 0.0
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with bdl.mean_weights(converted):
        assert_allclose(keras.ops.convert_to_numpy(converted(x)[0]), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_attention_follows_the_seed_and_shares_masks_in_whole_functions():
    query = keras.Input((3, 4))
    model = keras.Model(query, layers.Dense(2)(layers.Attention(dropout=0.4)([query, query])))
    x = np.random.default_rng(0).normal(size=(1, 3, 4)).astype("float32").repeat(5, axis=0)
    converted = to_mc_dropout(model, seed=3)
    first = outputs(converted, x)
    assert_array_equal(outputs(to_mc_dropout(model, seed=3), x), first)
    assert np.abs(first - first[:1]).max() > 1e-4
    with whole_functions():
        together = outputs(converted, x)
    assert_allclose(together, together[:1].repeat(5, axis=0), rtol=1e-5)


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


class Pairs(layers.Layer):
    """Takes batches of two, and does not declare it."""

    def call(self, x: Any) -> Any:
        if x.shape[0] not in (None, 2):
            raise ValueError("a batch must be a pair")
        return x


def fixed_batch() -> keras.Model:
    inputs = keras.Input(batch_shape=(7, 4))
    return keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.3)(keras.ops.reshape(inputs, (7, 4)))))


def stateful() -> keras.Model:
    inputs = keras.Input(batch_shape=(7, 5, 4))
    return keras.Model(inputs, layers.Dense(1)(layers.LSTM(3, stateful=True, dropout=0.3)(inputs)))


@pytest.mark.core
@pytest.mark.parametrize("make", [fixed_batch, stateful])
def test_a_declared_batch_size_is_kept_and_no_state_is_changed(make: Any):
    model = make()
    x = np.random.default_rng(0).normal(size=(14, *model.input_shape[1:])).astype("float32")
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]
    converted = to_mc_dropout(model, seed=3)
    for variable, value in zip(model.variables, before, strict=True):
        assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    untouched = bdl.convert.mc_dropout.MCDropoutModel(model, seed=3)
    assert_array_equal(*(keras.ops.convert_to_numpy(each.seed_generator.state) for each in (converted, untouched)))
    assert bdl.predict_distribution(converted, x, bdl.likelihoods.Normal(1.0), 3, batch_size=7).mean.shape == (14,)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras' own, which pytest.warns raises again
def test_a_declared_batch_size_does_not_hide_decorative_dropout():
    inputs = keras.Input(batch_shape=(7, 4))
    with pytest.warns(DecorativeDropoutWarning, match="last step"):
        to_mc_dropout(keras.Model(inputs, layers.Dropout(0.5)(layers.Dense(3)(inputs))))


@pytest.mark.filterwarnings("error")
def test_a_model_that_does_not_take_made_up_inputs_is_converted_without_a_probe():
    model = sequential(Pairs(), layers.Dropout(0.5), layers.Dense(1))
    assert to_mc_dropout(model).dropout_rates() == [0.5]


@pytest.mark.tensorflow
def test_a_model_of_text_is_converted_and_predicts():
    words = layers.StringLookup(vocabulary=["to", "be"])
    inputs = keras.Input((2,), dtype="string")
    hidden = layers.Dropout(0.5)(layers.Flatten()(layers.Embedding(3, 8)(words(inputs))))
    converted = to_mc_dropout(keras.Model(inputs, layers.Dense(2)(hidden)))
    text = np.array([["to", "be"], ["or", "not"], ["to", "be"]])
    found = bdl.predict_distribution(converted, text, bdl.likelihoods.Categorical(), 3, batch_size=2, seed=0)
    assert found.probabilities.shape == (3, 2)
    again = bdl.predict_distribution(converted, text, bdl.likelihoods.Categorical(), 3, batch_size=3, seed=0)
    assert_allclose(found.probabilities, again.probabilities, rtol=1e-5)


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
    with pytest.raises(ValueError, match="MC-dropout model"):
        to_mc_dropout(to_mc_dropout(made("images")[0]))
    with pytest.raises(ValueError, match="not built"):
        to_mc_dropout(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="Lambda"):
        to_mc_dropout(sequential(layers.Lambda(lambda x: x)))
    with pytest.raises(ValueError, match="embeddings"):
        to_mc_dropout(made("transformer")[0], rate=0.1, before=layers.Embedding)
