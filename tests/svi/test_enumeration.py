"""Discrete local sites that are summed out: the sum by hand, value and gradient, and what comes of a fit."""

import importlib.util

import keras
import numpy as np
import pytest
from distribution_libraries import array, distributions, double, float64
from gradients import gradients
from keras import ops
from scipy import special, stats
from standard_errors import assert_within_standard_errors
from stories import Categorical, Normal

from bdl import random
from bdl.diagnostics.story import kinds_of
from bdl.elbo import elbo_parts
from bdl.svi import SVI, Amortized, Global, Local, Observed, nuts
from bdl.svi import reference as reference_room
from bdl.svi.checks import Chains
from bdl.svi.enumeration import Combinations, sum_out
from bdl.svi.story import Site
from bdl.svi.supports import values_of
from bdl.svi.tracing import trace

Y = np.array([-2.1, -1.0, 0.3, 1.2, 2.5], "float32")
DATA = {"y": Y}
PRIOR = np.array([0.2, 0.5, 0.3])
PLACES = np.array([-2.0, 0.0, 2.0])
SCALES = np.array([1.0, 0.5, 2.0])


def at(values, place):
    return ops.take(ops.convert_to_tensor(np.asarray(values, "float32")), place, axis=0)


def normal(x, mean, scale):
    return stats.norm(mean, scale).logpdf(x)


@keras.saving.register_keras_serializable(package="tests")
def mixture(data):
    """The middle of three components is unknown."""
    middle = yield Global("middle", Normal(0.0, 3.0))
    which = yield Local("which", Categorical(np.log(PRIOR).astype("float32")))
    yield Observed("y", Normal(middle + at(PLACES, which), 1.0), data["y"])


def mixture_density(y, middle, given=PRIOR):
    """Of each row and component."""
    return np.log(given) + normal(np.asarray(y, "float64")[:, None], middle + PLACES, 1.0)


def coded(data):
    """A code whose prior depends on the component; one that does not, and comes before; two observed sites."""
    one = ops.ones(())
    level = yield Local("level", distributions().Normal(0 * one, one))  # of a library: bdl knows that it is Gaussian
    which = yield Local("which", Categorical(np.log(PRIOR).astype("float32")))
    code = yield Local("code", Normal(at(PLACES, which), at(SCALES, which)))
    yield Observed("y", Normal(code + level, at(SCALES, which)), data["y"])
    yield Observed("z", Normal(at(PLACES, which), 1.0), data["y"])


def coded_model(**settings):
    guide = {"level": Amortized(keras.layers.Identity(), ["y"]), "code": Amortized(keras.layers.Identity(), ["y"])}
    model = SVI(coded, guide, seed=0, **settings)
    model.trace_on(DATA)
    for name, shift in (("level", 0.2), ("code", -0.3)):
        model.guide_of(name).head.bias.assign([shift, -0.5])
        model.guide_of(name).head.kernel.assign([[0.1, 0.2]])
    return model


def tensors(data=DATA):
    return {name: ops.convert_to_tensor(value) for name, value in data.items()}


def traced(story, data=DATA):
    return trace(story, tensors(data), random.draw_key(0))


