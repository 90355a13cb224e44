"""Local latent variables (Q19) against closed forms, and through `diagnose`."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import bdl
from bdl.diagnostics import diagnose
from bdl.diagnostics.local import active_units, alignment_kl, attention_entropy, local_latents, mutual_information
from bdl.layers import Alignment, GaussianCode, report_latent


class CodeLayer(keras.layers.Layer):
    """A Gaussian code with its divergence from N(0, 1)."""

    def __init__(self, units, gain, scale):
        super().__init__()
        self.units, self.gain, self.scale = units, gain, scale
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x, training=None):
        mean = self.gain * x[:, : self.units]
        scale = self.scale * ops.ones_like(mean)
        bdl.layers.add_local_kl(
            self, 0.5 * ops.sum(ops.square(mean) + ops.square(scale) - 1.0 - 2.0 * ops.log(scale), axis=-1)
        )
        report_latent(self, GaussianCode(mean, scale))
        return mean + scale * keras.random.normal(ops.shape(mean), seed=self.seed_generator)


class AttentionLayer(keras.layers.Layer):
    """Attends to the largest of the features; the divergence from uniform is reported, not added."""

    def __init__(self, sharpness):
        super().__init__()
        self.sharpness = sharpness

    def call(self, x):
        q = ops.softmax(self.sharpness * x)
        report_latent(self, Alignment(q, prior_probabilities=ops.ones_like(q) / x.shape[-1]))
        return q * x


class RecordedNoise(keras.layers.Layer):
    """Reports what the layers before it made of the input."""

    def call(self, x):
        report_latent(self, GaussianCode(x, 1.0))
        return x


def inputs(n=200, features=6):
    return np.random.default_rng(0).normal(size=(n, features)).astype("float32")


def test_well_separated_codes_tell_the_example():
    code = GaussianCode(10.0 * np.arange(50.0)[:, None], 0.1)
    assert mutual_information(code) == pytest.approx(np.log(50), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_equal_codes_tell_nothing(scale):
    assert mutual_information(GaussianCode(np.full((50, 3), 2.0), scale)) == pytest.approx(0.0, abs=1e-12)


def test_codes_of_two_clusters_tell_one_bit_also_where_scales_differ_by_much():
    mean = np.repeat([[-1.0, 0.0], [1.0, 0.0]], 64, axis=0)
    scale = np.broadcast_to([1e-9, 1e3], mean.shape)  # an expanded square would lose the difference to rounding
    assert mutual_information(GaussianCode(mean, scale)) == pytest.approx(np.log(2), abs=1e-9)


def test_the_estimate_meets_the_integral():
    """Two codes N(-1, 1) and N(1, 1): the entropy of their mixture by quadrature."""
    z = np.linspace(-12, 12, 20_001)
    parts = np.exp(-0.5 * (z[None] - np.array([[-1.0], [1.0]])) ** 2) / np.sqrt(2 * np.pi)
    mixture = parts.mean(axis=0)
    exact = np.sum(-mixture * np.log(mixture)) * (z[1] - z[0]) - 0.5 * np.log(2 * np.pi * np.e)
    mean = np.repeat([[-1.0], [1.0]], 128, axis=0)
    log_ratio = np.log(parts[1] / mixture)
    deviation = np.sqrt(np.sum(parts[1] * (log_ratio - exact) ** 2) * (z[1] - z[0]))
    assert abs(mutual_information(GaussianCode(mean, 1.0)) - exact) < 5 * deviation / np.sqrt(256 * 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(1, 4), st.floats(0.01, 10), st.integers(0, 1000))
def test_information_of_codes_is_between_zero_and_log_n(n, units, scale, seed):
    mean = np.random.default_rng(seed).normal(size=(n, units))
    assert 0.0 <= mutual_information(GaussianCode(mean, scale)) <= np.log(n)


def test_a_known_information_of_an_alignment():
    """A channel that names the right key of four with probability 0.7."""
    q = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.1))
    assert mutual_information(Alignment(q)) == pytest.approx(np.log(4) - entropy)
    assert attention_entropy(Alignment(q)) == pytest.approx(entropy / np.log(4))


def test_a_sharp_alignment_that_ignores_the_input_tells_nothing():
    q = np.broadcast_to(np.eye(5), (8, 5, 5))
    assert mutual_information(Alignment(q)) == pytest.approx(0.0, abs=1e-12)
    assert attention_entropy(Alignment(q)) == 0.0


def test_information_sums_over_queries_and_counts_a_query_by_the_share_of_examples_that_have_it():
    q = np.stack([np.eye(4)[[0, 1, 2, 3]], np.eye(4)[[0, 1, 0, 1]]], axis=1)  # (4, 2, 4)
    assert mutual_information(Alignment(q)) == pytest.approx(min(np.log(4) + np.log(2), np.log(4)))  # at most log n
    q = np.stack([np.eye(4)[[0, 1, 0, 1]], np.eye(4)[[0, 1, 0, 1]]], axis=1)
    exists = np.array([[True, True], [True, True], [True, False], [True, False]])
    assert mutual_information(Alignment(q, query_mask=exists)) == pytest.approx(np.log(2) + np.log(2) / 2)


def test_padding_changes_nothing():
    random = np.random.default_rng(0)
    q = random.dirichlet(np.ones(3), size=(6, 2))
    padded = np.concatenate([q, np.zeros((6, 2, 4))], axis=-1)
    padded = np.concatenate([padded, np.full((6, 1, 7), np.nan)], axis=1)  # what softmax makes of a row without keys
    key_mask = np.zeros((6, 3, 7), bool)
    key_mask[:, :2, :3] = True
    for measured in (attention_entropy, mutual_information):
        assert measured(Alignment(padded, key_mask)) == pytest.approx(measured(Alignment(q)))
        junk = np.where(np.isnan(padded), 1 / 7, padded)
        query_mask = np.array([True, True, False])
        found = measured(Alignment(junk, np.arange(7) < 3, query_mask))
        assert found == pytest.approx(measured(Alignment(q)))


def test_uniform_over_existing_keys_is_uniform_and_a_single_key_is_left_out():
    key_mask = np.tril(np.ones((4, 4), bool))  # causal: query t sees keys 0 to t
    q = key_mask / key_mask.sum(axis=-1, keepdims=True)
    assert attention_entropy(Alignment(np.broadcast_to(q, (3, 4, 4)), key_mask)) == 1.0
    assert attention_entropy(Alignment(np.ones((3, 2, 1)))) is None
    assert attention_entropy(Alignment(np.ones((3, 2, 4)) / 4, np.zeros((3, 2, 4), bool))) is None
    assert mutual_information(Alignment(np.ones((3, 2, 4)) / 4, np.zeros((3, 2, 4), bool))) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 3), st.integers(0, 10_000), st.floats(0.01, 20))
def test_bounds_hold_for_every_alignment(n, keys, queries, seed, concentration):
    random = np.random.default_rng(seed)
    q = random.dirichlet(np.full(keys, concentration), size=(n, queries))
    alignment = Alignment(q, random.random((n, queries, keys)) < 0.7, random.random((n, queries)) < 0.8)
    entropy, information = attention_entropy(alignment), mutual_information(alignment)
    assert entropy is None or 0.0 <= entropy <= 1.0
    assert information is None or 0.0 <= information <= min(queries * np.log(keys), np.log(n)) + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(2, 5), st.integers(0, 10_000))
def test_the_divergence_of_an_alignment_is_its_information_and_that_of_the_mixture(n, keys, seed):
    """Hoffman & Johnson's identity, for one query."""
    random = np.random.default_rng(seed)
    q, p = random.dirichlet(np.ones(keys), size=n), random.dirichlet(np.ones(keys))
    mixture = q.mean(axis=0)
    expected = mutual_information(Alignment(q)) + np.sum(mixture * np.log(mixture / p))
    assert alignment_kl(Alignment(q, prior_probabilities=p)) == pytest.approx(expected, abs=1e-9)


