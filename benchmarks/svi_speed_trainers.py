"""Contestants of `svi_speed.py`, a process for each backend: `python svi_speed_trainers.py BACKEND`, by `timing`.

All fit the methylation model of examples/methylation.py in batches of 1,000 loci, by Adam, on one thread. A burst is a
number of training steps; what a fit costs once (checks, the copy to the device, compiling) is outside of it.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import serve

HERE = Path(__file__).resolve().parent
BATCH_SIZE, STEPS_IN_CALL, HIDDEN, RATE = 1000, 50, 32, 1e-2

Run = Callable[[int], tuple[float, float]]
"""Trains for a number of steps; wall-clock and processor seconds of them all."""


def clocked(train: Callable[[int], None]) -> Run:
    """The times of a function that trains and waits for the result."""

    def run(steps: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        train(steps)
        return time.perf_counter() - wall, time.process_time() - cpu

    return run


def of_fit(model: Any, data: tuple[Any, ...], batch_size: int, **settings: Any) -> Run:
    """The times of the second of two epochs, each of as many steps as asked for."""
    import keras

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds = time.perf_counter() - self.began[0], time.process_time() - self.began[1]

    def run(steps: int) -> tuple[float, float]:
        clock = Clock()
        told = {name: value(steps) if callable(value) else value for name, value in settings.items()}
        part = told.pop("part", lambda arrays: arrays)
        model.fit(*part(data), batch_size=batch_size, epochs=2, verbose=0, callbacks=[clock], **told)
        return clock.seconds

    return run


def by_bdl(backend: str, steps_in_call: int) -> Run:
    """`bdl.svi`, by `fit`."""
    import keras

    example = methylation()
    if backend == "jax":
        import numpyro.distributions

        example.tfd = numpyro.distributions
    model = example.model_of(seed=0)
    model.compile(keras.optimizers.Adam(RATE), steps_per_execution=steps_in_call, jit_compile=True)
    return of_fit(model, (loci(),), BATCH_SIZE, steps=lambda steps: 2 * steps)


def by_keras_ops(backend: str, steps_in_call: int) -> Run:
    """A loop by hand on `keras.ops`, with the same network, guide, mirrored draws and likelihood."""
    import keras
    from keras import ops

    if backend == "jax":
        import numpyro.distributions as distributions
    else:
        from tensorflow_probability import distributions
    size = len(loci()["coverage"])
    network = keras.Sequential(
        [keras.layers.Dense(HIDDEN, "tanh"), keras.layers.Dense(HIDDEN, "tanh"), keras.layers.Dense(2)]
    )
    network.build((None, 2))
    loc, below = keras.Variable(np.zeros(2, "float32")), keras.Variable(np.zeros(1, "float32"))
    log_scale = keras.Variable(np.zeros(2, "float32"))
    variables = [*network.trainable_variables, loc, below, log_scale]
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build(variables)
    noise = keras.random.SeedGenerator(0)
    features = methylation().features

    def loss_of(batch: Any) -> Any:
        mean, raw = ops.unstack(network(features(batch)), 2, axis=-1)
        scale = ops.softplus(raw)
        of_globals, of_rows = keras.random.normal((2,), seed=noise), keras.random.normal((BATCH_SIZE,), seed=noise)
        costs = []
        for sign in (1.0, -1.0):
            e = sign * of_globals
            center = loc[0] + ops.exp(log_scale[0]) * e[0]
            log_spread = loc[1] + below[0] * e[0] + ops.exp(log_scale[1]) * e[1]
            logit = mean + scale * (sign * of_rows)
            fit = distributions.Binomial(batch["coverage"], logits=logit).log_prob(batch["methylated"])
            variance = ops.exp(2.0 * log_spread)
            local = 0.5 * ((scale**2 + (mean - center) ** 2) / variance - 1.0) + log_spread - ops.log(scale)
            log_q = -ops.sum(0.5 * e**2 + log_scale)
            log_p = -0.5 * (center**2 / 4.0 + log_spread**2) - np.log(2.0)
            costs.append(ops.mean(local - fit) + (log_q - log_p) / size)
        return 0.5 * (costs[0] + costs[1])

    compiled = (_loop_on_jax if backend == "jax" else _loop_on_tensorflow)(
        loss_of, variables, optimizer, noise, steps_in_call
    )
    rows = np.random.default_rng(0)

    def train(steps: int) -> None:
        order = rows.permutation(size)
        for _ in range(steps // steps_in_call):
            if len(order) < steps_in_call * BATCH_SIZE:
                order = rows.permutation(size)
            taken, order = np.split(order, [steps_in_call * BATCH_SIZE])
            compiled(taken.astype("int32").reshape(steps_in_call, BATCH_SIZE))
        ops.convert_to_numpy(compiled.losses[-1])

    return clocked(train)


def _loop_on_tensorflow(loss_of: Any, variables: Any, optimizer: Any, noise: Any, steps: int) -> Any:
    import tensorflow as tf

    data = {name: tf.constant(values) for name, values in loci().items()}

    @tf.function(jit_compile=True, autograph=False)
    def call(data: Any, rows: Any) -> Any:
        def one(step: Any, total: Any) -> Any:
            batch = {name: tf.gather(values, rows[step]) for name, values in data.items()}
            with tf.GradientTape() as tape:
                loss = loss_of(batch)
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            optimizer.apply(gradients, variables)
            return step + 1, total + loss

        if steps == 1:
            return one(0, 0.0)[1]
        return tf.while_loop(lambda step, _: step < steps, one, (tf.constant(0), tf.constant(0.0)))[1]

    def run(rows: np.ndarray) -> None:
        run.losses = [call(data, tf.constant(rows))]

    return run


def _loop_on_jax(loss_of: Any, variables: Any, optimizer: Any, noise: Any, steps: int) -> Any:
    import jax
    import keras

    data = {name: jax.numpy.asarray(values) for name, values in loci().items()}

    def stateless(values: Any, seed: Any, batch: Any) -> Any:
        with keras.StatelessScope([*zip(variables, values, strict=True), (noise.state, seed)]) as scope:
            loss = loss_of(batch)
        return loss, scope.get_current_value(noise.state)

    @jax.jit
    def call(state: Any, data: Any, rows: Any) -> Any:
        def one(state: Any, picked: Any) -> Any:
            values, moments, seed = state
            batch = {name: array[picked] for name, array in data.items()}
            (loss, seed), gradients = jax.value_and_grad(stateless, has_aux=True)(values, seed, batch)
            values, moments = optimizer.stateless_apply(moments, gradients, values)
            return (list(values), list(moments), seed), loss

        return jax.lax.scan(one, state, rows)

    values = [[each.value for each in group] for group in (variables, optimizer.variables)]

    def run(rows: np.ndarray) -> None:
        run.state, losses = call(run.state, data, rows)
        run.losses = losses

    run.state = (*values, noise.state.value)
    return run


def by_numpyro(draws: int, steps_in_call: int) -> Run:
    """NumPyro's SVI, with `scan` over the steps of a call."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    data = {name: jnp.asarray(values) for name, values in loci().items()}
    size = len(data["coverage"])
    first = network_weights()

    def model(batch: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        spread = numpyro.sample("spread", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", BATCH_SIZE), numpyro.handlers.scale(scale=size / BATCH_SIZE):
            logit = numpyro.sample("logit", dist.Normal(mean, spread))
            numpyro.sample("methylated", dist.Binomial(batch["coverage"], logits=logit), obs=batch["methylated"])

    def guide(batch: Any) -> None:
        loc = numpyro.param("loc", jnp.zeros(2))
        factor = numpyro.param("factor", jnp.eye(2), constraint=dist.constraints.lower_cholesky)
        u = numpyro.sample("u", dist.MultivariateNormal(loc, scale_tril=factor), infer={"is_auxiliary": True})
        numpyro.sample("mean", dist.Delta(u[0]))
        numpyro.sample("spread", dist.Delta(jnp.exp(u[1]), log_density=-u[1]))
        weights = [numpyro.param(f"w{number}", jnp.asarray(each)) for number, each in enumerate(first)]
        log_odds = jnp.log((batch["methylated"] + 0.5) / (batch["coverage"] - batch["methylated"] + 0.5))
        hidden = jnp.stack([log_odds - 1.5, jnp.log1p(batch["coverage"]) - 3.0], axis=-1)
        for number in (0, 2):
            hidden = jnp.tanh(hidden @ weights[number] + weights[number + 1])
        out = hidden @ weights[4] + weights[5]
        with numpyro.plate("rows", BATCH_SIZE), numpyro.handlers.scale(scale=size / BATCH_SIZE):
            numpyro.sample("logit", dist.Normal(out[:, 0], jax.nn.softplus(out[:, 1])))

    svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO(num_particles=draws))

    @jax.jit
    def call(state: Any, data: Any, rows: Any) -> Any:
        return jax.lax.scan(
            lambda state, picked: svi.update(state, {name: values[picked] for name, values in data.items()}),
            state,
            rows,
        )

    state = svi.init(jax.random.key(0), {name: values[:BATCH_SIZE] for name, values in data.items()})
    rng = np.random.default_rng(0)

    def train(steps: int) -> None:
        nonlocal state
        order = rng.permutation(size)
        for _ in range(steps // steps_in_call):
            if len(order) < steps_in_call * BATCH_SIZE:
                order = rng.permutation(size)
            taken, order = np.split(order, [steps_in_call * BATCH_SIZE])
            state, losses = call(state, data, taken.astype("int32").reshape(steps_in_call, BATCH_SIZE))
        losses.block_until_ready()

    return clocked(train)


def by_tfp(draws: int) -> Run:
    """A joint distribution and a surrogate of TensorFlow Probability, each step compiled by XLA."""
    import keras
    import tensorflow as tf
    import tensorflow_probability as tfp

    tfd, arrays = tfp.distributions, loci()
    size, root = len(arrays["coverage"]), tfp.distributions.JointDistributionCoroutine.Root
    network = keras.Sequential(
        [keras.layers.Dense(HIDDEN, "tanh"), keras.layers.Dense(HIDDEN, "tanh"), keras.layers.Dense(2)]
    )
    network.build((None, 2))
    features = methylation().features
    loc, raw = keras.Variable(np.zeros(2, "float32")), keras.Variable(np.array([0.5, 0.0, 0.5], "float32"))
    variables = [*network.trainable_variables, loc, raw]
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build(variables)

    @tf.function(jit_compile=True, autograph=False)
    def step(batch: Any) -> Any:
        def model() -> Any:
            mean = yield root(tfd.Normal(0.0, 2.0))
            log_spread = yield root(tfd.Normal(0.0, 1.0))
            logit = yield tfd.Independent(tfd.Normal(mean * tf.ones(BATCH_SIZE), tf.exp(log_spread)), 1)
            yield tfd.Independent(tfd.Binomial(batch["coverage"], logits=logit), 1)

        with tf.GradientTape() as tape:
            out = network(features(batch))
            shared = tfd.MultivariateNormalTriL(tf.convert_to_tensor(loc.value), tfp.math.fill_triangular(raw.value))
            rows = tfd.Independent(tfd.Normal(out[:, 0], tf.nn.softplus(out[:, 1])), 1)
            joint, loss = tfd.JointDistributionCoroutine(model), 0.0
            for _ in range(draws):
                u, logit = shared.sample(), rows.sample()
                parts = joint.log_prob_parts((u[0], u[1], logit, batch["methylated"]))
                loss += (shared.log_prob(u) - parts[0] - parts[1]) / (draws * size)
                loss += (rows.log_prob(logit) - parts[2] - parts[3]) / (draws * BATCH_SIZE)
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    order = np.random.default_rng(0)

    def train(steps: int) -> None:
        rows = order.integers(0, size, (steps, BATCH_SIZE))
        for picked in rows:
            loss = step({name: tf.constant(values[picked]) for name, values in arrays.items()})
        loss.numpy()

    return clocked(train)


def by_pyro() -> Run:
    """Pyro's SVI, one draw."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, Trace_ELBO

    torch.set_num_threads(1)
    arrays = {name: torch.tensor(values) for name, values in loci().items()}
    size = len(arrays["coverage"])
    first = [torch.tensor(each) for each in network_weights()]

    def model(batch: Any) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", BATCH_SIZE), pyro.poutine.scale(scale=size / BATCH_SIZE):
            logit = pyro.sample("logit", dist.Normal(mean, spread))
            pyro.sample("methylated", dist.Binomial(batch["coverage"], logits=logit), obs=batch["methylated"])

    def guide(batch: Any) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        factor = pyro.param("factor", torch.eye(2), constraint=dist.constraints.lower_cholesky)
        u = pyro.sample("u", dist.MultivariateNormal(loc, scale_tril=factor), infer={"is_auxiliary": True})
        pyro.sample("mean", dist.Delta(u[0]))
        pyro.sample("spread", dist.Delta(torch.exp(u[1]), log_density=-u[1]))
        weights = [pyro.param(f"w{number}", each) for number, each in enumerate(first)]
        log_odds = torch.log((batch["methylated"] + 0.5) / (batch["coverage"] - batch["methylated"] + 0.5))
        hidden = torch.stack([log_odds - 1.5, torch.log1p(batch["coverage"]) - 3.0], dim=-1)
        for number in (0, 2):
            hidden = torch.tanh(hidden @ weights[number] + weights[number + 1])
        out = hidden @ weights[4] + weights[5]
        with pyro.plate("rows", BATCH_SIZE), pyro.poutine.scale(scale=size / BATCH_SIZE):
            pyro.sample("logit", dist.Normal(out[:, 0], torch.nn.functional.softplus(out[:, 1])))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
    rng = np.random.default_rng(0)

    def train(steps: int) -> None:
        for picked in torch.tensor(rng.integers(0, size, (steps, BATCH_SIZE))):
            svi.step({name: values[picked] for name, values in arrays.items()})

    return clocked(train)


def mlp(backend: str, steps_in_call: int, is_xla: bool = True) -> Run:
    """The MLP of `layers.py`, 784-512-512-10 in batches of 128, by reparameterization."""
    import keras

    import bdl

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12_800, 784), dtype="float32"), rng.integers(0, 10, 12_800)
    dense = bdl.layers.DenseReparameterization
    network = keras.Sequential([keras.Input((784,)), dense(512, "relu"), dense(512, "relu"), dense(10)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=60_000, kl_weight=1.0)
    model.compile(keras.optimizers.Adam(1e-3), steps_per_execution=steps_in_call, jit_compile=is_xla)
    return of_fit(model, (x, y), 128, part=lambda steps: lambda arrays: tuple(each[: 128 * steps] for each in arrays))


def network_weights() -> list[np.ndarray]:
    """First weights of a recognition network, as Keras draws them."""
    rng, sizes = np.random.default_rng(0), [2, HIDDEN, HIDDEN, 2]
    weights = []
    for before, after in itertools.pairwise(sizes):
        bound = np.sqrt(6 / (before + after))
        weights += [rng.uniform(-bound, bound, (before, after)).astype("float32"), np.zeros(after, "float32")]
    return weights


def loci() -> dict[str, np.ndarray]:
    """Loci like those of human chromosome 22, made from the model."""
    global _loci
    if _loci is None:
        rng = np.random.default_rng(0)
        coverage = 1 + rng.negative_binomial(2.7, 2.7 / (2.7 + 23.4), 494_728)
        chance = 1 / (1 + np.exp(-(1.65 + np.exp(0.4) * rng.standard_normal(len(coverage)))))
        methylated = rng.binomial(coverage, chance)
        _loci = {"methylated": methylated.astype("float32"), "coverage": coverage.astype("float32")}
    return _loci


_loci: dict[str, np.ndarray] | None = None


def methylation() -> Any:
    """The module of the example."""
    sys.path.append(str(HERE.parent / "examples"))
    import methylation

    return methylation


CONTESTANTS: dict[str, tuple[str, Callable[[], Run]]] = {
    "bdl, TensorFlow, 50 a call": ("tensorflow", lambda: by_bdl("tensorflow", STEPS_IN_CALL)),
    "keras.ops by hand, TensorFlow, 50 a call": ("tensorflow", lambda: by_keras_ops("tensorflow", STEPS_IN_CALL)),
    "NumPyro, one draw, scan of 50": ("jax", lambda: by_numpyro(1, STEPS_IN_CALL)),
    "NumPyro, two draws, scan of 50": ("jax", lambda: by_numpyro(2, STEPS_IN_CALL)),
    "bdl, JAX, 50 a call": ("jax", lambda: by_bdl("jax", STEPS_IN_CALL)),
    "keras.ops by hand, JAX, 50 a call": ("jax", lambda: by_keras_ops("jax", STEPS_IN_CALL)),
    "bdl, TensorFlow, one a call": ("tensorflow", lambda: by_bdl("tensorflow", 1)),
    "bdl, JAX, one a call": ("jax", lambda: by_bdl("jax", 1)),
    "TFP joint and surrogate, XLA, one draw, one a call": ("tensorflow", lambda: by_tfp(1)),
    "TFP joint and surrogate, XLA, two draws, one a call": ("tensorflow", lambda: by_tfp(2)),
    "Pyro, one draw": ("torch", by_pyro),
    "MLP, TensorFlow XLA, 50 a call": ("tensorflow", lambda: mlp("tensorflow", STEPS_IN_CALL)),
    "MLP, TensorFlow XLA, one a call": ("tensorflow", lambda: mlp("tensorflow", 1)),
    "MLP, TensorFlow, 50 a call": ("tensorflow", lambda: mlp("tensorflow", STEPS_IN_CALL, False)),
    "MLP, TensorFlow, one a call": ("tensorflow", lambda: mlp("tensorflow", 1, False)),
    "MLP, JAX, 50 a call": ("jax", lambda: mlp("jax", STEPS_IN_CALL)),
    "MLP, JAX, one a call": ("jax", lambda: mlp("jax", 1)),
}
"""By name: the Keras backend, and what makes the contestant."""


class Garage:
    """The contestants of this process, by name: the handlers of `timing.serve`."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def prepare(self, name: str, steps: int) -> dict:
        """Builds and compiles one, and takes a burst that does not count."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._runs[name] = CONTESTANTS[name][1]()
        self._runs[name](steps)
        return {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}

    def burst(self, name: str, steps: int) -> dict:
        """Milliseconds of a step."""
        wall, cpu = self._runs[name](steps)
        return {"wall_ms": 1e3 * wall / steps, "cpu_ms": 1e3 * cpu / steps}


def one_thread(backend: str) -> None:
    """Settings before a library is imported."""
    os.environ.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3", OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu")
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


if __name__ == "__main__":
    one_thread(sys.argv[1])
    garage = Garage()
    serve({"prepare": garage.prepare, "burst": garage.burst})
