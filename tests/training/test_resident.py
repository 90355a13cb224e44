"""Several steps in one call, on data that stay on the device: the same training as one step per call."""

import keras
import numpy as np
import pytest
from keras import ops
from stories import Normal, groups, level

import bdl
from bdl.diagnostics import TrainingHealth
from bdl.elbo import LinearWarmup
from bdl.keras_internals import build_metrics, is_one_device
from bdl.svi import SVI, Amortized, Global, Observed
from bdl.training import resident

BACKEND = keras.backend.backend()
ROUNDING = 1e-6
"""Largest difference of a step without XLA, whose operations TensorFlow then groups otherwise."""
compiles = pytest.mark.skipif(BACKEND == "torch", reason="Torch compiles no step")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(43, 4)).astype("float32"), RNG.integers(0, 3, 43)
WEIGHTS = RNG.uniform(0.5, 1.5, 43).astype("float32")
LEVELS = {"y": RNG.normal(2.0, 1.0, 23).astype("float32")}


def network_model(steps, optimizer=None, jit_compile=False, metrics=None, cls=bdl.VariationalModel, size=None):
    keras.utils.set_random_seed(1)
    layer = bdl.layers.DenseReparameterization(3, seed=1)
    model = cls(keras.Sequential([keras.Input((4,)), layer]), bdl.likelihoods.Categorical(), num_examples=size)
    jit_compile = jit_compile if BACKEND == "tensorflow" else "auto"
    optimizer = optimizer or keras.optimizers.Adam(0.05)
    model.compile(optimizer, steps_per_execution=steps, jit_compile=jit_compile, metrics=metrics)
    return model


def story_model(steps, story=groups, rate=0.05, jit_compile=False, **settings):
    keras.utils.set_random_seed(1)
    guide = {"code": Amortized(keras.layers.Dense(3, "tanh"), ["y"])} if story is groups else "mean_field"
    model = SVI(story, guide, seed=0, **settings)
    jit_compile = jit_compile if BACKEND == "tensorflow" else "auto"
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=steps, jit_compile=jit_compile)
    return model


def was_on_device(model):
    return model._device_calls.functions.get(True) is not None


def numbers(model):
    return [ops.convert_to_numpy(variable).astype("float64") for variable in model.variables]


def assert_same(one, other, histories, tolerance):
    for before, after in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance)
    assert set(histories[0]) == set(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=tolerance, atol=tolerance)


def tolerance(jit_compile):
    return ROUNDING if BACKEND == "tensorflow" and not jit_compile else 0.0


@pytest.mark.parametrize(
    ("jit_compile", "given"),
    [
        pytest.param(True, {}, marks=pytest.mark.core),
        pytest.param(
            False, {"sample_weight": WEIGHTS, "validation_split": 0.2, "shuffle": False}, marks=pytest.mark.core
        ),
        (False, {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}, "shuffle": "batch", "steps_per_epoch": 3}),
    ],
)
def test_a_network_is_trained_as_with_one_step_a_call(jit_compile, given):
    """Batches of 8 of 43 examples: five whole ones, of which a call takes four or three, and a smaller last one."""
    histories, models, rows = [], [], 40 if jit_compile else 43
    for steps in (1, 3 if "steps_per_epoch" in given else 4):
        models.append(network_model(steps, jit_compile=jit_compile, metrics=["accuracy"]))
        histories.append(models[-1].fit(X[:rows], Y[:rows], batch_size=8, epochs=2, verbose=0, **given).history)
    assert was_on_device(models[1]) == (BACKEND != "torch")
    assert_same(*models, histories, tolerance(jit_compile))
    assert models[1].step == models[0].step


def test_averages_and_accumulated_gradients_follow_every_step():
    histories, models = [], []
    for steps in (1, 4):
        optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8, gradient_accumulation_steps=2)
        models.append(network_model(steps, optimizer))
        histories.append(models[-1].fit(X, Y, batch_size=8, epochs=2, verbose=0).history)
    assert_same(*models, histories, tolerance(False))
    assert int(models[1].optimizer.iterations) == int(models[0].optimizer.iterations) == 6


