"""Posteriors of layers of other libraries, read from what they add to the loss: whatever their variables are called."""

import keras
import numpy as np
import pytest
from keras import ops

import bdl
from bdl.diagnostics import diagnose
from bdl.diagnostics.accounting import measure_accounting
from bdl.diagnostics.reading import read_foreign

N = 96
X = np.random.default_rng(0).normal(size=(N, 5)).astype("float32")
Y = (X[:, 0] > 0).astype(int)
SCALES = {
    "softplus": (-3.0, ops.softplus, lambda r: np.logaddexp(r, 0.0)),
    "exp": (-3.0, ops.exp, np.exp),
    "half": (-6.0, lambda r: ops.exp(r / 2), lambda r: np.exp(r / 2)),
    "abs": (0.05, ops.abs, np.abs),
}


class Mine(keras.layers.Layer):
    """A Bayesian layer as people write it: with this name, transform, prior and estimate of the KL."""

    def __init__(self, units, weight, name_of_scale="kernel_rho", transform="softplus", prior=1.0, kind="closed"):
        super().__init__()
        self.units, self.weight, self.name_of_scale, self.transform = units, weight, name_of_scale, transform
        self.width_of_prior, self.kind = prior, kind
        self.noise = keras.random.SeedGenerator(1)

    def build(self, shape):
        start = keras.initializers.Constant(SCALES[self.transform][0])
        shape = (shape[-1], self.units)
        self.mu = self.add_weight(shape=shape, name="kernel_mu", initializer=keras.initializers.GlorotUniform(seed=2))
        self.raw = self.add_weight(shape=shape, name=self.name_of_scale, initializer=start)

    def call(self, x):
        scale, prior = SCALES[self.transform][1](self.raw), self.width_of_prior
        noise = keras.random.normal(ops.shape(self.mu), seed=self.noise)
        weight = self.mu + scale * noise
        if self.kind == "closed":
            kl = ops.sum(0.5 * ((scale**2 + self.mu**2) / prior**2 - 1) - ops.log(scale / prior))
        elif self.kind == "sampled":
            kl = ops.sum(-ops.log(scale) - 0.5 * noise**2 + 0.5 * (weight / prior) ** 2 + np.log(prior))
        else:  # a mixture of two Gaussians is the prior
            wide, narrow = -0.5 * weight**2, -0.5 * (weight / 0.1) ** 2 - np.log(0.1)
            kl = ops.sum(-ops.log(scale) - 0.5 * noise**2 - ops.logaddexp(wide, narrow) + np.log(2.0))
        if self.weight is not None:
            self.add_loss(self.weight * kl)
        return ops.matmul(x, weight)


class ActNorm(keras.layers.Layer):
    """No posterior at all, though its variables are named like one."""

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")
        self.log_scale = self.add_weight(shape=(shape[-1],), name="log_scale", initializer="zeros")

    def call(self, x):
        return (x - self.shift) * ops.exp(self.log_scale)


def network(*layers, loss=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile("adam", loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def temperature(model, batch_size=None):
    return measure_accounting(model, X, Y, bdl.likelihoods.Categorical(), N, batch_size)


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "transform", "prior", "true"),
    [
        ("kernel_rho", "softplus", 1.0, 1.0),
        ("kernel_rho", "exp", 1.0, N),  # named like the other
        ("kernel_logsigma", "exp", 1.0, 1.0),
        ("kernel_log_std", "exp", 1.0, N),
        ("kernel_logvar", "half", 1.0, 1.0),
        ("kernel_sigma", "abs", 1.0, N),
        ("kernel_rho", "softplus", 0.1, 1.0),  # in an attribute that nobody knows
    ],
)
def test_scales_prior_and_temperature_are_read_whatever_the_names(name, transform, prior, true):
    model = network(Mine(8, true / N, name, transform, prior), keras.layers.ReLU(), Mine(2, true / N, name, transform))
    found = temperature(model)
    assert found.temperature == pytest.approx(true, rel=5e-3)
    assert found.unread == ()
    (first,) = read_foreign(model, X).posteriors[id(model.layers[0])]
    np.testing.assert_allclose(first.scale, SCALES[transform][2](np.full((5, 8), SCALES[transform][0])), rtol=1e-5)
    assert first.prior_scale == pytest.approx(prior, rel=0.02)


def test_a_sampled_kl_is_read_within_its_noise():
    model = network(Mine(16, 1 / N, kind="sampled"), keras.layers.ReLU(), Mine(16, 1 / N, kind="sampled"))
    found = temperature(model)
    assert len(read_foreign(model, X).posteriors) == 2
    assert found.temperature == pytest.approx(1.0, rel=0.02)


def test_another_prior_is_not_readable_and_nothing_about_it_is_certain():
    model = network(Mine(16, 1 / N, kind="mixture"), keras.layers.ReLU(), Mine(2, 1 / N, kind="mixture"))
    report = diagnose(model, X, Y, num_samples=4)
    assert report.quantities.temperature is None
    assert report.confidence != "certain"
    assert sum("cannot be read as a KL" in sentence for sentence in report.evidence) == 2


