"""Masked distributions over keys against closed forms, scipy, and frequencies within standard errors."""

import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from latent_networks import compiled
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats
from standard_errors import assert_mean, assert_within_standard_errors

from bdl import random
from bdl.layers.latent_attention import alignment
from bdl.layers.latent_attention.alignment import MASKED
from bdl.layers.latent_attention.alignment_estimators import AlignmentPosterior

pytestmark = pytest.mark.core

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # of float32
LOG_Q = np.log([0.1, 0.2, 0.3, 0.4]).astype("float32")
SIZE = 40_000
SHAPES = [(1, 1, 2, 1), (3, 1, 2, 3)]  # few: JAX compiles each operation for each of them


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, "float32"))


def scores(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def gradient_of(function, values):
    slope = compiled(lambda tensors: gradients(lambda inputs: ops.sum(function(inputs[0])), tensors))
    return array(slope([tensor(values)])[0])


# Probabilities, divergence, entropy


def test_probabilities_are_the_softmax_over_existing_keys():
    found, mask = scores(3, 4, 5), np.arange(5) < np.array([5, 3, 1])[:, None, None]
    log_p = alignment.log_probabilities(found, mask)
    p = array(alignment.probabilities(log_p, mask))
    for row, keys in enumerate([5, 3, 1]):
        assert_allclose(p[row, :, :keys], special.softmax(found[row, :, :keys], axis=-1), **ROUNDING)
        assert_array_equal(p[row, :, keys:], 0.0)
    assert_allclose(array(alignment.log_probabilities(found)), special.log_softmax(found, axis=-1), **ROUNDING)


@pytest.mark.parametrize("keys", [2, 5])
def test_divergence_and_entropy_are_scipys_over_existing_keys(keys):
    mask = np.arange(5) < keys
    log_q, log_p = (alignment.log_probabilities(scores(3, 5, seed=seed), mask) for seed in (0, 1))
    q, p = (array(alignment.probabilities(log, mask))[:, :keys] for log in (log_q, log_p))
    assert_allclose(array(alignment.categorical_kl(log_q, log_p, mask)), stats.entropy(q, p, axis=-1), **ROUNDING)
    assert_allclose(array(alignment.entropy(log_q, mask)), stats.entropy(q, axis=-1), **ROUNDING)


def test_bounds_of_divergence_and_entropy():
    uniform, sharp = tensor(np.log(np.full(4, 0.25))), tensor([0.0, MASKED, MASKED, MASKED])
    assert array(alignment.entropy(uniform)) == pytest.approx(np.log(4), abs=1e-6)
    assert array(alignment.entropy(sharp)) == 0.0
    assert array(alignment.categorical_kl(sharp, uniform)) == pytest.approx(np.log(4), abs=1e-6)
    assert array(alignment.categorical_kl(uniform, uniform)) == 0.0


def test_a_row_without_keys_has_no_probability_divergence_or_entropy():
    mask = np.array([[True, True, False], [False, False, False]])
    log_q, log_p = (alignment.log_probabilities(scores(2, 3, seed=seed), mask) for seed in (0, 1))
    assert_array_equal(array(alignment.probabilities(log_q, mask))[1], 0.0)
    for value in (alignment.categorical_kl(log_q, log_p, mask), alignment.entropy(log_q, mask)):
        assert array(value)[1] == 0.0
        assert array(value)[0] > 0.0
    alpha, beta = (alignment.concentration(scores(2, 3, seed=seed), mask) for seed in (0, 1))
    assert array(alignment.dirichlet_kl(alpha, beta, mask))[1] == 0.0
    assert_array_equal(array(alignment.dirichlet_sample(alpha, mask, random.draw_key(0)))[1], 0.0)


@pytest.mark.parametrize("keys", [0, 1, 3])
def test_gradients_are_finite_and_zero_at_keys_that_do_not_exist(keys):
    mask, key = np.arange(3)[None] < np.array([[keys]]), random.draw_key(0)
    log_p = alignment.log_probabilities(scores(1, 3, seed=1), mask)
    beta = alignment.concentration(scores(1, 3, seed=1), mask)

    def categorical(values):
        log_q = alignment.log_probabilities(values, mask)
        relaxed = ops.where(mask, alignment.relaxed_sample(log_q, 0.5, key), 0.0)
        return alignment.categorical_kl(log_q, log_p, mask) + alignment.entropy(log_q, mask) + relaxed[:, 0]

    def dirichlet(values):
        alpha = alignment.concentration(values, mask)
        return alignment.dirichlet_kl(alpha, beta, mask) + alignment.dirichlet_sample(alpha, mask, key)[:, 0]

    for function in (categorical, dirichlet):
        found = gradient_of(function, scores(1, 3))
        assert np.all(np.isfinite(found))
        assert_array_equal(found[:, keys:], 0.0)


masks = given(shape=st.sampled_from(SHAPES), scale=st.floats(0, 60), share=st.floats(0, 1), seed=st.integers(0, 10_000))


@settings(max_examples=40, deadline=None)
@masks
def test_for_every_shape_and_mask_probabilities_sum_to_one_over_existing_keys(shape, scale, share, seed):
    batch, _, queries, keys = shape
    mask = np.random.default_rng(seed).random(shape) < share
    values = scale * scores(*shape, seed=seed)
    log_q, log_p = alignment.log_probabilities(values, mask), alignment.log_probabilities(-values, mask)
    assert_on_existing_keys(alignment.probabilities(log_q, mask), mask)
    exists = mask.sum(axis=-1)
    entropy, kl = array(alignment.entropy(log_q, mask)), array(alignment.categorical_kl(log_q, log_p, mask))
    assert np.all((entropy >= -1e-5) & (entropy <= np.log(np.maximum(exists, 1)) + 1e-5))
    assert np.all(kl >= -1e-5)
    information = array(alignment.mutual_information(log_q, mask))
    assert information.shape == (1,)
    assert 0 <= information[0] <= queries * np.log(min(batch, keys)) + 1e-5


@settings(max_examples=20, deadline=None)
@masks
def test_for_every_mask_samples_sum_to_one_over_existing_keys(shape, scale, share, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    values, key = scale * scores(*shape, seed=seed), random.draw_key(seed)
    for is_dirichlet in (False, True):
        posterior = AlignmentPosterior(values, values, mask, is_dirichlet)
        assert_on_existing_keys(posterior.draw(key), mask)
    assert_on_existing_keys(AlignmentPosterior(values, values, mask).relaxed(0.5, key), mask)


def assert_on_existing_keys(p, mask):
    found = array(p)
    assert np.all((found >= 0) & (found <= 1 + 1e-6))
    assert_array_equal(found[~mask], 0.0)
    assert_allclose(found.sum(axis=-1), mask.any(axis=-1), atol=1e-5)


# Mutual information


def test_the_information_of_a_known_channel():
    """It names the right key of four with probability 0.7."""
    q = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.1))
    log_q = np.log(q).reshape(4, 1, 1, 4)
    assert array(alignment.mutual_information(tensor(log_q)))[0] == pytest.approx(np.log(4) - entropy, abs=1e-5)