@pytest.mark.core
@pytest.mark.parametrize(("story", "jit_compile"), [(groups, False), (level, True)])
def test_a_story_is_fitted_as_with_one_step_a_call(story, jit_compile):
    """23 rows in batches of 5; 7 steps an epoch are calls of 3, 3 and 1, and the mean is of steps 8 to 14."""
    histories, models = [], []
    for steps in (1, 3):
        models.append(story_model(steps, story, jit_compile=jit_compile, kl_weight=LinearWarmup(steps=9)))
        given = {"batch_size": 5, "steps": 14, "epochs": 2, "validation_data": None if jit_compile else LEVELS}
        histories.append(models[-1].fit(LEVELS, verbose=0, **given).history)
    assert was_on_device(models[1]) == (BACKEND != "torch")
    assert_same(*models, histories, tolerance(jit_compile))
    assert models[1].progress.step == 14


@compiles
def test_rows_on_the_device_are_those_that_keras_would_read():
    """One step per call is on the device for a story, and in Keras' own loop where steps are not compiled."""
    models = [story_model(1), story_model(1)]
    models[1].is_fit_for_device = lambda arrays: False
    given = {"batch_size": 5, "steps": 6, "sample_weight": np.linspace(0.0, 2.0, 23).astype("float32")}
    histories = [model.fit(LEVELS, verbose=0, **given).history for model in models]
    assert [was_on_device(model) for model in models] == [True, False]
    assert_same(*models, histories, tolerance(False))


@compiles
def test_all_rows_in_each_step_are_not_picked():
    histories, models = [], []
    weights = np.linspace(0.0, 2.0, 23).astype("float32")
    for steps in (1, 4):
        models.append(story_model(steps, level))
        given = {"batch_size": "all", "steps": 10, "sample_weight": weights}
        histories.append(models[-1].fit(LEVELS, verbose=0, **given).history)
    assert_same(*models, histories, tolerance(False))


@compiles
def test_a_second_fit_goes_on_with_the_batches_and_an_early_end_ends_it():
    whole, parts = (story_model(steps, averaging=False) for steps in (1, 3))
    whole.fit(LEVELS, batch_size=5, steps=12, verbose=0)
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(parts, "stop_training", True))
    parts.fit(LEVELS, batch_size=5, steps=10, epochs=2, callbacks=[stop], verbose=0)
    assert parts.progress.step == 5
    parts.fit(LEVELS, batch_size=5, steps=7, verbose=0)
    for before, after in zip(numbers(whole), numbers(parts), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.core
def test_hooks_of_batches_come_once_a_call_and_callbacks_of_epochs_work(tmp_path):
    begun, ended = [], []
    hooks = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: begun.append(batch),
        on_train_batch_end=lambda batch, logs: ended.append((batch, sorted(logs))),
    )
    model = network_model(3)
    health = TrainingHealth(data=(X, Y), on_verdict="record", max_cost=1.0)
    path = str(tmp_path / "best.weights.h5")
    kept = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True, save_weights_only=True)
    given = {"validation_data": (X[:9], Y[:9]), "callbacks": [hooks, health, kept]}
    logs = model.fit(X, Y, batch_size=8, epochs=2, verbose=0, **given).history
    width = 1 if BACKEND == "torch" else 3
    assert begun == 2 * list(range(0, 6, width))
    assert [batch for batch, _ in ended] == 2 * list(range(width - 1, 6, width))
    assert ended[0][1] == ["elbo", "kl", "loss", "nll", "temperature"]
    assert len(health.epochs) == len(logs["val_loss"]) == 2
    model.load_weights(path)


def test_a_file_keeps_how_many_steps_are_a_call(tmp_path):
    model = story_model(3, level)
    model.fit(LEVELS, batch_size="all", steps=4, verbose=0)
    model.save(tmp_path / "level.keras")
    loaded = keras.models.load_model(tmp_path / "level.keras")
    assert loaded.get_compile_config()["steps_per_execution"] == 3
    for each in (model, loaded):
        each.fit(LEVELS, batch_size="all", steps=4, verbose=0)
    assert was_on_device(loaded) == (BACKEND != "torch")
    assert_same(model, loaded, [{}, {}], tolerance(False))


@compiles
def test_data_sets_and_single_batches_are_read_as_ever():
    model = network_model(3, size=43)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    stream = (each for each in [(X[:8], Y[:8])] * 6)
    model.fit(stream, epochs=1, steps_per_epoch=6, shuffle=False, verbose=0)
    model.train_on_batch(X[:8], Y[:8])
    assert model.step == 12 + 6 + 1
    model.fit(X, Y, batch_size=8, verbose=0)
    assert model.step == 25


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="a fit of Keras on JAX holds the variables' values")
def test_a_callback_may_train_on_a_batch_of_its_own():
    models = [story_model(2, level, averaging=False) for _ in range(2)]
    for model in models:
        model.num_examples = 23
        extra = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs, m=model: m.train_on_batch(LEVELS))
        steps = {"batch_size": "all", "steps": 2, "verbose": 0}
        if model is models[0]:
            model.fit(LEVELS, callbacks=[extra], **steps)
        else:
            model.fit(LEVELS, **steps)
            model.train_on_batch(LEVELS)
        model.fit(LEVELS, **steps)
    assert models[0].progress.step == 5
    assert_same(*models, [{}, {}], ROUNDING)


