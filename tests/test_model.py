"""VariationalModel: the objective is the ELBO at the stated temperature, whatever stands around it."""

import functools
import json
import re
import warnings

import keras
import numpy as np
import pytest
from layer_contract import CASES

import bdl
from bdl.elbo import LinearWarmup, MinibatchWeights
from bdl.likelihoods import Bernoulli, Categorical, Normal, Poisson
from bdl.model import VariationalModel

RNG = np.random.default_rng(0)
N = 24
X = RNG.normal(size=(N, 4)).astype("float32")
Y = RNG.integers(0, 3, N)
PRIOR = {"kernel_prior": "normal"}  # a prior that does not follow the posterior: the divergence is easy to compute


def build(layer=bdl.layers.DenseReparameterization, kl_weight=1.0, likelihood=None, rate=0.0, **kwargs):
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((4,)), layer(5, activation="relu", seed=1), layer(3, seed=2)])
    model = VariationalModel(network, likelihood or Categorical(), num_examples=N, kl_weight=kl_weight)
    model.compile(keras.optimizers.SGD(rate), **kwargs)
    return model


def said(act):
    """What bdl says of T while something is done; third parties warn, too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught if " T " in str(warning.message)]


def values(model):
    return [keras.ops.convert_to_numpy(weight).astype("float64") for weight in model.trainable_weights]


def effective_temperature(model, x, y, **kwargs):
    """T measured on the compiled loss: change the posterior's scales, which at zero noise moves the KL alone."""
    losses, divergences = [], []
    with bdl.mean_weights(model):
        for change in (0.0, 0.1):
            for weight in model.trainable_weights:
                if weight.path.endswith("rho"):
                    weight.assign(weight + change)
            losses.append(float(model.train_on_batch(x, y, return_dict=True, **kwargs)["loss"]))
            divergences.append(float(keras.ops.convert_to_numpy(bdl.kl_divergence(model))))
    return model.num_examples * (losses[1] - losses[0]) / (divergences[1] - divergences[0])


NAMED_CASES = [case for case in CASES if case.is_named]


def temperature_of(network, x):
    model = VariationalModel(network, Normal(scale=1.0), num_examples=50, kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    return effective_temperature(model, x, np.zeros_like(keras.ops.convert_to_numpy(network(x))))


@pytest.mark.parametrize("case", NAMED_CASES, ids=lambda case: case.name)
def test_the_temperature_of_the_compiled_loss_is_one_for_every_layer(case):
    settings = case.layer().get_config()
    # A prior that does not follow the posterior, so that the divergence moves.
    prior = {name: "normal" for name in ("kernel_prior", "embeddings_prior") if name in settings}
    assert temperature_of(case.model(case.layer(**prior)), case.input()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: bdl.layers.ConcreteDropout(keras.layers.Dense(3)),
        lambda: bdl.layers.VariationalGaussianDropout(),
        lambda: bdl.layers.VariationalGaussianDropout(per_feature=False),
    ],
)
def test_the_temperature_is_one_for_learned_dropout(layer):
    network = keras.Sequential([keras.Input((4,)), layer()])
    assert temperature_of(network, RNG.normal(size=(6, 4)).astype("float32")) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_temperature_is_the_one_asked_for_under_jit(temperature):
    model = build(kl_weight=temperature, jit_compile=keras.backend.backend() != "torch")
    assert effective_temperature(model, X, Y) == pytest.approx(temperature, abs=1e-3)


@pytest.mark.core
def test_the_temperature_is_one_with_sample_weights():
    weights = RNG.uniform(0, 2, N).astype("float32")
    assert effective_temperature(build(), X, Y, sample_weight=weights) == pytest.approx(1.0, abs=1e-3)
    assert effective_temperature(build(), X, Y, sample_weight=0 * weights) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_temperature_is_one_with_mixed_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy(before)
    assert effective_temperature(model, X, Y) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.core
def test_the_temperature_is_one_with_a_shared_layer():
    inputs = keras.Input((4,))
    shared = bdl.layers.DenseFlipout(4, activation="relu", **PRIOR)
    network = keras.Model(inputs, bdl.layers.DenseFlipout(3, **PRIOR)(shared(shared(inputs))))
    model = VariationalModel(network, Categorical(), num_examples=N, kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.0))
    assert effective_temperature(model, X, Y) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.core
