"""Each remedy makes what it says of a small network, trains, and leaves the diagnosed model alone."""

import ast
import re

import keras
import numpy as np
import pytest
from foreign_layers import ForeignDense

import bdl
from bdl.convert.variational import MOPED_POSTERIOR
from bdl.diagnostics import REMEDIES, VERDICTS, LayerHealth, LocalLatents, Quantities, diagnose
from bdl.diagnostics import remedies as known
from bdl.diagnostics.remedies import remedies_of
from bdl.diagnostics.weights import dropout_rates
from bdl.elbo import LinearWarmup
from bdl.layers import Variational
from bdl.posteriors import LowRankNormal, MeanFieldNormal, Rank1
from bdl.priors import EmpiricalBayes, FanInNormal, Moped, TiedMean

UNITS = (5, 2)
OWN_PRIOR, OWN_POSTERIOR = FanInNormal(0.5), MeanFieldNormal(initial_scale=0.03, speed=5.0)
ALL, LAST = ("hidden", "head"), ("head",)
EMPIRICAL = {"prior": EmpiricalBayes(), "posterior": MeanFieldNormal()}
# Remedy, and what its texts promise where it differs from: own family, all layers, default warm-up.
PROMISES = [
    (known.RANK1, {"prior": None, "posterior": Rank1(), "kl_weight": 1.0}),
    (known.EMPIRICAL_BAYES, EMPIRICAL),
    (known.TIED_MEAN, {"prior": TiedMean(), "posterior": MeanFieldNormal()}),
    (known.LAST_LAYER, {**EMPIRICAL, "layers": LAST}),
    (known.HONEST_ELBO, {}),
    (known.T_ONE, {"kl_weight": 1.0}),
    (known.TRAIN_LONGER, {}),
    (known.FAST_SCALES, {"posterior": MeanFieldNormal(speed=10.0)}),
    (known.LOWER_RATE, {}),
    (known.EARLY_STOPPING, {"kl_weight": 1.0}),
    (known.LOW_RANK, {"posterior": LowRankNormal(2)}),
    (known.BURN_IN, {"prior": Moped(), "posterior": MOPED_POSTERIOR, "kl_weight": 1.0}),
]
ALL_REMEDIES = list(dict.fromkeys(remedy for remedies in REMEDIES.values() for remedy in remedies))


def name_of(case):
    return case[0].name.replace(" ", "_")


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    return x, (x[:, 0] > 0).astype(int)


def variational_network(names=ALL):
    layers = [
        bdl.layers.DenseReparameterization(
            units, activation=activation, kernel_prior=OWN_PRIOR, kernel_posterior=OWN_POSTERIOR, name=name
        )
        for units, activation, name in zip(UNITS, ("relu", None), names, strict=True)
    ]
    return keras.Sequential([keras.Input((3,)), *layers])


@pytest.fixture(scope="module")
def diagnosed():
    model = bdl.VariationalModel(variational_network(), bdl.likelihoods.Categorical())
    model.compile("adam")
    return model


def plain_layers(model):
    """The layers with weights, of a converted network or of one that holds bdl's layers itself."""
    network = getattr(model.network, "network", model.network)
    return [layer for layer in network.layers if layer.weights]


def sampled_layers(model):
    """The layers that sample their weights, by the name of the layer inside."""
    found = [layer for layer in bdl.keras_internals.flatten_layers(model) if isinstance(layer, Variational)]
    return {layer.name if layer.layer.name == "mean" else layer.layer.name: layer for layer in found}


def values(model):
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables]