class OwnStep(bdl.VariationalModel):
    """A subclass with a step of its own."""

    def train_step(self, *args):
        return super().train_step(*args)


@compiles
def test_what_cannot_be_on_the_device_is_read_as_ever(monkeypatch):
    model = network_model(3)
    assert model.is_fit_for_device((X, None, [Y]))
    assert not network_model(3, cls=OwnStep).is_fit_for_device(X)
    assert not model.is_fit_for_device(np.array(["a", "b"]))
    assert not model.is_fit_for_device(np.array([None, 1.0], object))
    model.compile("adam", steps_per_execution=3, run_eagerly=True)
    assert not model.is_fit_for_device(X)
    model.compile("adam", steps_per_execution="auto")
    assert not model.is_fit_for_device(X)
    model = network_model(3)
    monkeypatch.setattr(resident, "MAX_BYTES", X.nbytes)
    assert model.is_fit_for_device(X)
    assert not model.is_fit_for_device((X, Y))
    model.fit(X, Y, batch_size=8, verbose=0)
    assert not was_on_device(model)


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="strategies and sparse tensors of TensorFlow")
def test_strategies_and_sparse_or_ragged_rows_are_left_to_keras():
    import tensorflow as tf
    from scipy import sparse

    model = network_model(3)
    for rows in (tf.ragged.constant([[1.0], [2.0, 3.0]]), tf.sparse.from_dense(X), sparse.csr_matrix(X)):
        assert not model.is_fit_for_device(rows)
    assert not model.is_fit_for_device(tf.constant(["a"]))
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        spread = keras.Sequential([keras.layers.Dense(1)])
    assert is_one_device(model)
    assert not is_one_device(spread)


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow leaves XLA out on CPUs")
def test_calls_of_a_story_are_compiled_by_xla_unless_it_is_said():
    model = SVI(level)
    model.compile("adam", steps_per_execution=2)
    assert model.jit_compile
    for given in ({"steps_per_execution": 1}, {"steps_per_execution": 2, "run_eagerly": True}):
        model.compile("adam", **given)
        assert model.jit_compile == bool(given.get("steps_per_execution") == 1 and _uses_xla())
    model.compile("adam", steps_per_execution=2, jit_compile=False)
    assert not model.jit_compile


def _uses_xla():
    model = keras.Sequential()
    model.compile("adam")
    return model.jit_compile


@pytest.mark.tensorflow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA on TensorFlow")
def test_a_story_that_xla_cannot_compile_is_told_what_to_do():
    import tensorflow as tf

    def story(data):
        mean = yield Global("mean", Normal(0.0, 3.0))
        y = tf.ensure_shape(tf.numpy_function(lambda y: y, [data["y"]], "float32"), data["y"].shape)
        yield Observed("y", Normal(mean, 1.0), y)

    model = story_model(2, story, jit_compile="auto")
    with pytest.raises(ValueError, match=r"(?s)`jit_compile` must be False, .* Call compile\(jit_compile=False\)"):
        model.fit(LEVELS, batch_size="all", steps=4, verbose=0)
    model.compile("adam", steps_per_execution=2, jit_compile=False)
    model.fit(LEVELS, batch_size="all", steps=4, verbose=0)


def test_no_steps_in_a_call_are_refused():
    with pytest.raises(ValueError, match="`steps_per_execution` must be a positive integer, not 0"):
        network_model(0)


@pytest.mark.core
def test_metrics_are_made_before_the_first_step_and_once():
    model = network_model(1, metrics=["accuracy"])
    before = len(model.metrics_variables)
    build_metrics(model, X, Y, None, batch_size=8, shuffle=True)
    made = list(model.metrics_variables)
    assert len(made) == before + 2  # total and count of the accuracy
    build_metrics(model, X, Y, None, batch_size=8, shuffle=True)
    assert [id(variable) for variable in model.metrics_variables] == [id(variable) for variable in made]
