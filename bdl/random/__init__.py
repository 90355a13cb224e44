"""Noise: the hot kernel of a Bayesian layer, and the only place where bdl draws any.

Under XLA on a CPU the generators that Keras picks can cost more than the network itself, so TensorFlow and JAX use a
counter-based generator written in plain integer operations, which XLA fuses into whatever consumes the noise: element
`i` of a draw is a keyed 32-bit hash of `i`. Two rounds of Wellons' `lowbias32` permutation, with one word of the
key before each, give every key its own stream. `benchmarks/random_battery.py` holds the statistical battery that it
has to pass. Torch runs eagerly and has nothing to fuse with, so there its own generator is used.

Keys come from a `keras.random.SeedGenerator`: same seed, same backend, same noise, compiled or not (to rounding).

A draw that has noise for each example takes the key `of_examples(key, axis)`. Within `examples(start, size)`, which
prediction puts around a batch, its noise then depends on the place of each example in the data, and not on the batch
that it came in: every example has a key of its own.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (counter-based generation); the mixing
constants are the low-bias permutation found by C. Wellons' hash prospector.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import standard_gamma
from bdl.random import hashing

Tensor = Any
"""A tensor of the active backend; Keras has no common type for them."""


@dataclass(frozen=True)
class _Examples:
    """Where a batch lies in the data: the place of its first example, and how many it has."""

    start: Tensor | int
    size: int


_taking_a_key = threading.RLock()

_examples: ContextVar[_Examples | None] = ContextVar("examples", default=None)


@contextlib.contextmanager
def examples(start: Tensor | int, size: int) -> Iterator[None]:
    """Within this context the noise of an example depends on the key and on its place in the data alone.

    Args:
        start: Place of the batch's first example, an integer or a scalar tensor.
        size: Number of examples in the batch. A draw for `k` times as many (examples whose parts were folded into the
            first axis) has `k` places for each.

    Example:
    >>> def noise(start, size):
    ...     with examples(start, size):
    ...         return np.asarray(normal((size, 3), of_examples(draw_key(0))))
    >>> bool(np.all(noise(0, 4)[2:] == noise(2, 2)))
    True
    """
    token = _examples.set(_Examples(start, size))
    try:
        yield
    finally:
        _examples.reset(token)


@dataclass(frozen=True)
class ExampleKeys:
    """A key for each example of a batch, derived from one key and the examples' places.

    Args:
        key: Key of the draw.
        axis: Axis of the draw that runs over the examples.
        batch: Where the batch lies.
    """

    key: Tensor
    axis: int
    batch: _Examples


def of_examples(key: Tensor, axis: int = 0) -> Any:
    """The key of a draw that has noise of its own for each example.

    Args:
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`.
        axis: Axis of the draw that runs over the examples of the batch.

    Returns:
        Within `examples(...)` the keys of these examples; the key itself outside, where a batch shares one.
    """
    batch = _examples.get()
    return key if batch is None else ExampleKeys(key, axis, batch)


def draw_key(seed: keras.random.SeedGenerator | int) -> Tensor:
    """Takes the next key from a seed generator and advances it.

    Under a TensorFlow distribution strategy every replica, and under Torch's distributed training every process, gets
    its own key, so that each example has its own noise. A prediction with a seed (`examples`) is the same in all.

    Args:
        seed: A `keras.random.SeedGenerator`, or an integer for one fixed key.

    Returns:
        A `uint32` tensor of shape `(2,)`.

    Raises:
        ValueError: if `seed` is neither.

    Example:
    >>> generator = keras.random.SeedGenerator(0)
    >>> draw_key(generator).shape == draw_key(generator).shape == (2,)
    True
    """
    replica = None if _examples.get() is not None else _replica_id()
    if isinstance(seed, keras.random.SeedGenerator):
        # Reading and advancing are two steps. Replicas wait for each other between them, and do not for a lock.
        with _taking_a_key if replica is None else contextlib.nullcontext():
            words = seed.next()
    elif isinstance(seed, int) and not isinstance(seed, bool):
        words = ops.convert_to_tensor(np.array([seed & 0xFFFFFFFF, 0], dtype="uint32"))
    else:
        raise ValueError(
            f"`seed` must be a keras.random.SeedGenerator or an integer, not {seed!r}. "
            "Create one generator in the layer's __init__ and pass it on each call."
        )
    key = words if keras.backend.backend() == "torch" else ops.cast(words, "uint32")
    return key if replica is None else fold_in(key, replica)


def fold_in(key: Tensor, number: int | Tensor) -> Tensor:
    """Derives a new key from a key and a number, as independent as the hash is good.

    Args:
        key: Tensor of shape `(2,)` from `draw_key`.
        number: A non-negative integer, such as the index of a weight in its layer.

    Returns:
        A key of the same shape and dtype.

    Example:
    >>> key = draw_key(0)
    >>> bool(np.any(np.asarray(fold_in(key, 1)) != np.asarray(fold_in(key, 2))))
    True
    """
    if keras.backend.backend() == "torch":
        # Torch has no unsigned 32-bit arithmetic: the key stays two integers, mixed where the generator is seeded.
        return ops.stack([key[0], key[1] * 1_000_003 + (number + 1) * 7_919])
    return hashing.fold_in(key, number)


def normal(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Draws standard normal noise.

    Args:
        shape: Shape of the draw; entries may be scalar tensors (a dynamic batch size).
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`, or `of_examples` of one. The same key gives the same
            noise.

    Returns:
        `float32` tensor of that shape; its 2^23 distinct values lie within 5.4 standard deviations.

    Example:
    >>> noise = np.asarray(normal((1000, 100), draw_key(0)))
    >>> bool(abs(noise.mean()) < 5 / np.sqrt(noise.size)), bool(abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size))
    (True, True)
    """
    return _draw(_torch_normal, hashing.hashed_normal, shape, key)


def uniform(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Draws uniform noise.

    Args:
        shape: Shape of the draw; entries may be scalar tensors (a dynamic batch size).
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`, or `of_examples` of one.

    Returns:
        `float32` tensor of that shape, in `[0, 1)`; on TensorFlow and JAX in 2^23 steps, 0 and 1 excluded.

    Example:
    >>> noise = np.asarray(uniform((1000, 100), draw_key(0)))
    >>> bool(0 <= noise.min() and noise.max() < 1 and abs(noise.mean() - 0.5) < 5 / np.sqrt(12 * noise.size))
    True
    """
    return _draw(_torch_uniform, hashing.hashed_uniform, shape, key)


