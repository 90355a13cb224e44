"""Bounds of the log evidence: from log weights, of networks with codes, and against closed forms."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from standard_errors import assert_within_standard_errors

import bdl
from bdl.bounds import Bounds

RANDOM = np.random.default_rng(0)


def test_two_draws_of_two_rows_by_hand():
    weights = np.array([[[0.1, 0.4], [0.3, 0.2]]])
    found = Bounds.of(np.log(weights))
    assert found.elbo == pytest.approx(0.5 * np.log(0.1 * 0.3) + 0.5 * np.log(0.4 * 0.2))
    assert found.importance_weighted == pytest.approx(np.log(0.2) + np.log(0.3))
    assert_allclose(found.importance_weighted_by_row, np.log([0.2, 0.3]))
    assert found.num_samples == 2


def test_groups_are_averaged_inside_the_logarithm_of_all_rows():
    weights = np.array([[[0.1, 0.4], [0.3, 0.2]], [[0.5, 0.5], [0.1, 0.1]]])
    shared = np.array([0.5, -0.25])
    found = Bounds.of(np.log(weights), shared)
    evidence = weights.mean(axis=1).prod(axis=1) * np.exp(shared)
    assert found.importance_weighted == pytest.approx(np.log(evidence.mean()))
    assert found.elbo == pytest.approx(np.mean(np.log(weights).mean(axis=1).sum(axis=1) + shared))


@pytest.mark.parametrize("groups", [1, 40])
def test_errors_are_those_of_repeated_estimates(groups):
    def one():
        log_weights = RANDOM.normal(-1.0, 0.3, size=(groups, 30, 5))
        return Bounds.of(log_weights, None if groups == 1 else RANDOM.normal(0.0, 0.3, size=groups))

    found = [one() for _ in range(500)]
    for value, error in (("elbo", "elbo_error"), ("importance_weighted", "importance_weighted_error")):
        spread = np.std([getattr(each, value) for each in found], ddof=1)
        told = np.array([getattr(each, error) for each in found])
        # That of a standard deviation of 500, and of the mean of what was told; the delta method is of first order.
        assert abs(np.sqrt(np.mean(told**2)) / spread - 1) < 5 / np.sqrt(2 * 500) + 0.3**2 / 2


def model_of(slope, scale):
    """`z ~ N(0, 1)`, `x | z ~ N(z, 1)`, with the code `N(slope x, scale^2)`."""
    layer = bdl.layers.NormalLatent(1, seed=0)
    network = keras.Sequential([keras.Input((1,)), layer])
    layer.mean_head.set_weights([np.full((1, 1), slope), np.zeros(1)])
    layer.scale_head.bias.assign(np.log(np.expm1(scale))[None])
    return bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), num_examples=50)


X = RANDOM.normal(size=(50, 1)).astype("float32")
EVIDENCE = stats.norm(0, np.sqrt(2)).logpdf(X[:, 0])


@pytest.mark.core
def test_a_network_at_its_exact_posterior_has_the_evidence_in_both_bounds():
    found = model_of(0.5, np.sqrt(0.5)).bounds(X, X, num_samples=3, batch_size=20)
    assert_allclose(found.elbo_by_row, EVIDENCE, rtol=1e-4, atol=1e-5)
    assert_allclose(found.importance_weighted_by_row, EVIDENCE, rtol=1e-4, atol=1e-5)
    assert found.elbo_error < 1e-4


@pytest.mark.core
def test_away_from_it_the_elbo_is_the_closed_form_and_the_other_bound_is_between():
    """The proposal is the prior."""
    found = model_of(0.0, 1.0).bounds(X, X, num_samples=200)
    expected = np.sum(-0.5 * np.log(2 * np.pi) - 0.5 * (X.astype("float64") ** 2 + 1))
    assert_within_standard_errors(found.elbo, expected, found.elbo_error)
    assert found.elbo + 5 * found.elbo_error < found.importance_weighted
    # To first order the gap of a row is the weights' squared coefficient of variation over 2 S.
    second = stats.norm(0, np.sqrt(1.5)).pdf(X[:, 0]) / (2 * np.sqrt(np.pi))
    gap = np.sum((second / np.exp(2 * EVIDENCE) - 1) / (2 * 200))
    assert_within_standard_errors(found.importance_weighted, EVIDENCE.sum() - gap, found.importance_weighted_error)


def test_a_network_with_random_weights_is_refused():
    network = keras.Sequential([keras.Input((2,)), bdl.layers.DenseReparameterization(1, name="weights")])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(), num_examples=4)
    with pytest.raises(ValueError, match=r"`network` must not have random weights .* as \['weights'\] have"):
        model.bounds(np.zeros((4, 2)), np.zeros((4, 1)))


def test_bad_numbers_of_draws_are_named():
    with pytest.raises(ValueError, match=r"`num_samples` must be a positive integer \(draws inside the logarithm\)"):
        model_of(0.5, 1.0).bounds(X, X, num_samples=0)


def test_it_prints_a_table():
    text = str(Bounds.of(np.log(np.full((1, 2, 3), 0.5))))
    assert "importance weighted" in text
    assert "-2.08" in text
