"""Converged: it ends a fit at rest and not before, averages what came after, and says what it saw."""

import contextlib
import re
import warnings

import keras
import numpy as np
import pytest
from layer_contract import array
from stories import level, level_posterior, spread

import bdl
from bdl.diagnostics import TrainingHealth
from bdl.svi import SVI
from bdl.training import Converged
from bdl.training.averaging import MeanOfReads, TailAverage
from bdl.training.iterates import Movement
from bdl.training.mixing import bulk_effective_sample_size

Y = np.random.default_rng(0).normal(2.0, 1.0, size=50).astype("float32")
DATA = {"y": Y}


def fitted(callback, steps=3000, rate=0.05, story=level, compiled=None, **settings):
    model = SVI(story, seed=0, **settings)
    model.compile(keras.optimizers.Adam(rate), **(compiled or {}))
    model.fit(DATA, batch_size="all", steps=steps, verbose=0, callbacks=[callback])
    return model


@contextlib.contextmanager
def warned(message):
    """What was warned within, by us: Keras' own deprecations, which `pytest.warns` would hand on, are none of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)
        yield caught
    assert re.search(message, " ".join(str(each.message) for each in caught))


def autoregression(correlation, length, numbers, seed=0):
    """Stationary numbers of variance 1."""
    noise = np.random.default_rng(seed).normal(size=(length, numbers))
    draws = noise.copy()
    for step in range(1, length):
        draws[step] = correlation * draws[step - 1] + np.sqrt(1 - correlation**2) * noise[step]
    return draws


def test_the_error_of_the_average_is_that_of_an_autoregression():
    """Its mean over n has the variance (1 + r) / (1 - r) / n; of 40 numbers the mean of the squared errors shows it."""
    length, correlation = 2000, 0.8
    draws = autoregression(correlation, length, 40)
    effective = bulk_effective_sample_size(draws[None])
    expected = length * (1 - correlation) / (1 + correlation)
    spread_of = effective.std(ddof=1) / np.sqrt(len(effective))
    assert abs(effective.mean() - expected) < 4 * spread_of + 0.02 * expected
    scales = np.full((length, 40), np.log(0.5))
    found = Movement.of(np.concatenate([draws, scales], axis=1), np.zeros(80))
    np.testing.assert_allclose(found.error[:40], draws.std(axis=0, ddof=1) / np.sqrt(effective) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.error[40:], 0.0, atol=1e-12)
    np.testing.assert_allclose(found.effective[:40], effective)


def test_a_drift_a_number_that_is_none_and_a_constant_are_told_apart():
    noise = np.random.default_rng(0).normal(size=(400, 4))
    start = np.zeros(4)
    assert np.all(Movement.of(noise, start).r_hat < 1.05)
    drifting = noise + np.outer(np.linspace(0.0, 3.0, 400), [0, 1, 0, 0])
    assert np.flatnonzero(Movement.of(drifting, start).r_hat > 1.1).tolist() == [1]
    noise[7, 3] = np.nan
    assert np.isinf(Movement.of(noise, start).r_hat).tolist() == [False, False, False, True]
    assert np.all(Movement.of(np.ones((30, 2)), np.ones(2)).r_hat == 1.0)


def test_drift_and_slowness_are_those_of_a_straight_line():
    """A number moves by .01 sds a read, for 100 reads before the run and in it: over as long again, by 3 sds."""
    line = 0.5 * 0.01 * np.arange(100, 300)
    found = Movement.of(np.stack([line, np.full(200, np.log(0.5))], axis=1), np.array([0.0, np.log(0.5)]), before=100)
    np.testing.assert_allclose(found.drift, [3.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found.slowness, [1.0, 0.0], atol=0.01)


@pytest.mark.core
def test_a_fit_ends_when_it_is_at_rest_at_the_posterior():
    callback = Converged()
    model = fitted(callback)
    report = callback.report
    assert report.is_reached
    assert 100 <= report.steps < 3000
    assert report.r_hat <= 1.1 or report.drift <= 0.25
    assert report.error <= 0.1
    assert report.effective >= 10
    assert model.progress.step == report.steps
    assert str(report).startswith("The fit converged: over steps")
    assert model.convergence is report
    mean, sd, _ = level_posterior(Y.astype("float64"))
    found = model.iterate()
    assert abs(found.mean[0] - mean) < 4 * 0.1 * sd
    assert abs(np.exp(found.log_scale[0]) / sd - 1) < 4 * 0.1


@pytest.mark.core
def test_what_came_after_is_averaged_in_place():
    """The mean of a guide is linear in what is averaged."""
    seen = []

    class Reads(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            seen.append(float(self.model.iterate().mean[0]))

    callback = Converged(every=1)
    model = SVI(level, seed=0)
    model.compile(keras.optimizers.Adam(0.05))
    model.fit(DATA, batch_size="all", steps=2000, verbose=0, callbacks=[Reads(), callback])
    report = callback.report
    assert report.is_reached
    np.testing.assert_allclose(model.iterate().mean[0], np.mean(seen[report.first - 1 : report.steps]), rtol=1e-5)
    assert len(seen) == report.steps


def test_the_summary_says_what_was_seen_or_that_nobody_looked():
    model = SVI(level, seed=0)
    model.compile(keras.optimizers.Adam(0.05))
    model.fit(DATA, batch_size="all", steps=40, epochs=20, verbose=0)
    assert "is not known: nothing watched it" in str(model.summary_table())
    health = TrainingHealth(on_verdict="record", max_cost=1.0)
    model.fit(DATA, batch_size="all", steps=800, epochs=40, verbose=0, callbacks=[health])
    assert re.search("The fit (has not come|came) to rest. Between the last two quarters", str(model.summary_table()))
    converged = Converged()
    model.fit(DATA, batch_size="all", steps=3000, verbose=0, callbacks=[converged])
    assert str(converged.report) in model.summary_table().remark
    model.fit(DATA, batch_size="all", steps=1, verbose=0)
    assert "is not known" in str(model.summary_table())


@pytest.mark.core
def test_calls_of_several_steps_are_read_once():
    callback = Converged()
    model = fitted(callback, compiled={"steps_per_execution": 20})
    assert callback.report.is_reached
    if keras.backend.backend() != "torch":  # which takes one step a call
        assert callback.report.steps % 20 == 0
    assert model.progress.step == callback.report.steps


def test_all_chains_must_be_at_rest():
    callback = Converged()
    model = fitted(callback, steps=4000, num_chains=2)
    assert callback.report.is_reached
    assert model.iterate_names() == ["mean of chain 0", "mean of chain 1"]
    assert model.iterate().mean.shape == (2,)


def test_a_fit_that_is_too_short_or_too_slow_says_so():
    callback = Converged()
    with warned("was not seen to converge: after step 0 its posterior was read 8 times"):
        fitted(callback, steps=40)
    with warned("was not seen to converge: mean still moves"):
        model = fitted(callback, steps=400, rate=1e-4)
    assert not callback.report.is_reached
    assert callback.report.steps == 400
    assert "not seen to converge" in str(model.convergence)


def test_a_rate_that_falls_at_every_step_is_not_judged():
    callback = Converged()
    with warned("follows a schedule|was not seen") as caught:
        fitted(callback, steps=600, rate=keras.optimizers.schedules.CosineDecay(0.05, 600))
    messages = [str(each.message) for each in caught]
    assert len(messages) == 2
    assert "follows a schedule" in messages[0]
    assert "the learning rate or T changed until its end" in messages[1]
    assert not callback.report.is_reached
    assert callback.report.steps == 600
    assert callback.report.first <= 400


def test_iterates_of_two_rates_are_not_compared():
    """A callback lowers the rate: the run that had been judged begins anew."""
    lower = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.05 if epoch < 1 else 0.01)
    callback = Converged(error=1e-4)
    model = SVI(level, seed=0)
    model.compile(keras.optimizers.Adam(0.05))
    with warned("the average is not known to 0.0001|still moves|fewer than"):
        model.fit(DATA, batch_size="all", steps=2000, epochs=4, verbose=0, callbacks=[lower, callback])
    assert callback.report.first > 500


@pytest.mark.core
def test_a_network_is_judged_by_its_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)).astype("float32")
    y = (x @ np.array([[1.0], [-2.0]]) + 0.5 * rng.normal(size=(200, 1))).astype("float32")
    layer = bdl.layers.DenseLocalReparameterization(1, use_bias=False)
    network = keras.Sequential([keras.Input((2,)), layer])
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=0.5), kl_weight=1.0)
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(0.02), steps_per_execution=5)
    callback = Converged()
    model.fit(x, y, batch_size=20, epochs=200, verbose=0, callbacks=[callback])
    assert callback.report.is_reached
    posterior = np.linalg.solve(x.T @ x / 0.25, x.T @ y / 0.25)  # a prior of scale near 1 moves it by .02 sds
    assert np.all(np.abs(array(layer.layer.kernel) - posterior) < 0.5 / np.sqrt(200))
    assert model.iterate_names() == [f"{layer.name}[0]", f"{layer.name}[1]"]


def test_what_has_no_scale_is_refused():
    with pytest.raises(ValueError, match=r"must not hold Converged .* not with SVI"):
        fitted(Converged(), guide="delta")
    plain = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="not with Sequential"):
        plain.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=[Converged()])


@pytest.mark.parametrize(
    ("argument", "value"), [("r_hat", 1.0), ("error", 0.0), ("effective", 0), ("every", 0), ("every", 1.5)]
)
def test_arguments_are_checked(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        Converged(**{argument: value})


def test_averages_can_begin_anew():
    weight = keras.Variable(0.0)
    tail, reads = TailAverage(keras.Sequential(), [weight]), MeanOfReads([weight])
    tail.begin(None)
    for value in (7.0, 9.0, 1.0, 2.0):
        if value == 2.0:
            tail.restart()
        tail.update()  # a step counts before it moves the variables, and the last one's move at the end
        weight.assign(value)
        if value == 1.0:
            reads.restart()
        reads.update()
    for average in (tail, reads):
        weight.assign(2.0)
        average.put_in_place()
        assert array(weight) == 1.5


def test_a_fit_of_two_numbers_can_be_averaged_or_not():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        averaged, last = (
            fitted(Converged(averaging=each), 200, story=spread, averaging=False) for each in (True, False)
        )
    assert np.all(averaged.iterate().numbers != last.iterate().numbers)
    assert averaged.progress.step == last.progress.step
