"""Two replicas of TensorFlow's MirroredStrategy: the KL counts once, and each replica has its own noise."""

import json
import subprocess
import sys

import keras
import pytest

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a strategy of TensorFlow"),
]

# Virtual devices must be set up before TensorFlow starts, so both runs are in a process of their own.
PROGRAM = """
import json
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
    draws = strategy.run(lambda: bdl.random.normal((5,), bdl.random.draw_key(generator)))
    return [draw.numpy().tolist() for draw in strategy.experimental_local_results(draws)]


def run(replicas):
    devices = [f"CPU:{number}" for number in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
    keras.utils.set_random_seed(0)
    kl_only, every = changes(strategy, np.zeros(16), np.ones(16))
    (draws,) = changes(strategy, np.ones(16), layers=[Code()], num_samples=2, objective="multi_sample")
    # Of the last batch, of one example, the second replica gets none.
    settings = {"batch_size": 4, "rate": 0.01}
    (uneven,) = changes(strategy, np.linspace(0.5, 1.5, 13), layers=[Code()], free_bits=3.0, **settings)
    (uneven_draws,) = changes(strategy, np.ones(13), layers=[Code()], num_samples=2, **settings)
    found = {"kl_only": kl_only, "all": every, "draws": draws, "uneven": uneven, "uneven_draws": uneven_draws}
    return {**found, "story": story(strategy), "noise": noise(strategy)}


print(json.dumps([run(1), run(2)]))
"""


@pytest.fixture(scope="module")
def runs():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("which", ["kl_only", "all", "draws", "uneven", "uneven_draws", "story"])
def test_a_step_on_two_replicas_equals_that_on_one(runs, which):
    """With all sample weights zero the step comes from the KL alone: it would double if each replica counted it."""
    one, two = (result[which] for result in runs)
    for ours, theirs in zip(one["step"], two["step"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6)
    for name, value in one["logs"].items():
        assert two["logs"][name] == pytest.approx(value, rel=1e-4)
    if which == "kl_only":
        assert one["logs"]["nll"] == 0.0
        assert max(map(abs, one["step"][0])) > 1e-3


def test_each_replica_has_its_own_noise(runs):
    one, two = (result["noise"] for result in runs)
    assert len(one) == 1
    assert two[0] != two[1]
