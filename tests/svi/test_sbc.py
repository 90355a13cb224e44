"""Simulation-based calibration: it passes a right model, rejects wrong ones, and its bands hold what they promise."""

import warnings

import keras
import numpy as np
import pytest
from scipy import stats
from standard_errors import assert_within_standard_errors
from stories import Normal

from bdl.svi import SVI, Flat, Global, Observed, simulation_based_calibration
from bdl.svi.ranks import bands, counts_below, p_value
from bdl.svi.sbc import Calibration

STEPS = 150


def story_of(centre=0.0, scale=1.0):
    def story(data):
        mean = yield Global("mean", Normal(centre, 1.0))
        yield Observed("y", Normal(mean, scale), data["y"])

    return story


def compiled(story, steps=STEPS, eager=False, **settings):
    """Without a compiler where one step takes less time than it does, as on TensorFlow."""
    model = SVI(story, seed=0, **settings)
    rate = keras.optimizers.schedules.CosineDecay(0.2, steps)
    eager = eager and keras.backend.backend() == "tensorflow"
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=steps, run_eagerly=eager)
    return model


def calibrated(story, num_simulations, rows=4, batch_size="all", **settings):
    data = {"y": np.zeros(rows, "float32")}
    truth = SVI(story_of(), seed=0)
    model = compiled(story, **settings)
    return simulation_based_calibration(
        model, data, num_simulations, STEPS, batch_size=batch_size, simulator=truth, seed=1
    )


def test_uniform_ranks_leave_the_band_as_often_as_it_says():
    """2,000 sets of 60 ranks among 19 draws, apart from those of which the band was made."""
    low, high = bands(60, 19, 0.1)
    counts = counts_below(np.random.default_rng(1).integers(0, 20, size=(2000, 60)), 19)
    left = np.any((counts < low) | (counts > high), axis=1).mean()
    # Of discrete ranks the rate is at most the asked one; the band is of 20,000 samples.
    assert left < 0.1 + 4 * np.sqrt(0.1 * 0.9 / 2000)
    assert left > 0.06


def test_p_values_of_uniform_ranks_are_no_smaller_than_uniform_ones():
    random = np.random.default_rng(2)
    values = np.array([p_value(random.integers(0, 20, 60), 19) for _ in range(500)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(values <= level) < level + 4 * np.sqrt(level * (1 - level) / 500)
    assert np.mean(values <= 0.5) > 0.3


def test_the_band_is_left_where_the_p_value_says_so():
    random = np.random.default_rng(3)
    for false_alarm in (0.01, 0.1):
        low, high = bands(60, 19, false_alarm)
        for power in (0.6, 0.8, 1.0, 1.25):
            ranks = np.floor(20 * random.uniform(size=60) ** power).astype(int)
            counts = counts_below(ranks, 19)
            leaves = bool(np.any((counts < low) | (counts > high)))
            assert leaves == (p_value(ranks, 19) <= false_alarm + 1 / 20_000)


def test_a_right_model_passes():
    found = calibrated(story_of(), 30)
    assert found.is_calibrated
    assert found.ranks.shape == (30, 1)
    assert "Nothing was found: the ranks of all 1 numbers may be uniform (of 30 simulations" in found.verdict
    assert_within_standard_errors(found.ranks.mean(), 99 / 2, 100 / np.sqrt(12 * 30))


def test_a_wrong_prior_and_a_wrong_scale_are_rejected():
    assert calibrated(story_of(centre=3.0), 12).verdict.startswith("The posterior is not calibrated: mean (too high)")
    assert calibrated(story_of(scale=0.3), 20).verdict.startswith("The posterior is not calibrated: mean (too narrow)")


def test_an_unscaled_minibatch_is_rejected():
    """N is a batch's: the data count for 2 of 32 rows, and the posterior is about three times as wide."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)
        found = calibrated(story_of(), 40, rows=32, batch_size=2, num_examples=2)
    assert sum("num_examples=2, but fit was given 32" in str(each.message) for each in caught) == 40
    assert found.rejected == ("mean",)
    assert "too wide" in str(found)


@pytest.mark.core
def test_ranks_are_those_of_the_exact_posterior():
    """The mean rank of each simulation is the posterior's distribution function at the true value."""
    data = {"y": np.zeros(4, "float32")}
    model = compiled(story_of(), steps=500)
    found = simulation_based_calibration(model, data, 5, 500, num_draws=999, seed=1)
    prior = SVI(story_of(), seed=0).sample_prior(data, 5, 1)
    mean, sd = prior["y"].sum(axis=1) / 5, 5**-0.5
    expected = stats.norm(mean, sd).cdf(prior["mean"])
    # Fits of 500 steps come within a tenth of a standard deviation, which moves the function by .04 at most.
    error = np.sqrt(expected * (1 - expected) / 999) + 0.04 / 4 + 1e-3
    assert_within_standard_errors(found.ranks[:, 0] / 999, expected, error)
    assert not model.is_started
    assert model.progress.step == 0


def test_the_verdict_says_how_a_posterior_is_wrong():
    uniform = (np.arange(200) + 0.5) / 200
    shapes = {
        "low": uniform**0.5,
        "high": uniform**2,
        "narrow": 0.5 + 0.5 * np.sign(uniform - 0.5) * np.abs(2 * uniform - 1) ** 0.4,
        "wide": 0.5 + 0.5 * np.sign(uniform - 0.5) * np.abs(2 * uniform - 1) ** 2.5,
        "right": uniform,
    }
    ranks = np.stack([np.minimum(np.floor(100 * each), 99) for each in shapes.values()], axis=1).astype(int)
    found = Calibration.of(list(shapes), ranks, 99)
    assert found.rejected == ("low", "high", "narrow", "wide")
    for name in found.rejected:
        assert f"{name} (too {name})" in found.verdict


def test_what_cannot_be_calibrated_is_refused():
    data = {"y": np.zeros(4, "float32")}

    def flat(data):
        mean = yield Global("mean", Flat())
        yield Observed("y", Normal(mean, 1.0), data["y"])

    with pytest.raises(ValueError, match="must be proper, not Flat"):
        simulation_based_calibration(compiled(flat), data, 2)
    with pytest.raises(ValueError, match="this one is not compiled"):
        simulation_based_calibration(SVI(story_of()), data, 2)
    fitted = compiled(story_of(), steps=1, eager=True)
    fitted.fit(data, batch_size="all", steps=1, verbose=0)
    with pytest.raises(ValueError, match="this one has been fitted"):
        simulation_based_calibration(fitted, data, 2)
    with pytest.raises(ValueError, match="`x` must be a dict of arrays"):
        simulation_based_calibration(compiled(story_of()), np.zeros(4), 2)
    with pytest.raises(ValueError, match="must be a probability"):
        simulation_based_calibration(compiled(story_of()), data, 2, false_alarm=0.0)

    def renamed(data):
        mean = yield Global("mean", Normal(0.0, 1.0))
        yield Observed("height", Normal(mean, 1.0), data["y"])

    with pytest.raises(ValueError, match=r"must have an entry 'height' .* pass observed="):
        simulation_based_calibration(compiled(renamed), data, 2)
    model = compiled(renamed, steps=1, eager=True)
    found = simulation_based_calibration(model, data, 2, 1, observed={"height": "y"})
    assert found.names == ("mean",)
