"""`diagnose` on models of every kind, the accounting of other people's losses, and remedies that are applied."""

import keras
import numpy as np
import pytest
from foreign_layers import AddLossDense, ForeignDense

import bdl
from bdl.diagnostics import REMEDIES, THRESHOLDS, diagnose
from bdl.diagnostics.accounting import measure_accounting, present_temperature
from bdl.diagnostics.weights import at_prior, penalty_of_point_estimates, weight_posteriors
from bdl.elbo import CyclicalWarmup, LinearWarmup, MinibatchWeights

N = 150


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(N, 6)).astype("float32")
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).astype(int)


def plain(first, second):
    network = keras.Sequential([keras.Input((6,)), first, keras.layers.ReLU(), second])
    network.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return network


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 10.0, float(N)])
def test_temperature_of_a_loss_with_add_loss(data, temperature):
    weight = temperature / N
    model = plain(AddLossDense(8, weight), AddLossDense(2, weight))
    found = measure_accounting(model, *data, bdl.likelihoods.Categorical(), N)
    assert found.temperature == pytest.approx(temperature, rel=5e-3)
    assert all(count == pytest.approx(1.0, rel=5e-3) for count in found.counted.values())


def test_temperature_of_another_library_s_layers(data):
    model = plain(ForeignDense(40, 10.0 / N), ForeignDense(40, 10.0 / N))
    found = measure_accounting(model, *data, bdl.likelihoods.Categorical(), N)
    assert found.temperature == pytest.approx(10.0, rel=0.3)  # their KL is one sample's


@pytest.mark.filterwarnings("ignore:fit ended at T")
@pytest.mark.parametrize(
    ("schedule", "present"),
    [(None, 1.0), (LinearWarmup(steps=50), 10 / 50), (CyclicalWarmup(2), 1.0), (MinibatchWeights(4), 1.0)],
)
def test_temperature_of_a_schedule_is_that_of_its_end_or_its_average(schedule, present, data):
    network = keras.Sequential([keras.Input((6,)), bdl.layers.DenseFlipout(2, kernel_prior="fan_in_normal")])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=schedule)
    model.compile("adam")
    model.fit(*data, batch_size=N, epochs=10, verbose=0)
    found = measure_accounting(model, *data, model.likelihood, N)
    assert found.temperature == pytest.approx(1.0, rel=5e-3)
    assert found.declared == 1.0
    assert present_temperature(model) == pytest.approx(present, rel=1e-6)


