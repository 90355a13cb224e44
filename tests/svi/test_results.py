"""Results: draws have the moments they must have, log likelihoods are those of each row, tables print."""

import keras
import numpy as np
import pytest
from scipy import stats
from standard_errors import assert_within_standard_errors
from stories import HalfNormal, Normal, groups, level, level_at_the_posterior, level_posterior, spread

from bdl import random
from bdl.svi import SVI, Amortized, Flat, Global, Observed
from bdl.svi.summary import SummaryTable
from bdl.svi.supports import sample_of_shape

Y = np.random.default_rng(0).normal(2.0, 1.0, size=10).astype("float32")
DATA = {"y": Y}
S = 2000


def at_the_posterior():
    return level_at_the_posterior(Y), *level_posterior(Y.astype("float64"))


def with_codes():
    model = SVI(groups, {"code": Amortized(keras.layers.Dense(3), ["y"], given=["mean"])}, seed=0)
    model.trace_on(DATA)
    return model


@pytest.mark.core
def test_draws_of_the_posterior_have_its_moments():
    model, mean, sd, _ = at_the_posterior()
    draws = model.posterior(num_samples=S, seed=0)["mean"]
    assert_within_standard_errors(draws.mean(), mean, sd / np.sqrt(S))
    assert_within_standard_errors(draws.var(), sd**2, sd**2 * np.sqrt(2 / S))
    np.testing.assert_array_equal(draws, model.posterior(num_samples=S, seed=0)["mean"])


@pytest.mark.core
def test_draws_of_the_predictive_have_its_moments_without_the_data_that_are_predicted():
    model, mean, sd, _ = at_the_posterior()
    rows = {"x": np.zeros((3, 1), "float32")}
    drawn = model.predict(rows, num_samples=S, seed=0)["y"]
    assert drawn.shape == (S, 3)
    total = np.sqrt(sd**2 + 1)
    assert_within_standard_errors(drawn.mean(0), np.full(3, mean), total / np.sqrt(S))
    assert_within_standard_errors(drawn.var(0), np.full(3, total**2), total**2 * np.sqrt(2 / S))
    # Rows share a draw of the mean, and nothing else.
    covariance = np.cov(drawn[:, 0], drawn[:, 1])[0, 1]
    assert_within_standard_errors(covariance, sd**2, total**2 / np.sqrt(S))


@pytest.mark.core
def test_draws_of_the_prior_have_its_moments():
    drawn = SVI(spread, seed=0).sample_prior(DATA, num_samples=S, seed=0)
    assert {name: each.shape for name, each in drawn.items()} == {"mean": (S,), "scale": (S,), "y": (S, 10)}
    assert_within_standard_errors(drawn["mean"].mean(), 0.0, 5 / np.sqrt(S))
    assert_within_standard_errors(drawn["scale"].mean(), stats.halfnorm(scale=3).mean(), 3 / np.sqrt(S))
    scaled = (drawn["y"] - drawn["mean"][:, None]) / drawn["scale"][:, None]
    assert_within_standard_errors(scaled.var(), 1.0, np.sqrt(2 / scaled.size))


@pytest.mark.core
def test_the_log_likelihood_is_that_of_each_row():
    model, *_ = at_the_posterior()
    found = model.log_likelihood(DATA, num_samples=5, seed=3)["y"]
    draws = model.posterior(num_samples=5, seed=3)["mean"]
    np.testing.assert_allclose(found, stats.norm(draws[:, None], 1.0).logpdf(Y), rtol=1e-5)


@pytest.mark.core
def test_importance_weights_of_the_exact_posterior_are_the_evidence():
    model, *_, evidence = at_the_posterior()
    np.testing.assert_allclose(model.log_weights(DATA, num_samples=20), evidence, atol=1e-3)


