"""Two replicas of TensorFlow's MirroredStrategy, and two workers of MultiWorkerMirroredStrategy.

The KL counts once, and each replica has its own noise; all else equals what one device does.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from standard_errors import assert_uncorrelated

import bdl

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a strategy of TensorFlow"),
]

# Virtual devices must be set up before TensorFlow starts, so both runs are in a process of their own.
PROGRAM = """
import contextlib, dataclasses, json, sys, warnings
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import tensorflow_probability as tfp
import bdl
import bdl.svi

tfd = tfp.distributions
rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 4)).astype("float32"), rng.integers(0, 3, 16)


class Code(keras.layers.Layer):
    def call(self, x):
        bdl.layers.add_local_kl(self, keras.ops.sum(keras.ops.square(x), axis=-1))
        return x


def changes(strategy, *weights, layers=(), batch_size=16, rate=1.0, **settings):
    # An epoch with each of the sample weights, from the same beginning.
    with strategy.scope():
        keras.utils.set_random_seed(1)
        dense = bdl.layers.DenseFlipout(3, seed=1, kernel_prior="normal")
        network = keras.Sequential([keras.Input((4,)), *layers, dense])
        model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=16, kl_weight=1.0, **settings)
        model.compile(keras.optimizers.SGD(rate))
    before = [weight.numpy() for weight in model.trainable_weights]
    found = []
    for each in weights:
        with bdl.mean_weights(model):
            size, order = len(each), {"batch_size": batch_size, "verbose": 0}
            history = model.fit(x[:size], y[:size], sample_weight=each, epochs=1, shuffle=False, **order)
            figures = model.evaluate(x[:size], y[:size], sample_weight=each, return_dict=True, **order)
        step = [(weight.numpy() - old).ravel().tolist() for weight, old in zip(model.trainable_weights, before)]
        logs = {**{name: values[0] for name, values in history.history.items()}, "evaluated": figures["loss"]}
        found.append({"step": step, "logs": logs})
        for weight, old in zip(model.trainable_weights, before):
            weight.assign(old)
    return found


def level(data):
    mean = yield bdl.svi.Global("mean", tfd.Normal(0.0, 3.0))
    yield bdl.svi.Observed("y", tfd.Normal(mean, 1.0), data["y"])


def story(strategy):
    # Of a story whose guide draws nothing, for a replica's noise is its own.
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = bdl.svi.SVI(level, "delta", seed=1)
        model.compile(keras.optimizers.SGD(0.01))
    data = {"y": x[:13, 0] + 2.0}
    history = model.fit(data, batch_size=4, epochs=2, shuffle=False, verbose=0)
    step = [weight.numpy().ravel().tolist() for weight in model.trainable_weights]
    return {"step": step, "logs": {name: values[-1] for name, values in history.history.items()}}


def noise(strategy):
    generator = keras.random.SeedGenerator(3)
    draws = strategy.run(lambda: bdl.random.normal((4000,), bdl.random.draw_key(generator)))
    return [draw.numpy().tolist() for draw in strategy.experimental_local_results(draws)]


def numbers(found):
    if dataclasses.is_dataclass(found):
        found = [getattr(found, each.name) for each in dataclasses.fields(found) if each.name not in ("name", "trends")]
    if isinstance(found, (list, tuple)):
        return [number for each in found for number in numbers(each)]
    return [] if found is None else [found]


def beyond_steps(strategy, replicas):
    # Predictions, and what watches a training, whose steps are so small that their noise moves nothing.
    labels = (x[:, 0] > 0).astype("int32")
    with strategy.scope():
        keras.utils.set_random_seed(1)
        layers = [bdl.layers.DenseFlipout(4, seed=1), bdl.layers.MCDropout(0.1, seed=3)]
        network = keras.Sequential([keras.Input((4,)), *layers, bdl.layers.DenseFlipout(2, seed=2)])
        model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=16, kl_weight=1.0)
        model.compile(keras.optimizers.SGD(1e-12))
    health = bdl.diagnostics.TrainingHealth((x, labels), on_verdict="record", max_cost=1)
    converged = bdl.training.Converged(every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, labels, batch_size=4, epochs=2, verbose=0, callbacks=[health, converged])
        report = bdl.diagnostics.diagnose(model, x, labels, batch_size=4)
    judged = numbers([health.quantities, report.quantities, converged.report.steps, converged.report.is_reached])

    def outputs(model):
        return model.predict_distribution(x, num_samples=8, batch_size=5, seed=3, keep_outputs=True).outputs.tolist()

    found = {"verdict": report.verdict, "judged": judged, "outside": outputs(model)}
    model.save(sys.argv[1] + f"{replicas}.keras")
    if replicas == 2:
        with strategy.scope():
            found["inside"] = outputs(model)
            found["from elsewhere"] = outputs(keras.saving.load_model(sys.argv[1] + "1.keras"))
    scores = bdl.evaluate(labels, {"model": model.predict_distribution(x, seed=0)}, num_resamples=0)
    return {**found, "scores": [scores[name] for name in ("accuracy", "nll", "epistemic")]}


