"""The smoothed guide: a Kalman smoother over all steps together, its files, and a path in a fit."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from bdl.svi import Smoothed, Transition
from bdl.svi.guides.smoothed import smoothed

RNG = np.random.default_rng(0)


def tensor(values):
    return ops.convert_to_tensor(values, dtype="float32")


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def moments(family, rows, size):
    """Means `(rows, size)` and roots of the covariance `(rows, size, size)`, by the draws of unit vectors."""
    noise = np.concatenate([np.zeros((1, rows, size)), np.eye(size)[:, None].repeat(rows, 1)])
    draws = array(family.draw(tensor(noise)))
    return draws[0], np.moveaxis(draws[1:] - draws[0], 0, -1)


@pytest.mark.core
@pytest.mark.parametrize("size", [2, 7, 16])
def test_a_chain_times_factors_is_the_posterior_of_linear_algebra(size):
    shift, slope, location = RNG.normal(size=(3, 2, size))
    sd, precision = np.exp(RNG.normal(size=(2, 2, size)))
    family = smoothed(
        Transition(0.3, 1.5, *(tensor(each) for each in (shift, slope, sd))), tensor(location), tensor(precision)
    )
    mean, roots = moments(family, 2, size)
    noise = RNG.normal(size=(2, size))
    draws, density = array(family.draw(tensor(noise))), array(family.log_density(tensor(noise))).sum(-1)
    for row in range(2):
        unit = np.eye(size) - np.diag(slope[row, :-1], -1)
        scales = np.array([1.5, *sd[row, :-1]])
        prior = unit.T @ np.diag(scales**-2.0) @ unit
        covariance = np.linalg.inv(prior + np.diag(precision[row]))
        right = unit.T @ (np.array([0.3, *shift[row, :-1]]) / scales**2) + precision[row] * location[row]
        np.testing.assert_allclose(roots[row] @ roots[row].T, covariance, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(mean[row], covariance @ right, rtol=1e-3, atol=1e-3)
        expected = stats.multivariate_normal(covariance @ right, covariance).logpdf(draws[row])
        assert density[row] == pytest.approx(expected, abs=0.02)


@keras.saving.register_keras_serializable(package="tests")
def drifting(given, more):
    return Transition(given[0], 1.0, more[0], 0.9, ops.exp(given[1]))


@pytest.mark.core
def test_the_path_follows_the_draw_of_other_sites_before_the_network_has_learned():
    """At the start locations are 0 and precisions 1; steps scale with the draw."""
    data = {"y": tensor(RNG.normal(size=(2, 9)))}
    guide = Smoothed(keras.layers.Identity(), drifting, "y", ["level", "spread"], num_more=1)
    guide.bind({"path": 9}, data, given_size=2)
    for given in ([0.5, -1.0], [2.0, 0.3]):
        family = guide.distribution(data, tensor(given))
        zeros = tensor(np.zeros((2, 9)))
        expected = smoothed(Transition(given[0], 1.0, 0.0, 0.9, float(np.exp(given[1]))), zeros, zeros + 1.0)
        for found, other in zip(moments(family, 2, 9), moments(expected, 2, 9), strict=True):
            np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-6)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(guide))
    assert again.sizes == {"path": 9}
    assert [tuple(each.shape) for each in again.weights] == [tuple(each.shape) for each in guide.weights]


@pytest.mark.core
def test_two_thousand_steps_stay_finite():
    location, precision = RNG.normal(size=(1, 2000)), np.full((1, 2000), 0.2)
    family = smoothed(Transition(0.0, 1.0, 0.0, 0.99, 0.1), tensor(location), tensor(precision))
    noise = tensor(RNG.normal(size=(1, 2000)))
    assert np.abs(array(family.draw(noise))).max() < 5.0
    assert np.isfinite(array(family.log_density(noise))).all()


def test_a_transition_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match="`transition` must be a function of"):
        Smoothed(keras.layers.Identity(), "walk", "y")