@pytest.mark.parametrize("masked", [False, True])
def test_sequences_sum_their_events_so_that_the_temperature_is_one(masked):
    tokens = np.array([[1, 2, 3, 0, 0], [4, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    labels = np.where(tokens == 0, 0, tokens % 3)
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Embedding(5, 4, mask_zero=masked), bdl.layers.DenseFlipout(3, **PRIOR)]
    )
    model = VariationalModel(network, Categorical(), num_examples=3, kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.0))
    assert effective_temperature(model, tokens, labels) == pytest.approx(1.0, abs=1e-3)
    with bdl.mean_weights(model):
        logits = keras.ops.convert_to_numpy(network(tokens)).astype("float64")
        logs = model.evaluate(tokens, labels, verbose=0, return_dict=True)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    events = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    keep = (tokens != 0) if masked else np.ones_like(events)
    assert logs["nll"] == pytest.approx((events * keep).sum(1).mean(), rel=1e-5)


@pytest.mark.core
def test_the_mean_of_the_minibatch_gradients_is_the_full_gradient():
    """With SGD at rate 1 a step is the gradient; the noise is fixed by resetting the seeds before each step."""
    model = build(rate=1.0)
    start = [keras.ops.convert_to_numpy(variable) for variable in model.variables]

    def gradient(rows):
        for variable, value in zip(model.variables, start, strict=True):
            variable.assign(value)
        before = values(model)
        model.train_on_batch(X[rows], Y[rows])
        return [b - a for b, a in zip(before, values(model), strict=True)]

    full = gradient(np.arange(N))
    batches = [gradient(np.arange(first, first + 6)) for first in range(0, N, 6)]
    for index, expected in enumerate(full):
        mean = np.mean([batch[index] for batch in batches], axis=0)
        np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.core
def test_logs_hold_the_parts_and_they_add_up():
    model = build(kl_weight=0.5)
    history = model.fit(X, Y, batch_size=8, epochs=1, validation_data=(X, Y), verbose=0).history
    logs = {name: history[name][0] for name in history}
    assert set(logs) == {
        prefix + name for prefix in ("", "val_") for name in ("loss", "nll", "kl", "elbo", "temperature")
    }
    assert logs["temperature"] == 0.5
    assert logs["loss"] == pytest.approx(logs["nll"] + 0.5 * logs["kl"] / N, rel=1e-5)
    assert logs["elbo"] == pytest.approx(-logs["nll"] - logs["kl"] / N, rel=1e-5)
    assert logs["val_temperature"] == 1.0
    assert logs["val_loss"] == pytest.approx(-logs["val_elbo"], rel=1e-5)


@pytest.mark.core
def test_the_default_schedule_warms_up_over_most_of_the_first_fit_and_stays_at_one():
    model = build(kl_weight=None)
    first = model.fit(X, Y, batch_size=6, epochs=5, verbose=0).history["temperature"]
    ramp = 0.85 * 5 * 4
    np.testing.assert_allclose(
        first, [1.5 / ramp, 5.5 / ramp, 9.5 / ramp, 13.5 / ramp, (16 + 17 + 17 + 17) / 4 / ramp], rtol=1e-5
    )
    assert model.fit(X, Y, batch_size=6, epochs=2, verbose=0).history["temperature"] == [1.0, 1.0]


@pytest.mark.core
def test_the_schedules_state_is_saved(tmp_path):
    model = build(kl_weight=None)

    class StopAfterOne(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    stop = [StopAfterOne()]
    (message,) = said(lambda: model.fit(X, Y, batch_size=6, epochs=4, verbose=0, callbacks=stop))
    assert "fit ended at T = 0.29, after 4 of the 14 steps" in message
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (message,) = said(lambda: loaded.fit(X, Y, batch_size=6, epochs=1, verbose=0))
    assert "fit ended at T = 0.59" in message
    np.testing.assert_allclose(loaded.history.history["temperature"], [5.5 / (0.85 * 16)], rtol=1e-5)


@pytest.mark.core
def test_metrics_see_probabilities():
    model = build(metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(from_logits=False, name="ce")])
    with bdl.mean_weights(model):
        logs = model.evaluate(X, Y, verbose=0, return_dict=True)
        hits = keras.ops.convert_to_numpy(model.network(X)).argmax(1) == Y
    assert logs["accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
    assert logs["ce"] == pytest.approx(logs["nll"], rel=1e-4)


@pytest.mark.core
def test_predict_is_the_predictive_mean():
    model = build()
    with bdl.mean_weights(model):
        expected = keras.ops.convert_to_numpy(keras.ops.softmax(model.network(X)))
        np.testing.assert_allclose(model.predict(X, num_samples=3), expected, rtol=1e-4, atol=1e-6)
    assert model.predict_distribution(X, num_samples=2).probabilities.shape == (N, 3)
    with pytest.raises(ValueError, match="`callbacks` are not supported"):
        model.predict(X, callbacks=[keras.callbacks.Callback()])


@pytest.mark.core
def test_predict_on_batch_has_the_meaning_of_predict():
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(2)])
    for model in (build(), VariationalModel(network, Normal(heteroscedastic=True))):
        with bdl.mean_weights(model):
            found, expected = model.predict_on_batch(X), model.predict(X)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_save_and_load_gives_the_same_model_and_the_same_samples(tmp_path):
    model = build(kl_weight=LinearWarmup(0.3), rate=0.1)
    model.fit(X, Y, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    # Keras writes tuples as lists.
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    assert loaded.num_examples == N
    for ours, theirs in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))
    np.testing.assert_array_equal(
        model.predict_distribution(X, 4).probabilities, loaded.predict_distribution(X, 4).probabilities
    )
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.1)
    loaded.fit(X, Y, epochs=1, verbose=0)


