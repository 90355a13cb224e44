"""Likelihoods against scipy, and what they refuse."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from bdl.likelihoods import Bernoulli, Categorical, NegativeBinomial, Normal, Poisson, StudentT, log_gamma

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
LOCATION = RNG.normal(size=(6, 2)).astype("float32")
RAW = RNG.normal(size=(6, 2)).astype("float32")
REAL = RNG.normal(size=(6, 2)).astype("float32")
COUNTS = RNG.poisson(3.0, size=(6, 2))


def nll(likelihood, y, outputs, mask=None):
    return keras.ops.convert_to_numpy(likelihood.nll(y, outputs, mask))


def softplus(x):
    return np.logaddexp(0.0, x)


CASES = {
    "categorical": (
        Categorical(),
        np.array([0, 2, 1, 1, 0, 2]),
        np.hstack([LOCATION, RAW[:, :1]]),
        lambda y, f: special.log_softmax(f, axis=-1)[np.arange(6), y],
    ),
    "categorical probabilities": (
        Categorical(from_logits=False),
        np.array([0, 2, 1, 1, 0, 2]),
        special.softmax(np.hstack([LOCATION, RAW[:, :1]]), axis=-1),
        lambda y, f: np.log(f)[np.arange(6), y],
    ),
    "bernoulli": (Bernoulli(), COUNTS % 2, LOCATION, lambda y, f: stats.bernoulli(special.expit(f)).logpmf(y).sum(-1)),
    "bernoulli probabilities": (
        Bernoulli(from_logits=False),
        COUNTS % 2,
        special.expit(LOCATION),
        lambda y, f: stats.bernoulli(f).logpmf(y).sum(-1),
    ),
    "normal": (Normal(scale=0.7), REAL, LOCATION, lambda y, f: stats.norm(f, 0.7).logpdf(y).sum(-1)),
    "normal learned": (Normal(), REAL, LOCATION, lambda y, f: stats.norm(f, 1.0001).logpdf(y).sum(-1)),
    "normal predicted": (
        Normal(heteroscedastic=True),
        REAL,
        np.hstack([LOCATION, RAW]),
        lambda y, f: stats.norm(f[:, :2], 1e-4 + softplus(f[:, 2:])).logpdf(y).sum(-1),
    ),
    "student": (StudentT(5.0, scale=0.7), REAL, LOCATION, lambda y, f: stats.t(5.0, f, 0.7).logpdf(y).sum(-1)),
    "student predicted": (
        StudentT(3.0, heteroscedastic=True),
        REAL,
        np.hstack([LOCATION, RAW]),
        lambda y, f: stats.t(3.0, f[:, :2], 1e-4 + softplus(f[:, 2:])).logpdf(y).sum(-1),
    ),
    "poisson": (Poisson(), COUNTS, LOCATION, lambda y, f: stats.poisson(np.exp(f)).logpmf(y).sum(-1)),
    "negative binomial": (
        NegativeBinomial(total_count=2.5),
        COUNTS,
        LOCATION,
        lambda y, f: stats.nbinom(2.5, 2.5 / (2.5 + np.exp(f))).logpmf(y).sum(-1),
    ),
    "negative binomial learned": (
        NegativeBinomial(),
        COUNTS,
        LOCATION,
        lambda y, f: stats.nbinom(1.0001, 1.0001 / (1.0001 + np.exp(f))).logpmf(y).sum(-1),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_nll_equals_scipys_summed_over_events(case):
    likelihood, y, outputs, log_prob = case
    np.testing.assert_allclose(nll(likelihood, y, outputs), -log_prob(y, outputs.astype("float64")), rtol=2e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_parameters_reproduce_the_density_in_scipy(case):
    likelihood, y, outputs, log_prob = case
    if likelihood.is_classifier:
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(likelihood.parameters(outputs)["p"]),
            keras.ops.convert_to_numpy(likelihood(outputs)),
        )
        return
    parameters = {name: keras.ops.convert_to_numpy(v) for name, v in likelihood.parameters(outputs).items()}
    frozen = likelihood.distribution(parameters)
    density = frozen.logpmf(y) if hasattr(frozen.dist, "pmf") else frozen.logpdf(y)
    np.testing.assert_allclose(density.sum(-1), log_prob(y, outputs.astype("float64")), rtol=2e-5)
    np.testing.assert_allclose(frozen.mean(), keras.ops.convert_to_numpy(likelihood.mean(outputs)), rtol=2e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_config_round_trip(case):
    likelihood = case[0]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(likelihood))
    assert again.get_config() == likelihood.get_config()
    assert again.dtype == "float32"


def test_half_precision_outputs_are_read_in_float32():
    outputs = np.array([[40.0, 0.0]], "float16")
    assert nll(Categorical(), np.array([1]), outputs)[0] == pytest.approx(40.0, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_masked_events_do_not_count_whatever_they_hold(batch, length, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length)))
    mask = mask.reshape(batch, length)
    rng = np.random.default_rng(length)
    logits = rng.normal(size=(batch, length, 3)).astype("float32")
    labels = rng.integers(0, 3, (batch, length))
    events = -np.take_along_axis(special.log_softmax(logits, -1), labels[..., None], -1)[..., 0]
    padded = np.where(mask, labels, -1)  # padding outside the classes
    np.testing.assert_allclose(nll(Categorical(), padded, logits, mask), (events * mask).sum(-1), rtol=1e-5, atol=1e-5)


def test_images_and_sequences_are_sums_over_their_events():
    outputs = RNG.normal(size=(2, 4, 5, 1)).astype("float32")
    y = RNG.normal(size=(2, 4, 5, 1)).astype("float32")
    expected = -stats.norm(outputs, 1.0).logpdf(y).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(nll(Normal(scale=1.0), y, outputs), expected, rtol=1e-5)


def test_a_missing_or_extra_last_axis_does_not_broadcast():
    outputs = LOCATION[:, :1]
    y = REAL[:, 0]
    expected = -stats.norm(outputs[:, 0], 1.0).logpdf(y)
    np.testing.assert_allclose(nll(Normal(scale=1.0), y, outputs), expected, rtol=1e-5)
    np.testing.assert_allclose(nll(Normal(scale=1.0), y[:, None], outputs), expected, rtol=1e-5)
    np.testing.assert_allclose(
        nll(Categorical(), np.array([[0], [1]]), LOCATION[:2]), nll(Categorical(), np.array([0, 1]), LOCATION[:2])
    )


def test_events_that_do_not_match_are_an_error_and_not_a_broadcast():
    with pytest.raises(ValueError, match="`y` has shape"):
        Normal(scale=1.0).nll(REAL[:, :1], LOCATION)


def test_log_gamma_equals_scipys():
    x = np.array([0.5, 1.0, 3.7, 40.0], "float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(log_gamma(x)), special.gammaln(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "y", "shape", "message"),
    [
        (Categorical(), np.eye(3), (None, 3), "one-hot"),
        (Categorical(), np.array([0.5, 1.0]), (None, 3), r"an integer class index .* y\[0\] is 0.5"),
        (Categorical(), np.array([0, 3]), (None, 3), r"class index from 0 to 2; y\[1\] is 3"),
        (Categorical(), np.array([0, -1]), (None, 3), r"y\[1\] is -1"),
        (Categorical(), np.array([0, 1]), (None, 1), "Use Bernoulli"),
        (Categorical(), np.zeros((2, 5), int), (None, 3), r"shape \(2, 5\)"),
        (Categorical(), np.array(["a", "b"]), (None, 3), "integer class indices"),
        (Bernoulli(), np.array([0, 2]), (None, 1), r"0 or 1 .* y\[1\] is 2"),
        (Bernoulli(), np.zeros((2, 3)), (None, 2), "one label for each output"),
        (Normal(), np.zeros((4, 3)), (None, 1), "one target for each output"),
        (Normal(heteroscedastic=True), np.zeros(4), (None, 3), "must be even, not 3"),
        (StudentT(), np.array(["a"]), (None, 1), "must hold numbers"),
        (Poisson(), np.array([1, -2]), (None, 1), r"non-negative integer.* y\[1\] is -2"),
        (NegativeBinomial(), np.array([1.5]), (None, 1), r"y\[0\] is 1.5"),
    ],
)
def test_labels_that_do_not_fit_are_named(likelihood, y, shape, message):
    with pytest.raises(ValueError, match=message):
        likelihood.check_labels(y, shape)


@pytest.mark.parametrize(
    ("likelihood", "y", "shape"),
    [
        (Categorical(), np.array([0, 2]), (None, 3)),
        (Categorical(), np.array([[0], [2]]), (None, 3)),
        (Categorical(), np.array([0.0, 2.0]), (None, 3)),
        (Categorical(), np.zeros((2, 7), int), (None, None, 3)),
        (Bernoulli(), np.array([True, False]), (None, 1)),
        (Normal(), np.zeros((2, 1)), (None, 1)),
        (Normal(), np.zeros(2), (None, 1)),
        (Normal(heteroscedastic=True), np.zeros((2, 2)), (None, 4)),
        (Poisson(), np.array([0, 9]), (None, 1)),
    ],
)
def test_labels_that_fit_pass(likelihood, y, shape):
    assert likelihood.check_labels(y, shape) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(scale=0.0), "`scale` must be"),
        (lambda: Normal(scale=1.0, heteroscedastic=True), "exclude each other"),
        (lambda: StudentT(degrees_of_freedom=2.0), "`degrees_of_freedom` must be"),
        (lambda: NegativeBinomial(total_count=-1.0), "`total_count` must be"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
