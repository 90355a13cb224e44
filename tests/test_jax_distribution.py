"""Two devices of JAX under `keras.distribution`: all that a model does equals what it does on one device."""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from standard_errors import assert_uncorrelated

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="devices of JAX"),
]

# Virtual devices must be set up before JAX starts.
PROGRAM = """
import contextlib, dataclasses, importlib.util, json, sys, warnings
import keras
import numpy as np
import bdl

rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)


class Batches(keras.utils.PyDataset):
    num_examples = 7

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return x[4 * index : min(4 * index + 4, 7)], y[4 * index : min(4 * index + 4, 7)]


class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyError("mine")

    on_test_batch_end = on_train_batch_end


def compiled_model():
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(4, seed=1, kernel_prior="normal")])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=8, kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def weights(model):
    return np.concatenate([weight.numpy().ravel() for weight in model.trainable_weights]).tolist()


def step(distribution):
    with distribution.scope():
        model = compiled_model()
        logs = model.fit(x, y, batch_size=8, verbose=0).history
        return {"weights": weights(model), "loss": logs["loss"], "evaluated": model.evaluate(x, y, verbose=0)}


def failures(distribution):
    found = []
    with distribution.scope():
        model = compiled_model()
        for run in (
            lambda: model.fit(x[:7], y[:7], batch_size=4, verbose=0),
            lambda: model.fit(x[:6], y[:6], batch_size=3, verbose=0),
            lambda: model.fit(Batches(), verbose=0),
            lambda: model.evaluate(Batches(), verbose=0),
            lambda: model.fit(x, y, batch_size=4, callbacks=[Fails()], verbose=0),
            lambda: model.evaluate(x, y, batch_size=4, callbacks=[Fails()], verbose=0),
        ):
            try:
                run()
            except Exception as error:
                found.append([type(error).__name__, str(error)])
            lives = weights(model)
        model.fit(x, y, verbose=0)
        lives = bool(np.isfinite(weights(model)).all())
    return {"errors": found, "lives": lives}


# What is not trained or watched on one device only, on 66 rows, of which a twin chooses its epoch by 13.
rows = rng.normal(size=(66, 4)).astype("float32")
labels = (rows[:, 0] + rows[:, 1] > 0).astype("int32")
FILE = sys.argv[1]


def classifier():
    keras.utils.set_random_seed(1)
    layers = [bdl.layers.DenseFlipout(8, activation="relu", seed=1), bdl.layers.MCDropout(0.1, seed=3)]
    network = keras.Sequential([keras.Input((4,)), *layers, bdl.layers.DenseFlipout(2, seed=2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=66, kl_weight=1.0)
    model.compile(keras.optimizers.Adam(0.05))
    return model


def outputs(model):
    return model.predict_distribution(rows, num_samples=8, batch_size=13, seed=3, keep_outputs=True).outputs.tolist()


def numbers(found):
    if dataclasses.is_dataclass(found):
        fields = [each.name for each in dataclasses.fields(found) if each.name not in ("name", "worst", "obstacle")]
        found = [getattr(found, name) for name in fields]
    if isinstance(found, (list, tuple)):
        return [number for each in found for number in numbers(each)]
    return [] if found is None else [found]


def watched(twin):
    model = classifier()
    health = bdl.diagnostics.TrainingHealth((rows, labels), on_verdict="record", max_cost=1)
    converged = bdl.training.Converged(every=1)
    model.fit(rows, labels, batch_size=22, epochs=10, verbose=0, callbacks=[health, converged])
    report = bdl.diagnostics.diagnose(model, rows, labels, record=health, batch_size=11)
    trained = twin and bdl.diagnostics.diagnose(model, rows, labels, twin=twin, batch_size=11).quantities.twin
    found = numbers([health.verdicts, health.quantities, converged.report, report.quantities])
    scores = bdl.evaluate(labels, {"model": model.predict_distribution(rows, seed=0)}, num_resamples=0)
    values = [scores[name] for name in ("accuracy", "nll", "epistemic")]
    return {"verdict": report.verdict, "figures": found, "scores": values, "twin": numbers(trained)}


def story():
    import numpyro.distributions as distributions
    from bdl.svi import SVI, Global, Observed

    def level(data):
        mean = yield Global("mean", distributions.Normal(0.0, 3.0))
        yield Observed("y", distributions.Normal(mean, 1.0), data["y"])

    model = SVI(level, seed=1)
    model.compile(keras.optimizers.Adam(0.05))
    data = {"y": rows[:, 0] + 2.0}
    history = model.fit(data, batch_size=22, epochs=5, verbose=0)
    drawn = {**model.posterior(seed=0), **model.predict(data, num_samples=10, seed=0)}
    found = {name: each.ravel().tolist() for name, each in drawn.items()}
    return {**found, "loss": history.history["loss"], "evaluated": model.evaluate(data, batch_size=22, verbose=0)}


def beyond_steps(distribution=None, path=None):
    scope = contextlib.nullcontext() if distribution is None else distribution.scope()
    with scope, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = classifier()
        found = {"outputs": outputs(model), "watched": watched("auto" if distribution is two else None)}
        if path is not None:
            model.save(path)
            found["from elsewhere"] = outputs(keras.saving.load_model(FILE + "one.keras"))
        if importlib.util.find_spec("numpyro") is not None:
            found["story"] = story()
    return {**found, "outside": outputs(model), "file": outputs(keras.saving.load_model(path or FILE + "one.keras"))}


def noise(distribution):
    # Of the rows of one batch, which the devices share, in a step of a training.
    import jax

    with distribution.scope():
        network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseLocalReparameterization(1, seed=1)])
        ones = np.ones((8000, 4), "float32")
        batch = keras.distribution.distribute_tensor(ones, distribution.get_data_layout(ones.shape))
        state = network.trainable_variables, network.non_trainable_variables
        values = [[each.value for each in some] for some in state]
        drawn, _ = jax.jit(lambda *given: network.stateless_call(*given, training=True))(*values, batch)
        assert len(drawn.sharding.device_set) == 2
        return np.asarray(drawn).ravel().tolist()


mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], keras.distribution.list_devices())
layout = keras.distribution.LayoutMap(mesh)
layout[".*kernel.*"] = (None, "model")
one = keras.distribution.DataParallel(devices=keras.distribution.list_devices()[:1])
two = keras.distribution.DataParallel()
split = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
classifier().save(FILE + "one.keras")
steps = {"one": step(one), "two": step(two), "split": step(split), "failures": failures(two)}
beyond = {"one": beyond_steps()}
beyond |= {name: beyond_steps(way, FILE + name + ".keras") for name, way in (("two", two), ("split", split))}
print(json.dumps({**steps, "beyond": beyond, "noise": noise(two)}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("saved")) + os.sep]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["two", "split"])
def test_a_step_on_two_devices_equals_that_on_one(runs, way):
    for name, expected in runs["one"].items():
        assert runs[way][name] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_batches_that_devices_cannot_share_are_refused_and_the_model_lives(runs):
    kinds, told = zip(*runs["failures"]["errors"], strict=True)
    assert kinds == ("ValueError",) * 4 + ("KeyError",) * 2
    assert "multiple of 2, and leave out 1 of the rows" in told[0]
    assert "6 rows in batches of 3. Choose a multiple of 2." in told[1]
    assert all("must give batches of a multiple of 2 rows" in each for each in told[2:4])
    assert runs["failures"]["lives"]


def test_a_prediction_spread_over_the_devices_is_that_of_one(runs):
    """Where layers are split, sums over a split axis are rounded in another order."""
    expected, found = (runs["beyond"][way]["outputs"] for way in ("one", "two"))
    assert found == expected
    np.testing.assert_allclose(runs["beyond"]["split"]["outputs"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["two", "split"])
@pytest.mark.parametrize("where", ["outside", "file", "from elsewhere"])
def test_a_model_and_its_file_predict_the_same_on_one_device_and_on_two(runs, way, where):
    expected = runs["beyond"]["one"]["outputs"]
    np.testing.assert_allclose(runs["beyond"][way][where], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["two", "split"])
def test_a_model_is_watched_and_judged_as_on_one_device(runs, way):
    one, other = (runs["beyond"][name]["watched"] for name in ("one", way))
    assert other["verdict"] == one["verdict"]
    assert other["scores"] == pytest.approx(one["scores"], rel=1e-5)
    assert len(one["figures"]) > 50
    for ours, theirs in zip(one["figures"], other["figures"], strict=True):
        assert theirs == (pytest.approx(ours, rel=1e-5, abs=1e-6) if isinstance(ours, float) else ours)


@pytest.mark.skipif(importlib.util.find_spec("numpyro") is None, reason="needs NumPyro")
@pytest.mark.parametrize("way", ["two", "split"])
def test_a_story_is_fitted_and_drawn_as_on_one_device(runs, way):
    for name, expected in runs["beyond"]["one"]["story"].items():
        assert runs["beyond"][way]["story"][name] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_devices_draw_independent_noise(runs):
    first, second = np.split(np.array(runs["noise"]), 2)
    assert_uncorrelated(first, second)


def test_a_twin_is_trained_on_rows_that_the_devices_can_share(runs):
    twin = runs["beyond"]["two"]["watched"]["twin"]
    assert twin
    assert np.isfinite(twin).all()