@pytest.mark.core
def test_the_sum_is_the_one_by_hand_in_value_and_gradient():
    """Of a story of the library's distributions in float64, against the logarithm of the sum, written out."""
    library = distributions()
    y = double(Y)

    def summed(data):
        places = yield Global("places", library.Independent(library.Normal(double([-2.0, 2.0]), double(2.0)), 1))
        logit = yield Global("logit", library.Normal(double(0.0), double(1.0)))
        which = yield Local("which", library.Bernoulli(logits=logit))
        place = ops.take(places, ops.cast(which, "int32"), axis=0)
        yield Observed("y", library.Normal(place, double(0.7)), data["y"])

    def by_hand(places, logit):
        priors = -0.5 * ops.sum(((places - double([-2.0, 2.0])) / 2.0) ** 2) - 2 * np.log(2.0) - 0.5 * ops.sum(logit**2)
        logs = ops.stack([-ops.softplus(logit), -ops.softplus(-logit)], axis=-1)
        each = logs - 0.5 * ((y[:, None] - places) / 0.7) ** 2 - np.log(0.7 * np.sqrt(2 * np.pi))
        return priors - 1.5 * np.log(2 * np.pi) + ops.sum(ops.logsumexp(each, axis=-1))

    with float64():
        model = SVI(summed, dtype="float64", seed=0)
        data = {"y": y}
        model.trace_on({"y": Y.astype("float64")})
        estimator = model.estimator

        def joint(values):
            return estimator.log_joint(data, {"places": values[0], "logit": values[1]})

        point = [double([-1.5, 1.0]), double([0.4])]
        np.testing.assert_allclose(array(joint(point)), array(by_hand(*point)), rtol=1e-12)
        found, expected = gradients(joint, point), gradients(lambda values: by_hand(*values), point)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(array(one), array(other), rtol=1e-9)


@pytest.mark.core
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_terms_are_those_by_hand_where_another_sites_prior_depends_on_the_indicator(objective):
    """NLL given the other latent values, and divergences from their priors, without the indicator in both."""
    model = coded_model(objective=objective, num_samples=2)
    draws = model.estimator.draws(tensors(), random.draw_key(3), 2, is_shared=objective == "multi_sample")
    terms = model.estimator.terms(tensors(), random.draw_key(3))
    level, code = (array(draws.real[name])[..., 0].astype("float64") for name in ("level", "code"))
    prior = np.log(PRIOR) + normal(code[..., None], PLACES, SCALES)
    whole = prior + normal(Y[:, None], (code + level)[..., None], SCALES) + normal(Y[:, None], PLACES, 1.0)
    prior, whole = special.logsumexp(prior, axis=-1), special.logsumexp(whole, axis=-1)
    np.testing.assert_allclose(array(terms.nll), prior - whole, rtol=2e-6, atol=2e-6)

    def log_q(name):
        family, noise = draws.families[list(draws.real).index(name)][0], draws.noise[list(draws.real).index(name)]
        return array(family.log_density(noise))[..., 0].astype("float64")

    np.testing.assert_allclose(array(terms.local_kl["code"]), log_q("code") - prior, rtol=2e-6, atol=2e-6)
    if objective == "multi_sample":
        expected = log_q("level") - normal(level, 0.0, 1.0)
    else:  # before the indicator the divergence is in closed form
        family = draws.families[0][0]
        mean, scale = (array(each)[:, 0].astype("float64") for each in (family.mean, family.factor))
        expected = np.tile(0.5 * (mean**2 + scale**2 - 1) - np.log(scale), (2, 1))
    np.testing.assert_allclose(array(terms.local_kl["level"]), expected, rtol=2e-6, atol=2e-6)
    if objective == "multi_sample":
        each = -array(terms.nll) - array(terms.local_kl["level"]) - array(terms.local_kl["code"])
        bound = np.mean(special.logsumexp(each, axis=0) - np.log(2))
        local = terms.local_kl["level"] + terms.local_kl["code"]
        loss = elbo_parts(terms.nll, 0.0, 5, local_kl=local, objective=objective).loss
        np.testing.assert_allclose(-float(array(loss)), bound, rtol=1e-5)


@pytest.mark.core
def test_indicators_have_their_exact_probabilities_given_the_other_sites():
    model = SVI(mixture, "full_rank", seed=0)
    model.trace_on(DATA)
    model.guide_of("middle").start_at(np.array([0.5]), np.array([[1e-4]]))
    expected = special.softmax(mixture_density(Y, 0.5), axis=1)
    found = model.probabilities(DATA, num_samples=4, seed=0)
    assert list(found) == ["which"]
    np.testing.assert_allclose(found["which"], expected, atol=1e-3)
    draws = model.posterior(DATA, num_samples=100, seed=0)["which"]
    assert draws.shape == (100, 5)
    shares = np.stack([np.mean(draws == value, axis=0) for value in range(3)], axis=1)
    error = np.sqrt(expected * (1 - expected) / 100) + 1 / 100
    assert_within_standard_errors(shares, expected, error, k=4)
    assert model.posterior(num_samples=3, seed=0).keys() == {"middle"}
    # Each row's log likelihood has the components summed out.
    by_row = special.logsumexp(mixture_density(Y, 0.5), axis=1)
    np.testing.assert_allclose(model.log_likelihood(DATA, num_samples=2, seed=0)["y"][0], by_row, atol=1e-3)
    np.testing.assert_allclose(model.bounds(DATA, num_samples=2, seed=0).elbo_by_row, by_row, atol=1e-3)


