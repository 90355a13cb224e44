"""Schedules: their values, their arguments, and their names in saved models."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bdl
from bdl.schedules import CyclicalWarmup, DecayOverFit, LinearWarmup, MinibatchWeights

pytestmark = pytest.mark.core


def to_float(value):
    return float(keras.ops.convert_to_numpy(value))


def values(schedule, steps, total):
    return np.array([to_float(schedule(np.float32(step), np.float32(total))) for step in steps])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 1.0), st.integers(1, 1000))
def test_linear_warmup_rises_to_one_and_stays(fraction, total):
    steps = np.linspace(0, total, 11)
    expected = np.minimum(1.0, steps / (fraction * total))
    np.testing.assert_allclose(values(LinearWarmup(fraction), steps, total), expected, rtol=1e-4, atol=1e-5)


def test_linear_warmup_in_steps_ignores_the_total():
    schedule = LinearWarmup(steps=10)
    assert not schedule.needs_total_steps
    np.testing.assert_allclose(values(schedule, [0, 5, 10, 50], 0), [0.0, 0.5, 1.0, 1.0])


def test_cyclical_warmup_restarts_and_ends_at_one():
    schedule = CyclicalWarmup(cycles=4, fraction=0.5)
    np.testing.assert_allclose(
        values(schedule, [0, 5, 10, 20, 25, 40, 60, 79, 80, 500], 80), [0, 0.5, 1, 0, 0.5, 0, 0, 1, 1, 1], atol=1e-5
    )


@pytest.mark.parametrize("num_batches", [1, 2, 7, 5000])
def test_minibatch_weights_average_to_one_and_halve(num_batches):
    steps = np.arange(num_batches) if num_batches < 100 else np.arange(40)
    found = values(MinibatchWeights(num_batches), steps, 0)
    np.testing.assert_allclose(found[1:] / found[:-1], 0.5, rtol=1e-5)
    # The tail beyond 40 batches is below float32's resolution of the sum.
    assert found.sum() == pytest.approx(num_batches, rel=1e-5)
    again = to_float(MinibatchWeights(num_batches)(np.float32(num_batches), np.float32(0)))
    assert again == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: LinearWarmup(0.0), "fraction"),
        (lambda: LinearWarmup(1.5), "fraction"),
        (lambda: LinearWarmup(steps=0), "steps"),
        (lambda: CyclicalWarmup(cycles=0), "cycles"),
        (lambda: CyclicalWarmup(fraction=2.0), "fraction"),
        (lambda: MinibatchWeights(0), "num_batches"),
        (lambda: DecayOverFit(0.0), "rate"),
        (lambda: DecayOverFit(float("inf")), "rate"),
    ],
)
def test_schedules_check_their_arguments(make, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        make()


def test_schedules_round_trip_through_keras():
    for schedule in (LinearWarmup(0.3), LinearWarmup(steps=5), CyclicalWarmup(3, 0.2), MinibatchWeights(9)):
        assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule)) == schedule


def test_schedules_keep_the_place_and_the_names_that_saved_models_know():
    config = {"module": "bdl.elbo", "class_name": "LinearWarmup", "config": {"fraction": 0.3, "steps": None}}
    config["registered_name"] = "bdl>LinearWarmup"
    assert keras.saving.deserialize_keras_object(config) == LinearWarmup(0.3)
    for schedule in (LinearWarmup, CyclicalWarmup, MinibatchWeights):
        assert getattr(bdl.elbo, schedule.__name__) is schedule
        assert keras.saving.get_registered_name(schedule) == f"bdl>{schedule.__name__}"


def test_a_decay_is_a_cycle_of_its_length():
    schedule = DecayOverFit(0.2)
    assert to_float(schedule(7)) == pytest.approx(0.2)
    assert schedule.begin_fit(5, 10)
    expected = 0.1 * (1.0 + np.cos(np.pi * np.arange(10) / 10))
    for cycle in (5, 15):
        found = [to_float(schedule(cycle + step)) for step in range(10)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    assert not schedule.begin_fit(25, 10)
    assert schedule.begin_fit(30, 10)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert (copy.rate, copy.first_step, copy.num_steps) == (0.2, 30, 10)
