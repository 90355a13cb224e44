"""AveragingAdam: the average of the last fifth of a short training, and Keras' exponential average in a long one."""

import json

import keras
import numpy as np
import pytest
from layer_contract import array
from numpy.testing import assert_allclose

from bdl.training.averaging import AveragingAdam, TailAverage

pytestmark = pytest.mark.core


def averaged(momentum: float, steps: int) -> np.ndarray:
    """What `fit` leaves of a weight that starts at 1 and has a constant gradient."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")(inputs))
    model.compile(AveragingAdam(0.01, ema_momentum=momentum), lambda y, outputs: keras.ops.mean(outputs))
    x = np.ones((steps, 1), "float32")
    model.fit(x, x, batch_size=1, verbose=0)
    return array(model.layers[-1].kernel).ravel()


def expected(steps: int, momentum: float) -> float:
    """The average of weights that fall by .01 a step: Adam's step on a constant gradient is its rate."""
    weights = 1.0 - 0.01 * np.arange(1, steps + 1)
    average = weights[0]
    for step, weight in enumerate(weights):
        share = max(1.0 - momentum, 1.0 / (1.0 + 0.2 * step))
        average += share * (weight - average)
    return average


@pytest.mark.parametrize(("steps", "momentum"), [(30, 0.99), (60, 0.8)])
def test_fit_ends_with_the_average(steps, momentum):
    assert_allclose(averaged(momentum, steps), expected(steps, momentum), rtol=1e-4)


def test_the_first_weights_are_forgotten():
    """The mean age of the averaged weights is a sixth of a short training; .99 would have 60 % of the first left."""
    age = (averaged(0.99, 50) - (1.0 - 0.01 * 50)) / 0.01
    assert_allclose(age, 50 / 6, atol=1.0)


def test_it_is_saved():
    optimizer = AveragingAdam(3e-3, ema_momentum=0.995, beta_2=0.99)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    loaded = keras.saving.deserialize_keras_object(config)
    assert type(loaded) is AveragingAdam
    assert loaded.get_config() == optimizer.get_config()
    assert loaded.use_ema


@pytest.mark.core
def test_the_mean_over_the_second_half_is_put_in_place():
    weight = keras.Variable(np.zeros(2))
    average = TailAverage(keras.Sequential(), [weight])
    iterates = np.random.default_rng(0).normal(size=(7, 2))
    for _ in range(2):  # a second training begins anew
        average.begin(len(iterates))
        for value in iterates:
            average.update()
            weight.assign(value)
        average.put_in_place()
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), iterates[3:].mean(0), rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("length", [None, 10])
def test_a_training_that_ends_early_or_has_no_known_length_is_not_averaged(length):
    weight = keras.Variable(0.0)
    average = TailAverage(keras.Sequential(), [weight])
    average.begin(length)
    for value in range(5):
        weight.assign(value)
        average.update()
    average.put_in_place()
    assert array(weight) == 4.0
