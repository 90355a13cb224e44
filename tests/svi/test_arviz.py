"""ArviZ's `DataTree` of a fit: groups, axes and labels, and leave-one-out scores that agree with the exact ones."""

import importlib.util

import keras
import numpy as np
import pytest
from scipy import special, stats
from standard_errors import assert_within_standard_errors
from stories import Normal, groups, level_at_the_posterior, level_posterior

from bdl.svi import SVI, Amortized, Flat, Global, Observed
from bdl.svi import arviz as arviz_room
from bdl.svi.checks import k_hat

needs_arviz = pytest.mark.skipif(importlib.util.find_spec("arviz_base") is None, reason="no ArviZ")
Y = np.random.default_rng(0).normal(2.0, 1.0, size=10).astype("float32")
DATA = {"y": Y}
S = 1600  # at this size ArviZ takes as many weights for the tail as `k_hat`


def at_the_posterior():
    return level_at_the_posterior(Y)


def exact_leave_one_out():
    """Log density of each row given the others."""
    found = []
    for row, y in enumerate(Y.astype("float64")):
        mean, sd, _ = level_posterior(np.delete(Y.astype("float64"), row))
        found.append(stats.norm(mean, np.sqrt(sd**2 + 1)).logpdf(y))
    return np.array(found)


@pytest.mark.core
def test_what_was_observed_has_no_number_where_it_is_missing():
    values = np.arange(6, dtype="int32").reshape(3, 2)
    for mask, expected in (
        (None, values),
        (np.array([True, False, True]), [[0, 1], [np.nan, np.nan], [4, 5]]),
        (values != 4, [[0, 1], [2, 3], [np.nan, 5]]),
    ):
        np.testing.assert_array_equal(arviz_room.observed_values(Observed("y", Flat(), values, mask)), expected)


@needs_arviz
@pytest.mark.core
def test_groups_hold_the_draws_of_one_seed_with_rows_and_names():
    code = Amortized(keras.layers.Dense(3), ["y"], given=["mean"])
    model = SVI(groups, {"code": code}, seed=0)
    model.trace_on(DATA)
    labels = [f"locus {number}" for number in range(10)]
    tree = model.to_arviz(DATA, num_samples=5, seed=3, coords={"row": labels})
    assert set(tree.children) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
        "sample_stats",
        "prior",
        "prior_predictive",
    }
    assert tree.posterior["code"].dims == ("chain", "draw", "row")
    assert tree.log_likelihood["y"].dims == ("chain", "draw", "row")
    assert list(tree.observed_data["y"].coords["row"].values) == labels
    for name, each in model.posterior(DATA, num_samples=5, seed=3).items():
        np.testing.assert_array_equal(tree.posterior[name].values[0], each)
    code, y = tree.posterior["code"].values, tree.log_likelihood["y"].values
    np.testing.assert_allclose(y, stats.norm(code, 0.5).logpdf(Y), rtol=1e-4)
    weights = (tree.sample_stats["log_p"] - tree.sample_stats["log_q"]).values[0]
    np.testing.assert_allclose(weights, model.log_weights(DATA, num_samples=5, seed=3))
    assert tree.prior["mean"].shape == (1, 5)


@needs_arviz
def test_axes_of_a_site_have_the_names_and_labels_that_are_given():
    def story(data):
        effect = yield Global("effect", Normal(np.zeros((2,)), 1.0))
        yield Observed("y", Normal(effect[0] + effect[1], 1.0), data["y"])

    model = SVI(story, "delta", seed=0)
    model.trace_on(DATA)
    tree = model.to_arviz(DATA, num_samples=3, coords={"school": ["A", "B"]}, dims={"effect": ["school"]})
    assert tree.posterior["effect"].sel(school="B").shape == (1, 3)
    assert tree.prior["effect"].dims == ("chain", "draw", "school")
    assert "sample_stats" not in tree.children  # a point has no density
    with pytest.raises(ValueError, match=r"`dims` must have a list of names .* not \['a', 'b'\] for 'effect'"):
        model.to_arviz(DATA, num_samples=3, dims={"effect": ["a", "b"]})
    with pytest.raises(ValueError, match="`dims` must have axes of one length under one name, not 'row' of 10 and"):
        model.to_arviz(DATA, num_samples=3, dims={"effect": ["row"]})
    with pytest.raises(ValueError, match=r"`coords` must label the axes \{'row': 10\}, not 'school' of length 2"):
        model.to_arviz(DATA, num_samples=3, coords={"school": ["A", "B"]})


@needs_arviz
def test_an_improper_prior_is_left_out():
    def story(data):
        mean = yield Global("mean", Flat())
        yield Observed("y", Normal(mean, 1.0), data["y"])

    model = SVI(story, seed=0)
    model.trace_on(DATA)
    children = set(model.to_arviz(DATA, num_samples=3).children)
    assert "posterior_predictive" in children
    assert not children & {"prior", "prior_predictive"}


@pytest.mark.filterwarnings("ignore")  # ArviZ's and xarray's own
def test_leave_one_out_is_that_of_our_smoothing_and_of_the_exact_posterior():
    arviz_stats = pytest.importorskip("arviz_stats")
    pytest.importorskip("xarray_einstats")
    tree = at_the_posterior().to_arviz(DATA, num_samples=S)
    found = arviz_stats.loo(tree, pointwise=True)
    log_likelihood = tree.log_likelihood["y"].values[0].astype("float64")
    smoothed = [k_hat(-each).log_weights for each in log_likelihood.T]
    direct = np.array([special.logsumexp(w + each) for w, each in zip(smoothed, log_likelihood.T, strict=True)])
    np.testing.assert_allclose(found.elpd_i.values, direct, atol=1e-5)
    # The ratio of two means over draws, one of them of 1 / density: its error by the delta method.
    inverse = np.exp(-log_likelihood)
    error = inverse.std(0) / inverse.mean(0) / np.sqrt(S)
    assert_within_standard_errors(direct, exact_leave_one_out(), error)
    # The guide is the posterior here: the correction for a guide that is not changes nothing.
    corrected = arviz_stats.loo_approximate_posterior(tree, tree.sample_stats["log_p"], tree.sample_stats["log_q"])
    assert corrected.elpd == pytest.approx(found.elpd, abs=0.01)


def test_without_arviz_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr(arviz_room.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs ArviZ, .* pip install 'keras-bdl\[arviz\]'"):
        at_the_posterior().to_arviz(DATA)