@pytest.mark.core
def test_what_is_predicted_tells_nothing_of_its_indicator_and_what_is_given_does():
    model = SVI(mixture, "full_rank", seed=0)
    model.trace_on(DATA)
    model.guide_of("middle").start_at(np.array([0.5]), np.array([[1e-4]]))
    given = model.predict({"y": np.array([-4.0, 4.5], "float32")}, num_samples=100, seed=0)["y"]
    weights = special.softmax(mixture_density([-4.0, 4.5], 0.5), axis=1)
    mean = 0.5 + weights @ PLACES
    variance = 1.0 + weights @ PLACES**2 - (weights @ PLACES) ** 2
    assert_within_standard_errors(given.mean(0), mean, np.sqrt(variance / 100), k=4)

    def masked(data):
        middle = yield Global("middle", Normal(0.0, 3.0))
        which = yield Local("which", Categorical(np.log(PRIOR).astype("float32")))
        yield Observed("x", Normal(ops.cast(which, "float32"), 1.0), data["x"])
        yield Observed("y", Normal(middle + at(PLACES, which), 1.0), data.get("y"), data["is_there"])

    data = {"x": np.ones(5, "float32"), "y": Y, "is_there": np.arange(5) > 1}
    model = SVI(masked, "full_rank", seed=0)
    model.trace_on(data)
    model.guide_of("middle").start_at(np.array([0.5]), np.array([[1e-4]]))
    of_x = np.log(PRIOR) + normal(1.0, np.arange(3), 1.0)
    both = special.softmax(of_x + mixture_density(Y, 0.5, np.ones(3)), axis=1)
    expected = np.where(data["is_there"][:, None], both, special.softmax(of_x))
    np.testing.assert_allclose(model.probabilities(data, num_samples=2)["which"], expected, atol=1e-3)


@pytest.mark.core
def test_a_mixture_is_fitted_validated_and_saved(tmp_path):
    """The guide is that of the exact posterior, by quadrature, and a file has the same probabilities."""
    generator = np.random.default_rng(0)
    y = (0.7 + PLACES[generator.choice(3, 60, p=PRIOR)] + generator.normal(size=60)).astype("float32")
    model = SVI(mixture, "full_rank", start="laplace", num_samples=4, seed=0)
    model.compile(keras.optimizers.Adam(1e-2))
    logs = model.fit({"y": y}, batch_size="all", steps=20, validation_data={"y": y}, verbose=0).history
    assert set(logs) >= {"nll", "kl_middle", "val_elbo"}
    assert "kl_which" not in logs
    assert kinds_of(model) == {"middle": "global"}
    grid = np.linspace(-2, 3, 1001)
    joint = [special.logsumexp(mixture_density(y, middle), axis=1).sum() + normal(middle, 0, 3) for middle in grid]
    evidence = special.logsumexp(joint) + np.log(grid[1] - grid[0])
    weights = special.softmax(joint)
    mean, sd = weights @ grid, np.sqrt(weights @ grid**2 - (weights @ grid) ** 2)
    draws = model.posterior(num_samples=2000, seed=0)["middle"]
    # Steps and a draw of so many leave a few percent.
    np.testing.assert_allclose([(draws.mean() - mean) / sd, draws.std() / sd], [0.0, 1.0], atol=0.15)
    log_weights = model.log_weights({"y": y}, num_samples=50, seed=0)
    np.testing.assert_allclose(special.logsumexp(log_weights) - np.log(50), evidence, atol=0.05)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.sites == model.sites
    rows = {"y": y[:3]}
    np.testing.assert_allclose(
        loaded.probabilities(rows, 2, seed=1)["which"], model.probabilities(rows, 2, seed=1)["which"], rtol=1e-5
    )


