"""The streams of random words that a Bayesian network would draw, for `random_battery.py` to test.

All words come out of `bdl.random` itself, compiled by JAX; a reimplementation in plain NumPy says what they should be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # the words are the same under TensorFlow, as tests/test_random.py checks

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bdl import random

Words = NDArray[np.uint32]
"""Random words, or keys of shape `(count, 2)`."""

STREAM_WORDS = 2**16  # of each short stream: the weights of a layer of 256 units on 256 inputs
BLOCK_WORDS = 2**22  # made at a time
LONGEST_STREAM = 2**31 - 1  # a flat index is an int32


def layer_keys(count: int, seed: int) -> Words:
    """First keys of layers whose seeds follow each other."""
    return np.stack([seed + np.arange(count), np.zeros(count)], axis=1).astype(np.uint32)


def step_keys(count: int, seed: int) -> Words:
    """Keys of consecutive training steps of one layer."""
    return np.stack([np.full(count, seed), np.arange(count)], axis=1).astype(np.uint32)


def weight_keys(count: int, seed: int) -> Words:
    """Keys of the weights of one layer at its first step."""
    return fold_in(layer_keys(1, seed), np.arange(count))[0]


def network_keys(count: int, seed: int) -> Words:
    """Keys of 4 layers with 8 weights each, layer by layer, then weight by weight, for as many steps as it takes."""
    steps = np.repeat(np.arange(-(-count // 32)), 4)
    layers = np.tile(seed + np.arange(4), len(steps) // 4)
    keys = fold_in(np.stack([layers, steps], axis=1).astype(np.uint32), np.arange(8))
    return keys.reshape(-1, 2)[:count]


NEIGHBOURS: dict[str, Callable[[int, int], Words]] = {
    "steps": step_keys,
    "layers": layer_keys,
    "weights": weight_keys,
    "network": network_keys,
}
"""Ways in which keys can be neighbours: functions of the number of keys and a seed."""


def fold_in(keys: Words, numbers: NDArray[Any]) -> Words:
    """Folds every number into every key: shape `(keys, numbers, 2)`."""
    return np.asarray(_fold_in(keys, numbers))


def words(keys: Words, size: int) -> Words:
    """The first words of each key: shape `(keys, size)`."""
    return np.asarray(_words(keys, size))


def normals(keys: Words, size: int) -> NDArray[np.float32]:
    """The first standard normals of each key: shape `(keys, size)`."""
    return np.asarray(_normals(keys, size))


def signs(keys: Words, size: int) -> NDArray[np.float32]:
    """The first random signs of each key: shape `(keys, size)`."""
    return np.asarray(_signs(keys, size))


def one_key(seed: int) -> Iterator[Words]:
    """One long stream."""
    key = layer_keys(1, seed)[0]
    for start in range(0, LONGEST_STREAM - BLOCK_WORDS, BLOCK_WORDS):
        yield np.asarray(_block(key, start))


def concatenated(neighbours: str, seed: int) -> Iterator[Words]:
    """Short streams of neighbouring keys, one after the other."""
    per_block = BLOCK_WORDS // STREAM_WORDS
    keys = NEIGHBOURS[neighbours](LONGEST_STREAM // STREAM_WORDS, seed)
    for start in range(0, len(keys), per_block):
        yield words(keys[start : start + per_block], STREAM_WORDS)


def interleaved(seed: int) -> Iterator[Words]:
    """Word 0 of each key of a network, then word 1 of each, and so on; then the network's next steps."""
    for block in concatenated("network", seed):
        yield np.ascontiguousarray(block.T)


def control(seed: int) -> Iterator[Words]:
    """Words of a well-tested generator, to tell a fault of a test from a fault of ours."""
    generator = np.random.Generator(np.random.SFC64(seed))
    while True:
        yield generator.integers(0, 2**32, BLOCK_WORDS, dtype=np.uint32)


STREAMS: dict[str, Callable[[int], Iterator[Words]]] = {
    "one key": one_key,
    "steps": lambda seed: concatenated("steps", seed),
    "layers": lambda seed: concatenated("layers", seed),
    "weights": lambda seed: concatenated("weights", seed),
    "interleaved": interleaved,
    "control": control,
}
"""Streams of 2^31 words, in blocks, by name: functions of a seed."""


def reference_words(keys: Words, size: int) -> Words:
    """What `words` should return: the generator once more, in plain NumPy."""
    first = reference_mix(keys[:, 0] + np.uint32(0x9E3779B9))
    second = reference_mix(first ^ keys[:, 1])
    third = reference_mix(second + first)
    inner = reference_mix(np.arange(size, dtype=np.uint32) ^ second[:, None])
    return reference_mix(inner ^ third[:, None])


def reference_mix(word: Words) -> Words:
    """The permutation of 32-bit words that the generator iterates."""
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x735A2D97)
    return word ^ (word >> np.uint32(15))


@jax.jit
def _fold_in(keys: Any, numbers: Any) -> Any:
    return jax.vmap(lambda key: jax.vmap(lambda number: random.fold_in(key, number))(numbers))(keys)


@jax.jit
def _block(key: Any, start: Any) -> Any:
    # XLA computes only the slice, so that a stream longer than the memory can be made block by block.
    return jax.lax.dynamic_slice(random.hashing.bits((LONGEST_STREAM,), key), (start,), (BLOCK_WORDS,))


@jax.jit(static_argnames="size")
def _words(keys: Any, size: int) -> Any:
    return jax.vmap(lambda key: random.hashing.bits((size,), key))(jnp.asarray(keys))


@jax.jit(static_argnames="size")
def _normals(keys: Any, size: int) -> Any:
    return jax.vmap(lambda key: random.normal((size,), key))(jnp.asarray(keys))


@jax.jit(static_argnames="size")
def _signs(keys: Any, size: int) -> Any:
    return jax.vmap(lambda key: random.rademacher((size,), key))(jnp.asarray(keys))
