"""Families of discrete local sites: their probabilities, and fits against exact sums over all values."""

import keras
import numpy as np
import pytest
from distribution_libraries import array, distributions, double, float64, single
from gradients import gradients
from keras import ops
from scipy import special, stats
from standard_errors import assert_within_standard_errors
from stories import Categorical, Normal

from bdl import random
from bdl.diagnostics.story import kinds_of
from bdl.keras_internals import compiled
from bdl.svi import SVI, Amortized, Categories, Counts, Global, Local, Observed
from bdl.svi.guides import categories
from bdl.svi.guides.counts import FlooredLogNormal
from bdl.svi.guides.normal_tails import log_cdf
from bdl.svi.supports import Discrete

GUIDE_OF_COUNTS = "`family` of the guide of 'count', whose values are discrete, must be one of"


class Poisson:
    """Counts without an upper end, whose library draws floats."""

    is_discrete, support, event_shape = True, None, ()

    def __init__(self, rate):
        self.rate = ops.convert_to_tensor(rate, "float32")
        self.batch_shape = tuple(self.rate.shape)

    def log_prob(self, value):
        table = single(special.gammaln(np.arange(1, 400)))
        return value * ops.log(self.rate) - self.rate - ops.take(table, ops.cast(value, "int32"))

    def sample(self, num_samples, key):
        uniform = random.uniform((num_samples, *self.batch_shape), key)
        log_probs = self.log_prob(ops.reshape(ops.arange(100, dtype="float32"), (100, *(1 for _ in self.batch_shape))))
        below = ops.cumsum(ops.exp(log_probs), axis=0)
        return ops.sum(ops.cast(uniform[:, None] > below, "float32"), axis=1)


@keras.saving.register_keras_serializable(package="tests")
def photons(data):
    """Counts that a detector blurs; the rate is unknown."""
    log_rate = yield Global("log_rate", Normal(1.0, 1.0))
    count = yield Local("count", Poisson(ops.exp(log_rate)))
    yield Observed("charge", Normal(count, 0.8), data["charge"])


MIXING = (2.0 * np.eye(10) + 0.3 * np.eye(10, k=1)).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
def beliefs(data):
    """Ten switches in each row, which are seen mixed."""
    switches = yield Local("switches", Categorical(np.tile(np.log([0.7, 0.3]), (10, 1)).astype("float32")))
    mean = ops.matmul(ops.cast(switches, "float32"), ops.convert_to_tensor(MIXING))
    yield Observed("y", Normal(mean, 1.0), data["y"])


def network():
    return keras.Sequential([keras.layers.Dense(16, "tanh"), keras.layers.Dense(16, "tanh")])


@pytest.mark.core
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 4.0])
def test_probabilities_of_counts_are_differences_of_scipys_and_sum_to_one(scale):
    mean = 2.3
    counts = np.arange(4000.0)
    found = array(FlooredLogNormal(single([mean]), single([scale])).log_prob(single(counts))).astype("float64")
    with np.errstate(divide="ignore"):
        ends = (np.log(np.arange(4001.0)) - mean) / scale
    # In the tail that is nearer, where no digits are lost.
    low, high = np.where(ends[1:] + ends[:-1] > 0, [-ends[1:], -ends[:-1]], [ends[:-1], ends[1:]])
    expected = special.log_ndtr(high) + np.log1p(-np.exp(special.log_ndtr(low) - special.log_ndtr(high)))
    is_exact = (high - low) * np.maximum(np.abs(high), 1.0) > 1e-4
    # A number has seven digits in float32, and its distance in scales as many fewer as the scale is small.
    error = 1e-6 + 3e-7 * np.abs(np.nan_to_num(ends[1:])) / scale
    gap = np.abs(found - expected)[is_exact & (expected > -1e3)]
    assert np.all(gap <= (error * (1 + np.abs(expected)))[is_exact & (expected > -1e3)])
    np.testing.assert_allclose(np.exp(found).sum() + special.ndtr(-ends[-1]), 1.0, rtol=2e-5)


