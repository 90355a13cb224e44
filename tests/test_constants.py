"""The best constant of each likelihood: against closed forms, scipy's fits, and every constant that we try."""

import keras
import numpy as np
import pytest
from scipy import stats

from bdl.likelihoods import (
    Bernoulli,
    Categorical,
    Likelihood,
    Mixture,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    constants,
)

N = 200
RANDOM = np.random.default_rng(0)
COUNTS = RANDOM.negative_binomial(2.0, 0.3, size=(N, 2)) * [1, 3]
TARGETS = RANDOM.standard_t(4.0, size=(N, 2)) * [1.0, 2.0] + [0.0, 5.0]
LABELS = (RANDOM.random((N, 2)) < [0.2, 0.7]).astype(int)


def test_class_frequencies_give_the_entropy():
    y = np.repeat([0, 1, 2], [50, 25, 25])
    expected = -np.sum([0.5 * np.log(0.5), 0.5 * np.log(0.25)])
    assert Categorical().null_nll(y).mean() == pytest.approx(expected, rel=1e-12)
    soft = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
    np.testing.assert_allclose(Categorical().null_nll(soft), -0.5 * np.log(0.5) - 0.5 * np.log(0.25))


def test_sequences_share_frequencies_and_void_labels_are_no_data():
    y = np.array([[0, 1], [1, 255]])
    np.testing.assert_allclose(Categorical(ignore_class=255).null_nll(y), [-np.log(2 / 9), -np.log(2 / 3)])


def test_each_binary_label_has_a_frequency_of_its_own():
    expected = stats.bernoulli(LABELS.mean(axis=0)).entropy().sum()
    assert Bernoulli().null_nll(LABELS).mean() == pytest.approx(expected, rel=1e-12)
    assert Bernoulli().null_nll(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_gaussians():
    predicted = -stats.norm(TARGETS.mean(axis=0), TARGETS.std(axis=0)).logpdf(TARGETS).sum(axis=1)
    np.testing.assert_allclose(Normal(heteroscedastic=True).null_nll(TARGETS), predicted)
    shared = np.sqrt(((TARGETS - TARGETS.mean(axis=0)) ** 2).mean())
    np.testing.assert_allclose(
        Normal().null_nll(TARGETS), -stats.norm(TARGETS.mean(axis=0), shared).logpdf(TARGETS).sum(axis=1)
    )
    fixed = -stats.norm(TARGETS[:, 0].mean(), 5.0).logpdf(TARGETS[:, 0])
    np.testing.assert_allclose(Normal(scale=5.0).null_nll(TARGETS[:, 0]), fixed)
    assert np.isfinite(Normal().null_nll(np.ones(5))).all()


@pytest.mark.parametrize("likelihood", [Normal, StudentT])
def test_a_mixture_of_draws_that_ignore_the_inputs_may_be_wider_than_a_fixed_scale(likelihood):
    y = TARGETS[:, 0]
    np.testing.assert_array_equal(likelihood(scale=0.1).null_nll(y), likelihood().null_nll(y))


@pytest.mark.parametrize("scale", [None, 5.0])
def test_student_t_is_scipy_s_fit(scale):
    y = TARGETS[:, 0]
    fixed = {} if scale is None else {"fscale": scale}
    _, location, fitted = stats.t.fit(y, fdf=4.0, **fixed)
    found = StudentT(4.0, scale=scale).null_nll(y).mean()
    expected = -stats.t(4.0, location, fitted).logpdf(y).mean()
    assert found == pytest.approx(expected, rel=1e-6)
    assert found <= expected + 1e-9  # which is a numerical fit as well


def test_poisson_and_negative_binomial():
    expected = -stats.poisson(COUNTS.mean(axis=0)).logpmf(COUNTS).sum(axis=1)
    np.testing.assert_allclose(Poisson().null_nll(COUNTS), expected)
    mean = COUNTS.mean(axis=0)
    given = -stats.nbinom(3.0, 3.0 / (3.0 + mean)).logpmf(COUNTS).sum(axis=1)
    np.testing.assert_allclose(NegativeBinomial(total_count=3.0).null_nll(COUNTS), given)
    totals = np.geomspace(0.5, 20, 2001)
    brute = min(-stats.nbinom(r, r / (r + mean)).logpmf(COUNTS).sum(axis=1).mean() for r in totals)
    found = NegativeBinomial().null_nll(COUNTS).mean()
    assert found <= brute
    assert found == pytest.approx(brute, rel=1e-5)


def test_counts_that_are_no_more_dispersed_than_poisson_s():
    y = np.tile([2, 3], 50)
    assert NegativeBinomial().null_nll(y).mean() == pytest.approx(Poisson().null_nll(y).mean(), rel=1e-6)
    assert np.isfinite(Poisson().null_nll(np.zeros(4))).all()


def test_a_mixture_has_its_component_s_and_an_unknown_likelihood_the_general_ones():
    np.testing.assert_array_equal(Mixture(Poisson()).null_nll(COUNTS), Poisson().null_nll(COUNTS))
    np.testing.assert_array_equal(Likelihood().null_nll(TARGETS), constants.gaussian(TARGETS))


CONSTANTS = [
    (Categorical(), LABELS[:, 0], 2),
    (Bernoulli(), LABELS, 2),
    (Normal(scale=5.0), TARGETS, 2),
    (StudentT(3.0, scale=5.0), TARGETS, 2),
    (StudentT(3.0, heteroscedastic=True), TARGETS, 4),
    (Normal(heteroscedastic=True), TARGETS, 4),
    (Poisson(), COUNTS, 2),
    (NegativeBinomial(total_count=2.0), COUNTS, 2),
]


@pytest.mark.core
@pytest.mark.parametrize(("likelihood", "y", "width"), CONSTANTS, ids=lambda value: type(value).__name__)
def test_no_constant_outputs_do_better(likelihood, y, width):
    """In float32, whose rounding of a mean of 200 numbers is below 1e-5 of it."""
    from scipy.optimize import minimize

    def nll(outputs):
        rows = np.broadcast_to(outputs.astype("float32"), (len(y), width))
        return float(np.mean(keras.ops.convert_to_numpy(likelihood.nll(y, rows)), dtype="float64"))

    null = likelihood.null_nll(y).mean()
    best = minimize(nll, np.full(width, 0.3), method="Nelder-Mead", options={"maxiter": 400, "xatol": 1e-3}).fun
    assert null <= best + 1e-5 * abs(best)
    assert best == pytest.approx(null, rel=5e-3)  # the search comes close


@pytest.mark.parametrize(("likelihood", "y", "width"), CONSTANTS, ids=lambda value: type(value).__name__)
def test_one_value_for_each_example(likelihood, y, width):
    assert likelihood.null_nll(y).shape == (N,)
