"""The counter-based generator: 32-bit words hashed in plain integer operations, which XLA fuses into their consumer."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any
Draw = Callable[[Sequence[Any], Any], Any]
"""A kind of noise: from a shape and a key."""

_SMALL = 4096  # numbers
GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive integers over all 32 bits


def fold_in(key: Tensor, number: int | Tensor) -> Tensor:
    """A key for a number, or for each of several along further axes of the key."""
    spread = multiply_golden(number)
    is_one_key = _may_compile() and len(key.shape) == 1 and len(spread.shape) == 0
    return _compiled_fold()(key, spread) if is_one_key else _fold(key, spread)


def _fold(key: Tensor, spread: Tensor) -> Tensor:
    new = mix(ops.add(ops.bitwise_xor(key[1], word(GOLDEN)), spread))
    # The factor keeps the two halves apart: with `new` in both, keys whose seeds and steps differ in the same bits
    # would meet as often as 32-bit numbers do.
    return ops.stack([ops.bitwise_xor(key[0], new), mix(ops.bitwise_xor(key[1], multiply_golden(new)))])


def hashed_uniform(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Uniform noise in (0, 1)."""
    # The top 23 bits, centred in their cells. With 24 bits the half would not fit a float32 mantissa, the last cell
    # would round up to 1, and one normal in 2^25 would be infinite.
    cells = ops.cast(ops.bitwise_right_shift(bits(shape, key), word(9)), "float32")
    return (cells + 0.5) * np.float32(2.0**-23)


