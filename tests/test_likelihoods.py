"""Likelihoods against scipy, and what they refuse."""

import keras
import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_networks import quiet_model
from scipy import optimize, special, stats

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Mixture, NegativeBinomial, Normal, Poisson, StudentT, log_gamma
from bdl.likelihoods.mixture import MIXTURE, pack

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


@pytest.mark.parametrize("name", [name for name, (likelihood, *_) in CASES.items() if not likelihood.is_classifier])
def test_variances_equal_scipys(name):
    likelihood, _, outputs, _ = CASES[name]
    parameters = {key: array(value).astype("float64") for key, value in likelihood.parameters(outputs).items()}
    np.testing.assert_allclose(
        array(likelihood.variance(outputs)), likelihood.distribution(parameters).var(), rtol=2e-5
    )


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
    with pytest.raises(ValueError, match=r"`y` must have shape \(6, 2\) for Normal .*not \(6, 1\)"):
        Normal(scale=1.0).nll(REAL[:, :1], LOCATION)


def test_log_gamma_equals_scipys():
    x = np.array([0.5, 1.0, 3.7, 40.0], "float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(log_gamma(x)), special.gammaln(x), rtol=1e-5, atol=1e-6)


WILD = np.array([[0.0, 500.0, -3.0], [1.0, 2.0, -np.inf], [-80.0, 5.0, 90.0]], "float32")


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_log_probabilities_equal_scipys_however_small():
    expected = special.log_softmax(WILD.astype("float64"), axis=-1)
    np.testing.assert_allclose(array(Categorical().log_probabilities(WILD)), expected, rtol=1e-6, atol=1e-7)
    both = np.stack([special.log_expit(-WILD.astype("float64")), special.log_expit(WILD.astype("float64"))], axis=-1)
    # XLA on a CPU takes what is below float32's normal numbers as 0.
    np.testing.assert_allclose(array(Bernoulli().log_probabilities(WILD)), both, rtol=1e-6, atol=1.2e-38)


def test_a_given_probability_of_zero_has_the_logarithm_of_zero():
    p = np.array([[0.0, 1.0, 1e-30]], "float32")
    log_p = np.array([[-np.inf, 0.0, np.log(1e-30)]])
    np.testing.assert_allclose(array(Categorical(from_logits=False).log_probabilities(p)), log_p, rtol=1e-6)
    both = np.stack([[[0.0, -np.inf, -1e-30]], log_p], axis=-1)
    np.testing.assert_allclose(array(Bernoulli(from_logits=False).log_probabilities(p)), both, rtol=1e-6)


@pytest.mark.parametrize(("likelihood", "y"), [(Categorical, 0), (Bernoulli, [[1, 0]])])
def test_training_on_a_given_probability_of_zero_stays_finite(likelihood, y):
    likelihood = likelihood(from_logits=False)
    p = keras.ops.convert_to_tensor(np.array([[0.0, 1.0]], "float32"))
    y = np.reshape(y, likelihood.event_shape((1, 2)))
    loss = nll(likelihood, y, p)
    assert np.log(1e7) - 1e-3 < loss < 2.1 * np.log(1e7)
    (found,) = gradients(lambda values: keras.ops.sum(likelihood.nll(y, values[0])), [p])
    assert np.all(np.isfinite(array(found)))


NO_LABELS = {
    "negative": np.array([0, -1, 1, -100]),
    "too large": np.array([1, 3, 0, 10_000]),
    "bytes": np.array([1, 3, 0, 255], "uint8"),
    "fractions": np.array([1.0, 1.7, 0.0, -0.5], "float32"),
    "missing": np.array([0.0, np.nan, 1.0, np.inf], "float32"),
}


@pytest.mark.parametrize("y", NO_LABELS.values(), ids=NO_LABELS)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("kind", ["categorical", "mixture", "bernoulli"])
def test_a_label_outside_the_classes_is_nan_and_the_others_are_as_before(kind, from_logits, y):
    p = special.softmax(RNG.normal(size=(4, 3)), axis=-1).astype("float32")
    if kind == "bernoulli":
        likelihood, outputs, y = Bernoulli(from_logits), p[:, :1], y[:, None]
    else:
        likelihood, outputs = Categorical(from_logits), p
    good = np.where(np.arange(4).reshape(y.shape) % 2, 0, np.nan_to_num(y)).astype(int)
    if kind == "mixture":
        outputs = pack(outputs[:, None], np.zeros((4, 1), "float32"), MIXTURE)
        likelihood = Mixture(likelihood)

    compiled = compiled_on_its_backend(likelihood.log_prob)
    expected = array(compiled(keras.ops.convert_to_tensor(good), keras.ops.convert_to_tensor(outputs)))
    found = array(compiled(keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(outputs)))
    np.testing.assert_array_equal(found, np.where(np.arange(4).reshape(found.shape) % 2, np.nan, expected))


def compiled_on_its_backend(function):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


@pytest.mark.parametrize(
    ("likelihood", "frozen"), [(Poisson(), stats.poisson(1.0)), (NegativeBinomial(2.5), stats.nbinom(2.5, 2.5 / 3.5))]
)
def test_what_is_no_count_has_the_log_probability_that_scipy_gives(likelihood, frozen):
    y = np.array([-1.0, 1.5, 2.0, np.nan, 0.0], "float32")
    found = array(likelihood.log_prob(y, keras.ops.zeros((5,))))
    np.testing.assert_allclose(found, frozen.logpmf(y.astype("float64")), rtol=1e-5)


NO_COUNT = np.array([[1, -7], [2, 0]])


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y"),
    [
        (Categorical(), RNG.normal(size=(2, 2, 3)), NO_COUNT),
        (Mixture(Categorical()), RNG.normal(size=(2, 2, 1, 5)) * [1, 1, 1, 0, 0], NO_COUNT),
        (Bernoulli(), RNG.normal(size=(2, 2)), NO_COUNT % 2 * [[1, -3], [1, 1]]),
        (Poisson(), RNG.normal(size=(2, 2)), NO_COUNT),
        (NegativeBinomial(), RNG.normal(size=(2, 2)), NO_COUNT),
    ],
)
def test_gradients_do_not_see_what_is_no_label(likelihood, outputs, y):
    """Masked, it has no gradient; unmasked, its loss is not finite and the others' gradients are as they were."""
    outputs, is_good = keras.ops.convert_to_tensor(outputs.astype("float32")), y >= 0

    def gradient(labels, mask):
        return array(gradients(lambda values: keras.ops.sum(likelihood.nll(labels, values[0], mask)), [outputs])[0])

    expected = gradient(np.maximum(y, 0), is_good)
    assert np.all(np.isfinite(expected))
    assert np.all(np.any(expected.reshape(4, -1) != 0, axis=-1) == is_good.ravel())
    np.testing.assert_array_equal(gradient(y, is_good), expected)
    assert np.all(np.isfinite(nll(likelihood, y, outputs, is_good)))
    np.testing.assert_array_equal(np.isfinite(nll(likelihood, y, outputs)), [False, True])
    if not isinstance(likelihood, Mixture):
        np.testing.assert_array_equal(gradient(y, None), expected)


