"""The hierarchical guide: the posterior of a Gaussian hierarchy given its scale, its density, and its limits."""

import keras
import numpy as np
import pytest
from distribution_libraries import distributions
from gradients import gradients
from keras import ops
from scipy import special, stats

from bdl import random
from bdl.svi import SVI, FullRank, Global, Hierarchical, Local, MeanField, Observed

EFFECT = np.array([2.0, -1.0, 0.5], "float32")
NOISE = np.array([1.0, 2.0, 0.5], "float32")


def tensor(values):
    return ops.convert_to_tensor(values, dtype="float32")


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


@keras.saving.register_keras_serializable(package="tests")
def schools(data):
    """Effects around a mean, seen with known noise."""
    library = distributions()
    mean = yield Global("mean", library.Normal(tensor(0.0), tensor(2.0)))
    spread = yield Global("spread", library.HalfNormal(tensor(1.0)))
    effect = yield Global("effect", library.Normal(mean + ops.zeros((3,)), spread))
    yield Observed("y", library.Normal(effect[None], tensor(NOISE)), data["y"])


def model_at_the_conditional(**settings):
    """A guide of the effects that is their posterior given mean and spread, whatever these are."""
    guide = {("mean", "spread"): FullRank(), "effect": Hierarchical()}
    model = SVI(schools, guide, seed=0, **settings)
    model.trace_on({"y": EFFECT[None]})
    own = model.guide_of("effect")
    own.origin.assign(EFFECT)
    own.frame.assign(NOISE)
    own.rho.assign(np.zeros(3))
    return model


@pytest.mark.core
def test_given_the_scale_it_is_the_posterior_of_a_gaussian_hierarchy():
    model = model_at_the_conditional()
    draws = model.estimator.draws({"y": tensor(EFFECT[None])}, random.draw_key(0), 4)
    density = np.stack([array(draws.one(each).family(1)[0].log_density(draws.noise[1][each])) for each in range(4)])
    for number in range(4):
        mean, spread = array(draws.real["mean"])[number], np.exp(array(draws.real["spread"])[number])
        precision = 1 / spread**2 + 1 / NOISE**2
        center = (mean / spread**2 + EFFECT / NOISE**2) / precision
        expected = stats.norm(center, precision**-0.5).logpdf(array(draws.real["effect"])[number])
        np.testing.assert_allclose(density[number], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.core
def test_many_draws_of_a_posterior_are_those_of_single_runs():
    model = model_at_the_conditional()
    data = {"y": tensor(EFFECT[None])}
    key = random.draw_key(0)
    many = model.estimator.draws(data, key, 6, is_mirrored=False)
    real = {name: array(values) for name, values in many.real.items()}
    spread = np.exp(real["spread"])
    precision = 1 / spread**2 + 1 / NOISE**2
    center = (real["mean"] / spread**2 + EFFECT / NOISE**2) / precision
    np.testing.assert_allclose(real["effect"], center + array(many.noise[1]) * precision**-0.5, rtol=1e-3, atol=1e-4)
    plain = stats.norm(center, precision**-0.5).logpdf(real["effect"]).sum(-1)
    whole = array(many.log_density()) - array(many.families[0][0].log_density(many.noise[0])).sum(-1)
    np.testing.assert_allclose(whole, plain, rtol=1e-3, atol=1e-3)
    assert model.posterior(num_samples=5)["effect"].shape == (5, 3)


@pytest.mark.core
def test_its_gradient_has_no_noise_where_it_is_the_conditional_posterior():
    """The integrand is then `log q(mean, spread) - log p(mean, spread | y)`, the same for any noise of the effects."""
    model = model_at_the_conditional()
    variables = model.guide_of("effect").trainable_variables

    def cost(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            terms = model.estimator.terms({"y": tensor(EFFECT[None])}, random.draw_key(3))
            return ops.mean(ops.sum(terms.nll, axis=-1)) + sum(terms.global_kl.values())

    for each in gradients(cost, [tensor(array(variable)) for variable in variables]):
        np.testing.assert_allclose(array(each), 0.0, atol=2e-4)


@pytest.mark.core
def test_it_beats_mean_field_on_a_hierarchy_and_is_saved(tmp_path):
    """Its bound is below the evidence, and above that of a guide whose effects do not depend on their scale."""
    weights = {}
    for name, guide in {"hierarchical": Hierarchical(), "mean_field": MeanField()}.items():
        model = SVI(schools, {("mean", "spread"): FullRank(), "effect": guide}, num_samples=4, seed=0)
        model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-2, 400)))
        model.fit({"y": EFFECT[None]}, batch_size="all", steps=400, verbose=0)
        weights[name] = model.log_weights({"y": EFFECT[None]}, num_samples=2000, seed=1)
        if name == "hierarchical":
            model.save(tmp_path / "model.keras")
            loaded = keras.models.load_model(tmp_path / "model.keras")
            for site, draws in model.posterior(num_samples=3, seed=0).items():
                np.testing.assert_array_equal(loaded.posterior(num_samples=3, seed=0)[site], draws)
    error = np.sqrt(sum(each.var(ddof=1) / len(each) for each in weights.values()))
    elbo = {name: each.mean() for name, each in weights.items()}
    assert elbo["mean_field"] + 5 * error < elbo["hierarchical"] < log_evidence() + 5 * error