@pytest.mark.core
def test_a_weighted_row_counts_as_so_many_rows():
    model = SVI(mixture, "full_rank", seed=0)
    model.trace_on(DATA)
    real = {"middle": ops.convert_to_tensor([0.4])}
    counts = np.array([1, 3, 0, 2, 1])
    whole = model.estimator.log_joint(tensors({"y": np.repeat(Y, counts)}), real)
    weighted = model.estimator.log_joint(tensors(), real, ops.convert_to_tensor(counts.astype("float32")))
    np.testing.assert_allclose(array(weighted), array(whole), rtol=1e-5)


@pytest.mark.core
def test_impossible_combinations_leave_value_and_gradient_finite():
    """A count is zero because nothing was there, or by chance."""

    class Count(Normal):
        """Geometric where something is there, otherwise zero, whatever the rate."""

        def __init__(self, chance, is_there):
            self.chance, self.is_there = chance, is_there
            self.batch_shape = tuple(is_there.shape)

        def log_prob(self, value):
            geometric = ops.log(self.chance) + value * ops.log1p(-self.chance)
            return ops.where(self.is_there > 0, geometric, ops.where(value > 0, -np.inf, 0.0))

    def story(data):
        logit = yield Global("logit", Normal(0.0, 1.0))
        is_there = yield Local("is_there", Categorical(np.log([0.4, 0.6]).astype("float32")))
        yield Observed("n", Count(ops.sigmoid(logit), is_there), data["n"])

    n = np.array([0.0, 3.0, 1.0], "float32")
    model = SVI(story, seed=0)
    model.trace_on({"n": n})
    real = ops.convert_to_tensor([0.5])

    def joint(values):
        return model.estimator.log_joint(tensors({"n": n}), {"logit": values[0]})

    p = special.expit(0.5)
    geometric = p * (1 - p) ** n
    expected = normal(0.5, 0, 1) + np.log(0.4 * (n == 0) + 0.6 * geometric).sum()
    np.testing.assert_allclose(array(joint([real])), expected, rtol=1e-5)
    slope = (1 - p) - n * p  # of the log of each geometric probability in the logit
    share = 0.6 * geometric / (0.4 * (n == 0) + 0.6 * geometric)
    np.testing.assert_allclose(array(gradients(joint, [real])[0])[0], -0.5 + (share * slope).sum(), rtol=1e-5)
    assert np.all(model.posterior({"n": n}, num_samples=20, seed=0)["is_there"][:, 1:] == 1)


@pytest.mark.core
def test_entries_of_a_row_are_summed_out_together():
    def story(data):
        switches = yield Local("switches", Categorical(np.tile(np.log([0.3, 0.7]), (2, 1)).astype("float32")))
        third = yield Local("third", Categorical(np.zeros(3, "float32")))
        total = ops.cast(
            ops.sum(switches * ops.convert_to_tensor(np.array([1, 2], "int32")), axis=1) + third, "float32"
        )
        yield Observed("y", Normal(total, 1.0), data["y"])

    model = SVI(story, seed=0)
    found = model.trace_on(DATA)
    assert found.sites[0] == Site("switches", "enumerated", (2,), 0, 4)
    probabilities = model.probabilities(DATA, num_samples=1)
    prior = np.array([0.09, 0.21, 0.21, 0.49])[:, None] / 3 * np.ones(3)
    means = np.array([0, 2, 1, 3])[:, None] + np.arange(3)
    joint = special.softmax(np.log(prior) + normal(Y[:, None, None], means, 1.0), axis=(1, 2))
    np.testing.assert_allclose(probabilities["switches"], joint.sum(2), rtol=1e-4)
    np.testing.assert_allclose(probabilities["third"], joint.sum(1), rtol=1e-4)
    drawn = model.posterior(DATA, num_samples=80, seed=0)["switches"]
    share, expected = np.mean(drawn[..., 0] == 1, axis=0), joint[:, 2:].sum((1, 2))
    assert_within_standard_errors(share, expected, np.sqrt(expected * (1 - expected) / 80) + 1 / 80, k=4)
    prior = model.sample_prior(DATA, num_samples=80, seed=0)["switches"]
    assert prior.shape == (80, 5, 2)
    assert_within_standard_errors(prior.mean((0, 1)), 0.7, np.sqrt(0.21 / 800), k=4)


