"""Training steps with several draws of the network: both objectives, on a network whose noise is known."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from latent_networks import latent, network, quiet_model
from scipy import stats
from standard_errors import assert_mean, assert_within_standard_errors

import bdl
from bdl.likelihoods import Categorical, Normal
from bdl.model import VariationalModel

RNG = np.random.default_rng(0)
N = 24
X = RNG.normal(size=(N, 4)).astype("float32")
Y = RNG.integers(0, 3, N)
OBJECTIVES = ("elbo", "multi_sample")
CAN_JIT = [False] if keras.backend.backend() == "torch" else [False, True]


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.convert_to_tensor(tensor))


class Counting(keras.layers.Layer):
    """`w x + call / 2` at a layer's call 1, 2, ..., whose code costs `w^2 |x| call` nats; the weight's KL is 3 w^2."""

    def build(self, shape):
        self.w = self.add_weight(shape=(), initializer="ones", regularizer=keras.regularizers.L2(0.1))
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        call = 1.0 * self.calls  # a copy: Torch's backward pass must not find it changed by the next draw
        bdl.layers.add_local_kl(self, ops.square(self.w) * ops.abs(x[:, 0]) * call)
        return self.w * x + 0.5 * call

    def kl_divergence(self):
        return 3.0 * ops.square(ops.convert_to_tensor(self.w))


TEMPERATURE, SIZE = 0.5, 8
INPUTS = RNG.normal(size=(SIZE, 1)).astype("float32")
TARGETS = RNG.normal(size=(SIZE, 1)).astype("float32")
SAMPLE_WEIGHT = RNG.uniform(0, 2, SIZE).astype("float32")


def counting_model(num_samples, objective, **kwargs):
    inputs = keras.Input((1,))
    model = VariationalModel(
        keras.Model(inputs, keras.layers.ActivityRegularization(l2=0.01)(Counting()(inputs))),
        Normal(scale=1.0),
        num_examples=40,
        kl_weight=TEMPERATURE,
        num_samples=num_samples,
        objective=objective,
    )
    model.compile(keras.optimizers.SGD(1.0), metrics=["mse"], **kwargs)
    return model


def closed_form(w, num_samples, objective):
    """Loss and the logs of a first step, in float64."""
    x, y, weight = (values.astype("float64").reshape(-1) for values in (INPUTS, TARGETS, SAMPLE_WEIGHT))
    call = np.arange(1, num_samples + 1)[:, None]
    outputs = w * x + 0.5 * call
    nll = -stats.norm(outputs, 1.0).logpdf(y)
    local = w**2 * np.abs(x) * call
    logs = {"nll": (weight * nll).mean(), "kl": 3 * w**2 + 40 * (weight * local).mean()}
    logs["elbo"] = -logs["nll"] - logs["kl"] / 40
    logs["mse"] = np.square(y - outputs.mean(0)).mean()
    each = nll + TEMPERATURE * local
    each = each.mean(0) if objective == "elbo" else -np.log(np.exp(-each).mean(0))
    activities = 0.01 * np.square(outputs).sum(1).mean() / SIZE  # Keras divides by the batch
    logs["loss"] = (weight * each).mean() + TEMPERATURE * 3 * w**2 / 40 + 0.1 * w**2 + activities
    return logs


@pytest.mark.core
@pytest.mark.parametrize("jit_compile", CAN_JIT)
@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_closed_form_in_loss_gradient_logs_and_state(objective, num_samples, jit_compile):
    model = counting_model(num_samples, objective, jit_compile=jit_compile)
    logs = model.train_on_batch(INPUTS, TARGETS, SAMPLE_WEIGHT, return_dict=True)
    expected = closed_form(1.0, num_samples, objective)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-5), name
    gradient = (
        closed_form(1.001, num_samples, objective)["loss"] - closed_form(0.999, num_samples, objective)["loss"]
    ) / 0.002
    layer = model.network.layers[1]
    assert to_numpy(layer.w) == pytest.approx(1.0 - gradient, rel=1e-4)
    assert to_numpy(layer.calls) == num_samples


@pytest.mark.core
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_evaluation_and_calls_outside_a_training_step_are_one_draw_of_the_elbo(objective):
    model = counting_model(3, objective)
    layer = model.network.layers[1]
    model.train_on_batch(INPUTS, TARGETS)
    calls = float(to_numpy(layer.calls))
    logs = model.evaluate(INPUTS, TARGETS, batch_size=SIZE, verbose=0, return_dict=True)
    assert to_numpy(layer.calls) == calls + 1
    regularizers = 0.1 * to_numpy(layer.w) ** 2
    outputs = to_numpy(model.network(INPUTS)) - 0.5  # of the call before
    regularizers += 0.01 * np.square(outputs).sum() / SIZE
    assert logs["loss"] == pytest.approx(-logs["elbo"] + regularizers, rel=1e-5)
    assert logs["temperature"] == 1.0
    assert model(INPUTS, training=True).shape == (SIZE, 1)
    model.train_on_batch(INPUTS, TARGETS)
    assert to_numpy(layer.calls) == calls + 6


def build(num_samples, objective, rate=0.0):
    keras.utils.set_random_seed(1)
    dense = bdl.layers.DenseReparameterization
    network = keras.Sequential([keras.Input((4,)), dense(5, activation="relu", seed=1), dense(3, seed=2)])
    model = VariationalModel(
        network, Categorical(), num_examples=N, kl_weight=1.0, num_samples=num_samples, objective=objective
    )
    model.compile(keras.optimizers.SGD(rate))
    return model


@pytest.mark.core
def test_with_one_draw_the_objectives_are_one():
    elbo, multi_sample = (build(1, objective, rate=0.1) for objective in OBJECTIVES)
    ours, theirs = (model.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0) for model in (elbo, multi_sample))
    assert ours.history == theirs.history
    for one, other in zip(elbo.variables, multi_sample.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.core
def test_on_the_same_draws_multi_sample_is_below_the_elbo_objective():
    elbo, multi_sample = (build(4, objective).train_on_batch(X, Y, return_dict=True) for objective in OBJECTIVES)
    assert multi_sample["loss"] < elbo["loss"] - 1e-4  # by Jensen's inequality
    assert multi_sample["elbo"] == pytest.approx(elbo["elbo"], rel=1e-5)


def gradients(num_samples, steps):
    """Of every weight in a step of rate 1, taken at the same weights with noise that goes on."""
    model = build(num_samples, "elbo", rate=1.0)
    start = [to_numpy(weight) for weight in model.trainable_weights]
    found = []
    for _ in range(steps):
        for weight, value in zip(model.trainable_weights, start, strict=True):
            weight.assign(value)
        model.train_on_batch(X, Y)
        moved = [value - to_numpy(weight) for weight, value in zip(model.trainable_weights, start, strict=True)]
        found.append(np.concatenate([each.ravel() for each in moved]))
    return np.array(found, "float64")


@pytest.mark.core
def test_the_variance_of_the_gradient_falls_as_one_over_the_number_of_draws():
    """One weight noise serves the batch of these layers, so that only draws of their own can lower the variance."""
    one, four = gradients(1, 300), gradients(4, 300)
    error = np.hypot(one.std(0, ddof=1), four.std(0, ddof=1)) / np.sqrt(300)
    assert_within_standard_errors(one.mean(0), four.mean(0), error)
    # Total variance: its squared deviations are a sample, whose mean has a standard error.
    squared = [np.square(each - each.mean(0)).sum(1) * 300 / 299 for each in (one, four)]
    error = np.hypot(squared[0].std(), 4 * squared[1].std()) / np.sqrt(300)
    assert_within_standard_errors(4 * squared[1].mean(), squared[0].mean(), error)
    assert error < 0.15 * squared[0].mean()  # so that draws which are all the same would be noticed


TOKENS = np.array([[1, 2, 3, 0, 0], [4, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
LABELS = {"kind": np.where(TOKENS == 0, 0, TOKENS % 3), "size": np.where(TOKENS == 0, 100, TOKENS)[..., None]}


def tagger(num_samples, objective):
    """Masked tags and sizes, whose learned scale has a prior; of sizes, metrics see the mask on some backends."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(5, 4, mask_zero=True)(inputs)
    dense = bdl.layers.DenseReparameterization
    network = keras.Model(inputs, {"kind": dense(3)(x), "size": dense(1)(x)})
    likelihood = {"kind": Categorical(), "size": Normal(scale_prior=bdl.priors.Normal(-1.0, 0.5))}
    model = VariationalModel(
        network, likelihood, num_examples=3, kl_weight=0.5, num_samples=num_samples, objective=objective
    )
    # One step takes less time than a compiler, as on TensorFlow.
    eager = keras.backend.backend() == "tensorflow"
    model.compile(keras.optimizers.SGD(0.1), metrics={"kind": ["accuracy"], "size": ["mse"]}, run_eagerly=eager)
    return model