def test_a_masked_event_of_probability_zero_does_not_count():
    outputs = np.array([[[0.0, -np.inf], [1.0, 2.0]]], "float32")
    y, mask = np.array([[1, 1]]), np.array([[False, True]])
    expected = -special.log_softmax([1.0, 2.0])[1]
    np.testing.assert_allclose(nll(Categorical(), y, outputs, mask), [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "y", "shape", "message"),
    [
        (Categorical(), np.array([0.5, 1.0]), (None, 3), r"an integer class index .* y\[0\] is 0.5"),
        (Categorical(), np.array([0, 3]), (None, 3), r"class index from 0 to 2; y\[1\] is 3"),
        (Categorical(), np.array([0, -1]), (None, 3), r"y\[1\] is -1"),
        (Categorical(), np.array([0, 1]), (None, 1), "Use Bernoulli"),
        (Categorical(), np.zeros((2, 5), int), (None, 3), r"not \(2, 5\)"),
        (Categorical(), np.array([0, -100]), (None, 3), r"y\[1\] is -100\. Where an event has no label, .* mask"),
        (Categorical(), np.array([0.0, np.nan]), (None, 3), r"y\[1\] is nan"),
        (Categorical(), np.array([0, 255], "uint8"), (None, 3), r"y\[1\] is 255"),
        (Categorical(), np.array(["a", "b"]), (None, 3), r"integer class indices .*, not <U1; y\[0\] is 'a'"),
        (Categorical(), np.array([None, 1]), (None, 3), r"integer class indices .*, not object; y\[0\] is None"),
        (Bernoulli(), np.array([["0"], ["1"]]), (None, 1), r"0 or 1 .*, not <U1; y\[0, 0\] is '0'"),
        (Bernoulli(), np.array([0.0, np.nan]), (None, 1), r"y\[1\] is nan"),
        (Bernoulli(), np.array([0, 255], "uint8"), (None, 1), r"y\[1\] is 255"),
        (Bernoulli(), np.array([0, 2]), (None, 1), r"0 or 1 .* y\[1\] is 2"),
        (Bernoulli(), np.zeros((2, 3)), (None, 2), "one label for each output"),
        (Normal(), np.zeros((4, 3)), (None, 1), "one target for each output"),
        (Normal(heteroscedastic=True), np.zeros(4), (None, 3), "must be even, not 3"),
        (StudentT(), np.array(["a"]), (None, 1), r"must hold numbers .* y\[0\] is 'a'"),
        (Normal(), np.array([1.0, np.nan]), (None, 1), r"finite targets; y\[1\] is nan"),
        (Poisson(), np.array(["1"]), (None, 1), r"counts for Poisson, not <U1; y\[0\] is '1'"),
        (Poisson(), np.array([1.0, np.inf]), (None, 1), r"y\[1\] is inf"),
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
        (Categorical(), np.array([True, False]), (None, 3)),
        (Categorical(), np.array([0, 2], "uint8"), (None, 1000)),
        (Bernoulli(), np.array([True, False]), (None, 1)),
        (Bernoulli(), np.array([0, 1], "uint8"), (None, 1)),
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
        (lambda: Normal(scale=1.0, heteroscedastic=True), "`scale` must be None, not 1.0, with"),
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