@pytest.mark.core
def test_the_values_of_the_libraries_distributions():
    library = distributions()
    third = ops.convert_to_tensor(np.full((4, 3), 1 / 3, "float32"))
    half = ops.convert_to_tensor(np.full((4, 2), 0.5, "float32"))
    count = ops.convert_to_tensor(3.0)
    one_hot = getattr(library, "OneHotCategorical", None)
    cases = [
        (library.Categorical(probs=third), (), [0, 1, 2]),
        (library.Bernoulli(probs=half), (2,), [[0, 0], [0, 1], [1, 0], [1, 1]]),
        (library.Independent(library.Bernoulli(probs=half), 1), (2,), [[0, 0], [0, 1], [1, 0], [1, 1]]),
        (library.Binomial(3, probs=half[:, 0]), (), [0, 1, 2, 3]),
        (one_hot(probs=third) if one_hot else None, (3,), np.eye(3)),
    ]
    for distribution, shape, expected in cases:
        if distribution is not None:
            values = values_of(distribution, shape)
            np.testing.assert_array_equal(array(values), expected)
    assert values_of(library.Poisson(count), ()) is None
    assert values_of(library.Binomial(1000, probs=half[:, 0]), ()) is None
    assert values_of(library.Normal(count, count), ()) is None


@pytest.mark.tensorflow
def test_the_values_of_wrapped_distributions_of_tfp():
    library = pytest.importorskip("tensorflow_probability").distributions
    coins = library.Sample(library.Bernoulli(probs=0.5), 2)
    np.testing.assert_array_equal(array(values_of(coins, (2,))), [[0, 0], [0, 1], [1, 0], [1, 1]])
    numbers = library.FiniteDiscrete(np.array([2.0, 5.0], "float32"), probs=[0.5, 0.5])
    np.testing.assert_array_equal(array(values_of(numbers, ())), [2.0, 5.0])
    assert values_of(library.Binomial(np.array([1.0, 2.0], "float32"), probs=0.5), ()) is None


@pytest.mark.core
def test_what_is_summed_out_has_no_guide():
    model = SVI(mixture, {"which": Amortized(keras.layers.Identity(), ["y"])}, seed=0)
    with pytest.raises(ValueError, match=r"of 'which', whose values are discrete, .* summed out exactly"):
        model.trace_on(DATA)
    model = SVI(mixture, seed=0)
    model.trace_on(DATA)
    with pytest.raises(ValueError, match="`site` must be one of the sites with a guide, \\['middle'\\], not 'which'"):
        model.guide_of("which")


@pytest.mark.core
def test_too_many_combinations_are_refused():
    def story(data):
        for number in range(4):
            yield Local(f"site{number}", Categorical(np.zeros(5, "float32")))
        yield Observed("y", Normal(0.0, 1.0), data["y"])

    with pytest.raises(ValueError, match=r"The discrete sites .*'site3'\] must have at most 512 comb.* not 625"):
        traced(story)


@pytest.mark.core
def test_a_number_of_values_that_changes_is_refused():
    def story(data):
        which = yield Local("which", Categorical(0.0 * data["logits"]))
        yield Observed("y", Normal(ops.cast(which, "float32"), 1.0), data["y"])

    model = SVI(story, seed=0)
    model.trace_on({"y": Y, "logits": np.zeros((5, 3), "float32")})
    with pytest.raises(ValueError, match="Site 'which' must have 3 values on all batches, not 4 on one"):
        model.probabilities({"y": Y, "logits": np.zeros((5, 4), "float32")}, num_samples=1)