def test_a_layer_that_adds_nothing_and_draws_nothing_is_no_posterior():
    model = network(ActNorm(), keras.layers.Dense(8, "relu"), bdl.layers.MCDropout(0.2), keras.layers.Dense(2))
    assert read_foreign(model, X).posteriors == {}
    report = diagnose(model, X, Y, num_samples=4)
    assert report.quantities.layers == ()
    assert report.verdict != "accounting_error"


def test_beside_a_real_posterior_it_does_not_count():
    model = network(ActNorm(), Mine(8, 1 / N), keras.layers.ReLU(), Mine(2, 1 / N))
    found = temperature(model)
    assert found.temperature == pytest.approx(1.0, rel=5e-3)
    assert set(found.counted) == {model.layers[1].name, model.layers[3].name}


def test_a_layer_that_draws_and_adds_nothing_is_named_and_not_called_an_error():
    model = network(Mine(8, None), keras.layers.ReLU(), Mine(2, None))
    report = diagnose(model, X, Y, num_samples=4)
    assert report.verdict != "accounting_error"
    assert report.confidence != "certain"
    assert any("their KL is missing" in sentence for sentence in report.evidence)


def test_a_training_step_of_one_s_own_may_count_the_kl_as_it_likes():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = Mine(8, 0.0), Mine(2, 0.0)

        def call(self, x):
            return self.last(ops.relu(self.first(x)))

        def train_step(self, data):
            raise NotImplementedError

    model = Own()
    model(X)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    report = diagnose(model, X, Y, num_samples=4)
    assert report.quantities.temperature is None
    assert report.verdict not in ("accounting_error", "mis_scaled_kl")
    assert any("`train_step` of its own" in sentence for sentence in report.evidence)


class Wrap(keras.layers.Layer):
    """Adds a loss of variables that are not Keras', as a wrapped layer of TensorFlow Probability does."""

    def call(self, x):
        self.add_loss(ops.convert_to_tensor(np.float32(3.0)))
        return x + keras.random.normal(ops.shape(x))


def test_a_loss_of_other_variables_is_said_to_be_unreadable():
    report = diagnose(network(Wrap(), keras.layers.Dense(2)), X, Y, num_samples=4)
    assert report.confidence != "certain"
    assert any("'wrap" in sentence and "cannot be read as a KL" in sentence for sentence in report.evidence)


@pytest.mark.tensorflow
def test_a_tf_keras_model_is_judged_by_its_predictions_and_its_kl_is_said_to_be_unreadable():
    tf_keras = pytest.importorskip("tf_keras")
    noise = tf_keras.layers.Lambda(lambda x: x + 0.1 * __import__("tensorflow").random.normal([2]))
    model = tf_keras.Sequential([tf_keras.Input((5,)), tf_keras.layers.Dense(2), noise])
    model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    report = diagnose(model, X, Y, num_samples=4)
    assert report.confidence != "certain"
    assert any("tf_keras" in sentence and "cannot be read" in sentence for sentence in report.evidence)


SUM = {"reduction": "sum", "from_logits": True}


@pytest.mark.core
def test_t_of_a_sum_over_the_batch_is_that_of_the_batches_of_training():
    """Batches of 16 sum 16 NLLs against one KL: weighted with 16 / N it counts as Bayes does."""
    model = network(Mine(8, 16 / N), Mine(2, 16 / N), loss=keras.losses.SparseCategoricalCrossentropy(**SUM))
    assert temperature(model, batch_size=16).temperature == pytest.approx(1.0, rel=5e-3)
    assert temperature(model, batch_size=32).temperature == pytest.approx(0.5, rel=5e-3)
    unknown = temperature(model)
    assert unknown.temperature is None
    assert "batch size of the training" in unknown.unread[0]


def test_a_record_knows_the_batch_size():
    model = network(Mine(8, 16 / N), Mine(2, 16 / N), loss=keras.losses.SparseCategoricalCrossentropy(**SUM))
    health = bdl.diagnostics.TrainingHealth((X, Y), on_verdict="record", max_cost=1.0)
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[health])
    assert health.quantities.temperature == pytest.approx(1.0, rel=5e-3)
    assert diagnose(model, X, Y, record=health, num_samples=4).quantities.temperature == pytest.approx(1.0, rel=5e-3)
    assert diagnose(model, X, Y, batch_size=16, num_samples=4).quantities.temperature == pytest.approx(1.0, rel=5e-3)


def test_a_focal_loss_has_no_temperature():
    focal = keras.losses.CategoricalFocalCrossentropy(from_logits=True)
    model = network(Mine(8, 1 / N), Mine(2, 1 / N), loss=focal)
    report = diagnose(model, X, np.eye(2)[Y], likelihood=bdl.likelihoods.Categorical(), num_samples=4)
    assert report.quantities.temperature is None
    assert report.verdict not in ("accounting_error", "mis_scaled_kl")
    assert any("no multiple of the NLL" in sentence for sentence in report.evidence)
