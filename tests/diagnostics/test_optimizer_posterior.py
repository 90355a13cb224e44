"""Diagnostics of a network whose posterior is its optimizer's (IVON): scales, KL, verdicts and remedies."""

import keras
import numpy as np
import pytest
from keras import ops

import bdl
from bdl.diagnostics import TrainingHealth, diagnose
from bdl.diagnostics import remedies as known
from bdl.diagnostics.noise_rules import scales_not_learned
from bdl.diagnostics.optimizer_remedies import (
    LOWER_RATE,
    NARROW_START,
    OWN_REMEDIES,
    SHORTER_MEMORY,
    T_ONE,
    TRAIN_LONGER,
    WIDER_PRIOR,
)
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.remedies import remedies_of
from bdl.diagnostics.twin import train_twin

N = 120
PRIOR_SCALE = 0.8


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(N, 4)).astype("float32")
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).astype("int32")


def model_of(likelihood=None, outputs=2, kl_weight=None, **settings):
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "tanh", name="hidden"), keras.layers.Dense(outputs, name="head")]
    )
    likelihood = likelihood or bdl.likelihoods.Categorical()
    model = bdl.VariationalModel(network, likelihood, kl_weight=kl_weight, optimizer_posterior=True)
    model.compile(bdl.optimizers.IVON(0.3, prior_scale=PRIOR_SCALE, **{"seed": 1, **settings}))
    return model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = model_of()
    model.fit(*data(), epochs=8, verbose=0)
    return model


def state(model):
    return [ops.convert_to_numpy(variable) for variable in (*model.variables, *model.optimizer.variables)]


@pytest.mark.core
def test_figures_of_the_layers_are_those_of_the_posterior(trained):
    layers = diagnose(trained, *data(), num_samples=4).quantities.layers
    optimizer = trained.posterior_optimizer
    parts = [
        [np.asarray(ops.convert_to_numpy(each), "float64") for each in pair]
        for pair in zip(optimizer.means, optimizer.scales(), strict=True)
    ]
    assert [layer.name for layer in layers] == ["hidden", "head"]
    for layer, (kernel, bias) in zip(layers, (parts[:2], parts[2:]), strict=True):
        mean, scale = (np.concatenate([kernel[i].ravel(), bias[i].ravel()]) for i in (0, 1))
        ratio = scale / PRIOR_SCALE
        kl = 0.5 * np.sum(ratio**2 + (mean / PRIOR_SCALE) ** 2 - 1.0 - np.log(ratio**2))
        assert layer.num_weights == mean.size
        assert layer.kl == pytest.approx(kl, rel=1e-5)
        assert layer.contraction == pytest.approx(np.median(1.0 - ratio**2), rel=1e-5)
        assert layer.signal_to_noise == pytest.approx(np.median(np.abs(mean) / scale), rel=1e-5)
        assert layer.counted == pytest.approx(1.0, rel=1e-5)  # the loss has each layer's KL once


def test_the_kl_is_the_model_s_with_the_weights_of_its_likelihood():
    x, y = data()
    model = model_of(bdl.likelihoods.Normal(), outputs=1)
    model.fit(x, y.astype("float32"), epochs=3, verbose=0)
    found = diagnose(model, x, y.astype("float32"), num_samples=4).quantities
    whole = model.evaluate(x, y.astype("float32"), verbose=0, return_dict=True)["kl"]
    assert found.kl == pytest.approx(whole, rel=1e-5)
    assert sum(layer.kl for layer in found.layers) < whole - 1e-3


@pytest.mark.core
def test_a_posterior_that_is_the_prior_is_named():
    x, y = data()
    model = model_of()
    model.fit(x, y, verbose=0)
    optimizer = model.posterior_optimizer
    for variable in (*optimizer.means, *optimizer.hessians):
        variable.assign(np.zeros(variable.shape))
    report = diagnose(model, x, y, num_samples=64)
    assert report.verdict == "collapsed"
    assert all(layer.prior_matched == 1.0 and abs(layer.kl) < 1e-3 for layer in report.quantities.layers)
    assert report.remedies[0] is WIDER_PRIOR


def test_measuring_leaves_model_and_optimizer_as_they_were(trained):
    before, predicted = state(trained), trained.predict_distribution(data()[0], num_samples=4, seed=3).probabilities
    report = diagnose(trained, *data(), validation_data=data(), num_samples=4)
    assert report.quantities.is_of_optimizer
    for value, now in zip(before, state(trained), strict=True):
        np.testing.assert_array_equal(value, now)
    again = trained.predict_distribution(data()[0], num_samples=4, seed=3).probabilities
    np.testing.assert_array_equal(predicted, again)


