"""`to_variational`: any model, weights shared, noise off is the original, what cannot be done is named."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from layer_contract import array
from networks import NETWORKS, batch_statistics, made, outputs
from numpy.testing import assert_allclose, assert_array_equal
from standard_errors import assert_moments

import bdl
from bdl.convert import MCDropoutModel, to_mc_dropout, to_variational
from bdl.posteriors import MeanFieldNormal
from bdl.priors import FanInNormal, Moped, Normal


def divergence(network: Any) -> float:
    return float(array(bdl.kl_divergence(network)))


@pytest.mark.core
@pytest.mark.parametrize("estimator", ["reparameterization", "flipout", "local_reparameterization"])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_noise_it_is_the_original(name: str, estimator: str):
    model, x = made(name)
    expected, statistics = outputs(model, x), batch_statistics(model)
    network = to_variational(model, estimator=estimator, seed=3)
    noisy = outputs(network, x)
    assert np.abs(noisy - expected).max() > 1e-4
    with bdl.mean_weights(network):
        assert_allclose(outputs(network, x), expected, rtol=1e-5, atol=1e-6)
    assert_array_equal(outputs(model, x), expected)  # the original is as it was
    for before, after in zip(statistics, batch_statistics(network), strict=True):
        assert_array_equal(after, before)


@pytest.mark.core
@pytest.mark.parametrize("name", NETWORKS)
def test_saving_keeps_the_parameters_and_the_samples(name: str, tmp_path: Any):
    model, x = made(name)
    network = to_variational(model, prior="moped", seed=3)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert_allclose(outputs(loaded, x), outputs(network, x), rtol=1e-5, atol=1e-6)
    assert_allclose(divergence(loaded), divergence(network), rtol=1e-5)
    kinds, loaded_kinds = ([(line.kind, line.weights) for line in each.report] for each in (network, loaded))
    assert loaded_kinds == kinds


@pytest.mark.core
def test_weights_are_shared_and_the_divergence_counts_once():
    model, _ = made("shared and nested")
    network = to_variational(model, prior=Normal(), seed=0)
    expected = sum(float(array(layer.kl_divergence())) for layer in network.posteriors)
    assert len(network.posteriors) == 3  # the shared layer, the one inside the nested model, the head
    assert_allclose(divergence(network), expected, rtol=1e-6)
    means = [weight.mean for layer in network.posteriors for weight in layer.sampled_weights.values()]
    for mean in means:
        assert any(mean is variable for variable in model.trainable_variables)
    assert len(network.trainable_variables) == len(model.trainable_variables) + len(means)


@pytest.mark.core
@pytest.mark.parametrize("name", ["images", "tagger", "subclassed", "shared and nested"])
def test_it_trains_and_predicts(name: str):
    model, x = made(name)
    network = to_variational(model, prior="moped", seed=0)
    labels = np.arange(4) % 3 if name != "tagger" else (x % 3)
    before = [keras.ops.convert_to_numpy(variable) for variable in network.trainable_variables]
    trained = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    trained.compile(keras.optimizers.Adam(1e-2))
    history = trained.fit(x, labels, batch_size=2, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["kl"][-1] > 0
    after = [keras.ops.convert_to_numpy(variable) for variable in network.trainable_variables]
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))
    prediction = trained.predict_distribution(x, num_samples=8, batch_size=4)
    assert (prediction.epistemic > 0).any()


@pytest.mark.core
def test_moped_centres_prior_and_posterior_on_the_trained_weights():
    model, _ = made("images")
    network = to_variational(model, prior=Moped(FanInNormal(0.5)), seed=0)
    for layer in network.posteriors:
        for weight in layer.sampled_weights.values():
            mean = keras.ops.convert_to_numpy(weight.mean)
            scale = keras.ops.convert_to_numpy(weight.posterior.scale(weight.variables))
            floor = 0.01 * np.sqrt(np.mean(mean**2))
            assert_allclose(scale, 0.1 * np.maximum(np.abs(mean), floor), rtol=1e-4)
            prior_scale = 0.5 / np.sqrt(np.prod([mean.shape[axis] for axis in weight.input_axes]))
            expected = np.sum(np.log(prior_scale / scale) + scale**2 / (2 * prior_scale**2) - 0.5)
            assert_allclose(float(array(weight.kl())), expected, rtol=1e-4)
            weight.mean.assign(mean + 0.1)  # the centre stays
            assert_allclose(float(array(weight.kl())), expected + mean.size * 0.01 / (2 * prior_scale**2), rtol=1e-4)


def test_layers_are_chosen_by_type_name_pattern_predicate_and_position():
    model, _ = made("images")

    def kinds(selector: Any) -> list[str]:
        return [type(layer.layer).__name__ for layer in to_variational(model, layers=selector).posteriors]

    head = model.layers[-1].name
    assert kinds("all") == ["Conv2D", "SeparableConv2D", "Dense"]
    assert kinds("last") == ["Dense"]
    assert kinds(head) == ["Dense"]
    assert kinds("*conv2d*") == ["Conv2D", "SeparableConv2D"]
    assert kinds(layers.SeparableConv2D) == ["SeparableConv2D"]
    assert kinds(lambda layer: layer.name == head) == ["Dense"]
    assert kinds([layers.Conv2D, "last"]) == ["Conv2D", "Dense"]


def test_rank1_factors_and_mixed_estimators():
    model, x = made("several inputs and outputs")
    network = to_variational(model, posterior="rank1", seed=0)
    expected = outputs(model, x)
    with bdl.mean_weights(network):
        assert_allclose(outputs(network, x), expected, rtol=1e-5, atol=1e-6)
    assert {line.estimator for line in network.report} == {"rank-1 factors"}
    model, _ = made("tagger")
    estimators = {line.kind: line.estimator for line in to_variational(model, estimator="flipout").report}
    assert estimators == {
        "Embedding": "reparameterization",
        "LSTM": "reparameterization",
        "TimeDistributed": "reparameterization",
    }


def test_regularizers_of_activities_count_once():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, activity_regularizer="l2")])
    x = np.ones((2, 3), "float32")
    model(x)
    expected = float(sum(model.losses))
    network = to_variational(model, posterior=MeanFieldNormal(1e-6))
    network(x)
    assert_allclose(float(sum(network.losses)), expected, rtol=1e-3)


def two_dense() -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,)), layers.Dense(5, name="body"), layers.Dense(3, name="head")])


def inside_another(model: Any, name: str) -> Any:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2, name=name)(model(inputs)))


@pytest.mark.core
def test_what_has_a_posterior_gets_no_second_one():
    network = to_variational(two_dense())
    trained = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
    for model in (network, trained, inside_another(network, "top"), to_mc_dropout(network, rate=0.1, before="last")):
        with pytest.raises(ValueError, match=r"posterior already.*body has body_posterior, head has head_posterior"):
            to_variational(model)
    with pytest.raises(ValueError, match=r"head has head_posterior\."):
        to_variational(network, layers="head")
    steps = layers.TimeDistributed(bdl.layers.DenseReparameterization(2), name="steps")
    model = keras.Sequential([keras.Input((3, 4)), steps, layers.Dense(2, name="head")])
    assert [layer.name for layer in to_variational(model).posteriors] == ["head_posterior"]
    with pytest.raises(ValueError, match=r"posterior already.*steps has"):
        to_variational(model, layers="steps")


@pytest.mark.core
def test_other_layers_of_a_converted_network_can_be_converted_too(tmp_path: Any):
    """Both divergences count once, and each layer draws from its own posterior."""
    model, x = two_dense(), np.ones((3, 4), "float32")
    body = to_variational(model, layers="body", prior=Normal(), posterior=MeanFieldNormal(0.5), seed=0)
    network = to_variational(body, layers="head", prior=Normal(), posterior=MeanFieldNormal(0.5), seed=1)
    outer = inside_another(body, "top")
    top = to_variational(outer, layers="top", prior=Normal(), posterior=MeanFieldNormal(0.5), seed=1)
    for converted, plain in ((network, model), (top, outer)):
        parts = [*body.posteriors, *converted.posteriors]
        assert_allclose(divergence(converted), sum(float(array(part.kl_divergence())) for part in parts), rtol=1e-6)
        converted.save(tmp_path / "converted.keras")
        loaded = keras.saving.load_model(tmp_path / "converted.keras")
        assert_allclose(divergence(loaded), divergence(converted), rtol=1e-6)
        assert_allclose(outputs(loaded, x), outputs(converted, x), rtol=1e-5)
        with bdl.mean_weights(converted):
            expected = outputs(converted, x)
        with bdl.mean_weights(body):
            assert_allclose(outputs(plain, x), expected, rtol=1e-5)
            assert np.abs(outputs(converted, x) - expected).max() > 1e-2  # of the outer posterior alone
        assert np.abs(outputs(converted.network, x) - expected).max() > (1e-2 if converted is top else -1.0)


@pytest.mark.core
@pytest.mark.parametrize("before", [None, "last"])
@pytest.mark.parametrize("estimator", ["local_reparameterization", "reparameterization"])
def test_dropout_on_top_of_posteriors_has_the_variance_of_both(before: Any, estimator: str):
    """`sum(m w x)` with `m` of mean 1 and variance `p / (1 - p)`, and `w` of mean `mu` and variance `s^2`.

    With one draw of the weights for the batch the masks alone differ between its examples.
    """
    rate, scale = 0.4, 0.5
    keras.utils.set_random_seed(1)
    middle = [layers.Dropout(rate)] if before is None else []
    model = keras.Sequential([keras.Input((10,)), *middle, layers.Dense(1, use_bias=False)])
    network = to_variational(model, estimator=estimator, posterior=MeanFieldNormal(scale), seed=0)
    converted = to_mc_dropout(network, rate=rate, before=before, seed=1)
    mean = keras.ops.convert_to_numpy(model.layers[-1].kernel)[:, 0]
    assert_allclose(divergence(converted), divergence(network), rtol=1e-6)
    x = np.ones((4_000, 10), "float32")
    draws = outputs(converted, x)
    if estimator == "local_reparameterization":
        variance = np.sum((mean**2 + scale**2) / (1 - rate) - mean**2)
        assert_moments(draws, np.full(1, mean.sum()), np.full(1, variance))
    else:
        network.posteriors[0].seed_generator.state.assign(np.array([5, 0]))
        kernel = outputs(network, np.eye(10, dtype="float32"))[:, 0]
        network.posteriors[0].seed_generator.state.assign(np.array([5, 0]))
        draws = outputs(converted, x)
        assert_moments(draws, np.full(1, kernel.sum()), np.full(1, np.sum(kernel**2) * rate / (1 - rate)))
    with bdl.mean_weights(converted):
        assert_allclose(outputs(converted, x[:2]), outputs(model, x[:2]), rtol=1e-5)


@pytest.mark.core
def test_recurrent_dropout_stays_on_under_a_posterior():
    recurrent = layers.SimpleRNN(3, dropout=0.3, recurrent_dropout=0.3, unroll=True)
    model, x = keras.Sequential([keras.Input((2, 4)), recurrent]), np.ones((5, 2, 4), "float32")
    certain = to_variational(model, posterior=MeanFieldNormal(1e-7))
    expected = outputs(MCDropoutModel(model, seed=3), x)
    assert_allclose(outputs(MCDropoutModel(certain, seed=3), x), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(outputs(certain, x) - expected).max() > 1e-4


@pytest.mark.core
def test_dropout_comes_after_posteriors():
    model, _ = made("shared and nested")
    with pytest.raises(ValueError, match=r"to_mc_dropout\(to_variational\(model\)\)"):
        to_variational(to_mc_dropout(model))


@pytest.mark.core
def test_two_conversions_of_one_network_share_their_means_and_nothing_else():
    model, x = two_dense(), np.ones((3, 4), "float32")
    one, other = to_variational(model, seed=0), to_variational(model, seed=0)
    assert_array_equal(outputs(one, x), outputs(other, x))
    expected = divergence(other)
    for posterior in one.posteriors:
        for weight in posterior.sampled_weights.values():
            weight.variables["rho"].assign(weight.variables["rho"] - 0.1)
    assert divergence(other) == expected
    model.layers[0].kernel.assign(model.layers[0].kernel + 1.0)
    for network in (one, other):
        with bdl.mean_weights(network):
            assert_array_equal(outputs(network, x), outputs(model, x))


def unbuilt() -> Any:
    return keras.Sequential([layers.Dense(2)])


def with_regularizers() -> Any:
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, kernel_regularizer="l2", name="one"),
            layers.Dense(2, kernel_regularizer="l2", name="two"),
        ]
    )


def with_lambda() -> Any:
    return keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x, name="mystery"), layers.Dense(2)])


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: "no model", {}, "must be a keras.Model"),
        (unbuilt, {}, "not built"),
        (with_lambda, {}, r"Lambda layers \['mystery'\]"),
        (with_regularizers, {}, r"2 of the 2.*one \(Dense\).*two \(Dense\)"),
        (lambda: made("images")[0], {"layers": "nonsense"}, "selects no layer"),
        (lambda: made("images")[0], {"layers": 3.0}, "`layers`"),
        (lambda: made("images")[0], {"layers": layers.BatchNormalization}, "no weights named"),
        (lambda: made("several inputs and outputs")[0], {"layers": "last"}, "2 outputs"),
        (lambda: made("images")[0], {"estimator": "magic"}, "`estimator`"),
        (lambda: made("images")[0], {"prior": "magic"}, "`prior`"),
    ],
)
def test_what_cannot_be_converted_is_named(make: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        to_variational(make(), **arguments)


@pytest.mark.core
def test_a_recurrent_layer_with_an_initial_state_and_attention_over_its_outputs():
    inputs, state = keras.Input((4, 3)), keras.Input((5,))
    x = layers.GRU(5, return_sequences=True)(inputs, initial_state=state)
    model = keras.Model([inputs, state], layers.Dense(2)(layers.MultiHeadAttention(2, 3)(x, x)))
    x = [np.ones((2, 4, 3), "float32"), np.ones((2, 5), "float32")]
    network = to_variational(model, seed=0)
    assert np.abs(outputs(network, x) - outputs(model, x)).max() > 1e-4
    with bdl.mean_weights(network):
        assert_allclose(outputs(network, x), outputs(model, x), rtol=1e-5, atol=1e-6)
