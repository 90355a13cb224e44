"""Importance weights with known tails, and chains from known distributions."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import stats
from standard_errors import assert_within_standard_errors

from bdl.svi.checks import Chains, correct, k_hat, nuts_flat

BACKEND = keras.backend.backend()


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.5])
def test_the_shape_of_a_pareto_tail_is_found(shape):
    """Weights are Pareto with shape k above all quantiles; each of 40 fits to M exceedances has the standard error
    (1 + k) / sqrt(M) (Smith 1987), and its prior, worth 10 exceedances of 1/2, moves the mean by a known amount."""
    size, repeats = 10_000, 40
    tail = 300
    rng = np.random.default_rng(0)
    found = [k_hat(shape * rng.exponential(size=size)).k for _ in range(repeats)]
    expected = (tail * shape + 10 * 0.5) / (tail + 10)
    # The bias of the maximum likelihood of k is of the order 1 / M, a fifth of a standard error of one fit.
    error = (1 + shape) / np.sqrt(tail) * np.hypot(1 / np.sqrt(repeats), 0.2 / 5)
    assert_within_standard_errors(np.mean(found), expected, error)


def test_a_proposal_with_a_heavier_tail_is_reliable_and_one_with_a_lighter_is_not():
    """Weights of t draws for a normal target are bounded; those of draws that are too narrow are not."""
    rng = np.random.default_rng(1)
    wide = stats.t(3).rvs(4_000, random_state=rng)
    good = k_hat(stats.norm.logpdf(wide) - stats.t(3).logpdf(wide))
    assert good.k < 0.3
    assert good.is_reliable
    assert "as far as its draws reach" in str(good)
    narrow = 0.4 * rng.normal(size=(4_000, 20))
    for target in (stats.norm, stats.t(3)):
        bad = k_hat(np.sum(target.logpdf(narrow) - stats.norm(scale=0.4).logpdf(narrow), axis=1))
        assert bad.k > 0.7
        assert not bad.is_reliable
        assert "cannot correct" in str(bad)
        assert bad.effective_sample_size < good.effective_sample_size


def test_a_heavy_tail_of_weights_that_hardly_differ_is_reliable():
    """Weights 1 + .01 P with P of Pareto shape .85 have that k-hat, a variance of some 1e-3, and correct every mean."""
    tail = np.random.default_rng(4).uniform(size=4_000) ** -0.85 - 1.0
    flat = k_hat(np.log1p(0.01 * tail))
    assert flat.threshold < flat.k < 1.0
    assert flat.effective_share > 0.95
    assert flat.is_reliable
    assert "nearly equal" in str(flat)
    steep = k_hat(np.log1p(10.0 * tail))
    assert steep.k == pytest.approx(flat.k, abs=0.2)
    assert steep.effective_share < 0.9
    assert not steep.is_reliable


def test_weights_without_a_mean_are_never_reliable():
    assert not correct(1.0, 0.7, 1.0)
    assert not correct(math.inf, 0.7, 1.0)
    assert not correct(0.8, 0.7, None)


def test_smoothed_weights_are_normalized_and_keep_order_and_body():
    log_weights = np.random.default_rng(2).normal(size=1_000)
    smoothed = k_hat(log_weights + 700.0)
    weights = np.exp(smoothed.log_weights)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
    assert np.all(np.diff(smoothed.log_weights[np.argsort(log_weights)]) >= 0)
    body = np.argsort(log_weights)[:900]
    ratio = smoothed.log_weights[body] - log_weights[body]
    np.testing.assert_allclose(ratio, ratio[0], atol=1e-10)
    assert smoothed.effective_sample_size == pytest.approx(1 / np.sum(weights**2))
    assert weights.max() <= np.exp(log_weights.max() + ratio[0]) * (1 + 1e-12)


def test_importance_sampling_with_them_finds_the_mean_of_the_target():
    rng = np.random.default_rng(3)
    draws = rng.normal(0.0, 1.5, size=10_000)
    smoothed = k_hat(stats.norm(0.5, 1.0).logpdf(draws) - stats.norm(0.0, 1.5).logpdf(draws))
    weights = np.exp(smoothed.log_weights)
    error = np.sqrt(np.sum(weights**2 * (draws - 0.5) ** 2))
    assert_within_standard_errors(np.sum(weights * draws), 0.5, error)


@pytest.mark.parametrize("size", [100, 101, 1_000, 1_600, 20_000])
@pytest.mark.parametrize("shape", [0.3, 0.8])
def test_arviz_finds_the_same(size, shape):
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    log_weights = shape * np.random.default_rng(4).exponential(size=size)
    expected, k = array_stats.psislw(-log_weights)
    found = k_hat(log_weights)
    assert found.k == pytest.approx(float(k), abs=1e-8)
    np.testing.assert_allclose(found.log_weights, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["centered_eight", "non_centered_eight"])
def test_arviz_finds_the_same_on_its_own_data(name):
    """Its tests smooth the leave-one-out weights of the eight schools, 2,000 draws with repetitions of eight rows."""
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    h5py = pytest.importorskip("h5py")
    folder = Path(pytest.importorskip("arviz_base").__file__).parent / "example_data" / "data"
    with h5py.File(folder / f"{name}.nc") as file:
        log_likelihood = file["log_likelihood/obs"][()].astype("float64").reshape(2000, 8)
    for each in log_likelihood.T:
        expected, k = array_stats.psislw(each)
        found = k_hat(-each)
        assert found.k == pytest.approx(float(k), abs=1e-6)
        # Sorted, for which of two equal draws has the larger quantile is chance.
        np.testing.assert_allclose(np.sort(found.log_weights), np.sort(expected), rtol=0, atol=1e-6)


def test_narrow_normal_draws_of_a_normal_target_are_ordered_by_their_width():
    """Weights of N(0, s) draws have the tail 1 - s^2 in the limit, .75 and .0975, which is reached slowly.

    The means of many fits lie in these ranges, as far as 20 of them with 20,000 draws can tell.
    """
    found = {}
    for scale, low, high in ((0.5, 0.7, 0.9), (0.95, 0.05, 0.2)):
        draws = [scale * np.random.default_rng(seed).normal(size=20_000) for seed in range(20)]
        each = [k_hat(stats.norm.logpdf(one) - stats.norm.logpdf(one, scale=scale)).k for one in draws]
        error = np.std(each, ddof=1) / np.sqrt(20)
        assert low - 4 * error < np.mean(each) < high + 4 * error
        found[scale] = each
    assert max(found[0.95]) < min(found[0.5])


def test_equal_weights_have_no_tail():
    smoothed = k_hat(np.full(100, -3.0))
    assert smoothed.k == -math.inf
    assert smoothed.effective_sample_size == pytest.approx(100.0)
    assert smoothed.is_reliable


def test_one_draw_that_has_all_the_weight_is_the_heaviest_tail():
    smoothed = k_hat(np.linspace(-1e5, 0.0, 200))
    assert smoothed.k == math.inf
    assert smoothed.effective_sample_size == pytest.approx(1.0)
    assert not smoothed.is_reliable


def test_weights_of_zero_count_as_draws():
    log_weights = np.random.default_rng(5).normal(size=400)
    log_weights[::2] = -np.inf
    smoothed = k_hat(log_weights)
    assert np.isfinite(smoothed.k)
    assert smoothed.effective_sample_size <= 200
    assert np.all(np.exp(smoothed.log_weights[::2]) == 0)


def test_few_draws_lower_the_threshold_and_the_sentence_says_how_many_are_enough():
    log_weights = 0.6 * stats.expon.ppf((np.arange(100) + 0.5) / 100)
    smoothed = k_hat(log_weights)
    assert smoothed.threshold == pytest.approx(0.5)
    assert 0.5 < smoothed.k < 0.7
    needed = int(str(smoothed).split("; ")[1].split()[0])
    assert 1 - 1 / math.log10(needed) == pytest.approx(smoothed.k, abs=1e-3)


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (np.zeros(24), r"must have the shape \(S,\) with S >= 25, not \(24,\)"),
        (np.zeros((50, 2)), r"not \(50, 2\)"),
        (np.array([0.0] * 30 + [np.nan, np.inf]), "not nan as draw 30 and 1 others"),
        (np.full(30, -np.inf), "not -inf alone"),
    ],
)
def test_log_weights_that_are_none_are_refused(log_weights, message):
    with pytest.raises(ValueError, match=message):
        k_hat(log_weights)


def autoregressive(correlation, chains=4, length=4_000, seed=0):
    """Chains of a stationary process whose effective sample size is known: `n (1 - r) / (1 + r)`."""
    rng = np.random.default_rng(seed)
    draws = np.empty((chains, length))
    draws[:, 0] = rng.normal(size=chains)
    noise = np.sqrt(1 - correlation**2) * rng.normal(size=(chains, length))
    for step in range(1, length):
        draws[:, step] = correlation * draws[:, step - 1] + noise[:, step]
    return draws


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.5, 0.9])
def test_the_effective_sample_size_of_an_autoregression_is_known(correlation):
    found = [
        Chains(autoregressive(correlation, seed=seed)[..., None], 0).effective_sample_size[0] for seed in range(20)
    ]
    expected = 16_000 * (1 - correlation) / (1 + correlation)
    assert_within_standard_errors(np.mean(found), expected, np.std(found, ddof=1) / np.sqrt(20) + 0.01 * expected)


def test_r_hat_sees_chains_that_differ_in_mean_or_in_spread():
    alike = autoregressive(0.0)
    apart = alike + np.array([[0.0], [0.0], [0.0], [1.0]])
    wider = alike * np.array([[1.0], [1.0], [1.0], [3.0]])
    drifting = alike + np.linspace(0.0, 1.0, alike.shape[1])
    r_hat = Chains(np.stack([alike, apart, wider, drifting], axis=-1), 0).r_hat
    assert abs(r_hat[0] - 1) < 0.005
    assert np.all(r_hat[1:] > 1.03)


def test_arviz_finds_the_same_of_chains():
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    draws = np.stack([autoregressive(0.6, length=500), autoregressive(-0.3, length=500, seed=1)], axis=-1)
    chains = Chains(draws, 0)
    expected = [array_stats.rhat(draws[..., each], chain_axis=0, draw_axis=1, method="rank") for each in range(2)]
    np.testing.assert_allclose(chains.r_hat, expected, rtol=1e-8)
    expected = [array_stats.ess(draws[..., each], chain_axis=0, draw_axis=1, method="bulk") for each in range(2)]
    np.testing.assert_allclose(chains.effective_sample_size, expected, rtol=1e-8)


MEAN = np.array([1.0, -200.0, 0.02])
FACTOR = np.array([[2.0, 0.0, 0.0], [90.0, 30.0, 0.0], [0.005, -0.01, 0.002]])


def log_density(u):
    """Of a Gaussian with scales from .01 to 95 and a correlation of .95."""
    from keras import ops

    precision = np.linalg.inv(FACTOR @ FACTOR.T)
    difference = u - ops.convert_to_tensor(MEAN, dtype=u.dtype)
    products = difference[..., :, None] * difference[..., None, :] * ops.convert_to_tensor(precision, dtype=u.dtype)
    return -0.5 * ops.sum(products, axis=(-2, -1))


@pytest.mark.core
def test_nuts_finds_the_moments_of_a_correlated_gaussian():
    if BACKEND == "jax":
        pytest.importorskip("numpyro")
    start = (MEAN + np.array([[1.0], [-1.0], [0.5], [-0.5]]) * np.diag(FACTOR)).astype("float32")
    if BACKEND == "torch":
        with pytest.raises(
            ValueError, match=r"tensorflow, with TensorFlow Probability, or jax, with NumPyro .*, not on torch"
        ):
            nuts_flat(log_density, start)
        return
    chains = nuts_flat(log_density, start, num_samples=500, num_warmup=400, seed=1)
    assert chains.draws.shape == (4, 500, 3)
    assert np.all(chains.r_hat < 1.02)
    assert np.all(chains.effective_sample_size > 400)
    draws = chains.draws.reshape(-1, 3).astype("float64")
    deviation = np.sqrt(np.sum(FACTOR**2, axis=1))
    assert_within_standard_errors(draws.mean(axis=0), MEAN, deviation / np.sqrt(chains.effective_sample_size))
    of_squares = Chains(np.square(chains.draws - MEAN), 0).effective_sample_size
    assert_within_standard_errors(
        np.mean((draws - MEAN) ** 2, axis=0), deviation**2, np.sqrt(2 / of_squares) * deviation**2
    )


@pytest.mark.slow
def test_nuts_gives_the_same_draws_for_the_same_seed():
    one, same, other = (
        nuts_flat(log_density, MEAN.astype("float32"), 5, num_warmup=12, num_chains=2, seed=seed).draws
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)


@pytest.mark.core
def test_nuts_refuses_a_start_of_another_shape():
    with pytest.raises(ValueError, match=r"`start` must have the shape \(size,\) or \(4, size\), not \(3, 2\)"):
        nuts_flat(log_density, np.zeros((3, 2)))