@pytest.mark.core
def test_without_noise_masks_dicts_and_sample_weights_give_what_one_draw_gives():
    weight = np.array([0.5, 2.0, 1.0], "float32")
    found = []
    for num_samples, objective in ((1, "elbo"), (3, "elbo"), (3, "multi_sample")):
        model = tagger(num_samples, objective)
        with bdl.mean_weights(model):
            logs = model.train_on_batch(TOKENS, LABELS, weight, return_dict=True)
        found.append((logs, [to_numpy(each) for each in model.trainable_variables]))
    for logs, variables in found[1:]:
        assert logs == pytest.approx(found[0][0], rel=1e-5)
        for ours, theirs in zip(variables, found[0][1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


class Code(keras.layers.Layer):
    """`z ~ q(z | x) = N(slope x, scale^2)` under the prior `N(0, 1)`; reports the log ratio of its own draw."""

    def __init__(self, slope, scale, **kwargs):
        super().__init__(**kwargs)
        self.slope, self.scale = slope, scale
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        noise = bdl.random.normal(ops.shape(x), bdl.random.draw_key(self.seed_generator))
        z = self.slope * x + self.scale * noise
        log_ratio = 0.5 * (ops.square(z) - ops.square(noise)) - np.log(self.scale)
        bdl.layers.add_local_kl(self, ops.sum(log_ratio, axis=-1))
        return z


OBSERVED = 1.5
LOG_EVIDENCE = stats.norm(0, np.sqrt(2)).logpdf(OBSERVED)


def bounds(num_samples, slope, scale, steps, size=500, **kwargs):
    """Steps' means of the bound on log p(x) of the model `z ~ N(0, 1)`, `x | z ~ N(z, 1)`."""
    network = keras.Sequential([keras.Input((1,)), Code(slope, scale)])
    settings = {"num_examples": size, "kl_weight": 1.0, "num_samples": num_samples, "objective": "multi_sample"}
    model = quiet_model(network, Normal(scale=1.0), **settings)
    model.compile(keras.optimizers.SGD(0.0), **kwargs)
    x = np.full((size, 1), OBSERVED, "float32")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The model does not have any trainable weights")
        return np.array([-float(model.train_on_batch(x, x, return_dict=True)["loss"]) for _ in range(steps)])


@pytest.mark.core
@pytest.mark.parametrize("num_samples", [1, 3])
def test_with_the_exact_posterior_the_importance_weighted_bound_is_the_log_evidence(num_samples):
    np.testing.assert_allclose(bounds(num_samples, 0.5, np.sqrt(0.5), steps=2), LOG_EVIDENCE, rtol=1e-5)


def test_the_importance_weighted_bound_rises_to_the_log_evidence():
    """The proposal is the prior: weights `N(x; z, 1)`, whose first two moments are Gaussian integrals."""
    found = [bounds(num_samples, 0.0, 1.0, steps=10, size=1500, run_eagerly=True) for num_samples in (1, 4, 32)]
    assert_mean(found[0], -0.5 * np.log(2 * np.pi) - 0.5 * (OBSERVED**2 + 1))
    errors = [each.std(ddof=1) / np.sqrt(len(each)) for each in found]
    means = [each.mean() for each in found]
    for first in (0, 1):
        assert means[first + 1] - means[first] > 5 * np.hypot(errors[first], errors[first + 1])
    assert means[-1] < LOG_EVIDENCE + 5 * errors[-1]
    # To first order in 1/S the gap is the weights' squared coefficient of variation over 2 S.
    second = stats.norm(0, np.sqrt(1.5)).pdf(OBSERVED) / (2 * np.sqrt(np.pi))
    gap = (second / np.exp(2 * LOG_EVIDENCE) - 1) / (2 * 32)
    assert LOG_EVIDENCE - means[-1] < 1.5 * gap + 5 * errors[-1]


@pytest.mark.core
def test_the_settings_are_saved_and_older_configurations_load(tmp_path):
    model = build(3, "multi_sample")
    model.fit(X, Y, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.num_samples, loaded.objective) == (3, "multi_sample")
    loaded.run_eagerly = keras.backend.backend() == "tensorflow"  # one step takes less time than a compiler
    loaded.fit(X, Y, epochs=1, verbose=0)
    config = model.get_config()
    del config["num_samples"], config["objective"]
    older = VariationalModel.from_config(config)
    assert (older.num_samples, older.objective) == (1, "elbo")


@pytest.mark.core
def test_bad_arguments_are_named():
    network_of = build(1, "elbo").network
    for num_samples in (0, -1, 2.0, True, None, "two"):
        with pytest.raises(ValueError, match="`num_samples` must be a positive integer"):
            VariationalModel(network_of, Categorical(), num_samples=num_samples)
    for objective in ("iwae", None, 3):
        with pytest.raises(ValueError, match=r"`objective` must be one of \('elbo', 'multi_sample'\), not"):
            VariationalModel(network_of, Categorical(), objective=objective)
    with pytest.raises(ValueError, match="`free_bits` must be 0 with objective='multi_sample', not"):
        VariationalModel(network_of, Categorical(), objective="multi_sample", free_bits=0.5)


@pytest.mark.core
def test_a_score_function_estimator_is_refused_for_the_mixture_of_draws():
    likelihood = bdl.likelihoods.Mixture(Categorical())
    reinforce, enumerate_ = (network(latent(estimator)) for estimator in ("reinforce", "enumerate"))
    with pytest.raises(ValueError, match="`objective` must be 'elbo', not 'multi_sample', with the score function"):
        VariationalModel(reinforce, likelihood, objective="multi_sample")
    VariationalModel(reinforce, likelihood, num_samples=2)
    VariationalModel(enumerate_, likelihood, objective="multi_sample")
