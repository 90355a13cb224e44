"""Stories: what a trace finds, what a run sums up, and what is refused by the name of its site."""

from functools import partial

import keras
import numpy as np
import pytest
from distribution_libraries import distributions
from keras import ops
from scipy import stats
from stories import HalfNormal, Normal, groups, level, spread

from bdl import random
from bdl.svi import Flat
from bdl.svi.story import Global, Local, Observed, Site, run
from bdl.svi.tracing import trace

Y = np.random.default_rng(0).normal(size=6).astype("float32")
DATA = {"y": Y}


def traced(story, data=DATA, **settings):
    return trace(
        story, {key: ops.convert_to_tensor(value) for key, value in data.items()}, random.draw_key(0), **settings
    )


def refused(story, match, data=DATA, **settings):
    with pytest.raises(ValueError, match=match):
        traced(story, data, **settings)


@pytest.mark.core
def test_a_trace_finds_names_kinds_shapes_and_sizes():
    def story(data):
        means = yield Global("means", Normal(np.zeros((2, 3)), 1.0))
        weights = yield Global("weights", Flat("simplex", (4,)))
        code = yield Local("code", Normal(np.zeros(6), 1.0))
        yield Observed("y", Normal(means[0, 0] + weights[0] + code[:, 0], 1.0), data["y"])
        yield Observed("pairs", Normal(code[:, :2], 1.0), ops.stack([data["y"], data["y"]], axis=1))

    # Six rows, and codes of six numbers: one row fewer tells that these are not the rows.
    assert traced(story).sites == (
        Site("means", "global", (2, 3), 6),
        Site("weights", "global", (4,), 3),
        Site("code", "local", (6,), 6),
        Site("y", "observed", ()),
        Site("pairs", "observed", (2,)),
    )


@pytest.mark.core
def test_a_local_distribution_may_run_over_the_rows_itself():
    def story(data):
        code = yield Local("code", Normal(data["y"], 1.0))
        pair = yield Local("pair", Normal(ops.stack([code, code], axis=1), 1.0))
        yield Observed("y", Normal(pair[:, 0], 1.0), data["y"])

    found = traced(story)
    assert [site.shape for site in found.sites] == [(), (2,), ()]
    assert found.values["pair"].shape == (6, 2)


@pytest.mark.core
def test_a_trace_begins_at_the_medians_of_the_priors():
    values = traced(spread).values
    assert abs(values["mean"]) < 5 * 5.0 * np.sqrt(np.pi / 2 / 51)  # standard error of a median of 51 draws
    median = 3.0 * stats.halfnorm.median()
    error = 1 / (2 * stats.halfnorm(scale=3.0).pdf(median) * np.sqrt(51))
    assert abs(values["scale"] - median) < 5 * error
    assert traced(spread, start={"mean": 2.0}).values["mean"] == 2.0


@pytest.mark.core
def test_the_log_joint_density_is_a_sum_over_sites_and_rows():
    values = {"mean": ops.convert_to_tensor(0.3), "code": ops.convert_to_tensor(Y / 2)}
    visits = run(groups, DATA, lambda each: values.get(each.name, getattr(each, "value", None)))
    mean, code, y = (ops.convert_to_numpy(visit.log_prob()) for visit in visits)
    assert mean == pytest.approx(stats.norm(0, 2).logpdf(0.3), rel=1e-5)
    np.testing.assert_allclose(code, stats.norm(0.3, 1.5).logpdf(Y / 2), rtol=1e-5)
    np.testing.assert_allclose(y, stats.norm(Y / 2, 0.5).logpdf(Y), rtol=1e-5)


@pytest.mark.core
def test_a_network_reaches_the_story_by_its_name():
    def story(data, network):
        code = yield Local("code", Normal(0.0, 1.0))
        yield Observed("y", Normal(network(code), 1.0), data["y"])

    assert len(traced(story, networks={"network": lambda x: 2.0 * x}).sites) == 2


def test_what_is_no_story_is_refused():
    refused(lambda data: None, "must be a generator function")

    def yields_a_distribution(data):
        yield Normal(0.0, 1.0)

    refused(yields_a_distribution, "must yield Global, Local or Observed sites")

    def twice(data):
        yield Global("mean", Normal(0.0, 1.0))
        yield Global("mean", Normal(0.0, 1.0))

    refused(twice, "Site 'mean' must be met once, not twice")

    def blind(data):
        yield Global("mean", Normal(0.0, 1.0))

    refused(blind, "must yield an Observed site")

    def fixed(data):
        yield Observed("y", Normal(0.0, 1.0), data["y"])

    refused(fixed, "must yield a Global or Local site")


@pytest.mark.parametrize("name", ["", "a/b", 3])
def test_a_name_that_is_none_is_refused(name):
    def story(data):
        yield Global(name, Normal(0.0, 1.0))

    refused(story, f"`name` of a site must be a text that is not empty and has no '/', .*, not {name!r}")


def test_a_key_that_the_data_lack_is_named():
    refused(level, "`x` must have the key 'y', which the story reads, not \\['x'\\] only", data={"x": Y})

    def story(data):
        {}["own"]
        yield Global("mean", Normal(0.0, 1.0))

    with pytest.raises(KeyError, match="own"):
        traced(story, data={"own": Y})


