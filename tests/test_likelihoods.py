"""Likelihoods against scipy, and what they refuse."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_networks import quiet_model
from scipy import optimize, special, stats

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Mixture, NegativeBinomial, Normal, Poisson, StudentT, log_gamma

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
LOCATION = RNG.normal(size=(6, 2)).astype("float32")
RAW = RNG.normal(size=(6, 2)).astype("float32")
REAL = RNG.normal(size=(6, 2)).astype("float32")
COUNTS = RNG.poisson(3.0, size=(6, 2))


SCALE_PRIOR = bdl.priors.Normal(mean=-2.0, scale=0.3)


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
    "normal learned with a prior": (
        Normal(scale_prior=SCALE_PRIOR),
        REAL,
        LOCATION,
        lambda y, f: stats.norm(f, 1.0001).logpdf(y).sum(-1),
    ),
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
        (lambda: Normal(scale_prior=1.0), "`scale_prior` must be None or a bdl.priors.Normal of log"),
        (lambda: StudentT(scale_prior=bdl.priors.FanInNormal()), "`scale_prior` must be None or a bdl.priors.Normal"),
        (lambda: Normal(scale=1.0, scale_prior=SCALE_PRIOR), "with a scale that is given or predicted"),
        (lambda: StudentT(heteroscedastic=True, scale_prior=SCALE_PRIOR), "with a scale that is given or predicted"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def penalty(likelihood):
    return float(keras.ops.convert_to_numpy(likelihood.penalty()))


def set_scale(likelihood, scale):
    likelihood.raw_scale.assign(np.log(np.expm1(scale - 1e-4)) / 10)


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("make", [Normal, StudentT])
def test_the_penalty_is_the_priors_log_density_at_its_mode_minus_that_of_the_log_scale(make, scale):
    likelihood = make(scale_prior=SCALE_PRIOR)
    set_scale(likelihood, scale)
    prior = stats.norm(SCALE_PRIOR.mean, SCALE_PRIOR.scale)
    expected = prior.logpdf(SCALE_PRIOR.mean) - prior.logpdf(np.log(scale))
    assert penalty(likelihood) == pytest.approx(expected, rel=1e-4)
    assert penalty(Mixture(likelihood)) == penalty(likelihood)


@pytest.mark.parametrize("case", [case for name, case in CASES.items() if "prior" not in name])
def test_without_a_prior_the_penalty_is_zero(case):
    assert penalty(case[0]) == 0.0


class Zeros(keras.layers.Layer):
    """Predicts 0, so that the targets are the residuals."""

    def call(self, x):
        return 0.0 * x


RESIDUALS = RNG.normal(scale=0.4, size=(12, 2)).astype("float32")


@pytest.mark.parametrize("make", [Normal, StudentT])
def test_training_reaches_the_mode_of_the_log_scale(make):
    """`sum of NLL + T / 2 ((log scale - mean) / s)^2`: the prior counts once and not for each example."""
    likelihood = make(scale_prior=SCALE_PRIOR)
    model = quiet_model(keras.Sequential([keras.Input((2,)), Zeros()]), likelihood, num_examples=12, kl_weight=0.5)
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.01, 300)))
    for _ in range(300):
        logs = model.train_on_batch(RESIDUALS, RESIDUALS, return_dict=True)
    noise = stats.norm if make is Normal else stats.t(4.0)

    def objective(log_scale):
        z = RESIDUALS.astype("float64") / np.exp(log_scale)
        prior = 0.5 * ((log_scale - SCALE_PRIOR.mean) / SCALE_PRIOR.scale) ** 2
        return (log_scale - noise.logpdf(z)).sum() + 0.5 * prior

    best = optimize.minimize_scalar(objective, bounds=(-5, 2), method="bounded", options={"xatol": 1e-9})
    scale = float(keras.ops.convert_to_numpy(likelihood._shared_scale()))
    assert np.log(scale) == pytest.approx(best.x, abs=1e-3)
    assert logs["loss"] == pytest.approx(best.fun / 12, rel=1e-4)
    assert logs["kl"] == pytest.approx(penalty(likelihood), rel=1e-3)
    assert logs["elbo"] == pytest.approx(-logs["nll"] - logs["kl"] / 12, rel=1e-5)
    maximum_likelihood = optimize.minimize_scalar(lambda u: (u - noise.logpdf(RESIDUALS / np.exp(u))).sum()).x
    assert abs(maximum_likelihood - best.x) > 0.02  # the prior is seen


@pytest.mark.parametrize("shared", [False, True])
def test_each_of_several_outputs_pays_for_its_own_scale_and_a_shared_one_once(shared):
    first = Normal(scale_prior=SCALE_PRIOR)
    second = first if shared else StudentT(scale_prior=bdl.priors.Normal(mean=1.0))
    inputs = keras.Input((2,))
    network = keras.Model(inputs, {"first": Zeros()(inputs), "second": Zeros()(inputs)})
    model = quiet_model(network, {"first": first, "second": second}, num_examples=50, kl_weight=0.5)
    model.compile(keras.optimizers.SGD(0.0))
    logs = model.train_on_batch(RESIDUALS, {"first": RESIDUALS, "second": RESIDUALS}, return_dict=True)
    expected = penalty(first) + (0.0 if shared else penalty(second))
    assert logs["kl"] == pytest.approx(expected, rel=1e-6)
    assert logs["loss"] == pytest.approx(logs["nll"] + 0.5 * expected / 50, rel=1e-6)


@pytest.mark.parametrize("make", [Normal, StudentT])
def test_a_prior_of_the_scale_is_saved_and_older_configurations_load(make, tmp_path):
    inputs = keras.Input((2,))
    network = keras.Model(inputs, bdl.layers.DenseFlipout(2)(inputs))
    model = bdl.VariationalModel(network, make(scale_prior=SCALE_PRIOR), kl_weight=1.0)
    model.compile("adam")
    model.fit(RESIDUALS, RESIDUALS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.likelihood.scale_prior == SCALE_PRIOR
    assert penalty(loaded.likelihood) == penalty(model.likelihood)
    config = make().get_config()
    assert config.pop("scale_prior") is None
    assert make.from_config(config).scale_prior is None