@pytest.mark.core
def test_a_learned_scale_and_a_dict_of_likelihoods_train_and_load(tmp_path):
    inputs = keras.Input((4,))
    outputs = {"kind": bdl.layers.DenseFlipout(3)(inputs), "size": bdl.layers.DenseFlipout(1)(inputs)}
    model = VariationalModel(keras.Model(inputs, outputs), {"kind": Categorical(), "size": Normal()}, kl_weight=1.0)
    model.compile("adam")
    y = {"kind": Y, "size": X[:, 0]}
    before = keras.ops.convert_to_numpy(model.likelihood["size"].raw_scale)
    model.fit(X, y, epochs=2, verbose=0)
    assert keras.ops.convert_to_numpy(model.likelihood["size"].raw_scale) != before
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    ours, theirs = (m.predict_distribution(X, 3, seed=1) for m in (model, loaded))
    np.testing.assert_array_equal(ours["kind"].probabilities, theirs["kind"].probabilities)
    np.testing.assert_array_equal(ours["size"].std, theirs["size"].std)
    assert set(model.predict(X, num_samples=2)) == {"kind", "size"}


@keras.saving.register_keras_serializable(package="bdl-tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = bdl.layers.DenseFlipout(5, activation="relu")
        self.norm = keras.layers.BatchNormalization()
        self.head = bdl.layers.DenseRank1(3)

    def call(self, x, training=None):
        return self.head(self.norm(self.hidden(x), training=training))


@pytest.mark.core
def test_subclassed_networks_that_are_not_built_train_predict_and_load(tmp_path):
    model = VariationalModel(Subclassed(), Categorical())
    model.compile("adam")
    model.fit(X, Y, epochs=2, verbose=0)
    assert model.num_examples == N
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict_distribution(X, 3, seed=1).probabilities, loaded.predict_distribution(X, 3, seed=1).probabilities
    )


@pytest.mark.core
def test_clone_model_and_summary(capsys):
    model = build()
    clone = keras.models.clone_model(model)
    assert clone.get_config()["network"]["config"]["layers"][1]["config"]["units"] == 5
    model.summary(expand_nested=True)
    assert "dense_reparameterization" in capsys.readouterr().out


class LatentNoise(keras.layers.Layer):
    """A local latent variable that reports one divergence for each example."""

    def call(self, x):
        bdl.layers.add_local_kl(self, keras.ops.sum(keras.ops.square(x), axis=-1))
        return x


