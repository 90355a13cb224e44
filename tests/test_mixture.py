"""The likelihood of events with a latent alignment: the four sums, the posterior, and the identity that joins them."""

import keras
import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from numpy.testing import assert_allclose
from scipy import special, stats

from bdl.likelihoods import Bernoulli, Categorical, Mixture, Normal, Poisson
from bdl.likelihoods.mixture import BASELINE, EXPECTATION, MIXTURE, SAMPLE, pack

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
EVENTS, ALIGNMENTS, CLASSES = (3, 2), 4, 5
LOGITS = RNG.normal(size=(*EVENTS, ALIGNMENTS, CLASSES)).astype("float32")
SCORES = RNG.normal(size=(*EVENTS, ALIGNMENTS)).astype("float32")
LOG_PRIOR = special.log_softmax(SCORES, axis=-1)
LABELS = RNG.integers(CLASSES, size=EVENTS)
LOG_EACH = np.take_along_axis(
    special.log_softmax(LOGITS, axis=-1), np.broadcast_to(LABELS[..., None, None], (*EVENTS, ALIGNMENTS, 1)), axis=-1
)[..., 0]
LIKELIHOOD = Mixture(Categorical())


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def log_prob(outputs, likelihood=LIKELIHOOD, y=LABELS):
    return array(likelihood.log_prob(ops.convert_to_tensor(y), outputs))


def log_probabilities(seed):
    return special.log_softmax(3.0 * np.random.default_rng(seed).normal(size=SCORES.shape), axis=-1)


# The four sums


def test_a_mixture_is_the_log_of_the_sum():
    expected = special.logsumexp(LOG_PRIOR + LOG_EACH, axis=-1)
    assert_allclose(log_prob(pack(LOGITS, LOG_PRIOR, MIXTURE)), expected, rtol=1e-5)


def test_an_expectation_is_the_sum_of_the_logs():
    expected = np.sum(np.exp(LOG_PRIOR) * LOG_EACH, axis=-1)
    assert_allclose(log_prob(pack(LOGITS, LOG_PRIOR, EXPECTATION)), expected, rtol=1e-5)


def test_samples_have_their_mean_whatever_the_control_variate():
    equal = np.full_like(SCORES, -np.log(ALIGNMENTS))
    sampled = pack(LOGITS, equal, SAMPLE)
    assert_allclose(log_prob(sampled), LOG_EACH.mean(axis=-1), rtol=1e-5)
    baseline = pack(LOGITS[..., :1, :] + 7.0, np.full_like(SCORES[..., :1], -1e9), BASELINE)
    joined = ops.concatenate([pack(LOGITS, equal, EXPECTATION), baseline], axis=-2)
    assert_allclose(log_prob(joined), LOG_EACH.mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["sample", "expectation", "baseline"])
def test_gradients_of_weights_are_the_log_likelihoods_less_the_control_variate(kind):
    """Of a weight w = exp(log_weight): dL / d log_weight = w (l - c); without one c = 0."""
    equal = np.full_like(SCORES, -np.log(ALIGNMENTS))
    first = LOGITS[..., :1, :] + np.arange(CLASSES, dtype="float32")
    others = (LOG_EACH.sum(axis=-1, keepdims=True) - LOG_EACH) / (ALIGNMENTS - 1)
    log_first = np.take_along_axis(special.log_softmax(first, axis=-1), LABELS[..., None, None], axis=-1)[..., 0]
    control = {"sample": others, "expectation": 0.0, "baseline": log_first}[kind]

    def total(values):
        outputs = pack(LOGITS, values[0], SAMPLE if kind == "sample" else EXPECTATION)
        if kind == "baseline":
            baseline = pack(first, np.full_like(SCORES[..., :1], -1e9), BASELINE)
            outputs = ops.concatenate([outputs, baseline], axis=-2)
        return ops.sum(LIKELIHOOD.log_prob(ops.convert_to_tensor(LABELS), outputs))

    found = gradients(total, [ops.convert_to_tensor(equal)])[0]
    assert_allclose(array(found), (LOG_EACH - control) / ALIGNMENTS, rtol=1e-4, atol=1e-5)


def test_the_control_variate_has_no_gradient():
    """The outputs' gradient is that of the mean of the samples alone."""
    equal = np.full_like(SCORES, -np.log(ALIGNMENTS))

    def total(role):
        return lambda values: ops.sum(LIKELIHOOD.log_prob(ops.convert_to_tensor(LABELS), pack(values[0], equal, role)))

    logits = ops.convert_to_tensor(LOGITS)
    found, expected = (array(gradients(total(role), [logits])[0]) for role in (SAMPLE, EXPECTATION))
    assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


# The identity, given the target


