"""Function-space figures on hand-made draws, whose values follow from their definitions."""

import keras
import numpy as np
import pytest
from foreign_layers import ForeignDense

import bdl
from bdl.diagnostics.accounting import likelihood_of
from bdl.diagnostics.measure import take_probe
from bdl.diagnostics.probe import (
    ACTIVE_SIGNAL,
    PRUNED_SHARES,
    Draws,
    active_units,
    class_numbers,
    function_signal,
    function_variance,
    pruned_accuracy,
)
from bdl.diagnostics.weights import weight_posteriors
from bdl.likelihoods import Bernoulli, Categorical, Normal

LABELS = np.array([0, 2, 1, 0, 0, 2])


def draws_of(*means):
    means = np.stack(means).astype("float64")
    return Draws(nll=np.zeros(means.shape[:2]), means=means, hidden={})


@pytest.mark.parametrize("y", [LABELS, LABELS[:, None], np.tile(LABELS[:, None], 4)])
def test_class_numbers_stay(y):
    np.testing.assert_array_equal(class_numbers(y, Categorical()), y)


@pytest.mark.parametrize("kind", ["float32", "int64", "bool"])
def test_one_hot_labels_become_class_numbers(kind):
    np.testing.assert_array_equal(class_numbers(np.eye(3, dtype=kind)[LABELS], Categorical()), LABELS)


def test_one_hot_sequences_become_sequences_of_class_numbers():
    y = np.stack([LABELS, LABELS[::-1]], axis=1)
    np.testing.assert_array_equal(class_numbers(np.eye(3)[y], Categorical()), y)


def test_void_labels_and_several_outputs_are_not_diagnosed_in_silence():
    with pytest.raises(ValueError, match=r"`y` must have a label for every event to be diagnosed, not 255"):
        class_numbers([0, 255], Categorical(ignore_class=255))
    inputs = keras.Input((4,))
    several = keras.Model(inputs, {"a": keras.layers.Dense(3)(inputs), "b": bdl.layers.DenseFlipout(1)(inputs)})
    with pytest.raises(ValueError, match="`model` must have one output to be diagnosed"):
        likelihood_of(bdl.VariationalModel(several, {"a": Categorical(), "b": Normal()}))
    squashed = keras.Sequential([inputs, keras.layers.Dense(3, "softmax")])
    assert likelihood_of(squashed, Categorical()).from_logits is False


def test_class_numbers_of_sequences_that_look_one_hot_stay():
    """One event of class 1 in each sequence: outputs `(n, steps, classes)` have an axis more than such labels."""
    y = np.eye(3, dtype="int64")[LABELS]
    np.testing.assert_array_equal(class_numbers(y, Categorical(), output_rank=3), y)
    network = keras.Sequential([keras.Input((3, 2)), bdl.layers.DenseFlipout(2)])
    np.testing.assert_array_equal(take_probe((np.zeros((6, 3, 2)), y), 6, Categorical(), "data", network).labels, y)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Normal(1.0)])
def test_labels_without_classes_stay(likelihood):
    """Several binary labels, or targets, may look one-hot by chance."""
    y = np.eye(3)[LABELS]
    np.testing.assert_array_equal(class_numbers(y, likelihood), y)


@pytest.mark.parametrize("contrast", [0.0, 0.25, 1.0])
def test_signal_of_a_classifier_is_its_contrast(contrast):
    """Probabilities `(1 - a) / 3 + a onehot(y)` vary `a` times as much as the labels."""
    means = (1.0 - contrast) / 3 + contrast * np.eye(3)[LABELS]
    assert function_signal(draws_of(means), LABELS, Categorical()) == pytest.approx(contrast, abs=1e-12)


@pytest.mark.parametrize("num_events", [1, 4])
def test_signal_of_a_perfect_classifier_is_one_whatever_the_number_of_events(num_events):
    y = np.stack([np.roll(LABELS, shift) for shift in range(num_events)], axis=1)
    assert function_signal(draws_of(np.eye(3)[y]), y, Categorical()) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("contrast", [0.0, 0.25, 1.0])
def test_signal_of_a_binary_classifier_is_its_contrast(contrast):
    y = np.array([0, 1, 1, 0, 1])
    means = 0.5 + contrast * (y - 0.5)
    assert function_signal(draws_of(means[:, None]), y, Bernoulli()) == pytest.approx(contrast, abs=1e-12)