def test_networks_must_be_those_that_the_story_takes():
    def story(data, decoder, order=2):
        code = yield Local("code", Normal(0.0, 1.0))
        yield Observed("y", Normal(decoder(code), 1.0), data["y"])

    names = "by name after the data, \\['decoder', 'order'\\]"
    refused(
        story, f"`networks` must be those that the story takes {names}, not \\['encoder'\\]", networks={"encoder": abs}
    )
    refused(story, f"{names}, not \\[\\]")
    assert len(traced(partial(story, decoder=abs)).sites) == 2


@pytest.mark.core
def test_a_run_ends_at_the_site_that_was_asked_for():
    def story(data):
        yield Global("first", Normal(0.0, 1.0))
        yield Global("second", Normal(0.0, 1.0))
        raise AssertionError("The run must not come here.")

    assert [visit.name for visit in run(story, DATA, lambda site: ops.zeros(()), until="second")] == ["first", "second"]


@pytest.mark.core
def test_a_discrete_global_site_is_refused():
    chance = distributions().Bernoulli(ops.convert_to_tensor(0.5))

    def story(data):
        yield Global("is_there", chance)

    refused(story, "Site 'is_there': The distribution of a latent variable must be continuous, not .* Bernoulli")


@pytest.mark.core
def test_a_discrete_local_site_without_end_is_refused():
    count = distributions().Poisson(ops.convert_to_tensor(3.0))

    def story(data):
        yield Local("count", count)

    refused(story, "Site 'count': a discrete local variable must have at most 512 values, .* not those of Poisson")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one pair of libraries is enough")
@pytest.mark.parametrize("is_observed", [True, False])
def test_a_distribution_of_another_backend_is_refused(is_observed):
    torch_distributions = pytest.importorskip("torch.distributions")

    def story(data):
        mean = yield Global("mean", Normal(0.0, 1.0) if is_observed else torch_distributions.Normal(0.0, 1.0))
        yield Observed("y", torch_distributions.Normal(0.0, 1.0), data["y"] + mean)

    site = "y" if is_observed else "mean"
    refused(story, f"Site '{site}': A distribution must be one of tensorflow_probability.*, not .* of torch")


def test_an_error_of_a_backend_has_a_note_of_its_site():
    class Broken(Normal):
        def log_prob(self, value):
            raise RuntimeError("precisions differ")

    def story(data):
        yield Global("mean", Broken(0.0, 1.0))

    with pytest.raises(RuntimeError, match="precisions differ") as caught:
        traced(story)
    assert caught.value.__notes__ == ["This happened at site 'mean' of the story."]


def test_an_unknown_distribution_is_refused_by_the_name_of_its_site():
    def story(data):
        yield Global("mean", object())

    refused(story, "Site 'mean': A distribution must be one of")


def test_densities_without_rows_are_refused():
    class Summed(Normal):
        def log_prob(self, value):
            return ops.sum(super().log_prob(value))

    def story(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Summed(mean, 1.0), data["y"])

    refused(story, "site 'y' must have the 6 rows on its first axis, not the shape .* must not be summed already")


def test_a_distribution_with_more_axes_than_its_value_is_refused():
    def story(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean + ops.zeros((6, 6)), 1.0), data["y"])

    refused(story, "log density of site 'y' must have the shape \\(6,\\) of its value, .*, not \\(6, 6\\)")


def test_a_density_that_pairs_each_row_with_all_others_is_refused():
    """A value of shape (rows, 1) beside means of shape (rows,): nothing but the shape tells."""

    def story(data):
        code = yield Local("code", Normal(0.0, 1.0))
        yield Observed("y", Normal(code, 1.0), data["y"][:, None])

    refused(
        story, "log density of site 'y' must have the shape \\(6, 1\\) of its value, .*, not \\(6, 6\\).*loc\\[:, None"
    )


def test_observed_rows_must_be_those_of_the_data():
    def story(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean, 1.0), data["y"][:4])

    refused(story, "Observed site 'y' must have the data's 6 rows on its first axis, not the shape \\(4,\\)")


def test_a_density_that_is_not_finite_names_site_row_and_value():
    def story(data):
        scale = yield Global("scale", HalfNormal(1.0))
        yield Observed("y", Normal(0.0, scale * ops.sign(data["y"] - 100.0) * 0.0), data["y"])

    refused(story, "site 'y' must be finite at the start, not .* in row 0, at the value")

    def outside(data):
        scale = yield Global("scale", HalfNormal(-1.0))
        yield Observed("y", Normal(0.0, scale), data["y"])

    refused(outside, "site 'scale' must be finite at the start, not nan")


def test_a_start_of_another_shape_or_site_is_refused():
    refused(level, "value of shape \\(\\) for site 'mean', not \\(2,\\)", start={"mean": [1.0, 2.0]})
    refused(level, "`start` must have values of the sites \\['mean'\\], not of \\['scale'\\]", start={"scale": 1.0})