def test_probabilities_of_large_counts_keep_their_digits():
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 80
    for mean, scale, noise in ((9.0, 0.01, 4.5), (13.0, 0.5, -5.0), (6.0, 1.0, 5.5), (4.0, 2.0, 0.0), (-8.0, 0.5, 0.0)):
        count = float(np.floor(np.exp(mean + scale * noise)))
        low = (mpmath.log(int(count)) - mean) / scale if count else mpmath.mpf("-inf")
        high = (mpmath.log(int(count) + 1) - mean) / scale
        low, high = (low, high) if noise <= 0 else (-high, -low)  # in the tail that is nearer
        exact = float(mpmath.log(mpmath.ncdf(high) - (mpmath.ncdf(low) if mpmath.isfinite(low) else 0)))
        with float64():
            found = FlooredLogNormal(double([mean]), double([scale])).log_prob(double([count]))
        np.testing.assert_allclose(float(array(found)[0]), exact, rtol=1e-9)


@pytest.mark.core
def test_the_normal_distribution_function_is_scipys_in_both_tails():
    x = np.concatenate([np.linspace(-30, 8, 400), [-1e4]]).astype("float32")
    np.testing.assert_allclose(array(log_cdf(single(x))), special.log_ndtr(x.astype("float64")), rtol=4e-6, atol=1e-14)


@pytest.mark.core
def test_gradients_of_counts_are_finite_everywhere_and_those_of_differences():
    counts = single([0.0, 1.0, 3.0, 40.0, 1e6])

    def total(values):
        return ops.sum(FlooredLogNormal(*values).log_prob(counts))

    for mean, scale in ((0.0, 1.0), (-30.0, 1e-4), (30.0, 1e-4), (3.0, 1e-2), (0.0, 50.0)):
        values = [ops.full((5,), mean), ops.full((5,), scale)]
        found = compiled(lambda values: gradients(total, values))(values)
        assert all(np.isfinite(array(each)).all() for each in found)
    mean, scale, step = 1.3, 0.7, 1e-5
    found = compiled(lambda values: gradients(total, values))([ops.full((5,), mean), ops.full((5,), scale)])

    small = array(counts)[:4].astype("float64")

    def log_prob(mean, scale):
        with np.errstate(divide="ignore"):
            high, low = (np.log(small) - mean) / scale, (np.log(small + 1) - mean) / scale
        return np.log(special.ndtr(-high) - special.ndtr(-low))

    in_mean = (log_prob(mean + step, scale) - log_prob(mean - step, scale)) / (2 * step)
    in_scale = (log_prob(mean, scale + step) - log_prob(mean, scale - step)) / (2 * step)
    np.testing.assert_allclose(array(found[0])[:4], in_mean, rtol=2e-4)
    np.testing.assert_allclose(array(found[1])[:4], in_scale, rtol=2e-4)


@pytest.mark.core
def test_draws_have_the_probabilities_of_their_density():
    noise = random.normal((20000, 1), random.draw_key(0))
    parameters = single([0.4, -1.0])
    counts = Counts(median=3.0).of_parameters(parameters, 1)
    three = Categories(3).of_parameters(single([0.4, -1.0, 0.7]), 1)
    for family, number in ((counts, 8), (three, 3)):
        drawn, log_prob = array(family.draw(noise))[:, 0], array(family.log_density(noise))[:, 0]
        for value in range(number):
            is_value = drawn == value
            probability = np.exp(log_prob[is_value][0].astype("float64"))
            np.testing.assert_allclose(log_prob[is_value], np.log(probability), rtol=1e-5)
            error = np.sqrt(probability * (1 - probability) / 20000)
            assert_within_standard_errors(is_value.mean(), probability, error, k=4)
    assert np.all(drawn < 3)