@pytest.mark.core
@pytest.mark.parametrize(("beta_2", "is_stuck"), [(1 - 1e-6, True), (0.9, False)])
def test_a_training_tells_whether_its_scales_have_moved(beta_2, is_stuck):
    health = TrainingHealth(data(), on_verdict="record", max_cost=1.0)
    model = model_of(beta_2=beta_2)
    model.fit(*data(), batch_size=30, epochs=8, verbose=0, callbacks=[health])
    stuck = [layer.stuck for layer in health.quantities.layers]
    assert len(stuck) == 2
    assert all(share == 1.0 if is_stuck else share < 0.5 for share in stuck)
    assert (scales_not_learned(health.quantities) is not None) == is_stuck
    assert remedies_of("scales_not_learned", health.quantities)[0] is SHORTER_MEMORY


def test_a_training_that_is_watched_ends_where_one_that_is_not_does():
    found = []
    for callbacks in ([], [TrainingHealth(data(), data(), on_verdict="record", max_cost=1.0)]):
        keras.utils.set_random_seed(3)
        model = model_of()
        model.fit(*data(), epochs=2, batch_size=60, shuffle=False, verbose=0, callbacks=callbacks)
        found.append(state(model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_its_twin_is_the_plain_network_and_adam(trained):
    twin = train_twin(trained, *data(), trained.likelihood, epochs=3, batch_size=30, seed=0)
    assert isinstance(twin.optimizer, keras.optimizers.Adam)
    assert not twin.optimizer_posterior
    assert [layer.name for layer in twin.network.layers] == ["hidden", "head"]
    assert twin.network is not trained.network


def test_refits_are_refused(trained):
    with pytest.raises(ValueError, match="bdl's layers with a posterior over weights"):
        diagnose(trained, *data(), family_gap=True)


@pytest.mark.parametrize(
    ("remedy", "changes"),
    [
        (TRAIN_LONGER, {}),
        (WIDER_PRIOR, {"prior_scale": 3 * PRIOR_SCALE}),
        (NARROW_START, {"initial_hessian": 5.0}),
        (SHORTER_MEMORY, {"beta_2": 0.99}),
        (T_ONE, {}),
        (known.EARLY_STOPPING, {}),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_a_remedy_changes_what_it_says_and_keeps_the_optimizer(remedy, changes):
    model = model_of(initial_hessian=0.5, beta_2=0.999, kl_weight=1.0 if remedy in (T_ONE,) else 0.5)
    model.fit(*data(), verbose=0)
    mended = remedy.apply(model)
    assert mended.optimizer_posterior
    own, new = (each.optimizer.get_config() for each in (model, mended))
    assert {key: value for key, value in new.items() if value != own[key]} == pytest.approx(changes)
    assert mended.kl_weight == (1.0 if remedy in (T_ONE, known.EARLY_STOPPING) else 0.5)
    assert np.isfinite(mended.fit(*data(), verbose=0).history["loss"][0])
    assert mended.network is not model.network


@pytest.mark.parametrize("remedy", [known.RANK1, known.LAST_LAYER], ids=lambda remedy: remedy.name)
def test_another_posterior_takes_the_plain_network(remedy, trained):
    mended = remedy.apply(trained)
    assert not mended.optimizer_posterior
    assert np.isfinite(mended.fit(*data(), verbose=0).history["loss"][0])


def test_remedies_of_variational_layers_are_not_offered():
    q = Quantities(is_of_optimizer=True, declared_temperature=0.1, present_temperature=0.1)
    of_layers = {known.LOWER_RATE, known.HONEST_ELBO, known.TRAIN_LONGER, known.FAST_SCALES, known.T_ONE}
    for verdict, usual in known.REMEDIES.items():
        offered = remedies_of(verdict, q)
        assert not of_layers & set(offered)
        assert offered[: len(OWN_REMEDIES.get(verdict, ()))] == OWN_REMEDIES.get(verdict, ())
        assert bool(offered) == bool(usual)
    assert remedies_of("diverged", q) == (LOWER_RATE,)
    with pytest.raises(ValueError, match="needs a change in your code"):
        LOWER_RATE.apply(model_of())
