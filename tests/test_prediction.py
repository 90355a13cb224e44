"""Monte Carlo prediction: the split of uncertainty, mixtures, and repeatability."""

from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import special, stats

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Mixture, NegativeBinomial, Normal, Poisson, StudentT
from bdl.likelihoods.mixture import MIXTURE, pack
from bdl.prediction import ClassificationPrediction, RegressionPrediction, predict_distribution
from bdl.prediction.requests import entropy
from bdl.sampling import Sampler

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4)).astype("float32")


def network(units=3, layer=bdl.layers.DenseReparameterization, **kwargs):
    keras.utils.set_random_seed(0)
    posterior = bdl.posteriors.MeanFieldNormal(initial_scale=0.7)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layer(8, activation="relu", kernel_posterior=posterior),
            layer(units, kernel_posterior=posterior),
        ]
    )


def test_classification_parts_come_from_the_samples():
    prediction = predict_distribution(network(), X, Categorical(), num_samples=20, batch_size=3, keep_outputs=True)
    logits = prediction.outputs.astype("float64")
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    assert logits.shape == (20, 7, 3)
    np.testing.assert_allclose(prediction.probabilities, p.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(prediction.total_uncertainty, stats.entropy(p.mean(0), axis=-1), rtol=1e-4)
    np.testing.assert_allclose(prediction.aleatoric, stats.entropy(p, axis=-1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(
        prediction.epistemic, prediction.total_uncertainty - prediction.aleatoric, rtol=1e-4, atol=1e-6
    )
    assert prediction.epistemic.min() > 0
    y = np.arange(7) % 3
    np.testing.assert_allclose(prediction.log_prob(y), np.log(p.mean(0)[np.arange(7), y]), rtol=1e-4)


def echo(*shape):
    """A network whose outputs are its inputs."""
    return keras.Sequential([keras.Input(shape), keras.layers.Activation("linear")])


def test_log_probabilities_do_not_stop_where_float32_does():
    one = predict_distribution(echo(2), np.array([[0.0, 500.0]]), Categorical(), num_samples=1)
    np.testing.assert_allclose(one.log_prob([0]), [-500.0], rtol=1e-7)
    np.testing.assert_array_equal(one.log_prob([1]), [0.0])
    for x, certain in ((np.array([[500.0]]), 1), (np.array([[-500.0]]), 0)):
        label = predict_distribution(echo(1), x, Bernoulli(), num_samples=3)
        np.testing.assert_allclose(label.log_prob([1 - certain]), [-500.0], rtol=1e-6)
        np.testing.assert_allclose(label.log_prob([certain]), [0.0], atol=1e-30)
    impossible = predict_distribution(echo(2), np.array([[0.0, 1.0]]), Categorical(from_logits=False), num_samples=3)
    np.testing.assert_array_equal(impossible.log_probabilities, [[-np.inf, 0.0]])
    assert (impossible.total_uncertainty, impossible.aleatoric, impossible.epistemic) == (0.0, 0.0, 0.0)


def log_softmax_of_labels(logits):
    return special.log_softmax(logits, axis=-1)


def log_expit_of_labels(logits):
    return np.stack([special.log_expit(-logits), special.log_expit(logits)], axis=-1)


@pytest.mark.parametrize(
    ("likelihood", "units", "members", "log_p"),
    [
        (Categorical(), 3, 1, log_softmax_of_labels),
        (Bernoulli(), 1, 1, log_expit_of_labels),
        (Bernoulli(), 2, 2, log_expit_of_labels),
    ],
)
def test_log_prob_is_that_of_the_mixture_of_samples(likelihood, units, members, log_p):
    keras.utils.set_random_seed(0)
    posterior = bdl.posteriors.MeanFieldNormal(initial_scale=0.01)
    models = [
        keras.Sequential([keras.Input((4,)), bdl.layers.DenseReparameterization(units, kernel_posterior=posterior)])
        for _ in range(members)
    ]
    x = 400.0 * X
    found = predict_distribution(models, x, likelihood, num_samples=12, batch_size=4, keep_outputs=True)
    expected = special.logsumexp(log_p(found.outputs.astype("float64")), axis=0) - np.log(12)
    assert expected.min() < -100  # p is 0 in float32
    np.testing.assert_allclose(found.log_probabilities, expected, rtol=1e-5, atol=1e-6)
    for label in range(2):
        y = np.full(found.total_uncertainty.shape, label)
        np.testing.assert_allclose(found.log_prob(y), expected[..., label].reshape(y.shape), rtol=1e-5, atol=1e-6)
    entropy_of_mean = stats.entropy(np.exp(expected), axis=-1).reshape(found.total_uncertainty.shape)
    np.testing.assert_allclose(found.total_uncertainty, entropy_of_mean, rtol=1e-4, atol=1e-5)


def test_log_prob_of_a_latent_alignment():
    logits = 2_000.0 * RNG.normal(size=(6, 4, 3))
    log_weight = special.log_softmax(RNG.normal(size=(6, 4)), axis=-1)
    x = keras.ops.convert_to_numpy(pack(logits, log_weight, MIXTURE))
    found = predict_distribution(echo(4, 5), x, Mixture(Categorical()), num_samples=2)
    expected = special.logsumexp(log_weight[..., None] + special.log_softmax(logits, axis=-1), axis=1)
    assert expected.min() < -100
    np.testing.assert_allclose(found.log_probabilities, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.log_prob(np.ones(6)), expected[:, 1], rtol=1e-5, atol=1e-6)


def test_a_prediction_of_probabilities_alone_takes_their_logarithm():
    p = np.array([[0.25, 0.75, 0.0]])
    by_hand = ClassificationPrediction(Categorical(), p, stats.entropy(p, axis=-1), np.zeros(1), 1)
    np.testing.assert_allclose(by_hand.log_prob([1]), np.log([0.75]))
    assert by_hand.log_prob([2]) == -np.inf
    label = ClassificationPrediction(Bernoulli(), np.array([[0.25], [1.0]]), np.zeros(2), np.zeros(2), 1)
    np.testing.assert_allclose(label.log_prob([0, 0]), [np.log(0.75), -np.inf])


LABELS = RNG.integers(3, size=7)
CLASSES = ClassificationPrediction(Categorical(), RNG.dirichlet(np.ones(3), 7), np.zeros(7), np.zeros(7), 1)
BINARY = ClassificationPrediction(Bernoulli(), RNG.uniform(size=(7, 1)), np.zeros(7), np.zeros(7), 1)


@pytest.mark.parametrize("prediction", [CLASSES, BINARY])
@pytest.mark.parametrize("bad", [-1, -100, 1.7, 3, 255, np.inf])
def test_a_label_that_is_no_class_is_named(prediction, bad):
    y = np.zeros(7, type(bad))
    y[4] = bad
    last = 2 if prediction is CLASSES else 1
    message = (
        rf"`y` must hold a class index from 0 to {last}, or NaN for an event that does not count; y\[4\] is {bad}\."
    )
    with pytest.raises(ValueError, match=message):
        prediction.log_prob(y)


@pytest.mark.parametrize("prediction", [CLASSES, BINARY, RegressionPrediction(Poisson(), {"mu": np.ones((2, 7))})])
def test_a_label_that_is_missing_is_nan_and_others_are_as_before(prediction):
    y = LABELS % 2
    with_gap = np.where(np.arange(7) == 4, np.nan, y)
    expected = np.where(np.arange(7) == 4, np.nan, prediction.log_prob(y))
    np.testing.assert_array_equal(prediction.log_prob(with_gap), expected)
    np.testing.assert_array_equal(prediction.log_prob(y.astype(bool)[:, None]), prediction.log_prob(y))


@pytest.mark.parametrize(
    "prediction", [CLASSES, RegressionPrediction(Normal(), {"loc": np.ones((2, 7)), "scale": np.ones((2, 7))})]
)
def test_labels_of_another_shape_or_kind_are_refused(prediction):
    with pytest.raises(ValueError, match=r"`y` must have shape \(7,\), one entry for each event, not \(6,\)"):
        prediction.log_prob(LABELS[:6])
    with pytest.raises(ValueError, match=r"`y` must hold numbers, not <U1; y\[0\] is 'a'"):
        prediction.log_prob(["a"] * 7)


def test_a_number_that_is_no_count_has_probability_zero():
    mixture = RegressionPrediction(NegativeBinomial(2.0), {"n": np.full((3, 4), 2.0), "p": np.full((3, 4), 0.5)})
    y = np.array([-1.0, 1.5, 2.0, np.nan])
    np.testing.assert_allclose(mixture.log_prob(y), stats.nbinom(2.0, 0.5).logpmf(y))


def test_one_label_has_one_uncertainty_and_several_have_their_own():
    one = predict_distribution(network(1), X, Bernoulli(), num_samples=4)
    assert one.probabilities.shape == (7, 1)
    assert one.total_uncertainty.shape == one.aleatoric.shape == one.epistemic.shape == (7,)
    assert one.log_prob(np.ones(7)).shape == (7,)
    several = predict_distribution(network(2), X, Bernoulli(), num_samples=4)
    assert several.epistemic.shape == (7, 2)


def test_a_sequence_has_one_uncertainty_for_each_position():
    model = keras.Sequential([keras.Input((5, 4)), bdl.layers.DenseReparameterization(3)])
    prediction = predict_distribution(model, RNG.normal(size=(2, 5, 4)), Categorical(), num_samples=3)
    assert prediction.probabilities.shape == (2, 5, 3)
    assert prediction.epistemic.shape == (2, 5)


def test_regression_parts_come_from_the_samples():
    prediction = predict_distribution(
        network(2), X, Normal(heteroscedastic=True), num_samples=50, batch_size=3, keep_outputs=True
    )
    outputs = prediction.outputs.astype("float64")
    mean, scale = outputs[..., 0], 1e-4 + np.logaddexp(0.0, outputs[..., 1])
    assert prediction.mean.shape == (7,)
    np.testing.assert_allclose(prediction.mean, mean.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prediction.aleatoric, (scale**2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(prediction.epistemic, mean.var(0), rtol=1e-4)
    np.testing.assert_allclose(prediction.variance, (scale**2).mean(0) + mean.var(0), rtol=1e-4)
    np.testing.assert_allclose(prediction.std, np.sqrt(prediction.variance), rtol=1e-6)
    y = RNG.normal(size=7)
    density = stats.norm(mean, scale).pdf(y).mean(0)
    np.testing.assert_allclose(prediction.log_prob(y), np.log(density), rtol=1e-4)
    np.testing.assert_allclose(prediction.log_prob(y[:, None]), np.log(density), rtol=1e-4)


@pytest.mark.parametrize(
    ("likelihood", "parameters"),
    [
        (Normal(scale=1.0), {"loc": RNG.normal(size=(9, 5)), "scale": RNG.uniform(0.1, 2, (9, 5))}),
        (StudentT(3.0, scale=1.0), {"loc": RNG.normal(size=(9, 5)), "scale": RNG.uniform(0.1, 2, (9, 5))}),
    ],
)
def test_quantiles_invert_the_mixtures_distribution(likelihood, parameters):
    prediction = RegressionPrediction(likelihood, parameters)
    levels = [0.01, 0.5, 0.975]
    quantiles = prediction.quantile(levels)
    assert quantiles.shape == (3, 5)
    np.testing.assert_allclose(
        prediction.components.cdf(quantiles[:, None]).mean(1), np.transpose([levels] * 5), rtol=1e-9
    )
    np.testing.assert_allclose(prediction.quantile(0.5), quantiles[1])


@pytest.mark.parametrize("likelihood", [Normal(), StudentT(5.0)])
def test_a_rescaled_prediction_is_that_of_targets_in_their_own_unit(likelihood):
    parameters = {"loc": RNG.normal(size=(6, 4, 2)), "scale": RNG.uniform(0.5, 2.0, (6, 4, 2))}
    before = RegressionPrediction(likelihood, parameters)
    scale, shift = np.array([3.0, 0.1]), np.array([-7.0, 40.0])
    after = before.rescaled(scale, shift)
    y = RNG.normal(size=(4, 2))
    np.testing.assert_allclose(after.mean, shift + scale * before.mean)
    for part in ("epistemic", "aleatoric"):
        np.testing.assert_allclose(getattr(after, part), scale**2 * getattr(before, part))
    np.testing.assert_allclose(after.log_prob(shift + scale * y), before.log_prob(y) - np.log(scale))
    np.testing.assert_allclose(after.quantile(0.3), shift + scale * before.quantile(0.3), rtol=1e-6)


def test_what_has_no_scale_cannot_be_rescaled():
    with pytest.raises(ValueError, match=r"`likelihood` must have a location and a scale .* not be Poisson"):
        RegressionPrediction(Poisson(), {"mu": np.ones((2, 3))}).rescaled(2.0)
    with pytest.raises(ValueError, match="`scale` must be positive and finite, not 0"):
        RegressionPrediction(Normal(), {"loc": np.ones((2, 3)), "scale": np.ones((2, 3))}).rescaled(0)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.99])
def test_quantiles_of_counts_are_the_smallest_count_that_reaches_the_level(level):
    for likelihood, parameters in (
        (Poisson(), {"mu": RNG.uniform(0.2, 20, (9, 5))}),
        (NegativeBinomial(2.0), {"n": np.full((9, 5), 2.0), "p": RNG.uniform(0.1, 0.9, (9, 5))}),
    ):
        prediction = RegressionPrediction(likelihood, parameters)
        counts = prediction.quantile(level)
        cdf = prediction.components.cdf
        assert np.all(counts == np.floor(counts))
        assert np.all(counts >= 0)
        assert np.all(cdf(counts).mean(0) >= level)
        assert np.all(cdf(counts - 1).mean(0) < level)


def test_a_learned_scale_enters_the_prediction():
    likelihood = Normal()
    likelihood.raw_scale.assign(0.03)
    prediction = predict_distribution(network(1), X, likelihood, num_samples=5)
    expected = 1e-4 + np.logaddexp(0.0, np.float32(0.3))
    np.testing.assert_allclose(prediction.aleatoric, np.full(7, expected**2), rtol=1e-5)


def test_a_seed_repeats_the_prediction_and_leaves_the_models_own_randomness():
    model = network()
    first = predict_distribution(model, X, Categorical(), num_samples=5, seed=3).probabilities
    np.testing.assert_array_equal(
        first, predict_distribution(model, X, Categorical(), num_samples=5, seed=3).probabilities
    )
    other = predict_distribution(model, X, Categorical(), num_samples=5, seed=4).probabilities
    assert np.abs(first - other).max() > 1e-3
    unseeded = [predict_distribution(model, X, Categorical(), num_samples=5).probabilities for _ in range(2)]
    assert np.abs(unseeded[0] - unseeded[1]).max() > 1e-3


@pytest.mark.parametrize(
    "layer",
    [bdl.layers.DenseReparameterization, bdl.layers.DenseFlipout, bdl.layers.DenseLocalReparameterization],
)
def test_consistent_samples_are_functions_of_the_input(layer):
    model = network(layer=layer)
    twice = np.concatenate([X, X[::-1]])
    draw = predict_distribution(
        model, twice, Categorical(), 6, batch_size=3, consistent=True, keep_outputs=True
    ).outputs
    np.testing.assert_allclose(draw[:, :7], draw[:, 7:][:, ::-1], rtol=1e-4, atol=1e-5)
    assert np.abs(draw[0] - draw[1]).max() > 1e-2


def test_consistent_samples_of_rank1_layers():
    model = keras.Sequential([keras.Input((4,)), bdl.layers.DenseRank1(3, initial_scale=0.5)])
    draw = predict_distribution(model, np.concatenate([X, X]), Categorical(), 4, 5, consistent=True, keep_outputs=True)
    np.testing.assert_allclose(draw.outputs[:, :7], draw.outputs[:, 7:], rtol=1e-4, atol=1e-5)


def test_batches_do_not_change_shapes_or_the_mean():
    model = network()
    with bdl.mean_weights(model):
        whole = predict_distribution(model, X, Categorical(), num_samples=2, batch_size=100).probabilities
        parts = predict_distribution(model, X, Categorical(), num_samples=2, batch_size=2).probabilities
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    assert parts.shape == (7, 3)


def test_a_deterministic_network_has_no_epistemic_uncertainty():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    prediction = predict_distribution(model, X, Categorical(), num_samples=3)
    np.testing.assert_allclose(prediction.epistemic, 0.0, atol=1e-6)


def test_an_ensemble_averages_probabilities_and_splits_the_samples():
    members = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(3)]
    prediction = predict_distribution(members, X, Categorical(), num_samples=3)
    p = np.mean([keras.ops.convert_to_numpy(keras.ops.softmax(member(X))) for member in members], axis=0)
    np.testing.assert_allclose(prediction.probabilities, p, rtol=1e-5)
    assert prediction.num_samples == 3
    assert prediction.epistemic.min() > 0


def test_several_outputs_take_a_dict_of_likelihoods():
    inputs = keras.Input((4,))
    outputs = {"kind": bdl.layers.DenseFlipout(3)(inputs), "size": bdl.layers.DenseFlipout(1)(inputs)}
    model = keras.Model(inputs, outputs)
    prediction = predict_distribution(model, X, {"kind": Categorical(), "size": Normal(scale=1.0)}, num_samples=4)
    assert isinstance(prediction["kind"], ClassificationPrediction)
    assert prediction["kind"].probabilities.shape == (7, 3)
    assert prediction["size"].mean.shape == (7,)


def test_entropy_at_certainty_is_zero():
    certain = np.array([[0.0, -np.inf]], "float32")
    np.testing.assert_array_equal(entropy(Categorical(), certain), [0.0])
    np.testing.assert_array_equal(entropy(Bernoulli(), np.stack([certain, certain[:, ::-1]])), [0.0, 0.0])


@pytest.mark.parametrize("argument", ["num_samples", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_are_checked(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be an integer of at least 1"):
        predict_distribution(network(), X, Categorical(), **{argument: value})


def test_inputs_that_are_not_finite_are_named():
    bad = X.copy()
    bad[2, 1] = np.inf
    with pytest.raises(ValueError, match=r"`x` must be finite; x\[2, 1\] is inf"):
        predict_distribution(network(), bad, Categorical())


def test_levels_outside_the_unit_interval_are_refused():
    prediction = RegressionPrediction(Normal(scale=1.0), {"loc": np.zeros((2, 3)), "scale": np.ones((2, 3))})
    with pytest.raises(ValueError, match="`q` must hold levels between 0 and 1"):
        prediction.quantile([0.5, 1.0])


@pytest.mark.parametrize("given", ["model.keras", [Path("model.keras")]])
def test_a_path_in_place_of_a_model_is_refused(given):
    with pytest.raises(TypeError, match="load_model"):
        predict_distribution(given, X, Categorical())


def test_an_empty_list_of_models_is_refused():
    with pytest.raises(ValueError, match=r"`model` must be .* not an empty list"):
        predict_distribution([], X, Categorical())


def test_a_model_keeps_its_compiled_sampler_while_the_likelihood_fits():
    network = keras.Sequential([keras.Input((3,)), bdl.layers.DenseFlipout(2)])
    x = np.ones((4, 3), "float32")

    def sampler(likelihood):
        bdl.predict_distribution(network, x, likelihood, num_samples=2)
        return vars(network)["_bdl_sampler"]

    first = sampler(bdl.likelihoods.Categorical())
    assert sampler(bdl.likelihoods.Categorical()) is first
    second = sampler(bdl.likelihoods.Categorical(ignore_class=1))
    assert second is not first
    learned = bdl.likelihoods.Normal()
    third = sampler(learned)
    assert sampler(learned) is third
    assert "_bdl_sampler" not in str(network.get_config())


@pytest.mark.parametrize(
    ("one", "other", "is_served"),
    [
        (Categorical(), Categorical(), True),
        (Categorical(), Categorical(from_logits=False), False),
        (Normal(scale=0.1), Normal(scale=0.1), True),
        (Normal(scale=0.1), Normal(scale=0.2), False),
        (StudentT(3.0, scale=0.1), StudentT(4.0, scale=0.1), False),
        (Categorical(), Bernoulli(), False),
    ],
)
def test_equal_likelihoods_share_a_sampler(one, other, is_served):
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert Sampler(network, one).serves(other) is is_served