def elbo(log_q):
    """E_q log p(y | z, x) - KL(q || p) of each event, the first term by the likelihood."""
    return log_prob(pack(LOGITS, log_q, EXPECTATION)) - np.sum(np.exp(log_q) * (log_q - LOG_PRIOR), axis=-1)


def posterior():
    return array(LIKELIHOOD.posterior(LABELS, pack(LOGITS, LOG_PRIOR, MIXTURE)))


def test_the_posterior_is_the_softmax_of_score_and_log_likelihood():
    assert_allclose(posterior(), special.softmax(SCORES + LOG_EACH, axis=-1), rtol=1e-5)


def test_the_bound_is_tight_at_the_posterior():
    marginal = log_prob(pack(LOGITS, LOG_PRIOR, MIXTURE))
    assert_allclose(elbo(np.log(posterior())), marginal, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_other_q_is_lower_by_its_divergence_from_the_posterior(seed):
    log_q = log_probabilities(seed)
    gap = log_prob(pack(LOGITS, LOG_PRIOR, MIXTURE)) - elbo(log_q)
    assert np.all(gap > 0)
    assert_allclose(gap, stats.entropy(np.exp(log_q), posterior(), axis=-1), rtol=1e-3, atol=1e-5)


def test_the_marginal_is_above_the_expectation_under_its_own_weights():
    for seed in range(20):
        log_p = log_probabilities(seed)
        assert np.all(log_prob(pack(LOGITS, log_p, MIXTURE)) >= log_prob(pack(LOGITS, log_p, EXPECTATION)))


def test_an_alignment_that_does_not_exist_has_no_part():
    log_p = np.where(np.arange(ALIGNMENTS) < 2, SCORES, -1e9)
    log_p = special.log_softmax(log_p, axis=-1)
    wild = np.where(np.arange(ALIGNMENTS)[:, None] < 2, LOGITS, 1e4 * LOGITS)
    for role in (MIXTURE, EXPECTATION):
        found = log_prob(pack(wild, log_p, role))
        assert_allclose(found, log_prob(pack(LOGITS[..., :2, :], log_p[..., :2], role)), rtol=1e-5)
    assert np.all(array(LIKELIHOOD.posterior(LABELS, pack(wild, log_p, MIXTURE)))[..., 2:] == 0.0)


# Predictions, other components


def test_mean_and_alignments():
    outputs = pack(LOGITS, LOG_PRIOR, MIXTURE)
    expected = np.sum(np.exp(LOG_PRIOR)[..., None] * special.softmax(LOGITS, axis=-1), axis=-2)
    assert_allclose(array(LIKELIHOOD.mean(outputs)), expected, rtol=1e-5)
    assert_allclose(array(LIKELIHOOD.parameters(outputs)["p"]), expected, rtol=1e-5)
    assert_allclose(array(LIKELIHOOD.alignments(outputs)), np.exp(LOG_PRIOR), rtol=1e-5)
    assert LIKELIHOOD.mean_shape(outputs.shape) == (*EVENTS, CLASSES)
    assert LIKELIHOOD.event_shape(outputs.shape) == EVENTS


def test_log_probabilities_are_the_logarithm_of_the_mean_however_small():
    wild = 300.0 * LOGITS.astype("float64")
    packed = pack(wild, LOG_PRIOR, MIXTURE)
    expected = special.logsumexp(LOG_PRIOR[..., None] + special.log_softmax(wild, axis=-1), axis=-2)
    assert expected.min() < -110  # 0 in float32
    assert_allclose(array(LIKELIHOOD.log_probabilities(packed)), expected, rtol=1e-5, atol=1e-6)
    labels = np.stack([special.log_expit(-wild), special.log_expit(wild)], axis=-1)
    expected = special.logsumexp(LOG_PRIOR[..., None, None] + labels, axis=-3)
    assert_allclose(array(Mixture(Bernoulli()).log_probabilities(packed)), expected, rtol=1e-5, atol=1e-6)


def test_a_baseline_has_no_part_in_log_probabilities():
    baseline = pack(LOGITS[..., :1, :] + np.arange(CLASSES), np.zeros_like(SCORES[..., :1]), BASELINE)
    joined = ops.concatenate([pack(LOGITS, LOG_PRIOR, EXPECTATION), baseline], axis=-2)
    assert_allclose(array(LIKELIHOOD.log_probabilities(joined)), np.log(array(LIKELIHOOD.mean(joined))), atol=1e-5)


def test_an_event_that_no_alignment_allows_has_probability_zero():
    p = np.array([[[0.0, 1.0], [0.0, 1.0]]], "float32")
    packed = pack(p, np.log([[0.5, 0.5]]), MIXTURE)
    found = array(Mixture(Categorical(from_logits=False)).log_probabilities(packed))
    assert_allclose(found, [[-np.inf, 0.0]], atol=1e-6)


SHAPE = (*EVENTS, 3)
COMPONENTS = {
    "bernoulli": (Bernoulli(), RNG.integers(2, size=SHAPE), lambda y, f: stats.bernoulli(special.expit(f)).logpmf(y)),
    "normal": (Normal(scale=0.7), RNG.normal(size=SHAPE), lambda y, f: stats.norm(f, 0.7).logpdf(y)),
    "poisson": (Poisson(), RNG.poisson(2.0, size=SHAPE), lambda y, f: stats.poisson(np.exp(f)).logpmf(y)),
}


@pytest.mark.parametrize("case", COMPONENTS.values(), ids=COMPONENTS)
def test_targets_of_one_event_share_its_alignment(case):
    component, y, reference = case
    outputs = LOGITS[..., :3]
    each = reference(y[..., None, :], outputs.astype("float64")).sum(axis=-1)
    likelihood, packed = Mixture(component), pack(outputs, LOG_PRIOR, MIXTURE)
    assert_allclose(log_prob(packed, likelihood, y), special.logsumexp(LOG_PRIOR + each, axis=-1), rtol=1e-4)
    assert_allclose(
        array(likelihood.posterior(y, packed)), special.softmax(LOG_PRIOR + each, axis=-1), rtol=1e-3, atol=1e-6
    )
    assert likelihood.event_shape(packed.shape) == y.shape
    expected = np.sum(np.exp(LOG_PRIOR)[..., None] * array(component.mean(outputs)), axis=-2)
    assert_allclose(array(likelihood.mean(packed)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["normal", "poisson"])
def test_the_variance_is_that_of_the_mixture(name):
    component, *_ = COMPONENTS[name]
    likelihood, packed = Mixture(component), pack(LOGITS[..., :3], LOG_PRIOR, MIXTURE)
    parameters = {key: array(value).astype("float64") for key, value in likelihood.parameters(packed).items()}
    assert_allclose(array(likelihood.variance(packed)), likelihood.distribution(parameters).var(), rtol=1e-5)


def test_masked_events_do_not_count_whatever_their_label():
    packed = pack(LOGITS, LOG_PRIOR, MIXTURE)
    mask = np.array([[True, False], [True, True], [False, False]])
    expected = -np.sum(mask * special.logsumexp(LOG_PRIOR + LOG_EACH, axis=-1), axis=-1)
    assert_allclose(array(LIKELIHOOD.nll(np.where(mask, LABELS, 99), packed, mask)), expected, rtol=1e-5)
    assert_allclose(array(LIKELIHOOD.nll(LABELS[..., None], packed, mask)), expected, rtol=1e-5)


def test_a_learned_scale_of_the_component_is_a_weight_of_the_mixture():
    likelihood, packed = Mixture(Normal()), pack(LOGITS[..., :1], LOG_PRIOR, MIXTURE)
    assert [weight.name for weight in likelihood.trainable_weights] == ["raw_scale"]
    before = array(likelihood.nll(LOGITS[..., 0, :1], packed))
    likelihood.component.raw_scale.assign(0.5)
    assert np.all(before != array(likelihood.nll(LOGITS[..., 0, :1], packed)))


def test_configuration():
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Mixture(Normal(scale=0.3))))
    assert isinstance(again, Mixture)
    assert again.component.scale == 0.3
    assert (again.is_classifier, again.has_class_axis) == (False, False)
    assert (LIKELIHOOD.is_classifier, LIKELIHOOD.has_class_axis) == (True, True)