@pytest.mark.core
def test_local_sites_are_drawn_for_rows_that_were_not_trained_on():
    model = with_codes()
    rows = {"y": np.linspace(-1, 1, 7).astype("float32")}
    draws = model.posterior(rows, num_samples=4, seed=0)
    assert {name: each.shape for name, each in draws.items()} == {"mean": (4,), "code": (4, 7)}
    assert model.posterior(num_samples=4).keys() == {"mean"}
    assert model.log_weights(rows, num_samples=3).shape == (3,)
    assert model.log_likelihood(rows, num_samples=3)["y"].shape == (3, 7)


@pytest.mark.core
def test_entries_of_one_distribution_are_drawn_independently():
    drawn = np.asarray(sample_of_shape(Normal(np.array([[0.0], [50.0]]), 1.0), (2, 500), random.draw_key(0)))
    assert_within_standard_errors(drawn.mean(1), np.array([0.0, 50.0]), 1 / np.sqrt(500))
    assert_within_standard_errors(drawn.std(1), np.ones(2), 1 / np.sqrt(1000))


def test_draws_of_an_improper_prior_are_refused():
    def story(data):
        mean = yield Global("mean", Flat())
        yield Observed("y", Normal(mean, 1.0), data["y"])

    with pytest.raises(ValueError, match="must be proper, not Flat"):
        SVI(story).sample_prior(DATA, num_samples=2)


def test_a_point_has_no_importance_weights():
    model = SVI(level, "delta")
    model.trace_on(DATA)
    with pytest.raises(ValueError, match="must not be a point"):
        model.log_weights(DATA)


@pytest.mark.core
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Torch compiles nothing")
def test_a_story_is_compiled_once_for_each_shape():
    runs = []

    def story(data):
        runs.append(data["y"].shape[0])
        mean = yield Global("mean", Normal(0.0, 3.0))
        yield Observed("y", Normal(mean, 1.0), data["y"])

    model = SVI(story, seed=0)
    model.trace_on(DATA)

    def results(rows):
        data = {"y": Y[:rows]}
        found = [model.posterior(num_samples=3, seed=0), model.predict(data, 3, 0), model.log_likelihood(data, 3, 0)]
        return [*found, model.sample_prior(data, 3, 0), {"joint": model.log_weights(data, 3, 0)}]

    first = results(10)
    del runs[:]
    again = results(10)
    assert not runs
    for one, other in zip(first, again, strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])
    moved = results(4)
    assert set(runs) == {4}
    np.testing.assert_array_equal(moved[0]["mean"], first[0]["mean"])
    model.guide_of("mean").start_at(np.array([9.0]), None)
    assert np.all(results(10)[0]["mean"] > first[0]["mean"] + 3.0)


def test_predict_says_what_it_takes():
    with pytest.raises(ValueError, match="takes `x`, `num_samples` and `seed`, not \\['batch_size'\\]"):
        at_the_posterior()[0].predict(DATA, batch_size=3)


@pytest.mark.core
def test_a_table_names_each_number_and_prints_in_text_and_html():
    def story(data):
        scales = yield Global("scales", HalfNormal(np.ones((2,))))
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean, scales[0] + scales[1]), data["y"])

    model = SVI(story, seed=0)
    model.trace_on(DATA)
    table = model.summary_table()
    assert table.names == ("scales[0]", "scales[1]", "mean")
    assert "scales[1]" in str(table)
    assert "<table" in table._repr_html_()


def test_the_figures_of_a_table_are_those_of_the_draws():
    draws = np.random.default_rng(0).normal(size=(500, 2))
    table = SummaryTable.of({"x": draws}, interval=0.5)
    np.testing.assert_allclose(table.mean, draws.mean(0))
    np.testing.assert_allclose(table.sd, draws.std(0, ddof=1))
    np.testing.assert_allclose([table.low, table.high], np.quantile(draws, [0.25, 0.75], axis=0))
    with pytest.raises(ValueError, match="`interval` must be a probability in \\(0, 1\\), not 90"):
        SummaryTable.of({"x": draws}, interval=90)
