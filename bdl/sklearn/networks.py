"""The network inside an estimator: the default one, and how a user's function is called."""

from __future__ import annotations

import contextlib
import inspect
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

_seeding = threading.Lock()


def default_network(
    num_features: int, num_outputs: int, hidden: Sequence[int] = (50,), seed: int | None = None
) -> keras.Model:
    """A plain network of dense relu layers that ends in raw outputs.

    Args:
        num_features: Number of columns of the inputs.
        num_outputs: Number of raw outputs.
        hidden: Number of units of each hidden layer; `()` is a linear model.
        seed: Integer that decides the initial weights, or None.

    Returns:
        A built Keras model.

    Example:
    >>> default_network(4, 3, hidden=(8, 8)).count_params()
    139
    """

    def dense(number: int, units: int, activation: str | None) -> keras.Layer:
        initializer = keras.initializers.GlorotUniform(None if seed is None else (seed + number) % 2**31)
        return keras.layers.Dense(units, activation, kernel_initializer=initializer)

    layers = [dense(number, units, "relu") for number, units in enumerate(hidden)]
    return keras.Sequential([keras.Input((num_features,)), *layers, dense(len(layers), num_outputs, None)])


def build_network(function: Callable[..., keras.Model], inputs: np.ndarray, num_outputs: int, seed: int) -> keras.Model:
    """Calls a user's function, and builds what it returns.

    Args:
        function: From the number of columns and of outputs to a network; a `seed` is given to one that takes it.
        inputs: Rows of the training inputs.
        num_outputs: Raw outputs that the network must have.
        seed: Seed for the function.

    Raises:
        ValueError: if the function is none, or its result is no network.
    """
    if isinstance(function, keras.Layer) or not callable(function):
        raise ValueError(
            "`network` must be None or a function network(num_features, num_outputs) that builds a Keras network, not "
            f"{function!r}. Every fit trains a new network: put the code that builds it into a function."
        )
    network = with_seed(function, inputs.shape[1], num_outputs, seed=seed)
    if not isinstance(network, keras.Model):
        raise ValueError(f"`network` must be a function that returns a keras.Model, not {network!r}.")
    if not network.built:
        network(inputs[:1])
    return network


def with_seed(function: Callable[..., Any], *arguments: Any, seed: int) -> Any:
    """Calls a function, with `seed` where it takes an argument of that name."""
    takes_seed = "seed" in inspect.signature(function).parameters
    return function(*arguments, seed=seed) if takes_seed else function(*arguments)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which layers and initializers without a seed of their own are repeatable.

    Keras draws their seeds from Python's `random`. Its state is set here, and afterwards is what it was before. One
    thread at a time is inside.
    """
    with _seeding:
        state = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


@contextlib.contextmanager
def own_torch_generator(seed: int) -> Iterator[None]:
    """A context with a generator of its own on Torch, where Keras' dropout without a seed draws from the global one."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