@pytest.mark.parametrize("case", PROMISES, ids=name_of)
def test_a_remedy_is_what_it_says_and_trains(case, diagnosed, data):
    remedy, promised = case
    before = values(diagnosed)
    mended = remedy.apply(diagnosed, data=data if remedy.needs_data else None)
    assert mended.compiled
    assert mended.kl_weight == promised.get("kl_weight")
    assert [layer.name for layer in plain_layers(mended)] == list(ALL)
    inner = [getattr(layer, "layer", layer) for layer in plain_layers(mended)]
    assert [layer.units for layer in inner] == list(UNITS)
    assert [layer.activation.__name__ for layer in inner] == ["relu", "linear"]
    assert set(sampled_layers(mended)) == set(promised.get("layers", ALL))
    for layer in sampled_layers(mended).values():
        assert layer.estimator == promised.get("estimator", "reparameterization")
        (weight,) = layer.sampled_weights.values()
        assert weight.prior == promised.get("prior", OWN_PRIOR)
        assert weight.posterior == promised.get("posterior", OWN_POSTERIOR)
    history = mended.fit(*data, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for value, now in zip(before, values(diagnosed), strict=True):
        np.testing.assert_array_equal(value, now)


def test_every_remedy_that_can_be_applied_is_tested():
    by_cause = {known.LOW_RANK, known.EMPIRICAL_BAYES}  # listed where a refit speaks for them
    listed = {remedy for remedy in ALL_REMEDIES if remedy.build is not None}
    assert listed | by_cause == {remedy for remedy, _ in PROMISES}


@pytest.mark.core
def test_the_first_remedy_trains_on_every_backend(diagnosed, data):
    mended = known.RANK1.apply(diagnosed)
    history = mended.fit(*data, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize(
    ("remedy", "settings"),
    [(known.TRAIN_LONGER, {"clipnorm": None}), (known.LOWER_RATE, {"clipnorm": 1.0})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_rates_and_clipping(remedy, settings, diagnosed):
    for _ in range(2):  # the settings are shared, and must not be used up
        config = remedy.apply(diagnosed).optimizer.get_config()
        assert config["learning_rate"] == pytest.approx(1e-3, rel=1e-6)
        assert config["clipnorm"] == settings["clipnorm"]


def early_stopping(code, **changes):
    """The callback that a piece of code shows, with some arguments changed."""
    (shown,) = re.findall(r"keras\.callbacks\.EarlyStopping\(.*?\)", code)
    call = ast.parse(shown, mode="eval").body
    shown = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    return keras.callbacks.EarlyStopping(*map(ast.literal_eval, call.args), **shown | changes)


def stopped(model, data, **changes):
    """Number of epochs until no epoch was 10 nats better than the first that may be kept, which is restored."""
    stop = early_stopping(known.EARLY_STOPPING.code, patience=2, min_delta=10.0, **changes)
    return len(model.fit(*data, epochs=40, validation_data=data, callbacks=[stop], verbose=0).epoch)


@pytest.mark.core
def test_early_stopping_as_it_is_shown_ends_at_temperature_one(diagnosed, data):
    model = known.EARLY_STOPPING.apply(diagnosed)
    assert stopped(model, data) == 3
    assert model.temperature == 1.0


def test_early_stopping_after_a_warm_up_of_known_length_ends_at_temperature_one(data):
    model = bdl.VariationalModel(variational_network(), bdl.likelihoods.Categorical(), kl_weight=LinearWarmup(steps=5))
    model.compile("adam")
    assert stopped(model, data, start_from_epoch=5) == 8
    assert model.temperature == 1.0


@pytest.mark.filterwarnings("ignore:fit ended at T")
def test_early_stopping_in_a_warm_up_is_said(data):
    """One step per epoch: the best epoch, the first, has come to T = 1 / (0.85 * 40)."""
    model = bdl.VariationalModel(variational_network(), bdl.likelihoods.Categorical())
    model.compile("adam")
    assert stopped(model, data) == 3
    report = diagnose(model, *data, num_samples=2)
    assert report.quantities.present_temperature == pytest.approx(1 / 34, rel=1e-6)
    assert report.quantities.temperature == pytest.approx(1.0, rel=5e-3)
    assert "T has come to 0.0294, and should end at 1" in report.evidence[-1]


def test_burn_in_needs_the_data(diagnosed):
    with pytest.raises(ValueError, match=r"pass data=\(x, y\)"):
        known.BURN_IN.apply(diagnosed)


def test_burn_in_is_centred_where_it_starts(diagnosed, data):
    mended = known.BURN_IN.apply(diagnosed, data=data)
    for layer in sampled_layers(mended).values():
        (weight,) = layer.sampled_weights.values()
        both = (weight.mean, weight.prior_variables["centre"])
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(part) for part in both))


def test_a_network_made_anew_is_not_centred_on_its_first_weights(diagnosed, data):
    again = known.HONEST_ELBO.apply(known.BURN_IN.apply(diagnosed, data=data))
    for layer in sampled_layers(again).values():
        assert [weight.prior for weight in layer.sampled_weights.values()] == [Moped().spread]


@pytest.mark.parametrize("remedy", [known.RANK1, known.LAST_LAYER], ids=lambda remedy: remedy.name)
def test_models_of_two_applications_share_nothing(remedy, diagnosed, data):
    first, second = remedy.apply(diagnosed), remedy.apply(diagnosed)
    assert not {id(variable) for variable in first.variables} & {id(variable) for variable in second.variables}
    assert first.likelihood is not second.likelihood
    assert first.likelihood is not diagnosed.likelihood
    assert first.optimizer is not second.optimizer
    before = values(second)
    first.fit(*data, epochs=1, verbose=0)
    for value, now in zip(before, values(second), strict=True):
        np.testing.assert_array_equal(value, now)


@pytest.mark.parametrize("remedy", [known.TIED_MEAN, known.RANK1, known.T_ONE], ids=lambda remedy: remedy.name)
def test_a_rank1_model_can_be_given_another_remedy(remedy, diagnosed, data):
    rank1 = known.RANK1.apply(diagnosed)
    rank1.fit(*data, epochs=1, verbose=0)
    before = values(rank1)
    again = remedy.apply(rank1)
    again.fit(*data, epochs=1, verbose=0)
    assert [getattr(layer, "layer", layer).units for layer in plain_layers(again)] == list(UNITS)
    for value, now in zip(before, values(rank1), strict=True):
        np.testing.assert_array_equal(value, now)


@pytest.mark.parametrize("remedy", [known.LOWER_RATE, known.HONEST_ELBO, known.T_ONE], ids=lambda remedy: remedy.name)
def test_what_keeps_the_family_keeps_rank_1(remedy, diagnosed):
    again = remedy.apply(known.RANK1.apply(diagnosed))
    families = [
        weight.posterior for layer in sampled_layers(again).values() for weight in layer.sampled_weights.values()
    ]
    assert families == [Rank1(), Rank1()]


def test_local_warm_up_keeps_free_bits():
    network = keras.Sequential([keras.Input((3,)), bdl.layers.DenseReparameterization(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), free_bits=0.25)
    assert known.LOCAL_WARMUP.apply(model).free_bits == 0.25
    assert known.FREE_BITS.apply(model).free_bits == 0.5


@pytest.mark.parametrize(
    "remedy",
    [remedy for remedy, _ in PROMISES] + [known.LIVE_NOISE, known.LOCAL_WARMUP],
    ids=lambda remedy: remedy.name.replace(" ", "_"),
)
def test_draws_and_objective_are_kept(remedy, data):
    objective = {"num_samples": 2, "objective": "multi_sample"}
    model = bdl.VariationalModel(variational_network(), bdl.likelihoods.Categorical(), **objective)
    mended = remedy.apply(model, data=data if remedy.needs_data else None)
    assert {name: getattr(mended, name) for name in objective} == objective


def test_free_bits_come_with_the_elbo():
    likelihood = bdl.likelihoods.Categorical()
    model = bdl.VariationalModel(variational_network(), likelihood, num_samples=2, objective="multi_sample")
    mended = known.FREE_BITS.apply(model)
    assert (mended.objective, mended.num_samples, mended.free_bits) == ("elbo", 2, 0.5)


@pytest.mark.parametrize("remedy", [known.LOCAL_WARMUP, known.RANK1], ids=lambda remedy: remedy.name)
def test_a_subclassed_network_without_a_configuration_is_named(remedy):
    class Own(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    network = Own(keras.layers.Dense(2))
    network(np.ones((1, 3)))
    with pytest.raises(ValueError, match="Own is neither Functional nor Sequential"):
        remedy.apply(network, bdl.likelihoods.Categorical())


def test_a_scale_that_a_likelihood_learns_is_the_new_model_s_own():
    network = keras.Sequential([keras.Input((3,)), bdl.layers.DenseReparameterization(1)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal())
    model.likelihood.raw_scale.assign(3.0)
    mended = known.TIED_MEAN.apply(model)
    assert mended.likelihood.raw_scale is not model.likelihood.raw_scale


def test_an_ensemble_s_first_member_is_made_anew(data):
    members = [keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]) for _ in range(2)]
    mended = known.EMPIRICAL_BAYES.apply(members, bdl.likelihoods.Categorical())
    assert list(sampled_layers(mended)) == [members[0].layers[0].name]


def dropout_network(rate, *after):
    layers = [keras.layers.Dense(8, "relu", name="hidden"), bdl.layers.MCDropout(rate), *after]
    return keras.Sequential([keras.Input((3,)), *layers])


@pytest.mark.parametrize(
    ("network", "rates"),
    [
        (lambda: dropout_network(0.0, keras.layers.Dense(2)), (0.1,)),
        (lambda: dropout_network(0.5), (0.1, 0.1)),  # no weights follow: besides before the last kernel
        (lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), (0.1,)),  # none at all
    ],
    ids=["rate_zero", "nothing_follows", "none"],
)
def test_dropout_that_reaches_the_outputs_does(network, rates, data):
    mended = known.LIVE_NOISE.apply(network(), bdl.likelihoods.Categorical())
    assert dropout_rates(mended.network) == rates
    x = np.ones((4, 3), "float32")
    outputs = [keras.ops.convert_to_numpy(mended(x)) for _ in range(8)]
    assert np.std(outputs, axis=0).max() > 0.0


def test_another_library_s_layers_are_named():
    model = keras.Sequential([keras.Input((3,)), ForeignDense(2, 1.0)])
    with pytest.raises(ValueError, match=r"holds Bayesian layers of another library.*Build the\s+plain network"):
        known.RANK1.apply(model, bdl.likelihoods.Categorical())


@pytest.mark.core
def test_remedies_of_kinds_of_models():
    agreeing = Quantities(num_members=3)
    dead = Quantities(dropout_rates=(0.0,))
    assert remedies_of("near_deterministic", agreeing) == (known.OTHER_SEEDS,)
    assert remedies_of("near_deterministic", dead)[0] is known.LIVE_NOISE
    with_posteriors = Quantities(dropout_rates=(0.1,), layers=(LayerHealth("a"),))
    assert remedies_of("near_deterministic", with_posteriors) == REMEDIES["near_deterministic"]
    silent, speaking = (Quantities(local=LocalLatents(kl=kl)) for kl in (0.0, 1.0))
    assert remedies_of("collapsed", silent) == (known.LOCAL_WARMUP, known.FREE_BITS)
    assert remedies_of("collapsed", speaking) == REMEDIES["collapsed"]


@pytest.mark.core
@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize(("quantity", "remedy"), [("has_fitted_means", "TIED_MEAN"), ("is_rank1", "RANK1")])
def test_a_remedy_that_changes_nothing_is_not_offered(quantity, remedy, verdict):
    there, absent = (remedies_of(verdict, Quantities(**{quantity: has})) for has in (True, False))
    assert there == tuple(each for each in absent if each is not getattr(known, remedy))
    assert bool(there) == bool(absent)


def test_a_rank_1_network_that_overfits_is_told_to_stop_earlier():
    assert remedies_of("overfitting", Quantities(is_rank1=True))[0] is known.EARLY_STOPPING


def test_t_of_one_is_offered_where_it_is_not_there():
    cold = Quantities(declared_temperature=1e-3, present_temperature=1e-3)
    stopped = Quantities(declared_temperature=1.0, present_temperature=0.26)
    there = Quantities(declared_temperature=1.0, present_temperature=1.0)
    first = [remedies_of("near_deterministic", q)[0] for q in (cold, stopped, there)]
    assert first == [known.T_ONE, known.T_ONE, known.RANK1]


# Collapses of docs/diagnostics' table that they rescued, of four.
RESCUED_NONE_OR_ONE = (
    "empirical-Bayes prior with warm-up",
    "a low-rank posterior",
    "a matrix-normal posterior",
    "smaller scales at the start",
    "local reparameterization",
    "KL warm-up",
    "cyclical KL warm-up",
    "honest tempering",
)


def test_what_rescued_none_or_one_of_four_is_not_listed():
    for verdict in VERDICTS:
        assert not {remedy.name for remedy in REMEDIES[verdict]} & set(RESCUED_NONE_OR_ONE)


def layers_of(model):
    """Classes, priors and posteriors of the layers."""
    return [
        (type(layer), [(weight.prior, weight.posterior) for weight in layer.sampled_weights.values()])
        for layer in bdl.keras_internals.flatten_layers(model.network)
        if isinstance(layer, Variational)
    ]


@pytest.mark.parametrize(
    "remedy", [known.T_ONE, known.TRAIN_LONGER, known.EARLY_STOPPING, known.LOWER_RATE], ids=lambda remedy: remedy.name
)
def test_what_is_about_the_training_leaves_the_layers_as_they_are(remedy):
    network = keras.Sequential([keras.Input((3,)), bdl.layers.DenseFlipout(4), bdl.layers.DenseRank1(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=0.01)
    model.compile("sgd")
    mended = remedy.apply(model)
    assert layers_of(mended) == layers_of(model)
    kept = 0.01 if remedy in (known.TRAIN_LONGER, known.LOWER_RATE) else 1.0
    assert mended.kl_weight == kept


def test_a_plain_model_keeps_its_loss_when_it_is_trained_longer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), bdl.layers.MCDropout(0.1)])
    model.compile("sgd", loss="mse")
    again = known.TRAIN_LONGER.apply(model)
    assert again.loss == "mse"
    assert type(again.optimizer) is keras.optimizers.Adam


@pytest.mark.core
@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_has_its_remedies(verdict):
    found = remedies_of(verdict, Quantities())
    assert found == REMEDIES[verdict]
    assert bool(found) == (verdict not in ("healthy", "inconclusive", "no_signal"))
    assert len({remedy.name for remedy in found}) == len(found)
    for remedy in found:
        assert all(text.strip() for text in (remedy.name, remedy.why, remedy.source, remedy.code))
