"""What was fitted to jittering iterates is fitted to their average: the noise, and statistics of batch normalisation.

At a learning rate of 0 training changes nothing, so that only the refit does.
"""

import keras
import numpy as np
import pytest
from keras import layers
from layer_contract import array
from numpy.testing import assert_allclose
from scipy import optimize, stats
from standard_errors import assert_within_standard_errors

import bdl
from bdl.likelihoods import NegativeBinomial, Normal, StudentT
from bdl.likelihoods.heads import Heads
from bdl.training import refit

N = 600
SLOPES = np.array([[0.5], [-1.0], [0.3]], "float32")
# Central differences over 2e-3 err by 1e-4 in a scale, float32 sums by as much.
PRECISION = 5e-4


def variational_dense(scale: float) -> bdl.layers.DenseLocalReparameterization:
    """A layer of the known slopes, whose kernel has one posterior scale."""
    layer = bdl.layers.DenseLocalReparameterization(
        1, use_bias=False, kernel_posterior=bdl.posteriors.MeanFieldNormal(initial_scale=scale), seed=1
    )
    layer.build((None, 3))
    layer.layer.kernel.assign(SLOPES)
    return layer


def frozen_model(likelihood, network=None, posterior_scale=1e-6, optimizer=None) -> bdl.VariationalModel:
    """A model that a training at rate 0 leaves where it is, but for the refit."""
    if network is None:
        network = keras.Sequential([keras.Input((3,)), variational_dense(posterior_scale)])
    model = bdl.VariationalModel(network, likelihood, kl_weight=1.0)
    model.compile(optimizer or keras.optimizers.SGD(0.0, use_ema=True))
    return model


def data(n: int = N, noise: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3)).astype("float32")
    return x, (x @ SLOPES + noise * generator.normal(size=(n, 1))).astype("float32")


def refitted(model, x, y, sample_weight=None, batch_size=100) -> None:
    """Does what `fit` does at its end."""
    objective = refit.Objective(Heads(model.likelihood, model.network))
    refit.refit_to_average(model, objective, refit.TrainingData(x, y, sample_weight, None, batch_size, len(x)))


def scale_of(likelihood) -> float:
    """Of a learned scale, as the likelihood's parameters have it."""
    return float(array(likelihood.parameters(np.zeros((1, 1), "float32"))["scale"])[0, 0])


@pytest.mark.core
def test_the_scale_is_the_residual_and_the_epistemic_variance():
    likelihood = Normal()
    model = frozen_model(likelihood, posterior_scale=0.1)
    x, y = data()
    model.fit(x, y, batch_size=100, verbose=0)
    squares, epistemic = (y - x @ SLOPES)[:, 0] ** 2, 0.1**2 * (x**2).sum(axis=1)
    expected = squares + epistemic
    # Of (r + e)^2 with e ~ N(0, v): the variance is 4 r^2 v + 2 v^2. Local reparameterization draws for each example.
    error = np.sqrt(np.mean(4 * squares * epistemic + 2 * epistemic**2) / (refit.NUM_DRAWS * N))
    assert_within_standard_errors(scale_of(likelihood) ** 2, expected.mean(), error)
    assert abs(expected.mean() - squares.mean()) > 10 * error, "the epistemic variance must show"


@pytest.mark.core
def test_intervals_of_new_data_cover_what_they_say():
    model = frozen_model(Normal())
    model.fit(*data(4_000), batch_size=500, verbose=0)
    x, y = data(4_000, seed=1)
    low, high = model.predict_distribution(x, 4, batch_size=4_000, seed=0).quantile([0.05, 0.95])
    covered = (low <= y[:, 0]) & (y[:, 0] <= high)
    # The scale, from 4,000 residuals, errs by 1.1 %, which moves the coverage by .0038; the test data by .0047.
    assert_within_standard_errors(covered.mean(), 0.9, np.hypot(0.0038, 0.0047), k=4)