@pytest.mark.core
def test_a_count_that_a_detector_blurs_has_the_exact_posterior(tmp_path):
    """Against sums over all counts on a grid of the rate. The rows' guide does not know the rate: a narrower one."""
    generator = np.random.default_rng(0)
    charge = (generator.poisson(4.0, 60) + 0.8 * generator.normal(size=60)).astype("float32")
    grid, counts = np.linspace(0.8, 2.0, 401), np.arange(60)
    given = stats.norm(counts, 0.8).logpdf(charge[:, None])
    prior = stats.poisson(np.exp(grid)[:, None]).logpmf(counts)
    by_row = special.logsumexp(given[:, None] + prior, axis=-1)
    joint = by_row.sum(0) + stats.norm(1, 1).logpdf(grid)
    weights = special.softmax(joint)
    mean, sd = weights @ grid, np.sqrt(weights @ grid**2 - (weights @ grid) ** 2)
    share = np.einsum("g,rgk->rk", weights, np.exp(given[:, None] + prior - by_row[..., None]))
    means = share @ counts
    sds = np.sqrt(share @ counts**2 - means**2)

    keras.utils.set_random_seed(0)
    model = SVI(photons, {"count": Amortized(network(), ["charge"], family=Counts(3.0))}, num_samples=4, seed=0)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-2, 600)), steps_per_execution=60)
    logs = model.fit({"charge": charge}, batch_size="all", steps=600, epochs=2, verbose=0).history
    assert set(logs) >= {"nll", "kl_log_rate", "kl_count"}
    assert kinds_of(model) == {"log_rate": "global", "count": "local"}
    draws = model.posterior(num_samples=2000, seed=0)["log_rate"]
    np.testing.assert_allclose(draws.mean(), mean, atol=0.15 * sd)
    np.testing.assert_allclose(draws.std() / sd, 0.9, atol=0.15)
    found = model.posterior({"charge": charge}, num_samples=500, seed=0)["count"]
    # Of all rows; a row is off by what a log-normal is not.
    assert np.sqrt(np.mean((found.mean(0) - means) ** 2 / sds**2)) < 0.2
    np.testing.assert_allclose(np.mean(found.std(0) / sds), 1.0, atol=0.1)
    evidence = special.logsumexp(joint) + np.log(grid[1] - grid[0])
    bounds = model.bounds({"charge": charge}, num_samples=50, seed=0)
    assert evidence - 3.0 < bounds.elbo < evidence
    assert abs(bounds.importance_weighted - evidence) < 1.0
    log_weights = model.log_weights({"charge": charge}, num_samples=500, seed=0)
    assert abs(special.logsumexp(log_weights) - np.log(500) - evidence) < 1.0
    assert model.k_hat({"charge": charge}, num_samples=500, seed=0).k < 1.0
    simulated = model.predict({"charge": charge}, num_samples=50, seed=0)["charge"]
    assert simulated.shape == (50, 60)
    assert model.sample_prior({"charge": charge}, num_samples=3, seed=0)["count"].shape == (3, 60)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.sites == model.sites
    again = loaded.posterior({"charge": charge}, num_samples=20, seed=3)["count"]
    np.testing.assert_array_equal(again, model.posterior({"charge": charge}, num_samples=20, seed=3)["count"])
    loaded.fit({"charge": charge}, batch_size="all", steps=60, verbose=0)


@pytest.mark.core
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_ten_switches_of_a_row_have_the_exact_probabilities(objective):
    """Against the sum over all 1,024 combinations. The switches hardly depend on each other given the row."""
    generator = np.random.default_rng(1)
    true = generator.random((200, 10)) < 0.3
    y = (true @ MIXING + generator.normal(size=(200, 10))).astype("float32")
    every = (np.arange(1024)[:, None] >> np.arange(10)) & 1
    prior = np.log(np.where(every, 0.3, 0.7)).sum(1)
    joint = prior + stats.norm.logpdf(y[:, None], every @ MIXING, 1.0).sum(-1)
    evidence, expected = special.logsumexp(joint, axis=1).sum(), special.softmax(joint, axis=1) @ every

    keras.utils.set_random_seed(0)
    guide = {"switches": Amortized(keras.layers.Identity(), ["y"], family="categories")}
    model = SVI(beliefs, guide, num_samples=4, objective=objective, seed=0)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-1, 200)))
    model.fit({"y": y}, batch_size=100, steps=200, verbose=0)
    draws = model.posterior({"y": y}, num_samples=200, seed=0)["switches"]
    assert draws.shape == (200, 200, 10)
    # Of the draws' own error, .02, and of what switches that are independent miss.
    assert np.sqrt(np.mean((draws.mean(0) - expected) ** 2)) < 0.05
    bounds = model.bounds({"y": y}, num_samples=50, seed=0)
    assert (
        evidence - 0.05 * 200
        < bounds.elbo
        < bounds.importance_weighted
        < evidence + 4 * bounds.importance_weighted_error
    )