def test_equal_alignments_tell_nothing_and_information_sums_over_queries_of_each_head():
    one_hot = np.where(np.eye(4, dtype=bool), 0.0, MASKED).astype("float32")
    told, untold = one_hot[:, None], np.broadcast_to(one_hot[:1], (4, 1, 4))
    log_q = np.stack([np.concatenate([told, told], axis=1), np.concatenate([told, untold], axis=1)], axis=1)
    assert_allclose(array(alignment.mutual_information(tensor(log_q))), [2 * np.log(4), np.log(4)], atol=1e-5)


def test_a_query_that_only_some_examples_have_counts_by_their_share():
    one_hot = np.where(np.eye(4, dtype=bool), 0.0, MASKED).astype("float32")[:, None, None]
    exists = np.array([True, True, False, False])[:, None, None]
    one_hot = tensor(one_hot)
    by_queries = array(alignment.mutual_information(one_hot, query_mask=exists))
    by_keys = array(alignment.mutual_information(one_hot, np.broadcast_to(exists[..., None], (4, 1, 1, 4))))
    assert_allclose([by_queries, by_keys], np.log(2) / 2, atol=1e-5)


# Samples


@pytest.mark.parametrize("num_samples", [None, SIZE])
def test_samples_are_one_hot_with_the_frequencies_of_q(num_samples):
    log_q = LOG_Q if num_samples else np.tile(LOG_Q, (SIZE, 1))
    draws = array(alignment.sample(log_q, random.draw_key(1), num_samples))
    assert draws.shape == (SIZE, 4)
    assert_array_equal(np.sort(draws, axis=-1), np.tile([0.0, 0.0, 0.0, 1.0], (SIZE, 1)))
    q = np.exp(LOG_Q)
    assert_within_standard_errors(draws.mean(axis=0), q, np.sqrt(q * (1 - q) / SIZE), k=4)


def test_samples_never_take_a_key_that_does_not_exist():
    mask = np.array([True, False, True, False])
    log_q = alignment.log_probabilities(LOG_Q, mask)
    draws = array(alignment.sample(log_q, random.draw_key(2), SIZE))
    assert_array_equal(draws[:, ~mask], 0.0)
    q = 0.1 / (0.1 + 0.3)
    assert_within_standard_errors(draws[:, 0].mean(), q, np.sqrt(q * (1 - q) / SIZE), k=4)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_relaxed_samples_have_their_largest_weight_where_q_says(temperature):
    """Maddison et al. 2017, proposition 1b: at every temperature, P(argmax = k) = q_k."""
    draws = array(alignment.relaxed_sample(LOG_Q, temperature, random.draw_key(3), SIZE))
    assert_allclose(draws.sum(axis=-1), 1.0, atol=1e-5)
    largest = np.eye(4)[draws.argmax(axis=-1)]
    q = np.exp(LOG_Q)
    assert_within_standard_errors(largest.mean(axis=0), q, np.sqrt(q * (1 - q) / SIZE), k=4)