@pytest.mark.parametrize("component", ["categorical", None, Mixture(Categorical())])
def test_what_is_no_component_is_refused(component):
    with pytest.raises(ValueError, match=r"`component` must be the bdl.likelihoods.Likelihood of one event"):
        Mixture(component)


@pytest.mark.parametrize("shape", [(4, 7), (4, 3, 2)])
def test_outputs_of_a_layer_without_decoder_are_refused(shape):
    with pytest.raises(
        ValueError,
        match=r"Mixture reads outputs that must have shape .*decoder=.*Without .* Categorical\(\)",
    ):
        LIKELIHOOD.check_labels(np.zeros(4, int), shape)


def test_labels_are_checked_as_the_component_does():
    LIKELIHOOD.check_labels(LABELS, (None, 2, None, CLASSES + 2))
    with pytest.raises(ValueError, match=r"`y` must hold a class index from 0 to 4; y\[0, 0\] is 5"):
        LIKELIHOOD.check_labels(np.full(EVENTS, 5), (None, 2, ALIGNMENTS, CLASSES + 2))
    with pytest.raises(ValueError, match=r"`y` must have shape \('batch', 2\) for Categorical, .* not \(3, 3\)"):
        LIKELIHOOD.check_labels(np.zeros((3, 3), int), (None, 2, ALIGNMENTS, CLASSES + 2))
