"""A training loop of your own
===========================

A training loop of your own on TensorFlow, JAX or Torch: `python examples/custom_loop.py`, with KERAS_BACKEND set.

`bdl.ELBO` gives the parts of the objective on a batch: NLL, KL, ELBO and T. TensorFlow and Torch differentiate what
happened to the network's variables. JAX differentiates a function of their values, so that `parts` gets these values:
the KL is a function of them alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import bdl


def network_and_elbo(num_examples: int) -> tuple[keras.Model, bdl.ELBO]:
    """A network for digits, and its objective. N divides the KL, so the objective asks for it."""
    layers = [bdl.layers.DenseFlipout(64, activation="relu", seed=1), bdl.layers.DenseFlipout(10, seed=2)]
    network = keras.Sequential([keras.Input((64,)), *layers])
    return network, bdl.ELBO(bdl.likelihoods.Categorical(), num_examples, model=network)


def batches(x: np.ndarray, y: np.ndarray, size: int = 64, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The data in random order."""
    order = np.random.default_rng(seed).permutation(len(x))
    for start in range(0, len(x), size):
        rows = order[start : start + size]
        yield x[rows], y[rows]


def train_tensorflow(network: keras.Model, elbo: bdl.ELBO, x: Any, y: Any, epochs: int) -> list[float]:
    """The ELBO of each step."""
    import tensorflow as tf

    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(network.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            parts = elbo.parts(y, network(x, training=True))
            loss = parts.loss + sum(network.losses)  # regularizers of layers, if there are any
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
        return parts.elbo

    return [
        float(step(tf.constant(a), tf.constant(b))) for epoch in range(epochs) for a, b in batches(x, y, seed=epoch)
    ]


def train_jax(network: keras.Model, elbo: bdl.ELBO, x: Any, y: Any, epochs: int) -> list[float]:
    """The ELBO of each step."""
    import jax

    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(network.trainable_variables)

    def loss_of(trainable: Any, state: Any, x: Any, y: Any) -> Any:
        outputs, state, losses = network.stateless_call(trainable, state, x, training=True, return_losses=True)
        parts = elbo.parts(y, outputs, trainable_variables=trainable, non_trainable_variables=state)
        return parts.loss + sum(losses), (parts.elbo, state)

    @jax.jit
    def step(trainable: Any, state: Any, moments: Any, x: Any, y: Any) -> Any:
        (_, (value, state)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, state, x, y)
        trainable, moments = optimizer.stateless_apply(moments, gradients, trainable)
        return trainable, state, moments, value

    trainable = [variable.value for variable in network.trainable_variables]
    state = [variable.value for variable in network.non_trainable_variables]
    moments = [variable.value for variable in optimizer.variables]
    values = []
    for epoch in range(epochs):
        for a, b in batches(x, y, seed=epoch):
            trainable, state, moments, value = step(trainable, state, moments, a, b)
            values.append(float(value))
    for variables, found in ((network.trainable_variables, trainable), (network.non_trainable_variables, state)):
        for variable, result in zip(variables, found, strict=True):
            variable.assign(result)
    return values


def train_torch(network: keras.Model, elbo: bdl.ELBO, x: Any, y: Any, epochs: int) -> list[float]:
    """The ELBO of each step."""
    import torch

    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    values = []
    for epoch in range(epochs):
        for a, b in batches(x, y, seed=epoch):
            optimizer.zero_grad()
            parts = elbo.parts(torch.tensor(b), network(torch.tensor(a), training=True))
            (parts.loss + sum(network.losses)).backward()
            optimizer.step()
            values.append(float(parts.elbo.detach()))
    return values


TRAINERS = {"tensorflow": train_tensorflow, "jax": train_jax, "torch": train_torch}


def main(epochs: int = 20) -> None:
    """Trains on 1,200 digits and evaluates on the others."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    keras.utils.set_random_seed(0)
    network, elbo = network_and_elbo(num_examples=1200)
    values = TRAINERS[keras.backend.backend()](network, elbo, x[:1200], y[:1200], epochs)
    prediction = bdl.predict_distribution(network, x[1200:], elbo.likelihood, seed=0)
    kl = float(keras.ops.convert_to_numpy(bdl.kl_divergence(network)))
    accuracy = np.mean(prediction.probabilities.argmax(-1) == y[1200:])
    print(f"T = 1, ELBO {values[0]:.2f} -> {values[-1]:.2f} nats per example, KL {kl:.0f}")
    print(f"accuracy {accuracy:.3f}, NLL {-prediction.log_prob(y[1200:]).mean():.3f} nats on 597 other digits")
    _, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    ax.plot(-np.array(values), lw=1)
    ax.set(xlabel="step", ylabel="-ELBO [nats per example]", yscale="log")
    plt.show()


if __name__ == "__main__":
    main()