def test_relaxed_samples_approach_the_exact_ones_of_the_same_noise():
    key = random.draw_key(4)
    exact = array(alignment.sample(LOG_Q, key, 2_000))
    distance = [
        np.abs(array(alignment.relaxed_sample(LOG_Q, t, key, 2_000)) - exact).sum(-1).mean() for t in (1.0, 0.1, 1e-3)
    ]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 0.01


# Dirichlet

ALPHA = np.array([0.1, 0.7, 2.0, 6.0])


def test_the_mean_of_the_concentrations_is_the_softmax():
    found = scores(3, 4)
    alpha = array(alignment.concentration(found))
    assert_allclose(alpha / alpha.sum(axis=-1, keepdims=True), special.softmax(found, axis=-1), **ROUNDING)
    assert np.all(array(alignment.concentration(np.array([-1e4, 1e4], "float32"))) < np.inf)
    assert np.all(array(alignment.concentration(np.array([-1e4, 1e4], "float32"))) > 0)


def dirichlet_draws(alpha, mask=None):
    return array(alignment.dirichlet_sample(np.float32(alpha), mask, random.draw_key(5), SIZE)).astype("float64")


def test_dirichlet_samples_have_the_mean_and_covariance_of_the_closed_form():
    draws, expected = dirichlet_draws(ALPHA), stats.dirichlet(ALPHA)
    assert_mean(draws, expected.mean(), k=4)
    deviations = draws - expected.mean()
    assert_mean(deviations[:, :, None] * deviations[:, None, :], expected.cov(), k=4)
    # E log x_k, where small concentrations would show an underflow.
    expected_log = special.digamma(ALPHA) - special.digamma(ALPHA.sum())
    assert_mean(np.log(draws[:, 1:]), expected_log[1:], k=4)


def test_dirichlet_samples_of_existing_keys_are_those_of_the_smaller_dirichlet():
    mask = np.array([False, True, True, True])
    draws, expected = dirichlet_draws(ALPHA, mask), stats.dirichlet(ALPHA[1:])
    assert_array_equal(draws[:, 0], 0.0)
    assert_mean(draws[:, 1:], expected.mean(), k=4)
    assert_mean((draws[:, 1:] - expected.mean()) ** 2, expected.var(), k=4)


def test_the_gradient_of_a_dirichlet_sample_is_that_of_its_mean():
    """d E x_k / d alpha_j = (delta_jk - m_k) / sum(alpha)."""
    alpha, total = ALPHA[1:], ALPHA[1:].sum()
    mean = alpha / total
    for k in range(3):
        found = gradient_of(
            lambda values, k=k: alignment.dirichlet_sample(values, None, random.draw_key(6))[:, k],
            np.tile(alpha, (SIZE, 1)),
        )
        assert_mean(found, (np.eye(3)[k] - mean[k]) / total, k=4)


def test_the_divergence_of_dirichlets_is_the_closed_form_and_the_mean_log_ratio():
    alpha, beta = ALPHA, np.array([1.0, 0.5, 3.0, 0.2])
    exact = (
        special.gammaln(alpha.sum())
        - special.gammaln(beta.sum())
        + np.sum(special.gammaln(beta) - special.gammaln(alpha))
        + np.sum((alpha - beta) * (special.digamma(alpha) - special.digamma(alpha.sum())))
    )
    found = array(alignment.dirichlet_kl(tensor(alpha), tensor(beta)))
    assert found == pytest.approx(exact, rel=1e-5)
    draws = np.random.default_rng(0).dirichlet(alpha, size=SIZE).T
    draws = np.maximum(draws, 1e-300)
    draws = draws / draws.sum(axis=0)
    assert_mean(stats.dirichlet(alpha).logpdf(draws) - stats.dirichlet(beta).logpdf(draws), found, k=4)


def test_the_divergence_of_dirichlets_leaves_out_keys_that_do_not_exist():
    mask = np.array([[True, True, False, False], [True, True, True, True]])
    alpha, beta = (tensor(np.tile(values, (2, 1))) for values in (ALPHA, [1.0, 0.5, 3.0, 0.2]))
    found = array(alignment.dirichlet_kl(alpha, beta, mask))
    assert found[0] == pytest.approx(array(alignment.dirichlet_kl(alpha[0, :2], beta[0, :2])), rel=1e-5)
    assert found[1] == pytest.approx(array(alignment.dirichlet_kl(alpha[1], beta[1])), rel=1e-6)
    assert array(alignment.dirichlet_kl(alpha, alpha, mask)) == pytest.approx([0.0, 0.0], abs=1e-5)
