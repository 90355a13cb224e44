"""A process that fits, predicts, converts, saves and loads again and again does not grow."""

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest
from stories import Normal

import bdl
from bdl.svi import SVI, Global, Observed

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
def test_memory_stays_within_five_per_cent():
    """In a process of its own, which holds no other test's memory."""
    options = ["--cycles", "20", "--warm-up", "8", "--every", "5"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command, environment = [sys.executable, "benchmarks/soak.py", *options], {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout.splitlines()[-1])
    assert len(row["mebibytes"]) == 5
    assert abs(row["growth_percent"]) < 5


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.x[32 * index :][:32], self.y[32 * index :][:32]


def variational(**settings):
    keras.utils.set_random_seed(0)
    layers = [bdl.layers.DenseFlipout(8, activation="relu"), keras.layers.Dropout(0.2)]
    network = keras.Sequential([keras.Input((4,)), *layers, bdl.layers.DenseReparameterization(3)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile("adam", **settings)
    return model


def labelled():
    return RANDOM.normal(size=(64, 4)).astype("float32"), RANDOM.integers(0, 3, size=64)


def fitted_to_arrays(folder):
    model, (x, y) = variational(), labelled()
    model.fit(x, y, validation_split=0.25, verbose=0)
    model.predict_distribution(x, num_samples=2)
    return model, x


def fitted_to_batches(folder):
    model, (x, y) = variational(), labelled()
    model.fit(Batches(x, y), verbose=0)
    return (model,)  # Keras keeps the data set itself on TensorFlow


def fitted_on_the_device(folder):
    model, (x, y) = variational(steps_per_execution=2), labelled()
    model.fit(x, y, verbose=0)
    return model, x


def fitted_with_callbacks(folder):
    model, (x, y) = variational(), labelled()
    health = bdl.diagnostics.TrainingHealth(data=(x, y), record=folder / "record.jsonl")
    model.fit(x, y, epochs=2, verbose=0, callbacks=[health, keras.callbacks.BackupAndRestore(folder / "backup")])
    return model, x, health


def streamed_in_part(folder):
    model, (x, _) = variational(), labelled()
    next(iter(bdl.predict_parts(model, x, model.likelihood, num_samples=2, batch_size=16, part_size=16)))
    return model, x


def told_as_a_story(folder):
    class Mean:
        def __call__(self, data):
            mean = yield Global("mean", Normal(0.0, 1.0))
            yield Observed("y", Normal(mean, 1.0), data["y"])

    story, y = Mean(), RANDOM.normal(size=64).astype("float32")
    model = SVI(story)
    model.compile("adam")
    model.fit({"y": y}, batch_size=16, steps=8, verbose=0)
    return model, story, y


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
@pytest.mark.parametrize(
    "make",
    [
        fitted_to_arrays,
        fitted_to_batches,
        fitted_on_the_device,
        fitted_with_callbacks,
        streamed_in_part,
        told_as_a_story,
    ],
    ids=lambda make: make.__name__,
)
def test_what_nobody_refers_to_is_freed(make, tmp_path):
    kept = [weakref.ref(each) for each in make(tmp_path)]
    gc.collect()
    assert [reference() for reference in kept] == [None] * len(kept)


def test_a_model_lives_on_after_the_session_is_cleared():
    x, y = labelled()

    def trained(clears):
        model, found = variational(), []
        for _ in range(2):
            model.fit(x, y, verbose=0)
            if clears:
                keras.utils.clear_session()
            found.append(model.predict_distribution(x, num_samples=2).probabilities)
        return [*found, *model.get_weights()]

    for one, other in zip(trained(False), trained(True), strict=True):
        np.testing.assert_array_equal(one, other)
