"""Operations that keep float64, where Keras' own round it to float32 on JAX or Torch.

Keras 3.15 promotes 64 bits to 32 there in `maximum`, `cumsum`, `tanh`, `matmul` and others, as JAX does by default;
most (`exp`, `log`, `sum`, `where`, `sigmoid`, arithmetic) leave the dtype as it is.
"""

from __future__ import annotations

from typing import Any

import keras

Tensor = Any


def _operations() -> Any:
    """The module that has them: the backend's own, or Keras' on TensorFlow, which keeps 64 bits."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax.numpy

        return jax.numpy
    if backend == "torch":
        import torch

        return torch
    return keras.ops


def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The greater of two tensors of one dtype, entry by entry."""
    return _operations().maximum(x, y)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of two tensors of one dtype, entry by entry."""
    return _operations().minimum(x, y)


def cumsum(x: Tensor) -> Tensor:
    """Cumulative sums along the last axis.

    Example:
    >>> np.asarray(cumsum(keras.ops.convert_to_tensor([1.0, 2.0, 3.0])))
    array([1., 3., 6.], dtype=float32)
    """
    return _operations().cumsum(x, -1)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return _operations().tanh(x)


def arcsinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine."""
    return _operations().arcsinh(x)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product of two tensors of one dtype."""
    return _operations().matmul(x, y)
