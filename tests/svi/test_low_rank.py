"""The low-rank guide: a Gaussian with a factor covariance, its conditionals, its gradients, and its size."""

import numpy as np
import pytest
from gradients import gradients
from keras import ops
from scipy import stats
from standard_errors import assert_within_standard_errors

from bdl.svi import LowRank
from bdl.svi.guides.low_rank import LARGEST_FRAME, LowRankGaussian

RNG = np.random.default_rng(0)
SIZE, RANK = 4, 2
MEAN = np.array([1.0, -2.0, 0.5, 3.0])
SCALE = np.array([0.5, 2.0, 1.0, 0.1])
FACTORS = RNG.normal(size=(SIZE, RANK))
COVARIANCE = np.diag(SCALE**2) + FACTORS @ FACTORS.T
FRAME = np.tril(RNG.normal(size=(SIZE, SIZE)), -1) + np.diag([0.1, 1.0, 2.0, 30.0])


def tensor(values):
    return ops.convert_to_tensor(values, dtype="float32")


def array(values):
    return ops.convert_to_numpy(values).astype("float64")


def gaussian(sticks=False):
    return LowRankGaussian(tensor(MEAN), tensor(SCALE), tensor(FACTORS), sticks)


def by_coordinate(draws, mean, covariance):
    """`log q(u_i | u_1 .. u_{i-1})`, from the Cholesky factor."""
    root = np.linalg.cholesky(covariance)
    noise = np.linalg.solve(root, (draws - mean).T).T
    return stats.norm.logpdf(noise) - np.log(np.diag(root))


@pytest.mark.core
@pytest.mark.parametrize("sticks", [False, True])
def test_draws_have_the_covariance_and_coordinates_their_conditional_densities(sticks):
    family = gaussian(sticks)
    columns = array(family.draw(tensor(np.eye(SIZE + RANK)))) - MEAN
    np.testing.assert_allclose(columns.T @ columns, COVARIANCE, rtol=1e-4, atol=1e-5)
    noise = tensor(RNG.normal(size=(2, 3, SIZE + RANK)))
    draws = array(family.draw(noise)).reshape(-1, SIZE)
    expected = by_coordinate(draws, MEAN, COVARIANCE)
    np.testing.assert_allclose(array(family.log_density(noise)).reshape(-1, SIZE), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.core
def test_the_density_in_a_frame_is_that_of_the_gaussian():
    guide = LowRank(RANK)
    guide.bind({"a": 3, "b": 1})
    guide.start_at(MEAN, FRAME)
    guide.shift.assign([0.3, -0.2, 0.1, 1.0])
    guide.rho.assign(np.log(np.expm1(SCALE)))
    guide.factors.assign(FACTORS)
    family, noise = guide.distribution(), tensor(RNG.normal(size=(5, guide.noise_size)))
    mean = MEAN + FRAME @ array(guide.shift)
    expected = by_coordinate(array(family.draw(noise)), mean, FRAME @ COVARIANCE @ FRAME.T)
    np.testing.assert_allclose(array(family.log_density(noise)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.core
def test_it_begins_at_the_laplace_approximation():
    guide = LowRank()
    guide.bind({"a": SIZE})
    guide.start_at(MEAN, FRAME)
    assert guide.noise_size == 2 * SIZE  # no more factors than numbers
    family = guide.distribution()
    np.testing.assert_allclose(array(family.draw(tensor(np.zeros(2 * SIZE)))), MEAN, rtol=1e-5)
    columns = np.linalg.solve(FRAME, (array(family.draw(tensor(np.eye(2 * SIZE)))) - MEAN).T)
    np.testing.assert_allclose(columns @ columns.T, np.eye(SIZE), atol=1e-3)  # factors of .01 in each of 4 columns


def divergence_of_draws(values, noise, sticks):
    """Mean of `log q - log p` over draws of q; p is the Gaussian of the constants above."""
    family = LowRankGaussian(*values, sticks)
    whitened = ops.matmul(family.draw(noise) - tensor(MEAN), tensor(np.linalg.inv(np.linalg.cholesky(COVARIANCE)).T))
    return ops.mean(ops.sum(family.log_density(noise), axis=-1) + 0.5 * ops.sum(whitened**2, axis=-1))


@pytest.mark.core
def test_gradients_have_no_noise_at_the_posterior():
    for _ in range(2):
        noise = tensor(RNG.normal(size=(1, SIZE + RANK)))
        values = [tensor(each) for each in (MEAN, SCALE, FACTORS)]
        for each in gradients(lambda values, noise=noise: divergence_of_draws(values, noise, True), values):
            np.testing.assert_allclose(array(each) * SCALE.min(), 0.0, atol=1e-4)


@pytest.mark.core
@pytest.mark.parametrize("sticks", [False, True])
def test_gradients_are_those_of_the_divergence_on_average(sticks):
    """With `dKL/dSigma = (P - Sigma^-1) / 2`: `P (m - m_p)`, `diag(P - Sigma^-1) d`, `(P - Sigma^-1) W`."""
    mean, scale, factors = MEAN + 0.3, 1.5 * SCALE, 0.7 * FACTORS
    precision = np.linalg.inv(COVARIANCE)
    slope = precision - np.linalg.inv(np.diag(scale**2) + factors @ factors.T)
    expected = [precision @ (mean - MEAN), np.diag(slope) * scale, slope @ factors]
    noise = np.random.default_rng(1).normal(size=(40, 100, SIZE + RANK))
    values = [tensor(each) for each in (mean, scale, factors)]
    draws = [
        gradients(lambda values, each=each: divergence_of_draws(values, tensor(each), sticks), values) for each in noise
    ]
    for place, truth in enumerate(expected):
        found = np.stack([array(each[place]) for each in draws])
        assert_within_standard_errors(found.mean(0), truth, found.std(0, ddof=1) / np.sqrt(40) + 1e-6)


@pytest.mark.core
def test_ten_thousand_numbers_need_no_square_matrix():
    size, rank = 10_000, 3
    assert size > LARGEST_FRAME
    guide = LowRank(rank)
    guide.bind({"a": size})
    assert max(int(np.prod(weight.shape)) for weight in guide.weights) == size * rank
    scale, factors = RNG.uniform(0.5, 2.0, size), RNG.normal(size=(size, rank))
    guide.rho.assign(np.log(np.expm1(scale)))
    guide.factors.assign(factors)
    noise = RNG.normal(size=(size + rank))
    found = array(guide.distribution().log_density(tensor(noise)))
    # Total density by Woodbury's identity and the lemma on determinants.
    draw = scale * noise[:size] + factors @ noise[size:]
    scaled = factors / scale[:, None]
    inner = np.eye(rank) + scaled.T @ scaled
    projected = scaled.T @ (draw / scale)
    quadratic = ((draw / scale) ** 2).sum() - projected @ np.linalg.solve(inner, projected)
    expected = -0.5 * (quadratic + np.linalg.slogdet(inner)[1] + size * np.log(2 * np.pi)) - np.log(scale).sum()
    assert found.sum() == pytest.approx(expected, rel=1e-5)


def test_a_rank_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="`rank` must be a positive integer, not 0"):
        LowRank(0)