@pytest.mark.parametrize("kind", ["weights", "prior", "student"])
def test_weights_priors_and_other_densities_count(kind):
    x, y = data()
    residuals = (y - x @ SLOPES)[:, 0].astype("float64")
    weights = np.linspace(0.0, 2.0, N) if kind == "weights" else np.ones(N)
    likelihood = StudentT() if kind == "student" else Normal()
    penalty = 0.0
    if kind == "prior":
        likelihood = Normal(scale_prior=bdl.priors.Normal(0.0, 0.05))
        penalty = 1.0 / (2 * 0.05**2 * N)
    model = frozen_model(likelihood)
    refitted(model, x, y, sample_weight=weights if kind == "weights" else None)
    family = stats.t(4.0) if kind == "student" else stats.norm

    def loss(log_scale):
        logs = family.logpdf(residuals / np.exp(log_scale)) - log_scale
        return -np.mean(weights * logs) + penalty * log_scale**2

    expected = np.exp(optimize.minimize_scalar(loss, bounds=(-4, 1), method="bounded", options={"xatol": 1e-8}).x)
    assert_allclose(scale_of(likelihood), expected, rtol=PRECISION)


@pytest.mark.core
def test_every_head_has_constants_of_its_own():
    inputs = keras.Input((3,))
    shared = variational_dense(1e-6)(inputs)
    network = keras.Model(inputs, {"real": layers.Identity()(shared), "count": layers.Identity()(shared)})
    likelihood = {"real": Normal(), "count": NegativeBinomial()}
    model = frozen_model(likelihood, network)
    x, y = data()
    mean = np.exp(x @ SLOPES)
    counts = np.random.default_rng(1).negative_binomial(3.0, 3.0 / (3.0 + mean)).astype("float32")
    refitted(model, x, {"real": y, "count": counts})
    assert_allclose(scale_of(likelihood["real"]), np.sqrt(np.mean((y - x @ SLOPES) ** 2)), rtol=PRECISION)

    def loss(log_total):
        total = np.exp(log_total)
        return -stats.nbinom(total, total / (total + mean.astype("float64"))).logpmf(counts).mean()

    expected = np.exp(optimize.minimize_scalar(loss, bounds=(-2, 4), method="bounded", options={"xatol": 1e-8}).x)
    found = array(likelihood["count"].parameters(np.zeros((1, 1), "float32"))["n"])[0, 0]
    assert_allclose(found, expected, rtol=0.01)  # the likelihood is ten times flatter in it than in a scale


def test_masked_events_do_not_count():
    network = keras.Sequential([keras.Input((4, 3)), layers.Masking(), variational_dense(1e-6)])
    likelihood = Normal()
    model = frozen_model(likelihood, network)
    x, y = data(4 * 50)
    x, y = x.reshape(50, 4, 3), y.reshape(50, 4, 1)
    x[:, 2:], y[:, 2:] = 0.0, 7.0
    refitted(model, x, y)
    assert_allclose(scale_of(likelihood), np.sqrt(np.mean((y - x @ SLOPES)[:, :2] ** 2)), rtol=PRECISION)