class Charges(keras.layers.Layer):
    """Gives `add_loss` ones of some shape."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def call(self, x):
        self.add_loss(keras.ops.ones(self.shape))
        return x


@functools.cache
def charged(shape, num_samples):
    """Losses of a step, in Keras and here, and what the latter has beside the ELBO, with ones of a shape added."""
    charges = [] if shape is None else [Charges(*shape)]
    keras.utils.set_random_seed(0)
    plain = keras.Sequential([keras.Input((4,)), *charges, keras.layers.Dense(3)])
    plain.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((4,)), *charges, bdl.layers.DenseFlipout(3, **PRIOR, seed=1)])
    model = VariationalModel(network, Categorical(), num_examples=N, kl_weight=1.0, num_samples=num_samples)
    model.compile(keras.optimizers.SGD(0.0))
    logs = model.train_on_batch(X, Y, return_dict=True)
    return float(plain.train_on_batch(X, Y)), float(logs["loss"]), float(logs["loss"] + logs["elbo"])


@pytest.mark.core
@pytest.mark.parametrize("shape", [(), (N,), (N, 10), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_what_a_layer_adds_as_a_loss_counts_as_in_keras_whatever_its_shape(shape, num_samples):
    before, after = charged(None, num_samples), charged(shape, num_samples)
    assert after[0] - before[0] == pytest.approx(np.prod(shape), rel=1e-5)
    assert after[1] - before[1] == pytest.approx(np.prod(shape), rel=1e-5)
    assert after[2] == pytest.approx(np.prod(shape), rel=1e-5)  # no part of the ELBO


@pytest.mark.core
def test_without_a_number_of_examples_everything_that_needs_it_gives_one_error():
    model = VariationalModel(build().network, Categorical())
    model.compile("sgd")
    outputs = model(X)
    calls = [
        lambda: model.evaluate(X, Y, verbose=0),
        lambda: model.test_on_batch(X, Y),
        lambda: model.train_on_batch(X, Y),
        lambda: model.compute_loss(X, keras.ops.convert_to_tensor(Y), outputs),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"`num_examples` is unknown before fit.*num_examples=N"):
            call()


@pytest.mark.core
def test_the_temperature_counts_the_epochs_that_are_run():
    model = build(kl_weight=None)
    temperatures = model.fit(X, Y, batch_size=6, epochs=10, initial_epoch=5, verbose=0).history["temperature"]
    assert len(temperatures) == 5
    np.testing.assert_allclose(temperatures[0], 1.5 / (0.85 * 20), rtol=1e-5)
    assert model.temperature == 1.0


@pytest.mark.core
def test_a_first_fit_that_was_refused_gives_the_schedule_no_length():
    model = build(kl_weight=None)
    with pytest.raises(ValueError, match="`y` must hold"):
        model.fit(X, Y + 5, batch_size=6, epochs=1, verbose=0)

    class Fails(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        model.fit(X, Y, batch_size=6, epochs=1, verbose=0, callbacks=[Fails()])
    temperatures = model.fit(X, Y, batch_size=6, epochs=5, verbose=0).history["temperature"]
    np.testing.assert_allclose(temperatures[0], 1.5 / (0.85 * 20), rtol=1e-5)


@pytest.mark.core
def test_early_stopping_within_the_ramp_says_so_and_after_it_does_not():
    def stopped(**settings):
        watched = keras.callbacks.EarlyStopping("val_nll", patience=0, mode="max", **settings)  # stops at a fall
        model = build(kl_weight=None)
        model.fit(X, Y, batch_size=6, epochs=20, verbose=0, validation_data=(X, Y), callbacks=[watched])
        return model

    (message,) = said(stopped)
    assert re.search(r"ended at T = 0\.\d+, after \d+ of the 68 steps.*EarlyStopping\(..., start_from_epoch=", message)
    assert said(lambda: stopped(start_from_epoch=17)) == []


@pytest.mark.core
def test_a_loop_of_single_epochs_is_told_that_the_schedule_is_over():
    def fit(model):
        return said(lambda: model.fit(X, Y, batch_size=6, epochs=1, verbose=0))

    model = build(kl_weight=None)
    assert fit(model) == []
    (message,) = fit(model)
    assert re.search(r"ended with the first fit, of one epoch.*LinearWarmup\(steps=", message)
    assert fit(model) == []  # said once

    model = build(kl_weight=bdl.elbo.LinearWarmup(steps=12))
    (message,) = fit(model)
    assert "fit ended at T = 0.33, after 4 of the 12 steps" in message
    temperatures = model.history.history["temperature"]
    for _ in range(2):
        assert fit(model) == []
        temperatures += model.history.history["temperature"]
    np.testing.assert_allclose(temperatures, [1.5 / 12, 5.5 / 12, 9.5 / 12], rtol=1e-5)
    assert model.temperature == 1.0


@pytest.mark.core
def test_local_divergences_count_per_example_and_regularizers_stay_outside_the_elbo():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1))(LatentNoise()(inputs))
    layer = bdl.layers.DenseFlipout(3, **PRIOR)
    model = VariationalModel(keras.Model(inputs, layer(hidden)), Categorical(), num_examples=N, kl_weight=0.5)
    model.compile(keras.optimizers.SGD(0.0))
    with bdl.mean_weights(model):
        logs = model.train_on_batch(X, Y, return_dict=True)
    local = np.square(X).sum(1).mean()
    weights = float(keras.ops.convert_to_numpy(layer.kl_divergence()))
    penalty = 0.1 * np.square(keras.ops.convert_to_numpy(model.network.layers[2].kernel)).sum()
    assert logs["kl"] == pytest.approx(weights + N * local, rel=1e-5)
    assert logs["elbo"] == pytest.approx(-logs["nll"] - weights / N - local, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["nll"] + 0.5 * (weights / N + local) + penalty, rel=1e-5)


class PricedConstant(keras.layers.Layer):
    """A trainable number w that the outputs do not depend on, with the divergence w^2 for each example."""

    def build(self, shape):
        self.w = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        bdl.layers.add_local_kl(self, keras.ops.square(self.w) * keras.ops.ones_like(x[:, 0]))
        return x


def priced(free_bits):
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((4,)), PricedConstant(), bdl.layers.DenseFlipout(3, **PRIOR)])
    model = VariationalModel(network, Categorical(), num_examples=N, kl_weight=0.5, free_bits=free_bits)
    model.compile(keras.optimizers.SGD(0.1))
    return model


@pytest.mark.core
@pytest.mark.parametrize(("free_bits", "charged", "moved"), [(0.0, 1.0, 0.9), (0.75, 1.0, 0.9), (1.5, 1.5, 1.0)])
def test_free_bits_are_charged_and_not_pushed_below_and_the_logs_are_true(free_bits, charged, moved):
    model = priced(free_bits)
    weights = float(keras.ops.convert_to_numpy(bdl.kl_divergence(model.network)))
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["nll"] + 0.5 * (weights / N + charged), rel=1e-5)
    assert logs["kl"] == pytest.approx(weights + N, rel=1e-5)
    assert logs["elbo"] == pytest.approx(-logs["nll"] - weights / N - 1.0, rel=1e-5)
    # SGD at rate 0.1 on T w^2 at w = 1
    w = model.network.layers[0].w
    assert float(keras.ops.convert_to_numpy(w)) == pytest.approx(moved, rel=1e-5)
    w.assign(1.0)
    logs = model.evaluate(X, Y, batch_size=N, return_dict=True, verbose=0)
    assert logs["loss"] == pytest.approx(-logs["elbo"], rel=1e-5)
    weights = float(keras.ops.convert_to_numpy(bdl.kl_divergence(model.network)))
    assert logs["kl"] == pytest.approx(weights + N, rel=1e-5)


@pytest.mark.core
def test_free_bits_are_saved_and_older_configurations_load():
    network = build().network
    config = VariationalModel(network, Categorical(), free_bits=0.5).get_config()
    assert VariationalModel.from_config(config).free_bits == 0.5
    del config["free_bits"]
    assert VariationalModel.from_config(config).free_bits == 0.0


def generator():
    while True:
        yield X[:6], Y[:6]


@pytest.mark.core
def test_fit_on_a_generator_needs_num_examples_and_a_length():
    network = build().network
    model = VariationalModel(network, Categorical())
    model.compile("adam")
    with pytest.raises(ValueError, match="`num_examples` is unknown"):
        model.fit(generator(), steps_per_epoch=2, shuffle=False, verbose=0)
    model = VariationalModel(network, Categorical(), num_examples=N)
    model.compile("adam")
    with pytest.raises(ValueError, match="`steps_per_epoch` is unknown"):
        model.fit(generator(), shuffle=False, verbose=0)
    model.fit(generator(), steps_per_epoch=2, shuffle=False, verbose=0)
    assert model.progress.total_steps == 2


@pytest.mark.core
def test_bad_arguments_are_named():
    network = build().network
    with pytest.raises(ValueError, match="`num_examples` must be the number of training examples"):
        VariationalModel(network, Categorical(), num_examples=0)
    with pytest.raises(ValueError, match=r"`likelihood` must be a bdl\.likelihoods\.Likelihood"):
        VariationalModel(network, "categorical")
    with pytest.raises(ValueError, match="`network` must be a Keras model"):
        VariationalModel("network", Categorical())
    with pytest.raises(ValueError, match="`kl_weight` must be a finite number"):
        VariationalModel(network, Categorical(), kl_weight=-1.0)
    with pytest.raises(ValueError, match="`free_bits` must be a finite number >= 0"):
        VariationalModel(network, Categorical(), free_bits=-1.0)
    with pytest.raises(ValueError, match="`loss` must be None"):
        VariationalModel(network, Categorical()).compile("adam", loss="mse")
    with pytest.raises(ValueError, match="before fit"):
        model = VariationalModel(network, Categorical())
        model.compile("adam")
        model.evaluate(X, Y)
    with pytest.raises(ValueError, match="train_on_batch does not know"):
        model = VariationalModel(network, Categorical(), num_examples=N)
        model.compile("adam")
        model.train_on_batch(X, Y)
    model = VariationalModel(network, Categorical(), num_examples=N, kl_weight=MinibatchWeights(4))
    model.compile("adam")
    model.train_on_batch(X, Y)


@pytest.mark.core
@pytest.mark.parametrize(("activation", "likelihood"), [("softmax", Categorical()), ("sigmoid", Bernoulli())])
def test_a_likelihood_follows_a_network_that_squashes_its_outputs(activation, likelihood):
    kind = type(likelihood)
    for layers in (
        [bdl.layers.DenseFlipout(3, activation=activation)],
        [bdl.layers.DenseFlipout(3), keras.layers.Activation(activation)],
        [keras.Sequential([bdl.layers.DenseFlipout(3, activation=activation)])],
    ):
        network = keras.Sequential([keras.Input((4,)), *layers])
        with pytest.raises(ValueError, match=rf"ends in {activation}, not {kind.__name__}\(from_logits=True\)"):
            VariationalModel(network, kind(from_logits=True))
        for given in (likelihood, kind(from_logits=False)):
            assert VariationalModel(network, given).likelihood.from_logits is False


@pytest.mark.core
def test_labels_and_inputs_are_checked_before_training():
    model = build()
    with pytest.raises(ValueError, match=r"class index from 0 to 2; y\[5\] is 7"):
        model.fit(X, np.where(np.arange(N) == 5, 7, Y), verbose=0)
    bad = X.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"x\[3, 2\] is nan"):
        model.fit(bad, Y, verbose=0)
    with pytest.raises(ValueError, match=r"y\[1, 0\] is inf"):
        build(likelihood=Normal()).fit(X, np.where(np.arange(N)[:, None] == [1, 1, 1], np.inf, 0.0), verbose=0)
    with pytest.raises(ValueError, match="non-negative integer"):
        build(likelihood=Poisson()).fit(X, -np.ones((N, 3)), verbose=0)
    with pytest.raises(ValueError, match=r"one-hot or soft labels .* row 0 sums to 2"):
        model.fit(X, 2.0 * np.eye(3)[Y], verbose=0)
    with pytest.raises(ValueError, match="one target for each output"):
        build(likelihood=Normal()).fit(X, np.zeros(N), verbose=0)


@pytest.mark.core
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras' own, which pytest.warns raises again
def test_a_num_examples_that_contradicts_the_data_warns_with_the_temperature():
    model = VariationalModel(build().network, Categorical(), num_examples=2 * N, kl_weight=1.0)
    model.compile("adam")
    with pytest.warns(UserWarning, match="effective temperature is 0.5"):
        model.fit(X, Y, verbose=0)


@pytest.mark.core
def test_a_network_without_variational_layers_warns():
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.warns(UserWarning, match="no variational layer: the KL is zero"):
        VariationalModel(network, Categorical())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()


@pytest.mark.core
def test_a_newer_format_is_refused():
    config = build().get_config()
    config["format_version"] += 1
    with pytest.raises(ValueError, match="newer than format"):
        VariationalModel.from_config(config)


@pytest.mark.tensorflow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow traces a step that makes variables twice"
)
@pytest.mark.parametrize("use_ema", [False, True])
def test_the_training_step_is_traced_once(use_ema, monkeypatch):
    traces = []
    step = VariationalModel.train_step
    monkeypatch.setattr(VariationalModel, "train_step", lambda self, data: traces.append(0) or step(self, data))
    model = build()
    model.compile(keras.optimizers.Adam(use_ema=use_ema))
    model.fit(np.ones((N, 4), "float32"), Y, batch_size=N, epochs=2, verbose=0)
    assert len(traces) == 1


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras chooses before elsewhere, for any model")
def test_a_callback_may_choose_what_is_trained_when_fit_begins():
    model = build()
    layer = model.network.layers[0]
    layer.trainable = False
    model.compile("adam")

    def unfreeze(logs):
        layer.trainable = True
        unfreeze.before = values(layer)

    model.fit(X, Y, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_begin=unfreeze)])
    assert all(np.any(a != b) for a, b in zip(unfreeze.before, values(layer), strict=True))