@pytest.mark.core
@pytest.mark.parametrize("is_first", [True, False])
def test_beside_a_site_that_is_summed_out_it_is_the_same_guide(is_first):
    """Whether the story comes to that site before the sites that are guided or after them."""

    def switch():
        return Local("switch", distributions().Bernoulli(probs=tensor(0.3)))

    def story(data):
        library = distributions()
        which = (yield switch()) if is_first else None
        mean = yield Global("mean", library.Normal(tensor(0.0), tensor(2.0)))
        spread = yield Global("spread", library.HalfNormal(tensor(1.0)))
        effect = yield Global("effect", library.Normal(mean + ops.zeros((3,)), spread))
        which = which if is_first else (yield switch())
        shift = 3.0 * ops.cast(which, "float32")[:, None]
        yield Observed("y", library.Normal(effect[None] + shift, tensor(NOISE)), data["y"])

    y = np.stack([EFFECT, EFFECT + 2.0])
    plain = model_at_the_conditional()
    model = SVI(story, {("mean", "spread"): FullRank(), "effect": Hierarchical()}, seed=0)
    model.trace_on({"y": y})
    for one, other in zip(model.guides, plain.guides, strict=True):
        for weight, known in zip(one.weights, other.weights, strict=True):
            weight.assign(known)
    for is_mirrored in (True, False):  # run by run, and in a loop
        draws, known = (
            each.estimator.draws({"y": tensor(y)}, random.draw_key(2), 4, is_mirrored=is_mirrored)
            for each in (model, plain)
        )
        for name in ("mean", "spread", "effect"):
            np.testing.assert_allclose(array(draws.real[name]), array(known.real[name]), rtol=1e-5, atol=1e-6)
    effect = array(draws.real["effect"])[0]
    each = stats.norm(effect + 3.0 * np.arange(2)[:, None], NOISE).logpdf(y[:, None].astype("float64")).sum(-1)
    expected = special.logsumexp(np.log([0.7, 0.3]) + each, axis=1)
    found = model.estimator.log_densities({"y": tensor(y)}, draws.one(0).real)["y"]
    np.testing.assert_allclose(array(found), expected, rtol=1e-4)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit({"y": y}, batch_size="all", steps=2, verbose=0)
    assert model.posterior(num_samples=3, seed=0)["effect"].shape == (3, 3)
    assert model.posterior({"y": y}, num_samples=3, seed=0)["switch"].shape == (3, 2)
    assert model.probabilities({"y": y}, num_samples=3)["switch"].shape == (2, 2)


def log_evidence():
    """By a grid of the spread: given it all is Gaussian."""
    log_spread = np.linspace(-8.0, 2.0, 2001)
    spread = np.exp(log_spread)
    densities = [
        stats.multivariate_normal(np.zeros(3), np.diag(NOISE**2.0 + each**2) + 4.0).logpdf(EFFECT) for each in spread
    ]
    log_joint = np.array(densities) + stats.halfnorm(scale=1.0).logpdf(spread) + log_spread
    top = log_joint.max()
    return top + np.log(np.exp(log_joint - top).sum() * (log_spread[1] - log_spread[0]))


def test_a_prior_that_depends_on_data_is_refused():
    def story(data):
        effect = yield Global("effect", distributions().Normal(data["x"][0], tensor(1.0)))
        yield Observed("y", distributions().Normal(effect, tensor(1.0)), data["y"])

    data = {"x": np.full(3, 7.0, "float32"), "y": np.zeros(3, "float32")}
    with pytest.raises(ValueError, match=r"The prior, which the guide follows, of .*'effect'.* must not"):
        SVI(story, Hierarchical()).trace_on(data)


def test_a_site_whose_prior_is_no_gaussian_has_one_of_its_own():
    model = SVI(schools, Hierarchical(), seed=0)
    model.trace_on({"y": EFFECT[None]})
    guide = model.guide_of("spread")
    own = guide.distribution()
    draws = model.estimator.draws({"y": tensor(EFFECT[None])}, random.draw_key(0), 1)
    place = guide.coordinates("spread")[0]
    expected = array(own.mean)[place] + array(own.factor)[place] * array(draws.noise[0])[0, place]
    assert array(draws.real["spread"])[0, 0] == pytest.approx(expected, rel=1e-5)
