"""Diagnostics where everything is known: conjugate Bayesian linear regression, y = x w + noise, w ~ N(0, I).

The closed forms are those of `benchmarks/mean_field_table.py`; evidence and exact posterior stand here.
"""

import numpy as np
import pytest
from mean_field_table import (
    NOISE_VARIANCE,
    closed_form,
    divergences,
    draw_data,
    figures_of,
    gibbs_nll,
    measure_network,
    optimum,
)
from scipy import stats
from standard_errors import assert_within_standard_errors

from bdl.diagnostics import judge

NUM_SAMPLES = 128
FLOAT32 = 1e-6  # relative rounding of a sum of positive terms in float32, where nothing is sampled


def log_evidence(x, y):
    """log p(y|x) = log N(y; 0, x x' + v I), in nats."""
    covariance = x.astype("float64") @ x.T.astype("float64") + NOISE_VARIANCE * np.eye(len(x))
    return stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(y.astype("float64"))


def kl_to_posterior(x, y, mean, scale):
    """KL(N(mean, scale^2) || p(w|x,y)) of the exact posterior, with all its correlations, in nats."""
    x, y = x.astype("float64"), y.astype("float64")
    precision = np.eye(len(mean)) + x.T @ x / NOISE_VARIANCE
    shift = np.linalg.solve(precision, x.T @ y / NOISE_VARIANCE) - mean
    trace = np.sum(np.diag(precision) * np.square(scale))
    log_determinants = np.linalg.slogdet(precision)[1] + 2 * np.sum(np.log(scale))
    return 0.5 * (trace + shift @ precision @ shift - len(mean) - log_determinants)


def beside_the_optimum(x, y):
    mean, scale = optimum(x, y)
    shift = np.random.default_rng(1).normal(size=mean.shape)
    return mean + 0.5 * shift, scale * np.exp(0.3 * shift)


def at_prior(x, y):
    return np.zeros(x.shape[1]), np.ones(x.shape[1])


def quadratic_errors(x, y, mean, scale):
    """Monte Carlo errors of a measurement, for w = mean + scale e with e ~ N(0, I): variances of quadratic forms of e.

    Returns:
        Standard errors of NLL_Gibbs, of Var_x(E_q f) and of E_x Var_q f.
    """
    x, y = x.astype("float64"), y.astype("float64")
    n, noise = len(x), x * scale
    gram = noise @ noise.T
    linear = np.sum(np.square(noise.T @ (y - x @ mean)))
    nll = np.sqrt(4 * linear + 2 * np.sum(np.square(gram))) / (2 * NOISE_VARIANCE * n)
    fit, noise = x @ mean, noise - noise.mean(axis=0)
    centred = noise @ noise.T
    fit = fit - fit.mean()
    pairs = NUM_SAMPLES * (NUM_SAMPLES - 1)
    signal = np.sqrt(4 * fit @ centred @ fit / NUM_SAMPLES + 2 * np.sum(np.square(centred)) / pairs) / n
    spread = np.sqrt(2 * np.sum(np.square(gram)) / (NUM_SAMPLES - 1)) / n
    return nll / np.sqrt(NUM_SAMPLES), signal, spread


def assert_measures(q, x, y, mean, scale):
    """Compares every column of the table with its closed form, within 4 standard errors."""
    measured, exact = figures_of(q), closed_form(x, y, mean, scale)
    assert measured.rate == pytest.approx(exact.rate, rel=FLOAT32)
    assert measured.prior_matched == exact.prior_matched
    nll, signal, spread = quadratic_errors(x, y, mean, scale)
    nll_prior, _, spread_prior = quadratic_errors(x, y, *at_prior(x, y))
    assert_within_standard_errors(measured.nll_gibbs, exact.nll_gibbs, nll, k=4)
    assert_within_standard_errors(measured.nll_prior, exact.nll_prior, nll_prior, k=4)
    variance = np.var(y.astype("float64"))
    signal_error = signal / variance / (2 * exact.function_signal)
    assert_within_standard_errors(measured.function_signal, exact.function_signal, signal_error, k=4)
    # Posterior and prior may share their noise: the sum of the relative errors bounds that of the quotient.
    prior_spread = np.square(x.astype("float64")).sum(axis=1).mean()
    relative = spread / (exact.function_variance * prior_spread) + spread_prior / prior_spread
    assert_within_standard_errors(
        measured.function_variance, exact.function_variance, exact.function_variance * relative, k=4
    )


@pytest.mark.core
@pytest.mark.parametrize("posterior", [optimum, beside_the_optimum, at_prior])
@pytest.mark.parametrize("dimension", [5, 30])
def test_elbo_and_kl_to_the_posterior_add_up_to_the_evidence(dimension, posterior):
    x, y = draw_data(dimension, seed=0, num_examples=50)
    mean, scale = posterior(x, y)
    q = measure_network(x, y, mean, scale, NUM_SAMPLES)
    error = q.train.disagreement / np.sqrt(NUM_SAMPLES)
    assert_within_standard_errors(q.train.nll_gibbs, gibbs_nll(x, y, mean, scale), error, k=4)
    elbo = -q.num_examples * q.train.nll_gibbs - q.kl
    evidence = log_evidence(x, y)
    assert_within_standard_errors(elbo + kl_to_posterior(x, y, mean, scale), evidence, q.num_examples * error, k=4)