def rademacher(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Draws random signs, +1 or -1 with probability one half each.

    Args:
        shape: Shape of the draw; entries may be scalar tensors (a dynamic batch size).
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`, or `of_examples` of one.

    Returns:
        `float32` tensor of that shape.

    Example:
    >>> sorted({float(sign) for sign in np.asarray(rademacher((50,), draw_key(0)))})
    [-1.0, 1.0]
    """
    return _draw(_torch_signs, hashing.hashed_signs, shape, key)


def gamma(concentration: Tensor, key: Tensor) -> Tensor:
    """Draws standard gamma noise, differentiable in its concentration (implicitly reparameterized).

    The backend's own generator: TensorFlow's does not compile under XLA, and a layer that calls it sets
    `supports_jit = False` there.

    Args:
        concentration: Positive tensor; the shape of the draw.
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`, or `of_examples` of one.

    Returns:
        `float32` tensor of that shape.

    Source: Figurnov et al. 2018, "Implicit reparameterization gradients", arXiv 1805.08498.

    Example:
    >>> noise = np.asarray(gamma(3.0 * np.ones(100_000, "float32"), draw_key(0)))
    >>> bool(abs(noise.mean() - 3.0) < 5 * np.sqrt(3.0 / noise.size))
    True
    """
    concentration = ops.cast(concentration, "float32")
    if not isinstance(key, ExampleKeys):
        return _gamma(concentration, key)
    rows = ops.moveaxis(concentration, key.axis, 0)
    number = ops.shape(rows)[0]
    places = _first_place(number, key.batch) + ops.arange(number, dtype="int32")
    if keras.backend.backend() == "torch":
        draws = ops.stack([_gamma(row, fold_in(key.key, int(place))) for row, place in zip(rows, places, strict=True)])
    else:
        draws = ops.map(lambda pair: _gamma(*pair), (rows, ops.transpose(fold_in(key.key, places))))
    return ops.moveaxis(draws, 0, key.axis)


def _gamma(concentration: Tensor, key: Tensor) -> Tensor:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.random.stateless_gamma(tf.shape(concentration), ops.cast(key, "int32"), concentration)
    if backend == "jax":
        import jax

        return jax.random.gamma(jax.random.wrap_key_data(ops.cast(key, "uint32")), concentration)
    import torch

    if concentration.device.type == "meta":
        return torch.empty_like(concentration)
    # A generator of its own: seeding the global one would disturb whoever draws from it in another thread.
    return standard_gamma(concentration, torch.Generator(concentration.device).manual_seed(torch_seed(key)))


def _draw(
    torch_draw: hashing.Draw, hashed_draw: hashing.Draw, shape: Sequence[int | Tensor], key: Tensor | ExampleKeys
) -> Tensor:
    """A draw of a shape, with the axis of the examples first while it is made."""
    is_torch = keras.backend.backend() == "torch"
    if not isinstance(key, ExampleKeys):
        return torch_draw(tuple(shape), key) if is_torch else hashing.fused(hashed_draw, shape, key)
    rest = list(shape)
    number = rest.pop(key.axis)
    if is_torch:
        draws = _in_blocks(torch_draw, number, rest, key)
    else:
        draws = hashing.fused(hashed_draw, (number, *rest), key.key, _first_place(number, key.batch))
    return ops.moveaxis(draws, 0, key.axis) if key.axis else draws


def _first_place(number: Tensor | int, batch: _Examples) -> Tensor:
    """Place of the first of that many parts of the batch's examples, each of which has equally many."""
    return ops.convert_to_tensor(batch.start * (number // batch.size), dtype="int32")


_BLOCK = 32
"""Examples that share one draw of Torch's generator, which cannot begin in the middle of its stream."""


def _in_blocks(draw: hashing.Draw, number: int, rest: Sequence[int], keys: ExampleKeys) -> Tensor:
    """A draw of Torch for consecutive places, cut out of whole blocks of examples."""
    if keys.key.device.type == "meta":
        return draw((number, *rest), keys.key)
    first = int(_first_place(number, keys.batch))
    blocks = range(first // _BLOCK, (first + number - 1) // _BLOCK + 1)
    drawn = ops.concatenate([draw((_BLOCK, *rest), fold_in(keys.key, block)) for block in blocks])
    skipped = first - blocks.start * _BLOCK
    return drawn[skipped : skipped + number]


def _torch_normal(shape: Sequence[int], key: Tensor) -> Tensor:
    return keras.random.normal(shape, dtype="float32", seed=torch_seed(key))


def _torch_uniform(shape: Sequence[int], key: Tensor) -> Tensor:
    return keras.random.uniform(shape, dtype="float32", seed=torch_seed(key))


def _torch_signs(shape: Sequence[int], key: Tensor) -> Tensor:
    return 2.0 * ops.cast(keras.random.randint(shape, 0, 2, seed=torch_seed(key)), "float32") - 1.0


def torch_seed(key: Tensor) -> int:
    """Mixes both words of a key into one seed of Torch's generator.

    Keras seeds Torch's generator with the sum of the two words, so that layers seeded 0 and 1 would share their noise
    one step apart; after mixing they do not.
    """
    if key.device.type == "meta":  # Keras infers shapes on this device, which holds no values
        return 0
    first, second = (int(word) for word in key)
    digest = np.random.SeedSequence([first & 0xFFFFFFFF, second & 0xFFFFFFFFFFFFFFFF]).generate_state(1)
    return int(digest[0] & 0x7FFFFFFF)


def process_number() -> int:
    """Rank of this process in Torch's distributed training; 0 where there is none, and on other backends."""
    if keras.backend.backend() != "torch":
        return 0
    import torch

    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if is_distributed else 0


def num_processes() -> int:
    """Processes that train a model together, by Torch's distributed training or JAX's; 1 where there are no others.

    Example:
    >>> num_processes()
    1
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return int(jax.process_count())
    if backend != "torch":
        return 1
    import torch

    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return int(torch.distributed.get_world_size()) if is_distributed else 1


def _replica_id() -> Tensor | int | None:
    """Number of this TensorFlow replica, or of this Torch process, if it is not the first; None without others."""
    if keras.backend.backend() != "tensorflow":
        return process_number() or None
    import tensorflow as tf

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return None
    context = tf.distribute.get_replica_context()
    return None if context is None else context.replica_id_in_sync_group