def test_active_units_are_those_whose_mean_varies():
    mean = np.random.default_rng(0).normal(size=(500, 2, 2)) * np.array([[1.0, 0.2], [0.05, 0.0]])
    assert active_units(GaussianCode(mean, 1.0)).tolist() == [True, True, False, False]
    assert active_units(GaussianCode(mean[:1], 1.0)) is None
    assert active_units(GaussianCode(mean * np.nan, 1.0)) is None


def test_what_is_not_finite_is_not_measured():
    assert mutual_information(GaussianCode(np.array([[np.nan], [0.0]]), 1.0)) is None
    assert attention_entropy(Alignment(np.full((2, 3), np.nan))) is None
    assert alignment_kl(Alignment(np.full((2, 3), np.nan), prior_probabilities=np.ones(3) / 3)) is None


def test_wide_codes_are_compared_on_fewer_examples():
    code = GaussianCode(np.random.default_rng(0).normal(size=(64, 500_000)), 0.1)
    assert mutual_information(code) == pytest.approx(np.log(5))  # isqrt(2^26 / (4 * 500,000)) examples


@pytest.mark.core
def test_layers_add_up():
    x = inputs()
    network = keras.Sequential([keras.Input((6,)), CodeLayer(6, 1.0, 1e-3), CodeLayer(2, 0.0, 1.0)])
    found = local_latents(network, x)
    expected = 0.5 * np.sum(x**2 + 1e-6 - 1.0 - 2.0 * np.log(1e-3), axis=1)
    assert found.kl == pytest.approx(expected.mean(), rel=1e-4)
    assert found.active_units == pytest.approx(6 / 8)
    assert found.mutual_information == pytest.approx(np.log(200), abs=1e-6)
    assert found.attention_entropy is None