def test_a_density_that_is_finite_in_no_combination_is_refused():
    def story(data):
        which = yield Local("which", Categorical(np.zeros(2, "float32")))
        yield Observed("y", Normal(0.0 * ops.cast(which, "float32"), 0.0), data["y"])

    with pytest.raises(ValueError, match=r"The log density of site 'y' must be finite at the start, not .* in row 0"):
        traced(story)


def test_probabilities_are_of_discrete_sites_alone():
    def story(data):
        middle = yield Global("middle", Normal(0.0, 3.0))
        yield Observed("y", Normal(middle, 1.0), data["y"])

    model = SVI(story, seed=0)
    model.trace_on(DATA)
    with pytest.raises(
        ValueError, match="`story` must have a discrete local site that is summed out here, not only \\['middle'\\]"
    ):
        model.probabilities(DATA)


def test_combinations_count_the_last_site_fastest():
    sites = (Site("a", "enumerated", (), num_values=2), Site("b", "enumerated", (), num_values=3))
    combinations = Combinations(sites)
    local = [Local("a", Categorical(np.zeros(2, "float32"))), Local("b", Categorical(np.zeros(3, "float32")))]
    every = combinations.every(2)
    np.testing.assert_array_equal(array(combinations.value(local[0], every)), [0, 0, 0, 1, 1, 1] * 2)
    np.testing.assert_array_equal(array(combinations.value(local[1], every)), [0, 1, 2, 0, 1, 2] * 2)


@pytest.mark.core
def test_chains_see_the_density_without_indicators_and_have_draws_of_them(monkeypatch):
    """In the place of a sampler, one point all the time."""

    def nuts_flat(log_density, first, *settings, **more):
        point = np.full((2, 1), 0.5, "float32")
        by_hand = special.logsumexp(mixture_density(Y, 0.5), axis=1).sum() + normal(0.5, 0.0, 3.0)
        np.testing.assert_allclose(array(log_density(ops.convert_to_tensor(point))), by_hand, rtol=1e-5)
        assert first.shape == (1,)
        return Chains(np.full((2, 50, 1), 0.5), divergences=0)

    monkeypatch.setattr(reference_room, "nuts_flat", nuts_flat)
    found = nuts(mixture, DATA, seed=0)
    np.testing.assert_array_equal(found["middle"], 0.5)
    assert found["which"].shape == (100, 5)
    shares = np.stack([np.mean(found["which"] == value, axis=0) for value in range(3)], axis=1)
    expected = special.softmax(mixture_density(Y, 0.5), axis=1)
    assert_within_standard_errors(shares, expected, np.sqrt(expected * (1 - expected) / 100) + 1 / 100, k=4)


@pytest.mark.skipif(importlib.util.find_spec("arviz_base") is None, reason="bdl[arviz] is not installed")
def test_arviz_has_the_indicators_and_the_rows_log_likelihood():
    model = SVI(mixture, "full_rank", seed=0)
    model.trace_on(DATA)
    tree = model.to_arviz(DATA, num_samples=4, seed=0)
    assert tree["posterior"]["which"].dims == ("chain", "draw", "row")
    assert tree["observed_data"]["y"].shape == (5,)
    assert set(tree["prior"].data_vars) == {"middle", "which"}


@pytest.mark.core
def test_no_density_depends_on_the_value_of_a_later_site():
    """With an indicator that of what was observed before a latent site does; without one it does not."""
    coin = Site("coin", "enumerated", (), num_values=2)
    sites = {"x": (Observed("x", None, None), double([-1.0, -2.0])), "z": (Local("z", None), double([-0.3, -1.1]))}
    found = sum_out(Combinations((coin,)), {"coin": (Local("coin", None), double(np.log([0.5, 0.5]))), **sites})
    assert list(found.log_prob) == ["z", "x"]
    assert list(sum_out(Combinations(()), sites).log_prob) == ["x", "z"]
