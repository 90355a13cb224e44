"""Noise: the hot kernel of a Bayesian layer, and the only place where bdl draws any.

Under XLA on a CPU the generators that Keras picks can cost more than the network itself, so TensorFlow and JAX use a
counter-based generator written in plain integer operations, which XLA fuses into whatever consumes the noise: element
`i` of a draw is a keyed 32-bit hash of `i`. Two rounds of Wellons' `lowbias32` permutation, with one word of the
key before each, give every key its own stream. `benchmarks/random_battery.py` holds the statistical battery that it
has to pass. Torch runs eagerly and has nothing to fuse with, so there its own generator is used.

Keys come from a `keras.random.SeedGenerator`: same seed, same backend, same noise, compiled or not (to rounding).

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (counter-based generation); the mixing
constants are the low-bias permutation found by C. Wellons' hash prospector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any
"""A tensor of the active backend; Keras has no common type for them."""

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive integers over all 32 bits


def draw_key(seed: keras.random.SeedGenerator | int) -> Tensor:
    """Takes the next key from a seed generator and advances it.

    Under a TensorFlow distribution strategy every replica gets its own key, so that each example has its own noise.

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
    if isinstance(seed, keras.random.SeedGenerator):
        words = seed.next()
    elif isinstance(seed, int) and not isinstance(seed, bool):
        words = ops.convert_to_tensor(np.array([seed & 0xFFFFFFFF, 0], dtype="uint32"))
    else:
        raise ValueError(
            f"`seed` must be a keras.random.SeedGenerator or an integer, not {seed!r}. "
            "Create one generator in the layer's __init__ and pass it on each call."
        )
    if keras.backend.backend() == "torch":
        return words
    key = ops.cast(words, "uint32")
    replica = _replica_id()
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
    word = _mix(ops.add(ops.bitwise_xor(key[1], _word(_GOLDEN)), _multiply_golden(number)))
    # The factor keeps the two halves apart: with `word` in both, keys whose seeds and steps differ in the same bits
    # would meet as often as 32-bit numbers do.
    return ops.stack([ops.bitwise_xor(key[0], word), _mix(ops.bitwise_xor(key[1], _multiply_golden(word)))])


def normal(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Draws standard normal noise.

    Args:
        shape: Shape of the draw; entries may be scalar tensors (a dynamic batch size).
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`. The same key gives the same noise.

    Returns:
        `float32` tensor of that shape; its 2^23 distinct values lie within 5.4 standard deviations.

    Example:
    >>> noise = np.asarray(normal((1000, 100), draw_key(0)))
    >>> bool(abs(noise.mean()) < 5 / np.sqrt(noise.size)), bool(abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size))
    (True, True)
    """
    if keras.backend.backend() == "torch":
        return keras.random.normal(shape, dtype="float32", seed=_torch_seed(key))
    return _fused(_hashed_normal, shape, key)


def uniform(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Draws uniform noise.

    Args:
        shape: Shape of the draw; entries may be scalar tensors (a dynamic batch size).
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`.

    Returns:
        `float32` tensor of that shape, in `[0, 1)`; on TensorFlow and JAX in 2^23 steps, 0 and 1 excluded.

    Example:
    >>> noise = np.asarray(uniform((1000, 100), draw_key(0)))
    >>> bool(0 <= noise.min() and noise.max() < 1 and abs(noise.mean() - 0.5) < 5 / np.sqrt(12 * noise.size))
    True
    """
    if keras.backend.backend() == "torch":
        return keras.random.uniform(shape, dtype="float32", seed=_torch_seed(key))
    return _fused(_hashed_uniform, shape, key)


def rademacher(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Draws random signs, +1 or -1 with probability one half each.

    Args:
        shape: Shape of the draw; entries may be scalar tensors (a dynamic batch size).
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`.

    Returns:
        `float32` tensor of that shape.

    Example:
    >>> sorted({float(sign) for sign in np.asarray(rademacher((50,), draw_key(0)))})
    [-1.0, 1.0]
    """
    if keras.backend.backend() == "torch":
        bits = keras.random.randint(shape, 0, 2, seed=_torch_seed(key))
        return 2.0 * ops.cast(bits, "float32") - 1.0
    return _fused(_hashed_signs, shape, key)


def gamma(concentration: Tensor, key: Tensor) -> Tensor:
    """Draws standard gamma noise, differentiable in its concentration (implicitly reparameterized).

    The backend's own generator: TensorFlow's does not compile under XLA, and a layer that calls it sets
    `supports_jit = False` there.

    Args:
        concentration: Positive tensor; the shape of the draw.
        key: Tensor of shape `(2,)` from `draw_key` or `fold_in`.

    Returns:
        `float32` tensor of that shape.

    Source: Figurnov et al. 2018, "Implicit reparameterization gradients", arXiv 1805.08498.

    Example:
    >>> noise = np.asarray(gamma(3.0 * np.ones(100_000, "float32"), draw_key(0)))
    >>> bool(abs(noise.mean() - 3.0) < 5 * np.sqrt(3.0 / noise.size))
    True
    """
    concentration = ops.cast(concentration, "float32")
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_torch_seed(key))
        return torch.distributions.Gamma(concentration, torch.ones_like(concentration)).rsample()