@pytest.mark.core
def test_values_have_the_dtype_of_the_librarys_draws():
    """A story may index with them."""
    library = distributions()
    seen = {}

    def story(data):
        half = ops.full((2,), 0.5)
        values = {
            "switch": (yield Local("switch", library.Bernoulli(probs=half))),
            "kind": (yield Local("kind", library.Categorical(probs=single([0.2, 0.3, 0.5])))),
            "few": (yield Local("few", library.Binomial(3, probs=half[0]))),
            "count": (yield Local("count", library.Poisson(single(4.0)))),
        }
        for name, value in values.items():
            seen.setdefault(name, set()).add(keras.backend.standardize_dtype(value.dtype))
        mean = ops.sum(ops.cast(values["switch"], "float32"), axis=-1)
        for name in ("kind", "few", "count"):
            mean = mean + ops.cast(values[name], "float32")
        yield Observed("y", library.Normal(mean, ops.ones(())), data["y"])

    families = {"switch": "categories", "kind": Categories(3), "few": Categories(4), "count": "counts"}
    guide = {name: Amortized(keras.layers.Identity(), ["y"], family=each) for name, each in families.items()}
    data = {"y": np.linspace(0.0, 9.0, 5).astype("float32")}
    model = SVI(story, guide, num_examples=5, seed=0)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(data, batch_size="all", steps=2, verbose=0)
    found = {site.name: (site.kind, site.shape, site.size, site.num_values) for site in model.sites[:4]}
    assert found == {
        "switch": ("local", (2,), 2, 2),
        "kind": ("local", (), 1, 3),
        "few": ("local", (), 1, 4),
        "count": ("local", (), 1, 0),
    }
    draws, before = model.posterior(data, num_samples=20, seed=0), model.sample_prior(data, num_samples=2, seed=0)
    for name, dtypes in seen.items():
        assert dtypes == {keras.backend.standardize_dtype(before[name].dtype)}
        assert draws[name].dtype == before[name].dtype
    assert draws["switch"].shape == (20, 5, 2)
    assert set(np.unique(draws["kind"])) == {0, 1, 2}
    assert np.isfinite(model.evaluate(data, verbose=0, return_dict=True)["elbo"])


@pytest.mark.core
def test_a_site_that_is_drawn_stands_beside_one_that_is_summed_out_and_a_continuous_one():
    def story(data):
        coin = yield Local("coin", Categorical(np.log([0.4, 0.6]).astype("float32")))
        count = yield Local("count", Poisson(1.0 + ops.cast(coin, "float32")))
        code = yield Local("code", Normal(0.0, 1.0))
        yield Observed("y", Normal(count + code + ops.cast(coin, "float32"), 0.5), data["y"])

    guide = {
        "count": Amortized(keras.layers.Identity(), ["y"], family="counts"),
        "code": Amortized(keras.layers.Identity(), ["y"]),
    }
    data = {"y": np.array([0.3, 2.0, 4.1], "float32")}
    model = SVI(story, guide, num_samples=2, seed=0)
    model.trace_on(data)
    assert [site.kind for site in model.sites] == ["enumerated", "local", "local", "observed"]
    real = model.estimator.draws({"y": single(data["y"])}, random.draw_key(0), 2).one(1).real
    found = model.estimator.log_densities({"y": single(data["y"])}, real)
    count, code = (array(real[name])[:, 0].astype("float64") for name in ("count", "code"))
    coin = np.arange(2)
    prior = np.log([0.4, 0.6]) + stats.poisson(1.0 + coin).logpmf(count[:, None])
    whole = prior + stats.norm((count + code)[:, None] + coin, 0.5).logpdf(data["y"][:, None])
    np.testing.assert_allclose(array(found["count"]), special.logsumexp(prior, axis=1), rtol=1e-5)
    expected = special.logsumexp(whole, axis=1) - special.logsumexp(prior, axis=1)
    np.testing.assert_allclose(array(found["y"]), expected, rtol=1e-4)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(data, batch_size="all", steps=2, verbose=0)
    assert model.probabilities(data, num_samples=3)["coin"].shape == (3, 2)
    assert model.posterior(data, num_samples=3).keys() == {"coin", "count", "code"}


@pytest.mark.core
@pytest.mark.parametrize(
    ("family", "prior", "message"),
    [
        ("mean_field", Poisson(2.0), GUIDE_OF_COUNTS + r" \['categories', 'counts'\]"),
        ("counts", Normal(0.0, 1.0), "guide of 'count', whose values are continuous, must be one of .*'mean_field'"),
        ("counts", Categorical(np.zeros(4, "float32")), "the site has 4 values in each entry.* Pass Categories\\(4\\)"),
        ("categories", Categorical(np.zeros(4, "float32")), "4 values in each entry, and the guide 2. Pass Categ"),
    ],
)
def test_a_family_of_other_values_is_refused(family, prior, message):
    def story(data):
        count = yield Local("count", prior)
        yield Observed("y", Normal(ops.cast(count, "float32"), 1.0), data["y"])

    model = SVI(story, {"count": Amortized(keras.layers.Identity(), ["y"], family=family)}, seed=0)
    with pytest.raises(ValueError, match=message):
        model.trace_on({"y": np.zeros(3, "float32")})