@pytest.mark.parametrize("num_targets", [1, 3])
@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_signal_of_a_regression_is_its_slope(num_targets, unit):
    y = unit * np.random.default_rng(0).normal(size=(50, num_targets))
    assert function_signal(draws_of(7.0 - 0.3 * y), y, Normal(1.0)) == pytest.approx(0.3, rel=1e-9)


def test_noise_of_few_samples_is_taken_off_the_signal():
    """Of `g + e` and `g - e` the mean is g, whose variance is too large by `Var_x(e)`: half of an unbiased `Var_q`."""
    random = np.random.default_rng(0)
    y, g, e = random.normal(size=(3, 200))
    expected = np.sqrt((np.var(g) - np.var(0.5 * e)) / np.var(y))
    draws = draws_of(g[:, None] + 0.5 * e[:, None], g[:, None] - 0.5 * e[:, None])
    assert function_signal(draws, y, Normal(1.0)) == pytest.approx(expected, rel=1e-9)


def test_signal_below_its_noise_is_zero():
    y, e = np.random.default_rng(0).normal(size=(2, 50))
    assert function_signal(draws_of(e[:, None], -e[:, None]), y, Normal(1.0)) == 0.0


def test_function_variance_by_hand():
    """Values -c and c at every input: an unbiased variance of `2 c^2`, summed over outputs."""
    offsets = np.array([1.0, 3.0])
    same = np.random.default_rng(0).normal(size=(20, 2))
    assert function_variance(draws_of(same + offsets, same - offsets)) == pytest.approx(2 * (1 + 9), rel=1e-12)


@pytest.mark.parametrize(("share", "active"), [(1.001 * ACTIVE_SIGNAL, 1.0), (0.999 * ACTIVE_SIGNAL, 0.0)])
def test_a_unit_is_active_from_its_share_of_signal_up(share, active):
    """Noise that moves all inputs alike by -c or c: the share of signal is `Var(g) / (Var(g) + 2 c^2)`."""
    g = np.random.default_rng(0).normal(size=(40, 1))
    c = np.sqrt(np.var(g) * (1.0 / share - 1.0) / 2.0)
    assert active_units(np.stack([g + c, g - c])) == active


def test_dead_and_noisy_units_are_not_active():
    g, e = np.random.default_rng(0).normal(size=(2, 40))
    dead = np.full(40, 3.0)
    one, other = np.stack([g, dead, e, 2 * g], axis=1), np.stack([g, dead, -e, 2 * g], axis=1)
    assert active_units(np.stack([one, other])) == 0.5
    assert active_units(one[None]) == 0.75  # of one draw alone, noise cannot be told from signal


def test_positions_of_a_sequence_count_as_inputs():
    hidden = np.random.default_rng(0).normal(size=(1, 10, 4, 3))
    assert active_units(hidden) == active_units(hidden.reshape(1, 40, 3)) == 1.0


def linear_classifier(scale_of_label_weights):
    """Two classes that the first of ten features tells apart; the other features' weights have a ratio of one."""
    network = keras.Sequential([keras.Input((10,)), bdl.layers.DenseReparameterization(2, use_bias=False)])
    (posterior,) = weight_posteriors(network)
    mean, scale = np.full((10, 2), 1e-3), np.full((10, 2), 1e-3)
    mean[0], scale[0] = (-5.0, 5.0), scale_of_label_weights
    posterior.assign(mean, scale)
    y = np.arange(20) % 2
    x = np.zeros((20, 10), "float32")
    x[:, 0] = 2 * y - 1
    return network, [posterior], x, y


@pytest.mark.core
@pytest.mark.parametrize(("scale", "accuracy"), [(0.01, 1.0), (1000.0, 0.5)])
def test_strong_weights_alone_carry_the_labels(scale, accuracy):
    """Zeroed as the weakest, the label's weights leave logits that are equal: the first class, half of the labels."""
    network, posteriors, x, y = linear_classifier(scale)
    before = posteriors[0].mean
    found = pruned_accuracy(network, posteriors, x, y, Categorical())
    assert found == {f"{share:.0%}": accuracy for share in PRUNED_SHARES}
    np.testing.assert_array_equal(posteriors[0].mean, before)


def test_noise_of_another_library_cannot_be_turned_off():
    network = keras.Sequential([keras.Input((3,)), ForeignDense(2, 1.0)])
    x, y = np.ones((4, 3), "float32"), np.zeros(4, int)
    assert pruned_accuracy(network, weight_posteriors(network), x, y, Categorical()) is None