def _hashed_uniform(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    # The top 23 bits, centred in their cells. With 24 bits the half would not fit a float32 mantissa, the last cell
    # would round up to 1, and one normal in 2^25 would be infinite.
    cells = ops.cast(ops.bitwise_right_shift(_bits(shape, key), _word(9)), "float32")
    return (cells + 0.5) * np.float32(2.0**-23)


def _hashed_normal(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    return _normal_quantile(2.0 * _hashed_uniform(shape, key) - 1.0)  # exact in float32, and symmetric


def _hashed_signs(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    bits = ops.bitwise_right_shift(_bits(shape, key), _word(31))
    return 1.0 - 2.0 * ops.cast(bits, "float32")


_QUANTILE = (
    2.70879454, 1.58903786, 0.0589384214, -0.12124457, 0.0659063114,
    0.00723183277, -0.0228694877, 0.00429385893, 0.00361265692, -0.00125340985,
)  # fmt: skip
"""Chebyshev fit of `normal quantile / u` as a polynomial in `sqrt(2 - log(1 - u^2)) - 2.5`, relative error 5e-6."""


def _normal_quantile(uniform: Tensor) -> Tensor:
    """Normal quantile of a uniform number on (-1, 1): `sqrt(2) * erfinv(u)`.

    One smooth polynomial instead of the two branches and the logarithm of `1 + x` that the backends' `erfinv` takes, as
    noise has no use for its last three digits. The square root's argument stays above 2.
    """
    root = ops.sqrt(2.0 - ops.log((1.0 - uniform) * (1.0 + uniform))) - 2.5
    ratio = np.float32(_QUANTILE[-1])
    for coefficient in _QUANTILE[-2::-1]:
        ratio = ratio * root + np.float32(coefficient)
    return uniform * ratio


def _fused(draw: Callable[..., Tensor], shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """The draw as one compiled kernel, where the caller may not be compiled: TensorFlow without XLA.

    Op by op the hash would make thirty passes over memory. Inside a function that XLA compiles it changes nothing.
    """
    if keras.backend.backend() != "tensorflow":
        return draw(tuple(shape), key)
    known = tuple(size if isinstance(size, int) else None for size in shape)
    unknown = [size for size in shape if not isinstance(size, int)]
    return _compiled(draw, known)(unknown, key)


@functools.cache
def _compiled(draw: Callable[..., Tensor], known: tuple[int | None, ...]) -> Callable[..., Tensor]:
    """A compiled function for each shape: one for all of them would warn of retracing at the fifth new shape."""
    import tensorflow as tf

    # TensorFlow counts traces for each code object, so closures would still count as one; a partial has none.
    return tf.function(functools.partial(_draw_with, draw, known), jit_compile=True, autograph=False)


def _draw_with(draw: Callable[..., Tensor], known: Sequence[int | None], unknown: list[Tensor], key: Tensor) -> Tensor:
    """The draw, with the tensors in `unknown` at the places of the shape that are None."""
    sizes = iter(unknown)
    return draw(tuple(next(sizes) if size is None else size for size in known), key)


def _bits(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """32 pseudo-random bits for each element: a hash of its flat index, keyed before each of two rounds."""
    size = math.prod(shape)
    index = ops.cast(ops.arange(size, dtype="int32"), "uint32")
    first = _mix(ops.add(key[0], _word(_GOLDEN)))
    second = _mix(ops.bitwise_xor(first, key[1]))
    third = _mix(ops.add(second, first))
    rounds = _mix(ops.bitwise_xor(_mix(ops.bitwise_xor(index, second)), third))
    return ops.reshape(rounds, tuple(shape))


def _mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words in which each input bit flips each output bit about half of the time."""
    word = ops.bitwise_xor(word, ops.bitwise_right_shift(word, _word(16)))
    word = ops.multiply(word, _word(0x21F0AAAD))
    word = ops.bitwise_xor(word, ops.bitwise_right_shift(word, _word(15)))
    word = ops.multiply(word, _word(0x735A2D97))
    return ops.bitwise_xor(word, ops.bitwise_right_shift(word, _word(15)))


def _multiply_golden(number: int | Tensor) -> Tensor:
    if isinstance(number, int):
        return _word(number * _GOLDEN & 0xFFFFFFFF)
    return ops.multiply(ops.cast(number, "uint32"), _word(_GOLDEN))


def _word(value: int) -> Tensor:
    return ops.convert_to_tensor(np.uint32(value), dtype="uint32")


def _torch_seed(key: Tensor) -> int:
    """Mixes both words of the key into one seed.

    Keras seeds Torch's generator with the sum of the two words, so that layers seeded 0 and 1 would share their noise
    one step apart; after mixing they do not.
    """
    if key.device.type == "meta":  # Keras infers shapes on this device, which holds no values
        return 0
    first, second = (int(word) for word in key)
    digest = np.random.SeedSequence([first & 0xFFFFFFFF, second & 0xFFFFFFFFFFFFFFFF]).generate_state(1)
    return int(digest[0] & 0x7FFFFFFF)


def _replica_id() -> Tensor | None:
    """Number of this TensorFlow replica, or None where there is only one."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return None
    context = tf.distribute.get_replica_context()
    return None if context is None else context.replica_id_in_sync_group