@pytest.mark.parametrize("dimension", [5, 30])
def test_disagreement_is_the_standard_deviation_of_a_draw_s_nll(dimension):
    """An error that others are bounded by has to be right itself.

    The sum of squares of `r - Z e`, with `e ~ N(0, I)`, has the cumulants `k2 = 4 |Z'r|^2 + 2 tr A^2` and
    `k4 = 48 (tr A^4 + 4 |A Z'r|^2)`, where `A = Z'Z`; a sample variance varies by `k4 / S + 2 k2^2 / (S - 1)`.
    """
    x, y = draw_data(dimension, seed=0, num_examples=50)
    mean, scale = optimum(x, y)
    q = measure_network(x, y, mean, scale, NUM_SAMPLES)
    noise = x.astype("float64") * scale
    A, linear = noise.T @ noise, noise.T @ (y - x.astype("float64") @ mean)
    k2 = 4 * linear @ linear + 2 * np.trace(A @ A)
    k4 = 48 * (np.trace(A @ A @ A @ A) + 4 * linear @ A @ A @ linear)
    unit = (2 * NOISE_VARIANCE * len(y)) ** 2
    error = np.sqrt(k4 / NUM_SAMPLES + 2 * k2**2 / (NUM_SAMPLES - 1)) / unit
    assert_within_standard_errors(q.train.disagreement**2, k2 / unit, error, k=4)


def excess_error(q, x, y):
    """Standard error of the information excess: of both NLLs, whose noise may be the same, so their sum bounds it."""
    return q.train.disagreement / np.sqrt(NUM_SAMPLES) + quadratic_errors(x, y, *at_prior(x, y))[0]


@pytest.mark.parametrize(("dimension", "num_examples"), [(5, 50), (30, 50), (30, 10)])
def test_information_is_within_its_budget_at_the_optimum(dimension, num_examples):
    """Q7, whose exact value is `(KL(q || posterior) - KL(prior || posterior)) / N`: what each ELBO lacks."""
    x, y = draw_data(dimension, seed=0, num_examples=num_examples)
    mean, scale = optimum(x, y)
    q = measure_network(x, y, mean, scale, NUM_SAMPLES)
    error = excess_error(q, x, y)
    gap = kl_to_posterior(x, y, mean, scale) - kl_to_posterior(x, y, *at_prior(x, y))
    assert_within_standard_errors(q.information_excess, gap / num_examples, error, k=4)
    assert q.information_excess <= 4 * error


@pytest.mark.parametrize(("dimension", "num_examples", "is_violated"), [(100, 10, True), (5, 50, False)])
def test_information_exceeds_its_budget_at_a_hundredth_of_the_temperature(dimension, num_examples, is_violated):
    """Where weights outnumber examples; few weights cannot cost what many examples pay, however cold they are."""
    x, y = draw_data(dimension, seed=0, num_examples=num_examples)
    mean, scale = optimum(x, y, temperature=0.01)
    q = measure_network(x, y, mean, scale, NUM_SAMPLES)
    error = excess_error(q, x, y)
    gap = kl_to_posterior(x, y, mean, scale) - kl_to_posterior(x, y, *at_prior(x, y))
    assert_within_standard_errors(q.information_excess, gap / num_examples, error, k=4)
    assert (q.information_excess > 4 * error) == is_violated


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_tempered_optimum_is_one(temperature):
    """No step in mean or scale lowers `N NLL_Gibbs + T KL`: the tests above stand on it."""
    x, y = draw_data(5, seed=0, num_examples=50)

    def objective(mean, scale):
        return len(y) * gibbs_nll(x, y, mean, scale) + temperature * np.sum(divergences(mean, scale))

    mean, scale = optimum(x, y, temperature)
    best = objective(mean, scale)
    for direction in np.eye(5):
        for step in (-1e-3, 1e-3):
            assert objective(mean + step * direction, scale) > best
            assert objective(mean, scale * np.exp(step * direction)) > best


def test_measured_table_agrees_with_its_closed_form():
    x, y = draw_data(100, seed=0)
    mean, scale = optimum(x, y)
    assert_measures(measure_network(x, y, mean, scale, NUM_SAMPLES), x, y, mean, scale)


def test_weights_at_their_prior_are_no_collapse_while_the_mean_fits():
    """As at D = 10,000 with 200 examples: most weights match the prior, functions vary like its own, the mean fits."""
    x, y = draw_data(2000, seed=0, num_examples=40)
    mean, scale = optimum(x, y)
    q = measure_network(x, y, mean, scale, NUM_SAMPLES)
    assert_measures(q, x, y, mean, scale)
    assert q.layers[0].prior_matched > 0.5
    assert q.function_variance > 0.8
    assert judge(q).verdict == "variance_saturated"


def test_the_prior_itself_is_a_collapse():
    """Weights at their prior and nothing learned: the function tells it from the case above."""
    x, y = draw_data(2000, seed=0, num_examples=200)
    q = measure_network(x, y, *at_prior(x, y), NUM_SAMPLES)
    assert q.layers[0].prior_matched == 1.0
    error = quadratic_errors(x, y, *at_prior(x, y))[1] / np.var(y.astype("float64"))
    assert q.function_signal**2 <= 4 * error  # no more than noise: few samples would leave Var_q f / S behind
    assert judge(q).verdict == "collapsed"
