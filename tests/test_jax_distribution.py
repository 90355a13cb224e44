"""Two devices of JAX under `keras.distribution`: one step equals that on one device, and batches must be dealt out."""

import json
import os
import subprocess
import sys

import keras
import pytest

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="devices of JAX"),
]

# Virtual devices must be set up before JAX starts.
PROGRAM = """
import json, sys
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


mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], keras.distribution.list_devices())
layout = keras.distribution.LayoutMap(mesh)
layout[".*kernel.*"] = (None, "model")
one = keras.distribution.DataParallel(devices=keras.distribution.list_devices()[:1])
two = keras.distribution.DataParallel()
split = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
print(json.dumps({"one": step(one), "two": step(two), "split": step(split), "failures": failures(two)}))
"""


@pytest.fixture(scope="module")
def runs():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, env=environment)
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
