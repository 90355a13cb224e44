"""Layers whose noise drowns the data: what their noise costs, what certainty would, and when a verdict names them."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import bdl
from bdl.diagnostics import THRESHOLDS, Fit, LayerHealth, Quantities, diagnose, judge
from bdl.diagnostics.measure import measure, take_probe
from bdl.diagnostics.noise import broad_layers, costly_layers, explained, price_of_certainty
from bdl.diagnostics.remedies import NARROW_FACTORS, remedies_of
from bdl.diagnostics.twin import own_family, plain_network
from bdl.diagnostics.weights import layer_health, weight_posteriors
from bdl.layers import InputFactors
from bdl.likelihoods import Categorical, Normal
from bdl.priors import Normal as NormalPrior

BROAD = NormalPrior(1.0, 3.0)
N = 100

# The case of the docs: ten classes, 3,200 images of 3,072 entries.
INPUTS = LayerHealth("inputs", 3072, kl=160.0, contraction=0.1, signal_to_noise=0.34, draws_factors=True)
BEHIND = Fit(
    500, nll_null=2.3, nll_gibbs=2.1, nll_bma=2.06, gain=0.104, gain_error=0.01, accuracy=0.3, accuracy_error=0.02
)
TWIN = dataclasses.replace(BEHIND, nll_gibbs=1.76, nll_bma=1.76, gain=0.235, accuracy=0.37)
PHOTOGRAPHS = Quantities(
    num_examples=3200, kl=400.0, train=BEHIND, validation=BEHIND, twin=TWIN, function_signal=0.3, layers=(INPUTS,)
)


def but(layer=INPUTS, **changes):
    layer_changes = {name: changes.pop(name) for name in list(changes) if name in LayerHealth.__dataclass_fields__}
    return dataclasses.replace(PHOTOGRAPHS, layers=(dataclasses.replace(layer, **layer_changes),), **changes)


@pytest.mark.core
def test_the_price_of_certainty_is_the_divergence_from_the_prior():
    layer = InputFactors(BROAD)
    layer.build((None, 7))
    (posterior,) = weight_posteriors(layer)
    posterior.assign(1.0, 0.1)  # readable
    paid = float(ops.convert_to_numpy(layer.kl_divergence()))
    posterior.assign(1.0, 3.0)  # the prior
    (health,) = layer_health(layer, weight_posteriors(layer))
    assert health.draws_factors
    assert price_of_certainty(health, 1) == pytest.approx(paid, rel=1e-4)
    assert price_of_certainty(health, 10) == pytest.approx(paid / 10, rel=1e-4)


@pytest.mark.parametrize(
    ("layer", "is_factor"),
    [
        (bdl.layers.DenseRank1(2), True),
        (InputFactors(), True),
        (bdl.layers.DenseFlipout(2), False),
        (bdl.layers.Conv1DFlipout(2, 3), False),
    ],
)
def test_which_layers_draw_factors(layer, is_factor):
    layer.build((None, 5, 4))
    (health,) = layer_health(layer, weight_posteriors(layer))
    assert health.draws_factors == is_factor


@pytest.mark.core
def test_what_noise_costs_is_that_of_the_closed_form():
    """Of `y = sum w x f` under Normal(scale=s), noise of variance `v = sum (w x scale)^2` costs `v / (2 s^2)` nats."""
    random = np.random.default_rng(0)
    x, w = random.normal(size=(N, 6)).astype("float32"), random.normal(size=(6, 1)).astype("float32")
    y = (x @ w)[:, 0]
    entry = keras.Input((6,))
    factors, dense = InputFactors(NormalPrior(1.0, 0.5), name="factors", seed=3), layers.Dense(1, use_bias=False)
    network = keras.Model(entry, dense(factors(entry)))
    dense.set_weights([w])
    weight_posteriors(network)[0].assign(1.0, 0.4)
    likelihood, samples = Normal(scale=1.0), 80
    data = take_probe((x, y), N, likelihood, "data")
    (layer,) = measure(network, likelihood, N, data, num_samples=samples, is_thorough=True).layers
    # Each draw has one factor for all examples: e^T A e with A the mean of (w x)(w x)^T, e ~ N(0, 0.16).
    matrix = 0.4**2 * (x * w[:, 0]).T @ (x * w[:, 0]) / N
    error = np.sqrt(2 * np.sum(matrix**2) / samples) / 2
    assert abs(layer.noise_cost - np.trace(matrix) / 2) < 4 * error
    assert layer.contraction == pytest.approx(1 - 0.8**2, rel=1e-4)


def test_certain_layers_are_not_measured_and_cost_nothing():
    network = keras.Sequential([keras.Input((4,)), InputFactors(BROAD), layers.Dense(2)])  # which begins at .1
    x, y = np.ones((8, 4), "float32"), np.arange(8) % 2
    data = take_probe((x, y), 8, Categorical(), "data")
    q = measure(network, Categorical(), 8, data, num_samples=2, is_thorough=True)
    assert q.layers[0].noise_cost is None
    assert costly_layers(q) == broad_layers(q) == ()


def test_broad_input_factors_are_named_with_their_price():
    finding = judge(PHOTOGRAPHS)
    assert finding.verdict == "underfitting"
    assert "inputs: its scales are at 95% of their prior's" in finding.evidence[0]
    assert "KL 0.05 nats per example" in finding.evidence[0]
    assert "noise of 2.9 times their factors' mean" in finding.evidence[0]
    assert "the labels hold 2.3" in finding.evidence[0]
    assert "accuracy 0.370" in finding.evidence[1]
    assert remedies_of("underfitting", PHOTOGRAPHS)[0] is NARROW_FACTORS


def test_costly_noise_is_named_whatever_the_layer():
    q = but(LayerHealth("dense", 100, kl=5.0, contraction=0.5, signal_to_noise=0.2), noise_cost=0.53)
    finding = judge(q)
    assert finding.verdict == "underfitting"
    assert "costs 0.53 nats per example: the NLL of one draw is 2.100 with it and 1.570 without" in finding.evidence[0]
    assert NARROW_FACTORS not in remedies_of("underfitting", q)


@pytest.mark.parametrize(
    "changes",
    [
        {"twin": dataclasses.replace(BEHIND, gain=0.12)},  # as good as its twin
        {"twin": dataclasses.replace(TWIN, accuracy=0.33)},  # a better NLL only
        {"validation": dataclasses.replace(BEHIND, gain_error=0.1)},
        {"validation": dataclasses.replace(BEHIND, accuracy_error=0.05)},
        {"twin": None},
        {"signal_to_noise": 1.2},  # rank-1 factors of prior N(1, 1)
        {"contraction": 0.9},  # they have become certain
        {"num_weights": 784, "num_examples": 60_000},  # there are data enough to pay for it
        {"draws_factors": False},  # weights are summed, and their noise with them
        {"draws_factors": False, "noise_cost": 0.1},  # too little to matter
        {"draws_factors": False, "noise_cost": 0.3, "train": dataclasses.replace(BEHIND, disagreement=0.2)},
        {"epoch": 1, "planned_epochs": 9},
    ],
)
def test_no_network_is_called_underfitting_without_cause(changes):
    assert judge(but(**changes)).verdict != "underfitting"


@pytest.mark.parametrize(
    ("quantity", "fires_below"), [("contraction", THRESHOLDS.near_prior), ("noise_cost", -2.0 * THRESHOLDS.noise_cost)]
)
def test_thresholds_of_costly_noise(quantity, fires_below):
    for sign, expected in ((-1, True), (1, False)):
        value = float(np.nextafter(fires_below, sign * np.inf))
        values = {"contraction": 0.0, "noise_cost": 1.0} | {quantity: abs(value)}
        q = Quantities(train=Fit(10, nll_null=2.0, nll_gibbs=1.0, nll_bma=1.0), layers=(LayerHealth("a", 1, **values),))
        assert bool(costly_layers(q)) == expected


def test_a_collapse_names_what_the_data_could_not_pay_for():
    null = Fit(500, nll_null=2.3, nll_gibbs=2.3, nll_bma=2.3, gain=0.0, gain_error=0.002, accuracy=0.1)
    q = but(train=null, validation=null, kl=10.0, function_signal=0.01, twin=None)
    finding = judge(q)
    assert finding.verdict == "collapsed"
    assert explained(q.layers[0], q) in finding.evidence
    assert remedies_of("collapsed", q)[0] is NARROW_FACTORS


def test_without_a_twin_costly_noise_is_told_of_a_healthy_network():
    finding = judge(but(twin=None, noise_cost=0.5, draws_factors=False))
    assert finding.verdict == "healthy"
    assert any("noise costs 0.5 nats" in sentence and 'twin="auto"' in sentence for sentence in finding.evidence)


def test_without_a_twin_a_network_behind_broad_factors_is_not_called_healthy():
    finding = judge(but(twin=None, noise_cost=-0.2))
    assert finding.verdict == "inconclusive"
    assert "noise of 2.9 times" in finding.evidence[0]
    assert "costs" not in finding.evidence[0]  # the network has adapted to the noise: taking it away says nothing
    assert 'twin="auto"' in finding.evidence[-1]


@pytest.mark.parametrize(
    "changes", [{"signal_to_noise": 1.2}, {"contraction": 0.9}, {"num_weights": 784, "num_examples": 60_000}]
)
def test_factors_that_are_readable_or_can_be_paid_for_do_not_hide_health(changes):
    assert judge(but(twin=None, **changes)).verdict == "healthy"


def templates(n, seed, is_empty=False):
    """Four classes of 64 entries, each with a little of the class; or of 16, the rest empty."""
    centre = np.random.default_rng(7).normal(size=(4, 64))
    y = np.arange(n) % 4
    x = 0.8 * centre[y] + np.random.default_rng(seed).normal(size=(n, 64))
    if is_empty:
        x[:, 16:] = 0.0
    return x.astype("float32"), y


def behind_factors(plain, scale):
    """The plain network behind input factors of this scale, trained no further."""
    entry = keras.Input((64,))
    network = keras.Model(entry, plain(InputFactors(BROAD, name="factors", seed=1)(entry)))
    weight_posteriors(network)[0].assign(1.0, scale)
    model = bdl.VariationalModel(network, Categorical(), N, kl_weight=1.0)
    model.compile("adam")
    return model


@pytest.fixture(scope="module")
def trained():
    """Data and a trained plain network, on full and on partly empty inputs."""
    found = {}
    for is_empty in (False, True):
        keras.utils.set_random_seed(0)
        plain = keras.Sequential([keras.Input((64,)), layers.Dense(4)])
        plain.compile(keras.optimizers.Adam(0.03), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x, y = templates(N, 0, is_empty)
        plain.fit(x, y, epochs=10, verbose=0)
        found[is_empty] = x, y, templates(400, 1, is_empty), plain
    return found


@pytest.mark.parametrize(
    ("is_empty", "scale", "verdicts"),
    [
        # Every entry carries something. How much of it the mixture saves decides between two names.
        (False, 3.0, ("underfitting", "variance_saturated")),
        (False, 0.1, ("healthy",)),
        (True, np.where(np.arange(64) < 16, 0.1, 3.0), ("healthy",)),  # broad where the data are empty
    ],
)
def test_a_network_is_judged_by_whether_the_data_use_what_is_noisy(trained, is_empty, scale, verdicts):
    x, y, held, plain = trained[is_empty]
    report = diagnose(behind_factors(plain, scale), x, y, validation_data=held, twin=plain, num_samples=8)
    assert report.verdict in verdicts
    (factors,) = report.quantities.layers
    assert any("factors: its scales" in sentence for sentence in report.evidence) == (report.verdict != "healthy")
    if is_empty:
        assert abs(factors.noise_cost) < THRESHOLDS.noise_cost


def test_networks_made_anew_begin_with_factors_of_one_and_a_prior_for_weights():
    entry = keras.Input((64,))
    factors, dense = InputFactors(BROAD), bdl.layers.DenseFlipout(4, kernel_prior=NormalPrior(0.0, 0.5))
    network = keras.Model(entry, dense(factors(entry)))
    factors.layer.kernel.assign(np.full(64, 5.0))
    x = np.ones((2, 64), "float32")
    fresh, kept = plain_network(network), plain_network(network, keeps_weights=True)
    np.testing.assert_allclose(ops.convert_to_numpy(fresh.layers[1](x)), x)
    np.testing.assert_allclose(ops.convert_to_numpy(kept.layers[1](x)), 5 * x)
    assert own_family(network)[0] == NormalPrior(0.0, 0.5)


def stripes(n, seed):
    """Eight classes of 16 x 16 x 3: the colour tells one half from the other, the angle of noisy stripes the rest."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % 8
    angle = np.pi * (y % 4) / 4
    row, column = np.mgrid[:16, :16]
    place = np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column
    wave = np.cos(2 * np.pi / 5 * place + random.uniform(0, 2 * np.pi, (n, 1, 1)))
    x = wave[..., None] * random.uniform(0.7, 1.3, (n, 1, 1, 3)) + 3.0 * random.normal(size=(n, 16, 16, 3))
    x[..., 0] += 0.6 * (2 * (y // 4) - 1)[:, None, None]
    return x.astype("float32"), y


def convolutional():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 5, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(16, "relu"),
            layers.Dense(8),
        ]
    )


def test_the_recipe_with_broad_factors_on_textures_is_named_and_mended():
    x, y = stripes(400, 0)
    keras.utils.set_random_seed(0)
    model = bdl.recipes.instead_of_ensemble(convolutional(), Categorical(), input_prior=BROAD, seed=0)
    mended = NARROW_FACTORS.apply(model)
    for each in (model, mended):
        each.compile(each.optimizer, jit_compile=False)  # which takes longer than these trainings
        each.fit(x, y, epochs=22, verbose=0)
    report = diagnose(model, x, y, twin=mended, validation_data=stripes(400, 1), num_samples=4, probe_size=400)
    assert report.verdict == "underfitting"  # so the mended network is ahead, beyond the error
    assert report.evidence[0].startswith("input_factors")
    assert report.remedies[0] is NARROW_FACTORS
