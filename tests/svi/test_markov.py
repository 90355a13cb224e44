"""Markov chains as a distribution: their density, draws and shapes."""

import numpy as np
import pytest
from distribution_libraries import distributions, single
from keras import ops
from scipy import stats
from standard_errors import assert_covariance
from stories import HalfNormal, Normal

from bdl import random
from bdl.svi import MarkovChain
from bdl.svi.supports import Above, log_prob, sample, support_of

DRIFT = np.array([0.0, 1.0, -2.0, 0.5], "float32")


def autoregression(rows=None):
    """`u_t = .8 u_{t-1} + drift_t + N(0, .5^2)`, from N(1, 2^2); of some rows at once."""

    def transition(previous, step):
        return Normal(0.8 * previous + ops.take(ops.convert_to_tensor(DRIFT), step), 0.5 + ops.zeros_like(previous))

    first = Normal(1.0, 2.0) if rows is None else Normal(np.ones(rows), 2.0)
    return MarkovChain(first, transition, 4)


def its_gaussian():
    unit = np.linalg.inv(np.eye(4) - np.diag(np.full(3, 0.8), -1))
    root = unit * np.array([2.0, 0.5, 0.5, 0.5])
    return unit @ (DRIFT + np.array([1.0, 0.0, 0.0, 0.0])), root @ root.T


@pytest.mark.core
def test_the_density_of_a_path_is_that_of_its_gaussian():
    mean, covariance = its_gaussian()
    paths = np.random.default_rng(0).normal(size=(5, 4))
    expected = stats.multivariate_normal(mean, covariance).logpdf(paths)
    found = log_prob(autoregression(), ops.convert_to_tensor(paths, "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-4)
    found = log_prob(autoregression(rows=5), ops.convert_to_tensor(paths, "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-4)


@pytest.mark.core
def test_draws_have_the_moments_of_the_gaussian():
    mean, covariance = its_gaussian()
    draws = ops.convert_to_numpy(sample(autoregression(rows=2), 4000, random.draw_key(0)))
    assert draws.shape == (4000, 2, 4)
    assert_covariance(draws[:, 0], mean, covariance)
    assert_covariance(draws[:, 1], mean, covariance)
    assert abs(np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]) < 5 / 4000**0.5  # rows are independent


@pytest.mark.core
def test_a_path_of_positive_states_is_positive():
    chain = MarkovChain(HalfNormal(1.0), lambda previous, step: HalfNormal(previous), 3)
    assert isinstance(support_of(chain), Above)
    assert (ops.convert_to_numpy(sample(chain, 10, random.draw_key(0))) > 0).all()


def test_a_state_of_several_numbers_has_time_before_them():
    library = distributions()

    def state(loc):
        return (
            library.MultivariateNormal(loc, single(np.eye(2))) if is_torch_like else library.MultivariateNormalDiag(loc)
        )

    is_torch_like = hasattr(library, "MultivariateNormal")
    chain = MarkovChain(state(single(np.zeros(2))), lambda previous, step: state(0.5 * previous), 3)
    assert chain.event_shape == (3, 2)
    path = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    gaps = np.concatenate([path[:1], path[1:] - 0.5 * path[:-1]])
    expected = stats.norm.logpdf(gaps).sum()
    assert float(log_prob(chain, ops.convert_to_tensor(path))) == pytest.approx(expected, rel=1e-4)
    assert sample(chain, 7, random.draw_key(0)).shape == (7, 3, 2)


def test_what_is_no_chain_is_refused():
    with pytest.raises(ValueError, match="`num_steps` must be 2 or more, not 1"):
        MarkovChain(Normal(0.0, 1.0), lambda previous, step: Normal(previous, 1.0), 1)
    constant = MarkovChain(Normal(0.0, 1.0), lambda previous, step: Normal(0.0, 1.0), 3)
    with pytest.raises(ValueError, match=r"`transition` must return a distribution .*\(2,\), not \(\)"):
        constant.log_prob(np.zeros(3, "float32"))