def run(replicas):
    devices = [f"CPU:{number}" for number in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
    keras.utils.set_random_seed(0)
    kl_only, every = changes(strategy, np.zeros(16), np.ones(16))
    # Shares of a first batch of 15 differ in size.
    (draws,) = changes(strategy, np.ones(15), layers=[Code()], num_samples=2, objective="multi_sample")
    # Of the last batch, of one example, the second replica gets none.
    settings = {"batch_size": 4, "rate": 0.01}
    (uneven,) = changes(strategy, np.linspace(0.5, 1.5, 13), layers=[Code()], free_bits=3.0, **settings)
    (uneven_draws,) = changes(strategy, np.ones(13), layers=[Code()], num_samples=2, **settings)
    found = {"kl_only": kl_only, "all": every, "draws": draws, "uneven": uneven, "uneven_draws": uneven_draws}
    return {**found, "story": story(strategy), "noise": noise(strategy), "beyond": beyond_steps(strategy, replicas)}


print(json.dumps([run(1), run(2)]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return str(tmp_path_factory.mktemp("saved")) + os.sep


@pytest.fixture(scope="module")
def runs(files):
    command = [sys.executable, "-c", PROGRAM, files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("which", ["kl_only", "all", "draws", "uneven", "uneven_draws", "story"])
def test_a_step_on_two_replicas_equals_that_on_one(runs, which):
    """With all sample weights zero the step comes from the KL alone: it would double if each replica counted it."""
    one, two = (result[which] for result in runs)
    for ours, theirs in zip(one["step"], two["step"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-6)
    for name, value in one["logs"].items():
        assert two["logs"][name] == pytest.approx(value, rel=1e-6)
    if which == "kl_only":
        assert one["logs"]["nll"] == 0.0
        assert max(map(abs, one["step"][0])) > 1e-3


def test_each_replica_has_its_own_noise(runs):
    one, two = (result["noise"] for result in runs)
    assert len(one) == 1
    assert_uncorrelated(*two)


@pytest.mark.parametrize("where", ["outside", "inside", "from elsewhere"])
def test_a_model_of_two_replicas_predicts_as_on_one(runs, where):
    one, two = (result["beyond"] for result in runs)
    assert two[where] == one["outside"]


def test_the_file_of_a_model_of_two_replicas_predicts_the_same_without_them(runs, files):
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    model = keras.saving.load_model(files + "2.keras")
    found = model.predict_distribution(x, num_samples=8, batch_size=5, seed=3, keep_outputs=True).outputs
    assert found.tolist() == runs[0]["beyond"]["outside"]


def test_a_model_of_two_replicas_is_judged_as_on_one(runs):
    one, two = (result["beyond"] for result in runs)
    assert two["verdict"] == one["verdict"]
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-5)
    assert len(one["judged"]) > 50
    for ours, theirs in zip(one["judged"], two["judged"], strict=True):
        assert theirs == (pytest.approx(ours, rel=1e-5, abs=1e-6) if isinstance(ours, float) else ours)


EXAMPLES = Path(__file__).parents[1] / "examples"
WORKER = """
import json, sys
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras
import numpy as np
import bdl
sys.path.append(sys.argv[1])
from tensorflow_workers import build, train

rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
with strategy.scope():
    keras.utils.set_random_seed(1)
    model = build(4, 3, num_examples=8, optimizer=keras.optimizers.SGD(0.1))
    noisy = keras.Sequential([keras.Input((4,)), bdl.layers.DenseLocalReparameterization(1, seed=1)])
with bdl.mean_weights(model):
    logs = train(strategy, model, x, y, epochs=2, batch_size=8)
noise = strategy.run(lambda: noisy(tf.ones((4000, 4)), training=True))
told = []
for run in (model.fit, model.evaluate):
    try:
        run(x, y, verbose=0)
    except ValueError as error:
        told.append(str(error))
if strategy.cluster_resolver.task_id == 0:
    model.save(sys.argv[2])
print(json.dumps({
    "weights": [weight.numpy().ravel().tolist() for weight in model.trainable_weights],
    "logs": logs,
    "temperature": model.temperature,
    "noise": np.ravel(strategy.experimental_local_results(noise)[0]).tolist(),
    "prediction": model.predict_distribution(x, num_samples=4, seed=1).probabilities.tolist(),
    "told": told,
}))
"""


@pytest.fixture(scope="module")
def workers(files):
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster)}
        command = [sys.executable, "-c", WORKER, str(EXAMPLES), files + "worker.keras"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    return [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]


def test_steps_of_the_loop_of_two_workers_equal_those_of_one(workers, monkeypatch):
    """Without noise: the NLL is that of the whole batch, the KL counts once, N is that of all, and T is 1."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from tensorflow_workers import build

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    keras.utils.set_random_seed(1)
    model = build(4, 3, num_examples=8, optimizer=keras.optimizers.SGD(0.1))
    with bdl.mean_weights(model):
        logs = [model.train_on_batch(x, y, return_dict=True) for _ in range(2)]
    for worker in workers:
        assert worker["temperature"] == 1.0
        assert worker["logs"][0] == pytest.approx({name: float(value) for name, value in logs[0].items()}, rel=1e-6)
        for ours, theirs in zip(worker["weights"], model.trainable_weights, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy().ravel(), rtol=1e-6, atol=1e-6)


def test_workers_draw_independent_noise(workers):
    assert_uncorrelated(*(worker["noise"] for worker in workers))


def test_the_file_of_a_worker_predicts_the_same_elsewhere(workers, files):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    prediction = keras.saving.load_model(files + "worker.keras").predict_distribution(x, num_samples=4, seed=1)
    assert prediction.probabilities.tolist() == workers[0]["prediction"]


def test_fit_under_the_strategy_of_several_workers_is_refused(workers):
    for worker in workers:
        assert len(worker["told"]) == 2
        assert all("must not run under MultiWorkerMirroredStrategy" in told for told in worker["told"])