def hashed_normal(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Standard normal noise."""
    return _normal_quantile(2.0 * hashed_uniform(shape, key) - 1.0)  # exact in float32, and symmetric


def hashed_signs(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """Random signs."""
    words = ops.bitwise_right_shift(bits(shape, key), word(31))
    return 1.0 - 2.0 * ops.cast(words, "float32")


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


_fuses: ContextVar[bool] = ContextVar("fuses", default=True)


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Within this context draws are traced operation by operation, for formats that hold no function that XLA compiles.

    Example:
    >>> from bdl import random
    >>> with plain_operations():
    ...     noise = random.normal((2,), random.draw_key(0))
    >>> bool(np.allclose(noise, random.normal((2,), random.draw_key(0))))
    True
    """
    token = _fuses.set(False)
    try:
        yield
    finally:
        _fuses.reset(token)


def fused(draw: Draw, shape: Sequence[int | Tensor], key: Tensor, first: Tensor | None = None) -> Tensor:
    """The draw as one compiled kernel, where the caller may not be compiled: TensorFlow without XLA.

    Op by op the hash would make thirty passes over memory. Inside a function that XLA compiles it changes nothing.

    Args:
        draw: One of the draws here.
        shape: Of the noise; entries may be scalar tensors.
        key: Key of the draw.
        first: None for one stream; else each row, along the first axis, has a stream of its own, numbered from here.
    """
    if not _may_compile():
        return _drawn(draw, tuple(shape), key, first)
    if _is_small(shape, key):
        return _cut_from_larger(draw, shape, key, first)
    known = tuple(size if isinstance(size, int) else None for size in shape)
    unknown = [size for size in shape if not isinstance(size, int)]
    return _compiled(draw, known)(unknown, key, first)


def _is_small(shape: Sequence[int | Tensor], key: Tensor) -> bool:
    """Whether few numbers are drawn eagerly: to compile a kernel for their shape would take most of the time."""
    import tensorflow as tf

    return tf.executing_eagerly() and math.prod(int(size) for size in shape) <= _SMALL and len(key.shape) == 1


def _cut_from_larger(draw: Draw, shape: Sequence[int | Tensor], key: Tensor, first: Tensor | None) -> Tensor:
    """The same numbers, cut from a draw whose sizes are powers of two, so that a few kernels serve all small shapes.

    Without XLA they would differ in the last digit: TensorFlow's logarithm depends on a number's place in its array.
    """
    import tensorflow as tf

    larger, begin, size, wanted = _cut(tuple(int(size) for size in shape), 0 if first is None else 1)
    return tf.reshape(tf.slice(_compiled(draw, larger)([], key, first), begin, size), wanted)


@functools.cache
def _cut(shape: tuple[int, ...], num_streams: int) -> tuple[tuple[int, ...], Tensor, Tensor, Tensor]:
    """The larger shape, and begin, size and shape of the cut as tensors, which are slow to make."""
    import tensorflow as tf

    flat = (*shape[:num_streams], math.prod(shape[num_streams:]))
    larger = tuple(_power_of_two(size) for size in flat)
    return larger, tf.zeros(len(flat), "int32"), tf.constant(flat, "int32"), tf.constant(shape, "int32")


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _may_compile() -> bool:
    return keras.backend.backend() == "tensorflow" and _fuses.get()


@functools.cache
def _compiled_fold() -> Callable[..., Tensor]:
    """One operation in place of thirty in whatever graph a key is derived in: most of the time of a trace went there.

    TensorFlow writes the thirty out again before it runs the graph.
    """
    import tensorflow as tf

    signature = [tf.TensorSpec((2,), "uint32"), tf.TensorSpec((), "uint32")]
    return tf.function(_fold, input_signature=signature, autograph=False)


@functools.cache
def _compiled(draw: Draw, known: tuple[int | None, ...]) -> Callable[..., Tensor]:
    """A compiled function for each shape: one for all of them would warn of retracing at the fifth new shape."""
    import tensorflow as tf

    # TensorFlow counts traces for each code object, so closures would still count as one; a partial has none.
    return tf.function(functools.partial(_draw_with, draw, known), jit_compile=True, autograph=False)


def _draw_with(
    draw: Draw, known: Sequence[int | None], unknown: list[Tensor], key: Tensor, first: Tensor | None
) -> Tensor:
    """The draw, with the tensors in `unknown` at the places of the shape that are None."""
    sizes = iter(unknown)
    return _drawn(draw, tuple(next(sizes) if size is None else size for size in known), key, first)


def _drawn(draw: Draw, shape: tuple[Any, ...], key: Tensor, first: Tensor | None) -> Tensor:
    if first is None:
        return draw(shape, key)
    keys = fold_in(key, ops.cast(first + ops.arange(shape[0], dtype="int32"), "uint32"))
    return draw(shape, ops.reshape(keys, (2, -1, *(1 for _ in shape[1:]))))


def bits(shape: Sequence[int | Tensor], key: Tensor) -> Tensor:
    """32 pseudo-random bits for each element: a hash of its flat index, keyed before each of two rounds.

    The key's words may have axes of their own, which the shape begins with; the index then runs over the others.
    """
    shape = tuple(shape)
    axes = sum(size != 1 for size in key.shape[1:])
    index = ops.cast(ops.arange(math.prod(shape[axes:]), dtype="int32"), "uint32")
    index = ops.reshape(index, shape[axes:]) if axes else index
    first = mix(ops.add(key[0], word(GOLDEN)))
    second = mix(ops.bitwise_xor(first, key[1]))
    third = mix(ops.add(second, first))
    rounds = mix(ops.bitwise_xor(mix(ops.bitwise_xor(index, second)), third))
    return rounds if axes else ops.reshape(rounds, shape)


def mix(value: Tensor) -> Tensor:
    """A bijection of 32-bit words in which each input bit flips each output bit about half of the time."""
    value = ops.bitwise_xor(value, ops.bitwise_right_shift(value, word(16)))
    value = ops.multiply(value, word(0x21F0AAAD))
    value = ops.bitwise_xor(value, ops.bitwise_right_shift(value, word(15)))
    value = ops.multiply(value, word(0x735A2D97))
    return ops.bitwise_xor(value, ops.bitwise_right_shift(value, word(15)))


def multiply_golden(number: int | Tensor) -> Tensor:
    """A number, or a tensor of them, spread over 32 bits."""
    if isinstance(number, int):
        return word(number * GOLDEN & 0xFFFFFFFF)
    return ops.multiply(ops.cast(number, "uint32"), word(GOLDEN))


def word(value: int) -> Tensor:
    """An integer as a 32-bit word."""
    return ops.convert_to_tensor(np.uint32(value), dtype="uint32")