class Batches(keras.utils.PyDataset):
    """Arrays as a data set of Keras."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(index * len(self.x) // 4, (index + 1) * len(self.x) // 4)
        return self.x[rows], self.y[rows]


class Added(layers.Layer):
    """The second input, with the first one added where it is there."""

    def call(self, first, second):
        return second if first is None else first + second

    def compute_output_spec(self, first, second):
        return keras.KerasTensor(second.shape, second.dtype)


def test_the_first_input_may_be_left_out():
    first, second = keras.Input((3,), name="a", optional=True), keras.Input((3,), name="b")
    network = keras.Model({"a": first, "b": second}, variational_dense(1e-6)(Added()(first, second)))
    likelihood = Normal()
    x, y = data()
    frozen_model(likelihood, network).fit({"a": None, "b": x}, y, batch_size=100, verbose=0)
    assert_allclose(scale_of(likelihood), np.sqrt(np.mean((y - x @ SLOPES) ** 2)), rtol=PRECISION)


@pytest.mark.parametrize("kind", ["PyDataset", "validation_split"])
def test_the_training_data_are_read_again(kind):
    x, y = data()
    kept = slice(0, 420 if kind == "validation_split" else N)
    likelihood = Normal()
    model = frozen_model(likelihood)
    if kind == "PyDataset":
        model.fit(Batches(x, y), verbose=0)
    else:
        y[420:] += 1.0
        model.fit(x, y, validation_split=0.3, verbose=0)
    expected = np.sqrt(np.mean((y - x @ SLOPES)[kept] ** 2))
    assert_allclose(scale_of(likelihood), expected, rtol=PRECISION)


@pytest.mark.tensorflow
def test_a_data_set_that_repeats_is_read_once_through():
    import tensorflow as tf

    x, y = data()
    likelihood = Normal()
    model = bdl.VariationalModel(frozen_model(Normal()).network, likelihood, num_examples=N, kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.0, use_ema=True))
    model.fit(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(100).repeat(), steps_per_epoch=6, shuffle=False, verbose=0
    )
    assert_allclose(scale_of(likelihood), np.sqrt(np.mean((y - x @ SLOPES) ** 2)), rtol=PRECISION)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
def test_what_can_be_read_once_is_named():
    likelihood = Normal()
    model = bdl.VariationalModel(frozen_model(Normal()).network, likelihood, num_examples=N, kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.0, use_ema=True))
    with pytest.warns(UserWarning, match="raw_scale cannot be fitted to their average: `x` is a generator"):
        model.fit((batch for batch in [data()]), steps_per_epoch=1, shuffle=False, verbose=0)
    assert scale_of(likelihood) == pytest.approx(1.0, abs=1e-3)


def test_a_large_set_is_read_in_parts_from_everywhere(monkeypatch):
    monkeypatch.setattr(refit, "MAX_EXAMPLES", 512)
    monkeypatch.setattr(refit, "READING_BATCH", 64)
    x, _ = data(4_096)
    residuals = np.linspace(0.0, 0.2, 4_096)[:, None]  # in order, as data sometimes are
    likelihood = Normal()
    model = frozen_model(likelihood)
    refitted(model, x, (x @ SLOPES + residuals).astype("float32"), batch_size=64)
    # Eight blocks of 64 stand for 512 examples each. The middle one is half a block off: 32 of 2,048 on average.
    assert_allclose(scale_of(likelihood), np.sqrt(np.mean(residuals**2)), rtol=1 / 64)


@pytest.mark.core
def test_moving_statistics_are_those_of_the_averaged_weights():
    normalization = layers.BatchNormalization(momentum=0.9)
    first = layers.Dense(3)
    network = keras.Sequential([keras.Input((3,)), first, normalization, variational_dense(0.1)])
    model = frozen_model(Normal(), network)
    x, y = data()
    refitted(model, x, y, batch_size=300)
    hidden = array(first(x)).reshape(2, 300, 3).astype("float64")
    assert_allclose(array(normalization.moving_mean), hidden.mean((0, 1)), atol=1e-5)
    assert_allclose(array(normalization.moving_variance), hidden.var(axis=1).mean(axis=0), rtol=1e-4)


def test_without_averages_nothing_is_refitted():
    likelihood = Normal()
    frozen_model(likelihood, optimizer=keras.optimizers.SGD(0.0)).fit(*data(), batch_size=N, verbose=0)
    assert scale_of(likelihood) == pytest.approx(1.0, abs=1e-3)


def test_an_optimizer_inside_another_is_seen():
    inner = keras.optimizers.SGD(use_ema=True)
    assert refit.averages(keras.optimizers.LossScaleOptimizer(inner))
    assert not refit.averages(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    assert not refit.averages(None)


def test_the_refit_draws_as_predictions_do_and_leaves_seeds_as_they_are():
    model = frozen_model(Normal(), posterior_scale=0.1)
    before = [array(variable) for variable in model.network.non_trainable_variables]
    refitted(model, *data())
    for variable, value in zip(model.network.non_trainable_variables, before, strict=True):
        assert_allclose(array(variable), value)
