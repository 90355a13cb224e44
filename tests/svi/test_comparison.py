"""Bounds of stories against the log evidence in closed form."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose
from scipy import special, stats
from standard_errors import assert_within_standard_errors
from stories import Categorical, Normal, groups, groups_evidence, level, level_at_the_posterior, level_posterior

import bdl
from bdl.svi import SVI, Amortized, Global, Local, Observed

Y = np.random.default_rng(0).normal(1.0, 1.5, size=8).astype("float32")
DATA = {"y": Y}


@pytest.mark.core
def test_at_the_posterior_of_the_globals_both_bounds_are_the_evidence():
    found = level_at_the_posterior(Y).bounds(DATA, num_samples=20, seed=0)
    evidence = level_posterior(Y.astype("float64"))[2]
    assert_allclose([found.elbo, found.importance_weighted], evidence, rtol=1e-4)
    assert found.num_samples == 20
    assert found.elbo_by_row.shape == (8,)


def test_away_from_it_the_elbo_is_short_by_the_divergence():
    model = SVI(level, "full_rank", seed=0)
    model.trace_on(DATA)
    mean, sd, evidence = level_posterior(Y.astype("float64"))
    model.guide_of("mean").start_at(np.array([mean + sd]), np.array([[1.5 * sd]]))
    found = model.bounds(DATA, num_samples=4_000, seed=0)
    divergence = 0.5 * (1.0 + 1.5**2 - 1.0) - np.log(1.5)
    assert_within_standard_errors(found.elbo, evidence - divergence, found.elbo_error)
    assert_within_standard_errors(found.importance_weighted, evidence, found.importance_weighted_error)


def exact_groups(data_scale=0.5, code_scale=1.5):
    """A model of `groups` whose local guide is the exact posterior given the mean, and its mean's guide exact, too."""
    network = keras.layers.Dense(1, use_bias=False)  # of y and the mean: their precision-weighted average
    model = SVI(groups, {"code": Amortized(network, ["y"], given=["mean"]), "mean": "full_rank"}, seed=0)
    model.trace_on(DATA)
    share = code_scale**2 / (code_scale**2 + data_scale**2)
    network.set_weights([np.array([[share], [1 - share]])])
    guide = model.guide_of("code")
    deviation = data_scale * np.sqrt(share)
    offset = np.log(np.expm1(deviation)) - np.log(np.expm1(1.0))
    guide.head.set_weights([np.array([[1.0, 0.0]]), np.array([0.0, offset])])
    precision = 1 / 4 + len(Y) / (code_scale**2 + data_scale**2)
    mean = Y.sum() / (code_scale**2 + data_scale**2) / precision
    model.guide_of("mean").start_at(np.array([mean]), np.array([[precision**-0.5]]))
    return model


@pytest.mark.core
def test_with_local_and_global_sites_exact_both_bounds_are_the_evidence():
    found = exact_groups().bounds(DATA, num_samples=3, num_globals=4, seed=0)
    assert_allclose([found.elbo, found.importance_weighted], groups_evidence(Y.astype("float64")), rtol=1e-4)


def test_with_a_wrong_local_guide_the_weighted_bound_rises_with_its_draws():
    model = exact_groups()
    guide = model.guide_of("code")
    kernel, bias = guide.head.get_weights()
    guide.head.set_weights([kernel, bias + np.array([0.0, 0.5])])  # too wide
    evidence = groups_evidence(Y.astype("float64"))
    few, many = (model.bounds(DATA, num_samples=number, num_globals=6, seed=0) for number in (2, 100))
    assert few.elbo < few.importance_weighted < many.importance_weighted
    assert many.importance_weighted < evidence + 5 * many.importance_weighted_error
    assert many.importance_weighted > evidence - 0.05 - 5 * many.importance_weighted_error


def test_without_globals_rows_have_the_elbo_in_closed_form():
    """A new guide is the prior here."""

    def story(data):
        code = yield Local("code", Normal(0.0, 1.0))
        yield Observed("y", Normal(code, 0.5), data["y"])

    model = SVI(story, {"code": Amortized(keras.layers.Dense(3), ["y"])}, seed=0)
    model.trace_on(DATA)
    found = model.bounds(DATA, num_samples=500, seed=0)
    expected = -0.5 * np.log(2 * np.pi * 0.25) - (Y.astype("float64") ** 2 + 1) / (2 * 0.25)
    assert_within_standard_errors(found.elbo, expected.sum(), found.elbo_error)
    deviation = np.sqrt(2 + 4 * Y**2) / (2 * 0.25)  # of (y - z)^2 / (2 * .25)
    assert_within_standard_errors(found.elbo_by_row, expected, deviation / np.sqrt(500))
    assert found.importance_weighted > found.elbo


def test_enumerated_sites_are_summed_out_in_both_bounds():
    """A mixture of two components, whose evidence given the middle is a sum, and over it a sum on a grid."""

    def story(data):
        middle = yield Global("middle", Normal(0.0, 2.0))
        which = yield Local("which", Categorical(np.log([0.3, 0.7]).astype("float32")))
        yield Observed("y", Normal(middle + 3.0 * ops.cast(which, "float32"), 1.0), data["y"])

    model = SVI(story, seed=0)
    model.trace_on(DATA)
    model.guide_of("middle").start_at(np.array([-1.0]), np.array([[0.7]]))
    grid = np.linspace(-12.0, 12.0, 4_001)[:, None]
    by_row = special.logsumexp(
        [np.log(share) + stats.norm(grid + 3.0 * place, 1.0).logpdf(Y) for place, share in enumerate((0.3, 0.7))],
        axis=0,
    )
    prior, guide = stats.norm(0.0, 2.0).logpdf(grid[:, 0]), stats.norm(-1.0, 0.7).pdf(grid[:, 0])
    evidence = np.log(np.trapezoid(np.exp(by_row.sum(axis=1) + prior), grid[:, 0]))
    found = model.bounds(DATA, num_samples=2_000, seed=0)
    elbo = np.trapezoid(guide * (by_row.sum(axis=1) + prior - stats.norm(-1.0, 0.7).logpdf(grid[:, 0])), grid[:, 0])
    assert_within_standard_errors(found.elbo, elbo, found.elbo_error)
    assert_within_standard_errors(found.importance_weighted, evidence, found.importance_weighted_error)


def test_what_has_no_bound_is_refused():
    with pytest.raises(ValueError, match="must be fitted before bounds"):
        SVI(level).bounds(DATA)
    point = SVI(level, "delta", seed=0)
    point.trace_on(DATA)
    with pytest.raises(ValueError, match="`guide` must not be a point"):
        point.bounds(DATA)
    with pytest.raises(ValueError, match=r"`num_globals` must be a positive integer \(draws of the global sites\)"):
        level_at_the_posterior(Y).bounds(DATA, num_globals=0)

    def story(data, network):
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean + network(data["y"][:, None])[:, 0], 1.0), data["y"])

    model = SVI(story, networks={"network": bdl.layers.DenseReparameterization(1)}, seed=0)
    model.trace_on(DATA)
    with pytest.raises(ValueError, match=r"`networks` must not have random weights for these bounds, as \['network'\]"):
        model.bounds(DATA)
