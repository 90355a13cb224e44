"""Estimators of one objective: equal in expectation, value and gradient, and ordered by their variance."""

import keras
import numpy as np
import pytest
from keras import ops
from latent_networks import TARGET, all_gradients, array, built, called
from standard_errors import assert_mean

from bdl.layers.latent_attention.alignment_estimators import check_estimator
from bdl.likelihoods import Categorical, Mixture

pytestmark = pytest.mark.core

LIKELIHOOD = Mixture(Categorical())
SIZE = 8_192
QUERIES, KEYS, DIM = 2, 3, 4
RNG = np.random.default_rng(1)
ONE = [RNG.normal(size=(1, size, dim)) for size, dim in ((QUERIES, DIM), (KEYS, DIM), (QUERIES, TARGET))]
MANY = [np.tile(values, (SIZE, 1, 1)).astype("float32") for values in ONE]
ONE = [values.astype("float32") for values in ONE]


def elbo(outputs, kl):
    """Of each example."""
    labels = ops.broadcast_to(np.array([[1, 3]]), (outputs.shape[0], QUERIES))
    return -LIKELIHOOD.nll(labels, outputs) - kl


def layer_of(estimator, **arguments):
    return built(estimator, dim=DIM, **arguments)


def draws_of(estimator, inputs=MANY, **arguments):
    """ELBO of each example, and its gradient by that example's inputs, flat: examples are equal, their noise is not.

    The gradient by query, value and target passes through prior, inference network and decoder.
    """
    layer = layer_of(estimator, **arguments)
    values = elbo(*called(layer, inputs, training=True))
    slopes = all_gradients(layer, inputs, lambda outputs, kl: ops.sum(elbo(outputs, kl)))[:3]
    return array(values), np.concatenate([slope.reshape(len(inputs[0]), -1) for slope in slopes], axis=1)


@pytest.fixture(scope="module")
def exact():
    value, slope = draws_of("enumerate", ONE)
    assert np.abs(slope).min() > 1e-5  # the comparison is not of zeros
    return value, slope


REINFORCE = {
    "none": {"baseline": "none", "num_samples": 3},
    "none, one sample": {"baseline": "none", "num_samples": 1},
    "leave one out": {"baseline": "leave_one_out", "num_samples": 3},
    "leave one out, two samples": {"baseline": "leave_one_out", "num_samples": 2},
    "soft": {"baseline": "soft", "num_samples": 3},
    "soft, one sample": {"baseline": "soft", "num_samples": 1},
}


@pytest.mark.parametrize("arguments", REINFORCE.values(), ids=REINFORCE)
def test_reinforce_is_enumeration_in_expectation(exact, arguments):
    values, slopes = draws_of("reinforce", **arguments)
    assert_mean(values, exact[0][0], k=4)
    assert_mean(slopes, exact[1][0], k=4)


def test_control_variates_lower_the_variance_of_the_gradient_and_enumeration_has_none():
    variances = {
        name: draws_of("reinforce", baseline=name, num_samples=3)[1].var(axis=0).sum()
        for name in ("none", "leave_one_out", "soft")
    }
    enumerated = draws_of("enumerate", [np.tile(values, (8, 1, 1)) for values in ONE])[1].var(axis=0).sum()
    assert enumerated < 1e-8
    assert enumerated < variances["leave_one_out"] < 0.5 * variances["none"]
    assert enumerated < variances["soft"] < 0.5 * variances["none"]


def test_gumbel_is_biased_at_a_high_temperature_and_not_visibly_at_a_low_one(exact):
    cold, warm = (draws_of("gumbel", temperature=temperature)[0] for temperature in (0.01, 5.0))
    assert_mean(cold, exact[0][0], k=4)
    error = warm.std() / np.sqrt(SIZE)
    assert abs(warm.mean() - exact[0][0]) > 10 * error


def test_the_marginal_is_above_every_elbo():
    inputs = [np.random.default_rng(2).normal(size=(20, *values.shape[1:])).astype("float32") for values in ONE]
    inputs[2] *= 3.0
    decoder = keras.layers.Dense(4)
    for seed in range(5):
        keras.utils.set_random_seed(seed)
        marginal, enumerated = (layer_of(name, decoder=decoder) for name in ("marginal", "enumerate"))
        enumerated.inference_network.kernel.assign(3 * np.random.default_rng(seed).normal(size=(DIM + TARGET, DIM)))
        log_marginal = array(elbo(*called(marginal, inputs, training=True)))
        bound = array(elbo(*called(enumerated, inputs, training=True)))
        assert np.all(log_marginal > bound)
        without = layer_of("enumerate", decoder=decoder, inference_network=None)  # q = p: Jensen's inequality
        assert np.all(log_marginal > array(elbo(*called(without, inputs, training=True))))


@pytest.mark.parametrize("estimator", ["enumerate", "reinforce", "gumbel"])
def test_outside_training_all_are_the_exact_mixture(estimator):
    decoder = keras.layers.Dense(4)
    marginal, other = (layer_of(name, decoder=decoder) for name in ("marginal", estimator))
    np.testing.assert_array_equal(
        array(called(other, ONE, training=False)[0]), array(called(marginal, ONE, training=False)[0])
    )


def test_more_samples_have_less_variance():
    few, many = (draws_of("dirichlet", num_samples=number)[0].var() for number in (1, 16))
    assert 8 < few / many < 32


SETTINGS = {"estimator": "reinforce", "baseline": "none", "num_samples": 2, "temperature": 0.5, "dropout": 0.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"estimator": "hard"}, r"`estimator` must be one of \('soft', .*'dirichlet'\), not 'hard'"),
        ({"baseline": "mean"}, r"`baseline` must be one of \('leave_one_out', 'soft', 'none'\), not 'mean'"),
        ({"num_samples": 0}, r"`num_samples` must be a positive integer, not 0"),
        ({"num_samples": True}, r"`num_samples` must be a positive integer, not True"),
        ({"num_samples": 2.0}, r"`num_samples` must be a positive integer, not 2.0"),
        ({"baseline": "leave_one_out", "num_samples": 1}, r"`num_samples` must be at least 2 .*baseline='soft'"),
        ({"temperature": 0.0}, r"`temperature` must be a positive number, not 0.0"),
        ({"temperature": float("nan")}, r"`temperature` must be a positive number, not nan"),
        ({"estimator": "soft", "dropout": 1.0}, r"`dropout` must be in \[0, 1\), not 1.0"),
        ({"dropout": 0.1}, r"`dropout=0.1` drops attention weights, and estimator='reinforce' .*dropout=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_settings_out_of_range_are_refused(wrong, message):
    check_estimator(**SETTINGS)
    with pytest.raises(ValueError, match=message):
        check_estimator(**{**SETTINGS, **wrong})
