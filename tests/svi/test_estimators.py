"""Terms of the objective: bounds of the evidence, equal to it where the family holds the truth; unbiased."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.integrate import quad
from standard_errors import assert_within_standard_errors
from stories import Beta22, Binomial, Normal, groups, groups_evidence, level, level_posterior

from bdl import random
from bdl.elbo import elbo_parts
from bdl.svi import SVI, Amortized, FullRank, Global, Local, Observed
from bdl.svi.supports import Between

Y = np.random.default_rng(1).normal(1.0, 2.0, size=6).astype("float32")


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def exact_groups(**settings):
    """`groups` with the guide that holds its posterior, at the posterior."""
    guide = Amortized(keras.layers.Identity(), ["y"], given=["mean"])
    model = SVI(groups, {"code": guide}, seed=0, **settings)
    model.trace_on({"y": Y})
    # code | y, mean: precision 1/1.5^2 + 1/.5^2; mean | all y: 1/4 + 6 / (1.5^2 + .5^2).
    precision = 1 / 1.5**2 + 1 / 0.5**2
    rho = np.log(np.expm1(precision**-0.5)) - np.log(np.expm1(1.0))
    guide.head.kernel.assign([[4.0 / precision, 0.0], [1 / 1.5**2 / precision, 0.0]])
    guide.head.bias.assign([0.0, rho])
    top = 1 / 4 + len(Y) / 2.5
    model.guide_of("mean").start_at(np.array([Y.sum() / 2.5 / top]), np.array([[top**-0.5]]))
    return model


def negative_elbo(model, data, key=0):
    """Of each draw: total over the rows, in nats."""
    terms = model.estimator.terms(
        {name: ops.convert_to_tensor(value) for name, value in data.items()}, random.draw_key(key)
    )
    local = sum(array(each) for each in terms.local_kl.values()) if terms.local_kl else 0.0
    return (array(terms.nll) + local).sum(-1) + sum(array(each) for each in terms.global_kl.values())


@pytest.mark.core
def test_the_elbo_is_the_evidence_where_the_family_holds_the_truth():
    """There every single draw of log q - log p + nll is the negative log evidence."""
    model = SVI(level, "full_rank", num_samples=4, seed=0)
    model.trace_on({"y": Y})
    mean, sd, evidence = level_posterior(Y.astype("float64"))
    model.guide_of("mean").start_at(np.array([mean]), np.array([[sd]]))
    assert negative_elbo(model, {"y": Y}).mean() == pytest.approx(-evidence, abs=1e-3)


@pytest.mark.core
def test_the_elbo_is_the_evidence_with_local_sites_that_depend_on_the_globals_draw():
    values = negative_elbo(exact_groups(num_samples=4), {"y": Y})
    assert values.mean() == pytest.approx(-groups_evidence(Y.astype("float64")), abs=1e-3)


@pytest.mark.core
def test_away_from_the_truth_the_elbo_is_below_the_evidence_by_the_divergence():
    model = SVI(level, num_samples=20, seed=0)
    model.trace_on({"y": Y})
    mean, sd, evidence = level_posterior(Y.astype("float64"))
    model.guide_of("mean").start_at(np.array([mean + sd]), np.array([[2 * sd]]))
    gap = 0.5 * (4 + 1 - 1) - np.log(2)  # KL(N(m + s, 4 s^2) || N(m, s^2))
    # log q - log p + nll is (1 + 2 e)^2 / 2 - e^2 / 2 and a constant; 10 mirrored pairs leave the noise of squares.
    error = 1.5 * np.sqrt(2 / 10)
    assert abs(negative_elbo(model, {"y": Y}).mean() - (gap - evidence)) < 5 * error


def coins(data):
    chance = yield Local("chance", Beta22(Between(0.0, 1.0)))
    yield Observed("heads", Binomial(data["total"], chance), data["heads"])


@pytest.mark.core
def test_beta_binomial_bounds_are_those_of_quadrature_and_lie_below_the_evidence():
    """With 2 samples, one mirrored pair, both bounds are integrals over one number for each row."""
    heads, total = np.array([0.0, 3.0, 9.0], "float32"), np.array([2.0, 10.0, 10.0], "float32")
    data = {"heads": np.repeat(heads, 1000), "total": np.repeat(total, 1000)}

    def marginal(count, out_of):
        return quad(lambda p: stats.beta(2, 2).pdf(p) * stats.binom(out_of, p).pmf(count), 0, 1)[0]

    evidence = np.mean([np.log(marginal(h, n)) for h, n in zip(heads, total, strict=True)])

    def log_weight(count, out_of, e):
        """Of the draw e of a standard normal logit."""
        p = 1 / (1 + np.exp(-e))
        prior = stats.beta(2, 2).logpdf(p) + np.log(p) + np.log1p(-p)
        return prior + stats.binom(out_of, p).logpmf(count) - stats.norm.logpdf(e)

    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    expected = {}
    for objective, combined in (
        ("elbo", lambda a, b: (a + b) / 2),
        ("multi_sample", lambda a, b: np.logaddexp(a, b) - np.log(2)),
    ):
        values = [
            combined(log_weight(h, n, nodes), log_weight(h, n, -nodes)) for h, n in zip(heads, total, strict=True)
        ]
        means = np.array([weights @ each for each in values])
        variances = [weights @ (each - mean) ** 2 for each, mean in zip(values, means, strict=True)]
        expected[objective] = means.mean(), np.sqrt(np.sum(variances) / 9 / 1000)
    assert expected["elbo"][0] < expected["multi_sample"][0] < evidence
    for objective, (mean, error) in expected.items():
        guide = Amortized(keras.layers.Identity(), ["heads", "total"])
        model = SVI(coins, {"chance": guide}, objective=objective, num_samples=2, seed=0)
        model.trace_on(data)
        terms = model.estimator.terms(
            {name: ops.convert_to_tensor(each) for name, each in data.items()}, random.draw_key(0)
        )
        parts = elbo_parts(terms.nll, 0.0, 3000, local_kl=terms.local_kl["chance"], objective=objective)
        assert_within_standard_errors(-array(parts.loss), mean, error)


@pytest.mark.core
def test_draws_come_in_mirrored_pairs():
    def story(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        code = yield Local("code", Normal(mean, 1.0))
        yield Observed("y", Normal(code, 1.0), data["y"])

    model = SVI(story, {"code": Amortized(keras.layers.Identity(), ["y"])}, seed=0)
    model.trace_on({"y": Y})
    estimator, data = model.estimator, {"y": ops.convert_to_tensor(Y)}
    assert estimator.num_draws == 2
    draws = estimator.draws(data, random.draw_key(0), 3)
    first, second, third = (draws.one(number) for number in range(3))
    origin = array(model.guide_of("mean").distribution().mean)
    np.testing.assert_allclose(array(first.real["mean"]) - origin, origin - array(second.real["mean"]), rtol=1e-4)
    np.testing.assert_allclose(array(first.real["code"]), -array(second.real["code"]), rtol=1e-5)
    assert np.abs(array(first.real["code"]) - array(third.real["code"])).min() > 0
    shared = estimator.draws(data, random.draw_key(0), 4, is_shared=True)
    assert len(set(array(shared.real["mean"])[:, 0])) == 1
    apart = estimator.draws(data, random.draw_key(0), 2, is_mirrored=False)
    assert np.abs(array(apart.real["code"]).sum(0)).min() > 0


@pytest.mark.core
def test_draws_of_a_batch_have_the_moments_of_the_guide():
    model = exact_groups()
    draws = model.posterior({"y": Y}, num_samples=100, seed=1)
    top = 1 / 4 + len(Y) / 2.5
    mean, sd = Y.sum() / 2.5 / top, top**-0.5
    assert_within_standard_errors(draws["mean"].mean(), mean, sd / np.sqrt(100))
    precision = 1 / 1.5**2 + 1 / 0.5**2
    code = (4.0 * Y + mean / 1.5**2) / precision
    spread = np.sqrt(1 / precision + (sd / 1.5**2 / precision) ** 2)
    assert_within_standard_errors(draws["code"].mean(0), code, spread / np.sqrt(100))


@pytest.mark.core
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_the_mean_of_the_minibatch_gradients_is_the_full_gradient(objective):
    """With SGD at rate 1 a step is the gradient; noise belongs to rows, and seeds are reset before each step."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3, activation="tanh")])
    guide = {"code": Amortized(network, ["y"], given=[])}
    model = SVI(groups, guide, num_examples=6, objective=objective, num_samples=2, averaging=False, seed=0)
    model.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    model.trace_on({"y": Y})
    for weight in model.trainable_weights:
        weight.assign(0.3 * np.random.default_rng(0).normal(size=weight.shape))
    start = [array(variable) for variable in model.variables]

    def gradient(begin, end):
        for variable, value in zip(model.variables, start, strict=True):
            variable.assign(value)
        before = [array(weight) for weight in model.trainable_weights]
        with random.examples(begin, end - begin):
            model.train_on_batch({"y": Y[begin:end]})
        return [old - array(weight) for old, weight in zip(before, model.trainable_weights, strict=True)]

    whole, parts = gradient(0, 6), [gradient(begin, begin + 2) for begin in (0, 2, 4)]
    assert max(np.abs(each).max() for each in whole) > 0.1
    for index, expected in enumerate(whole):
        np.testing.assert_allclose(np.mean([part[index] for part in parts], axis=0), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.tensorflow
def test_a_joint_guides_sites_share_its_divergence():
    """Of q(a, b) = q(a) q(b | a), each the mean of log q - log p over 5 mirrored pairs of draws."""
    from tensorflow_probability.python.distributions import Normal

    def story(data):
        a = yield Global("a", Normal(0.0, 1.0))
        b = yield Global("b", Normal(0.0, 1.0))
        yield Observed("y", Normal(a + b, 1.0), data["y"])

    model = SVI(story, FullRank(), num_samples=10, seed=0)
    model.trace_on({"y": Y})
    root = np.array([[0.8, 0.0], [-0.5, 0.4]])
    model.guide_of("a").start_at(np.array([0.2, -0.3]), root)
    terms = model.estimator.terms({"y": ops.convert_to_tensor(Y)}, random.draw_key(0))
    covariance = root @ root.T
    whole = 0.5 * (np.trace(covariance) + 0.2**2 + 0.3**2 - 2 - np.linalg.slogdet(covariance)[1])
    alone = 0.5 * (covariance[0, 0] + 0.2**2 - 1 - np.log(covariance[0, 0]))
    # With a = .2 + .8 e and b = -.3 - .5 e + .4 f a pair leaves -.18 e^2, of both -.055 e^2 - .42 f^2 - .2 e f.
    error = 0.18 * np.sqrt(2 / 5)
    assert abs(float(terms.global_kl["a"]) - alone) < 5 * error
    error = np.sqrt((2 * 0.055**2 + 2 * 0.42**2 + 0.2**2) / 5)
    assert abs(float(terms.global_kl["a"] + terms.global_kl["b"]) - whole) < 5 * error