def test_a_schedule_that_does_not_know_its_length_has_no_temperature_yet(data):
    network = keras.Sequential([keras.Input((6,)), bdl.layers.DenseFlipout(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=N)
    model.compile("adam")
    assert measure_accounting(model, *data, model.likelihood, N) is None
    assert diagnose(model, *data, num_samples=2).verdict != "accounting_error"


def test_measuring_leaves_the_model_as_it_was(data):
    model = plain(AddLossDense(8, 1 / N), AddLossDense(2, 1 / N))
    before = [keras.ops.convert_to_numpy(variable) for variable in model.variables]
    measure_accounting(model, *data, bdl.likelihoods.Categorical(), N)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_allclose(value, keras.ops.convert_to_numpy(variable), rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "verdict"),
    [
        ((0.0, 0.0), "accounting_error"),
        ((1.0, 0.0), "accounting_error"),
        ((2.0, 2.0), "accounting_error"),
        ((1.0, 2.0), "accounting_error"),
        ((10.0, 10.0), "mis_scaled_kl"),
        ((N, N), "mis_scaled_kl"),
    ],
)
def test_verdicts_on_losses(data, weights, verdict):
    model = plain(*(AddLossDense(units, weight / N) for units, weight in zip((8, 2), weights, strict=True)))
    report = diagnose(model, *data, likelihood=bdl.likelihoods.Categorical())
    assert report.verdict == verdict
    assert report.confidence == "certain"
    mended = report.remedies[0].apply(model, bdl.likelihoods.Categorical())
    mended.fit(*data, epochs=1, verbose=0)
    found = measure_accounting(mended, *data, mended.likelihood, N)
    assert found.temperature == pytest.approx(1.0, rel=5e-3)
    if weights == (N, N):
        assert diagnose(mended, *data).quantities.temperature == pytest.approx(1.0, rel=5e-3)


def test_the_prior_s_functions_are_those_of_the_prior():
    layer = bdl.layers.DenseReparameterization(50, kernel_prior=bdl.priors.Normal(0.0, 2.0))
    layer.build((None, 40))
    posteriors = weight_posteriors(layer)
    before = posteriors[0].mean, posteriors[0].scale
    with at_prior(layer, posteriors):
        assert np.abs(posteriors[0].excess()).max() < 1e-5
        np.testing.assert_allclose(posteriors[0].scale, 2.0, rtol=1e-5)
    np.testing.assert_array_equal(before[0], posteriors[0].mean)
    np.testing.assert_array_equal(before[1], posteriors[0].scale)


def test_closed_form_kl_of_the_layers_is_the_model_s():
    network = keras.Sequential([keras.Input((6,)), bdl.layers.DenseFlipout(8), bdl.layers.DenseRank1(2)])
    total = sum(posterior.excess().sum() for posterior in weight_posteriors(network))
    known = float(keras.ops.convert_to_numpy(bdl.kl_divergence(network)))
    assert total + penalty_of_point_estimates(network) == pytest.approx(known, rel=1e-4)


def test_scales_that_match_the_default_prior_around_fitted_means_are_no_alarm(data):
    """Healthy trainings of the default on digits and breast cancer were called variance_saturated."""
    keras.utils.set_random_seed(0)
    layers = [bdl.layers.DenseReparameterization(64, activation="relu"), bdl.layers.DenseReparameterization(2)]
    model = bdl.VariationalModel(keras.Sequential([keras.Input((6,)), *layers]), bdl.likelihoods.Categorical())
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(*data, epochs=60, verbose=0)
    report = diagnose(model, *data)
    assert report.quantities.function_variance > THRESHOLDS.saturated_variance
    assert report.verdict == "healthy"
    assert any("means are point estimates" in sentence for sentence in report.evidence)
    assert "means are point estimates" in report.to_html()


def dropout_network(rate):
    network = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(32, "relu"), bdl.layers.MCDropout(rate), keras.layers.Dense(2)]
    )
    network.compile(keras.optimizers.Adam(0.01), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return network


@pytest.mark.parametrize(("rate", "verdict"), [(0.0, "near_deterministic"), (0.2, "healthy")])
def test_dropout(data, rate, verdict):
    network = dropout_network(rate)
    network.fit(*data, epochs=20, verbose=0)
    assert diagnose(network, *data).verdict == verdict


def test_ensembles(data):
    def member(seed):
        keras.utils.set_random_seed(seed)
        network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(2)])
        network.compile(keras.optimizers.Adam(0.01), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        network.fit(*data, epochs=15, verbose=0)
        return network

    members = [member(seed) for seed in range(3)]
    assert diagnose(members, *data).verdict == "healthy"
    same = diagnose([members[0]] * 3, *data)
    assert same.verdict == "near_deterministic"
    assert "agree on everything" in str(same)


def test_a_plain_network_has_no_uncertainty_to_judge(data):
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    network.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert diagnose(network, *data).verdict == "inconclusive"


def test_report_as_text_page_and_json(data, tmp_path):
    model = plain(AddLossDense(8, 1.0), AddLossDense(2, 1.0))
    report = diagnose(model, *data, likelihood=bdl.likelihoods.Categorical())
    report.save_html(tmp_path / "report.html")
    assert "mis_scaled_kl" in (tmp_path / "report.html").read_text()
    report.save_json(tmp_path / "report.json")
    assert "1. Try" in str(report)
    with pytest.raises(ValueError, match="no loss, nll, kl or elbo"):
        report.plot()


def test_a_remedy_for_the_user_s_own_code_says_so():
    own = next(remedy for remedies in REMEDIES.values() for remedy in remedies if remedy.build is None)
    with pytest.raises(ValueError, match="needs a change in your code"):
        own.apply(dropout_network(0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a model or a record"),
        ({"model": True}, "`x` and `y` are needed"),
        ({"model": True, "x": True, "twin": "always"}, "`twin` must be"),
    ],
)
def test_bad_arguments_are_named(data, arguments, message):
    arguments = dict(arguments)
    if "model" in arguments:
        arguments["model"] = dropout_network(0.1)
    if "x" in arguments:
        arguments["x"], arguments["y"] = data
    with pytest.raises(ValueError, match=message):
        diagnose(**arguments)


def test_temperature_with_one_hot_labels(data):
    x, y = data
    model = plain(AddLossDense(8, 10.0 / N), AddLossDense(2, 10.0 / N))
    model.compile("adam", loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    report = diagnose(model, x, np.eye(2)[y])
    assert report.verdict == "mis_scaled_kl"
    assert report.quantities.temperature == pytest.approx(10.0, rel=5e-3)


@pytest.mark.parametrize("temperature", [10.0, float(N)])
def test_counts_of_sampled_divergences_come_with_errors(data, temperature):
    model = plain(ForeignDense(8, temperature / N), ForeignDense(2, temperature / N))
    model.fit(*data, epochs=3, verbose=0)
    report = diagnose(model, *data)
    assert all(layer.counted_error > 1e-5 for layer in report.quantities.layers)  # rounding is 1e-7
    assert report.quantities.temperature == pytest.approx(temperature, rel=THRESHOLDS.count_tolerance)
    assert report.verdict == "mis_scaled_kl"


def test_a_small_layer_beside_a_large_one_is_counted_once_within_rounding(data):
    """Its KL is a millionth of the loss, so that float32 leaves few digits of it."""
    x, y = data
    network = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(500, "relu"),
            bdl.layers.DenseReparameterization(1000, kernel_prior="fan_in_normal"),
            keras.layers.Dense(1),
            bdl.layers.DenseReparameterization(2, kernel_prior="fan_in_normal"),
        ]
    )
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=N, kl_weight=1.0)
    model.compile("adam")
    large, small = measure_accounting(model, x, y, model.likelihood, N).errors.values()
    assert large < 1e-5 < 1e-2 < small
    assert diagnose(model, x, y, num_samples=2).verdict != "accounting_error"


