"""Starts: the mode and the curvature are found whatever the scales, and a Gaussian goes to where the mass is."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from stories import HalfNormal, Normal, groups, level, level_posterior

from bdl import random
from bdl.svi import SVI, Amortized, Flat, Global, Observed
from bdl.svi.derivatives import Differentiable, hessian
from bdl.svi.start import ENOUGH_NATS, find_mode, find_starts, on_the_real_line, positive_definite, spread_out

RNG = np.random.default_rng(0)
X = np.stack([np.ones(60), RNG.normal(100.0, 15.0, size=60)], axis=1)
DATA = {"x": X.astype("float32"), "y": (X @ [3.0, 0.2] + RNG.normal(size=60)).astype("float32")}


def regression(data):
    """Scales apart by 100, correlation near -1."""
    slopes = yield Global("slopes", Flat(shape=(2,)))
    yield Observed("y", Normal(data["x"][:, 0] * slopes[0] + data["x"][:, 1] * slopes[1], 1.0), data["y"])


def started(story, data, start):
    model = SVI(story, "full_rank", start=start, seed=0)
    found = model.trace_on(data)
    batch = {name: ops.convert_to_tensor(value) for name, value in data.items()}
    points = [on_the_real_line(found, model.estimator)]
    return find_starts(start, points, found, model.estimator, batch, random.draw_key(0))[0]


@pytest.mark.core
def test_laplace_finds_the_posterior_of_a_regression_with_unequal_scales():
    start = started(regression, DATA, "laplace")
    covariance = np.linalg.inv(X.T @ X)
    sd = np.sqrt(np.diag(covariance))
    least_squares = covariance @ X.T @ DATA["y"]
    np.testing.assert_allclose((start.point["slopes"] - least_squares) / sd, 0.0, atol=0.02)
    np.testing.assert_allclose(start.covariance / np.outer(sd, sd), covariance / np.outer(sd, sd), rtol=5e-3)


@pytest.mark.core
def test_the_curvature_of_a_story_with_a_loop_is_found():
    """Of `s_3 = x_1 (x_0^2 + x_0 + 1)`, from `s_(t+1) = x_0 s_t + x_1`, beginning at 0."""

    def looped(x):
        def step(state, _):
            return x[0] * state + x[1], None

        return ops.scan(step, ops.zeros_like(x[0]), length=3)[0]

    found = hessian(looped, "float32")(np.array([2.0, 3.0]))
    np.testing.assert_allclose(found, [[6.0, 5.0], [5.0, 0.0]], rtol=1e-5)


@pytest.mark.core
def test_map_finds_the_mode_on_the_real_line():
    def story(data):
        scale = yield Global("scale", HalfNormal(2.0))
        yield Observed("y", Normal(0.0, scale), data["y"])

    y = np.array([0.5, -1.5, 2.0], "float32")
    # d/du of -e^(2u)/8 + u - 3u - sum(y^2) e^(-2u)/2 is zero, in v = e^(2u): -v/4 - 2 + sum(y^2)/v.
    total = (y**2).sum()
    expected = 0.5 * np.log((-2 + np.sqrt(4 + total)) / 0.5)
    start = started(story, {"y": y}, "map")
    assert start.point["scale"][0] == pytest.approx(expected, abs=1e-3)
    assert start.covariance is None


@pytest.mark.core
def test_values_and_the_prior_are_taken_as_they_are():
    data = {"y": DATA["y"]}
    assert started(level, data, {"mean": 7.0}).point["mean"] == pytest.approx([7.0])
    prior = started(level, data, "prior").point["mean"][0]
    assert abs(prior - 0.5) < 5 * 3.0 * np.sqrt(np.pi / 2 / 51)  # a median of 51 draws


@pytest.mark.core
def test_a_gaussian_is_spread_out_to_the_best_one():
    """Of the logarithm of a gamma variable, log p = k u - e^u: E[e^(m + s e)] = e^(m + s^2 / 2), so that the ELBO is
    k m - e^(m + s^2 / 2) + log s and its maximum is at s^2 = 1 / k and m = log k - s^2 / 2, below the mode log k.

    With a known curvature k half a step leaves a quarter of what an ELBO that is a square lacks, and gains three
    quarters of it: where a step gains less than ENOUGH_NATS, a third of that is left. The moments of 32 pairs move the
    maximum by less than that: the squared relative error of E[e^(s e)], whose variance is that of cosh(s e)."""
    k = 2.0

    def elbo(mean, precision):
        return k * mean - np.exp(mean + 0.5 / precision) - 0.5 * np.log(precision)

    best = elbo(np.log(k) - 0.5 / k, k)
    first = np.log(k), 0.25 * k  # where the search is put: twice too wide, at the mode
    mean, precision = spread_out(
        Differentiable(lambda u: ops.sum(k * u - ops.exp(u)), "float32"),
        np.array([first[0]]),
        np.array([[first[1]]]),
        random.draw_key(0),
    )
    squares = 1 / k
    noise = ((np.exp(2 * squares) + 1) / 2 / np.exp(squares) - 1) / 32
    assert best - elbo(*first) > 10 * ENOUGH_NATS
    assert 0 <= best - elbo(mean[0], precision[0, 0]) < ENOUGH_NATS / 3 + 25 * k / 2 * noise


@pytest.mark.core
def test_where_the_density_is_gaussian_nothing_is_spread_out():
    precision = np.array([[2.0, 0.5], [0.5, 1.0]])
    density = ops.convert_to_tensor(precision, "float32")
    found = spread_out(
        Differentiable(lambda u: -0.5 * ops.sum(u[:, None] * density * u[None, :]), "float32"),
        np.zeros(2),
        precision,
        random.draw_key(0),
    )
    np.testing.assert_array_equal(found[0], 0.0)
    np.testing.assert_array_equal(found[1], precision)


def test_a_density_that_is_nowhere_finite_is_refused():
    with pytest.raises(ValueError, match="finite at no point tried"):
        find_mode(Differentiable(lambda x: ops.sum(x) * np.nan, "float32"), np.zeros(1), random.draw_key(0))


def two_modes(data):
    """Near -5 and 5."""
    x = yield Global("x", Normal(0.0, 5.0))
    yield Observed("y", Normal(x * x, 1.0), data["y"])


@pytest.mark.core
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_search_may_begin_at_values_and_finds_the_mode_that_is_near(sign):
    data = {"y": np.array([25.0], "float32")}
    found = started(two_modes, data, ("laplace", {"x": 4.0 * sign}))
    # Where (25 - x^2) 2 x = x / 25, and the curvature there, 6 x^2 - 50 + 1 / 25.
    mode = np.sqrt(25.0 - 0.02)
    np.testing.assert_allclose(found.point["x"], sign * mode, atol=0.01)
    np.testing.assert_allclose(found.covariance, 1.0 / (6.0 * mode**2 - 50.0 + 0.04), rtol=0.05)


def test_where_a_search_begins_is_kept_in_the_config():
    start = ("map", {"mean": 2.0})
    config = json.loads(json.dumps(SVI(level, start=start, seed=0).get_config()["start"]))
    assert SVI(level, start=config, seed=0).start == start
    with pytest.raises(ValueError, match="`start` must be one of"):
        SVI(level, start=("prior", {"mean": 2.0}))


@pytest.mark.parametrize("start", ["map", "laplace"])
def test_a_mode_that_is_no_number_is_refused(start, monkeypatch):
    """As where the density rises without end, and float32 with it."""
    nowhere = np.full(1, np.nan), np.full((1, 1), np.nan)
    monkeypatch.setattr("bdl.svi.start.find_mode", lambda *arguments: nowhere)
    monkeypatch.setattr("bdl.svi.start.spread_out", lambda *arguments: nowhere)
    model = SVI(level, start=start, seed=0)
    model.compile()
    with pytest.raises(ValueError, match=f"`start` must be 'prior' or a dict of values here, not '{start}'"):
        model.fit({"y": np.zeros(3, "float32")}, batch_size="all", steps=1, verbose=0)


def test_a_hessian_is_made_positive_definite_whatever_its_scales():
    matrix = np.array([[1e6, 2e3], [2e3, 1.0]])  # of correlation 2: no precision
    found = positive_definite(matrix)
    assert np.linalg.eigvalsh(found).min() > 0
    good = np.array([[1e6, 9e2], [9e2, 1.0]])
    np.testing.assert_allclose(positive_definite(good), good, rtol=1e-9)


def test_a_mode_over_all_rows_is_refused():
    data = {"y": DATA["y"]}
    model = SVI(groups, {"code": Amortized(keras.layers.Dense(2), ["y"])}, start="map")
    found = model.trace_on(data)
    with pytest.raises(ValueError, match="not 'map', for a story with local sites \\(\\['code'\\]\\)"):
        find_starts("map", [], found, model.estimator, found.data, random.draw_key(0))


@pytest.mark.core
def test_a_fit_from_laplace_stays_at_an_exact_posterior():
    y = DATA["y"][:10]
    model = SVI(level, "full_rank", start="laplace", num_samples=2, seed=0)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit({"y": y}, batch_size="all", steps=10, verbose=0)
    mean, sd, _ = level_posterior(y.astype("float64"))
    family = model.guide_of("mean").distribution()
    assert float(ops.convert_to_numpy(family.mean)[0]) == pytest.approx(mean, abs=0.02 * sd)
