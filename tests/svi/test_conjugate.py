"""Conjugate guides: one step to the posterior in closed form, true draws, coordinate updates of rows, honest KL."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special, stats
from standard_errors import assert_moments, assert_within_standard_errors
from stories import Normal

from bdl.optimizers import NaturalGradient, RobbinsMonro
from bdl.svi import SVI, Conjugate, ConjugateRows, Global, Local, Observed
from bdl.svi.supports import Above, Between, Simplex


class Own:
    """A distribution without a library: parameters, support and density."""

    event_shape = ()

    def __init__(self, support, batch_shape, log_prob, event_shape=(), **parameters):
        self.support, self.batch_shape, self.event_shape = support, batch_shape, event_shape
        self._log_prob = log_prob
        vars(self).update(parameters)

    def log_prob(self, value):
        return self._log_prob(value)

    def sample(self, num_samples, key):
        shape = (*self.batch_shape, *self.event_shape)
        return self.support.constrain(ops.zeros((num_samples, self.support.flat_size(shape))), shape)


class Gamma(Own):
    def __init__(self, a, b):
        super().__init__(Above(0.0), (), lambda x: (a - 1) * ops.log(x) - b * x, concentration=a, rate=b)


class Beta(Own):
    def __init__(self, a, b):
        density = lambda x: (a - 1) * ops.log(x) + (b - 1) * ops.log1p(-x)  # noqa: E731
        super().__init__(Between(0.0, 1.0), (), density, concentration1=a, concentration0=b)


class Dirichlet(Own):
    def __init__(self, a):
        a = np.asarray(a, "float32")
        density = lambda x: ops.sum(ops.convert_to_tensor(a - 1) * ops.log(x), axis=-1)  # noqa: E731
        super().__init__(Simplex(), a.shape[:-1], density, a.shape[-1:], concentration=a)


class Likelihood(Own):
    """One density for each row."""

    def __init__(self, log_prob, rows):
        super().__init__(None, (rows,), log_prob)
        self.is_discrete = True


COUNTS = np.array([2.0, 0.0, 5.0, 3.0, 1.0], "float32")
COINS = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0], "float32")
WORDS = np.eye(3, dtype="float32")[[0, 1, 1, 2, 1, 0, 1]]


@keras.saving.register_keras_serializable(package="test_conjugate")
def poisson(data):
    rate = yield Global("rate", Gamma(2.0, 0.5))
    y = data["y"]
    yield Observed("y", Likelihood(lambda _: y * ops.log(rate) - rate, y.shape[0]), y)


def bernoulli(data):
    share = yield Global("share", Beta(1.5, 2.0))
    y = data["y"]
    yield Observed("y", Likelihood(lambda _: y * ops.log(share) + (1 - y) * ops.log1p(-share), y.shape[0]), y)


def categorical(data):
    shares = yield Global("shares", Dirichlet([0.5, 1.0, 2.0]))
    y = data["y"]
    yield Observed("y", Likelihood(lambda _: ops.sum(y * ops.log(shares), axis=-1), y.shape[0]), y)


CASES = [
    (poisson, "rate", "gamma", COUNTS, [2.0 + COUNTS.sum(), 0.5 + len(COUNTS)]),
    (bernoulli, "share", "beta", COINS, [1.5 + COINS.sum(), 2.0 + (1 - COINS).sum()]),
    (categorical, "shares", "dirichlet", WORDS, np.array([0.5, 1.0, 2.0]) + WORDS.sum(0)),
]


def fitted(story, site, family, y, rate=1.0, batch="all", steps=1, **settings):
    model = SVI(story, {site: Conjugate(family)}, seed=0, **settings)
    model.compile(NaturalGradient(rate))
    model.history = model.fit({"y": y}, batch_size=batch, steps=steps, verbose=0)
    return model


def values(model, site):
    return ops.convert_to_numpy(model.guide_of(site).values)


@pytest.mark.core
@pytest.mark.parametrize(("story", "site", "family", "y", "expected"), CASES)
def test_one_step_of_the_whole_data_reaches_the_posterior(story, site, family, y, expected):
    np.testing.assert_allclose(values(fitted(story, site, family, y), site), expected, rtol=2e-5)


@pytest.mark.parametrize(("story", "site", "family", "y", "expected"), CASES)
def test_batches_of_one_pass_with_the_rate_of_the_mean_come_to_it(story, site, family, y, expected):
    """The rate 1 / (t + 1) makes the parameters the mean over batches; those of one pass have every row once."""
    model = fitted(story, site, family, y, RobbinsMonro(forgetting=1.0), 1, len(y), averaging=False)
    np.testing.assert_allclose(values(model, site), expected, rtol=1e-4)


def test_the_elbo_at_the_posterior_is_the_log_evidence():
    model = fitted(poisson, "rate", "gamma", COUNTS, steps=2)
    elbo = model.evaluate({"y": COUNTS}, verbose=0, return_dict=True)["elbo"] * len(COUNTS)
    a, b = 2.0 + COUNTS.sum(), 0.5 + len(COUNTS)
    # The story leaves out the factorials, and the prior's normalizer does not count in the KL in closed form.
    expected = special.gammaln(a) - a * np.log(b) - special.gammaln(2.0) + 2.0 * np.log(0.5)
    assert elbo == pytest.approx(expected, rel=1e-5)


@pytest.mark.core
def test_draws_are_those_of_the_family():
    draws = 4_000
    gamma = fitted(poisson, "rate", "gamma", COUNTS).posterior(num_samples=draws, seed=1)["rate"]
    assert_moments(gamma, *stats.gamma(13.0, scale=1 / 5.5).stats())
    beta = fitted(bernoulli, "share", "beta", COINS).posterior(num_samples=draws, seed=1)["share"]
    assert_moments(beta, *stats.beta(5.5, 4.0).stats())
    concentration = np.array([0.5, 1.0, 2.0]) + WORDS.sum(0)
    shares = fitted(categorical, "shares", "dirichlet", WORDS).posterior(num_samples=draws, seed=1)["shares"]
    expected = stats.dirichlet(concentration)
    assert_moments(shares, expected.mean(), expected.var())


def test_the_guide_of_a_conjugate_model_is_its_posterior_by_k_hat():
    """Importance weights are all alike where log densities of draws are right."""
    for story, site, family, y, _ in CASES:
        model = fitted(story, site, family, y, steps=2)
        log_weights = [
            float(ops.convert_to_numpy(model.estimator.log_joint({"y": ops.convert_to_tensor(y)}, draw.real)))
            - float(np.sum(ops.convert_to_numpy(draw.log_density(0))))
            for draw in draws_of(model, y)
        ]
        assert np.ptp(log_weights) < 1e-3


def draws_of(model, y):
    from bdl.random import draw_key

    found = model.estimator.draws({"y": ops.convert_to_tensor(y)}, draw_key(3), 5, is_mirrored=False)
    return [found.one(number) for number in range(5)]


def topics(data):
    topics = yield Global("topics", Dirichlet(np.full((2, 4), 0.5)))
    shares = yield Local("shares", Dirichlet(np.full(2, 0.3)))
    words = data["words"]
    log_prob = lambda _: ops.sum(words * ops.log(shares @ topics), axis=-1)  # noqa: E731
    yield Observed("words", Likelihood(log_prob, words.shape[0]), words)


def documents(rows, seed=0):
    generator = np.random.default_rng(seed)
    truth = np.array([[0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.3, 0.7]])
    shares = generator.dirichlet([0.3, 0.3], rows)
    return np.stack([generator.multinomial(30, share @ truth) for share in shares]).astype("float32"), truth


@pytest.mark.core
def test_topics_have_the_coordinate_updates_of_blei_ng_and_jordan():
    words, _ = documents(12)
    begin = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], "float32")
    guide = {"topics": Conjugate("dirichlet"), "shares": ConjugateRows("dirichlet", steps=50)}
    model = SVI(topics, guide, seed=0, start={"topics": begin}, averaging=False)
    model.compile(NaturalGradient(1.0))
    model.fit({"words": words}, batch_size="all", steps=3, verbose=0)
    lam = 4.0 * begin.astype("float64")
    for _ in range(3):
        log_topics = special.digamma(lam) - special.digamma(lam.sum(1, keepdims=True))
        gamma = np.full((12, 2), 1.3)
        for _ in range(51):
            logs = special.digamma(gamma) - special.digamma(gamma.sum(1, keepdims=True))
            phi = special.softmax(logs[:, :, None] + log_topics[None], axis=1) * words[:, None, :]
            gamma = 0.3 + phi.sum(2)
        lam = 0.5 + phi.sum(0)
    np.testing.assert_allclose(values(model, "topics"), lam, rtol=2e-3)
    found = model.posterior({"words": words}, num_samples=300, seed=0)["shares"]
    assert found.shape == (300, 12, 2)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)


def test_topics_are_found_in_batches():
    words, truth = documents(400)
    begin = np.random.default_rng(0).dirichlet(np.ones(4), 2).astype("float32")
    guide = {"topics": Conjugate("dirichlet"), "shares": ConjugateRows("dirichlet")}
    model = SVI(topics, guide, seed=0, start={"topics": begin})
    model.compile(NaturalGradient(RobbinsMonro(0.7)), steps_per_execution=10)
    model.fit({"words": words}, batch_size=40, steps=80, verbose=0)
    lam = values(model, "topics")
    found = lam / lam.sum(1, keepdims=True)
    order = np.argsort(-found[:, 0])
    # A topic has about 200 documents of 30 words: multinomial errors, doubled for what the shares leave open.
    is_there = truth > 0  # a word that a topic has not keeps a little of the other topic's counts
    error = 2 * np.sqrt(truth * (1 - truth) / 6_000)[is_there]
    assert_within_standard_errors(found[order][is_there], truth[is_there], error)
    assert np.all(found[order][~is_there] < 0.01)


def test_a_saved_conjugate_model_goes_on_where_it_was(tmp_path):
    model = fitted(poisson, "rate", "gamma", COUNTS, RobbinsMonro(), steps=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(values(loaded, "rate"), values(model, "rate"))
    for each in (model, loaded):
        each.fit({"y": COUNTS}, batch_size="all", steps=1, verbose=0)
    np.testing.assert_allclose(values(loaded, "rate"), values(model, "rate"), rtol=1e-6)


def test_what_is_not_conjugate_is_refused_by_the_name_of_its_site():
    def other(data):
        rate = yield Global("rate", Gamma(2.0, 0.5))
        yield Observed("y", Normal(rate, 1.0), data["y"])

    def normalizing(data):
        shares = yield Global("shares", Dirichlet([0.5, 1.0, 2.0]))
        y = data["y"]
        log_prob = lambda _: ops.sum(y * (ops.log(shares) - ops.log(ops.sum(shares))), axis=-1)  # noqa: E731
        yield Observed("y", Likelihood(log_prob, y.shape[0]), y)

    with pytest.raises(ValueError, match="conjugate to the site 'rate', and it is not linear"):
        fitted(other, "rate", "gamma", COUNTS)
    with pytest.raises(ValueError, match="conjugate to the site 'shares', and it scales its probabilities"):
        fitted(normalizing, "shares", "dirichlet", WORDS)
    with pytest.raises(ValueError, match="prior of 'rate' must be of the family"):
        fitted(poisson, "rate", "beta", COUNTS)
    with pytest.raises(ValueError, match="`family` must be one of"):
        Conjugate("normal")
    model = SVI(poisson, {"rate": Conjugate("gamma")}, seed=0)
    model.compile("adam")
    with pytest.raises(ValueError, match=r"must be bdl\.optimizers.NaturalGradient"):
        model.fit({"y": COUNTS}, batch_size="all", steps=1, verbose=0)


def test_points_are_not_weighted():
    model = SVI(poisson, {"rate": Conjugate("gamma")}, objective="multi_sample", num_samples=4, seed=0)
    model.compile(NaturalGradient())
    with pytest.raises(ValueError, match=r"`objective` must be 'elbo' with the conjugate guides of \['rate'\]"):
        model.fit({"y": COUNTS}, batch_size="all", steps=1, verbose=0)