@pytest.mark.core
def test_alignments_are_measured_and_their_divergence_too_where_the_loss_has_none():
    network = keras.Sequential([keras.Input((6,)), AttentionLayer(0.0), AttentionLayer(1000.0)])
    found = local_latents(network, inputs())
    assert 0.5 <= found.attention_entropy < 0.52  # the mean of a uniform and a sharp one
    assert 1.6 < found.mutual_information <= np.log(6)
    assert 1.7 < found.kl <= np.log(6) + 1e-6
    assert found.active_units is None


@pytest.mark.core
def test_a_network_without_latents_has_none_and_is_left_as_it_was():
    network = keras.Sequential([keras.Input((6,)), bdl.layers.DenseFlipout(2)])
    assert local_latents(network, inputs()) is None
    network = keras.Sequential([keras.Input((6,)), CodeLayer(2, 1.0, 1.0), keras.layers.BatchNormalization()])
    before = [ops.convert_to_numpy(variable) for variable in network.variables]
    local_latents(network, inputs())
    for value, variable in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(variable))


@pytest.mark.core
def test_noise_of_the_weights_is_not_taken_for_a_signal():
    """Codes of one input are equal under one function, in every batch."""
    network = keras.Sequential([keras.Input((6,)), bdl.layers.DenseFlipout(3), RecordedNoise()])
    found = local_latents(network, np.ones((200, 6), "float32"))
    assert found.active_units == 0.0
    assert found.mutual_information == pytest.approx(0.0, abs=1e-9)


def model_with_code(gain, scale):
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6,)), CodeLayer(6, gain, scale), bdl.layers.DenseRank1(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
    model.compile(keras.optimizers.Adam(0.03))
    return model


def test_diagnose_measures_codes_that_work():
    x = inputs()
    model = model_with_code(1.0, 0.3)
    model.fit(x, (x[:, 0] > 0).astype(int), epochs=20, verbose=0)
    report = diagnose(model, x, (x[:, 0] > 0).astype(int))
    local = report.quantities.local
    assert report.verdict != "collapsed"
    assert local.active_units == 1.0
    assert 3.0 < local.mutual_information <= np.log(200)
    assert local.mutual_information < local.kl
    assert type(report.quantities).from_dict(report.quantities.to_dict()) == report.quantities


def test_diagnose_names_codes_that_ignore_the_input():
    x = inputs()
    model = model_with_code(1e-3, 1.0)
    model.fit(x, (x[:, 0] > 0).astype(int), epochs=2, verbose=0)
    report = diagnose(model, x, (x[:, 0] > 0).astype(int))
    assert report.verdict == "collapsed"
    assert report.quantities.local.active_units == 0.0
    assert report.quantities.local.mutual_information < 0.01


class LearnedCode(keras.layers.Layer):
    """A Gaussian code whose mean and log scale the layer before it says; it can be cloned."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        mean, log_scale = ops.split(x, 2, axis=-1)
        kl = 0.5 * (ops.square(mean) + ops.exp(2.0 * log_scale) - 1.0) - log_scale
        bdl.layers.add_local_kl(self, ops.sum(kl, axis=-1))
        report_latent(self, GaussianCode(mean, ops.exp(log_scale)))
        return mean + ops.exp(log_scale) * keras.random.normal(ops.shape(mean), seed=self.seed_generator)

    def compute_output_shape(self, shape):
        return (*shape[:-1], shape[-1] // 2)


def test_remedies_of_a_code_that_the_outputs_can_do_without():
    x = inputs(features=2)
    y = (x[:, 0] > 0).astype(int)
    seen = keras.Input((2,))
    code = LearnedCode()(keras.layers.Dense(4)(seen))
    network = keras.Model(seen, keras.layers.Dense(2)(keras.layers.Concatenate()([seen, code])))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`network` has no variational layer")
        model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile(keras.optimizers.Adam(0.03))
    model.fit(x, y, epochs=40, verbose=0)
    report = diagnose(model, x, y)
    assert report.verdict == "collapsed"
    assert [remedy.name for remedy in report.remedies] == ["KL warm-up", "free bits"]
    warm, free = (remedy.apply(model) for remedy in report.remedies)
    assert warm.kl_weight == bdl.elbo.LinearWarmup(0.85)
    free.compile(keras.optimizers.Adam(0.03))
    free.fit(x, y, epochs=40, verbose=0)
    mended = diagnose(free, x, y)
    # The loss does not see the divergence below 0.5 nats, where noise moves it, and has no reason to stay above.
    assert 3 * report.quantities.local.kl < mended.quantities.local.kl < 0.6
    assert mended.verdict != "collapsed"