@pytest.fixture(scope="module")
def trained_with_dropout(data):
    """A plain network, which conversions leave as it is."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(32, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(2)]
    )
    network.compile(keras.optimizers.Adam(0.01), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(*data, epochs=20, verbose=0)
    return network


def test_a_plain_network_s_own_dropout_left_on(trained_with_dropout, data):
    model = bdl.convert.to_mc_dropout(trained_with_dropout)
    report = diagnose(model, *data, likelihood=bdl.likelihoods.Categorical())
    assert report.quantities.dropout_rates == (0.2,)
    assert report.verdict == "healthy"


def test_a_plain_network_s_dropout_left_on_at_rate_zero(trained_with_dropout, data):
    with pytest.warns(UserWarning, match="rates of `model` are zero"):
        model = bdl.convert.to_mc_dropout(trained_with_dropout, rate=0.0)
    report = diagnose(model, *data, likelihood=bdl.likelihoods.Categorical())
    assert report.quantities.dropout_rates == (0.0,)
    assert report.verdict == "near_deterministic"
    assert report.remedies[0].name == "dropout that reaches the outputs"


def test_a_converted_network_and_its_twin(data):
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    model = bdl.VariationalModel(bdl.convert.to_variational(network), bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(*data, epochs=30, verbose=0)
    before = model.get_weights()
    report = diagnose(model, *data, twin="auto")
    assert report.verdict == "healthy"
    assert report.quantities.twin.num_examples == N
    assert len(report.quantities.layers) == 2
    for value, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, weight)