@pytest.mark.core
def test_what_cannot_be_guided_is_refused():
    def of_kind(kind):
        def story(data):
            count = yield kind("count", Poisson(2.0))
            yield Observed("y", Normal(count, 1.0), data["y"])

        return story

    data = {"y": np.zeros(3, "float32")}
    with pytest.raises(ValueError, match=r"Site 'count': a discrete local variable must have .*family=\"counts\""):
        SVI(of_kind(Local), seed=0).trace_on(data)
    with pytest.raises(ValueError, match="Site 'count': The distribution of a latent variable must be continuous"):
        SVI(of_kind(Global), seed=0).trace_on(data)
    with pytest.raises(ValueError, match="A guide of discrete values must be given by the name of its site"):
        SVI(of_kind(Local), Amortized(keras.layers.Identity(), ["y"], family="counts"))
    with pytest.raises(ValueError, match="`start` must have values of the distribution of site 'count'"):
        guide = {"count": Amortized(keras.layers.Identity(), ["y"], family="counts")}
        SVI(of_kind(Local), guide, start={"count": np.full(3, 0.5)}, seed=0).trace_on(data)
    for wrong in (1, 2.0, True):
        with pytest.raises(ValueError, match="`num_values` must be an integer of at least 2"):
            Categories(wrong)
    for wrong in (0, -1.0, np.inf):
        with pytest.raises(ValueError, match="`median` must be a positive number"):
            Counts(wrong)


@pytest.mark.core
def test_a_guide_that_draws_what_is_impossible_is_refused_at_the_start():
    """No fewer can have been there than were seen."""

    class Bounded:
        """Uniform on 0 to a count."""

        support, event_shape = None, ()

        def __init__(self, count):
            self.count, self.batch_shape = count, tuple(count.shape)

        def log_prob(self, value):
            return ops.where(value <= self.count, -ops.log1p(self.count), -np.inf)

        def sample(self, num_samples, key):
            raise NotImplementedError

    def story(data):
        there = yield Local("there", Poisson(60.0))
        yield Observed("seen", Bounded(there), data["seen"])

    guide = {"there": Amortized(keras.layers.Identity(), ["seen"], family="counts")}
    model = SVI(story, guide, seed=0)
    with pytest.raises(ValueError, match=r"site 'seen' must be finite .*drawn from their guides.* free to vary"):
        model.trace_on({"seen": np.full(20, 9.0, "float32")})


@pytest.mark.core
@pytest.mark.parametrize("family", [Categories(3), Counts(5.0)])
def test_families_come_back_from_their_configuration(family):
    guide = Amortized(keras.layers.Identity(), ["y"], family=family)
    guide.bind({"count": 2}, {"y": np.ones((3, 4), "float32")})
    again = Amortized.from_config(guide.get_config())
    again.build_from_config(guide.get_build_config())
    assert again.is_discrete
    assert again.family.get_config() == family.get_config()
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in guide.weights]


@pytest.mark.core
def test_places_become_values_and_back():
    numbers = Discrete(np.array([2.0, 5.0, 7.0], "float32"))
    np.testing.assert_array_equal(array(numbers.constrain(single([[0.0, 2.0], [1.0, 1.0]]), (2,))), [[2, 7], [5, 5]])
    np.testing.assert_array_equal(array(numbers.unconstrain(single([[2.0, 7.0]]), (2,))), [[0, 2]])
    one_hot = Discrete(np.eye(3, dtype="int32"))
    values = array(one_hot.constrain(single([[0.0, 2.0]]), (2, 3)))
    np.testing.assert_array_equal(values, [[[1, 0, 0], [0, 0, 1]]])
    np.testing.assert_array_equal(array(one_hot.unconstrain(single(values), (2, 3))), [[0, 2]])
    assert not numbers.has(single([3.0]), (1,))
    assert categories.Categorical(single([[0.0, -np.inf]])).log_density(single([0.3])).shape == (1,)
