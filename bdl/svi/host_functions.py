"""Operations that NumPy computes, with a gradient of their own, on each backend.

They are no operations for XLA on TensorFlow. A trace notes whether a story has any, so that its steps are compiled
without.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import is_recorded
from bdl.random import Tensor

_calls: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("host_calls", default=None)


@contextlib.contextmanager
def noting_host_calls() -> Iterator[list[str]]:
    """Within this context calls of `on_host` are noted, by name, in the list that it gives.

    Example:
    >>> with noting_host_calls() as calls:
    ...     pass
    >>> calls
    []
    """
    calls: list[str] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def on_host(
    name: str,
    values: Callable[[np.ndarray, np.ndarray], np.ndarray],
    values_and_jacobian: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    x: Tensor,
    fixed: Tensor,
    shape: tuple[int, ...],
) -> Tensor:
    """A function of vectors, computed by NumPy, with a gradient in them.

    The matrix of first derivatives is a constant for further derivatives. Second derivatives of what is made of the
    result are those of Gauss and Newton: they leave out the curvature of this function.

    Args:
        name: Of the function, for the trace.
        values: From `(..., size)` and `(..., n)` to `(..., *shape)`, arrays in the dtypes of the tensors.
        values_and_jacobian: To the same, and the derivatives, `(..., *shape, size)`.
        x: `(..., size)`.
        fixed: `(n,)`, in which there is no gradient.
        shape: Of the value of one vector.

    Returns:
        `(..., *shape)`, in the dtype of `x`.

    Example:
    >>> def square(x, _):
    ...     return x**2
    >>> def with_jacobian(x, _):
    ...     return x**2, (2.0 * x)[..., None]
    >>> float(on_host("square", square, with_jacobian, ops.array([3.0]), ops.zeros((1,)), (1,))[0])
    9.0
    """
    calls = _calls.get()
    if calls is not None:
        calls.append(name)
    size = x.shape[-1]
    dtype = keras.backend.standardize_dtype(x.dtype)

    def of_values(x: Any, fixed: Any) -> np.ndarray:
        return values(np.asarray(x), np.asarray(fixed)).astype(dtype)

    def of_both(x: Any, fixed: Any) -> tuple[np.ndarray, np.ndarray]:
        found, jacobian = values_and_jacobian(np.asarray(x), np.asarray(fixed))
        return found.astype(dtype), jacobian.astype(dtype)

    take = {"jax": _on_jax, "tensorflow": _on_tensorflow, "torch": _on_torch}[keras.backend.backend()]
    flat = math.prod(shape)

    def flat_values(x: Any, fixed: Any) -> np.ndarray:
        found = of_values(x, fixed)
        return found.reshape(*found.shape[: found.ndim - len(shape)], flat)

    def flat_both(x: Any, fixed: Any) -> tuple[np.ndarray, np.ndarray]:
        found, jacobian = of_both(x, fixed)
        lead = found.shape[: found.ndim - len(shape)]
        return found.reshape(*lead, flat), jacobian.reshape(*lead, flat, size)

    found = take(flat_values, flat_both, x, fixed, flat)
    return ops.reshape(found, (*ops.shape(x)[:-1], *shape))


def _on_jax(values: Any, both: Any, x: Tensor, fixed: Tensor, flat: int) -> Tensor:
    import jax

    def call(function: Any, x: Tensor, fixed: Tensor, *tails: tuple[int, ...]) -> Any:
        kinds = [jax.ShapeDtypeStruct((*x.shape[:-1], *tail), x.dtype) for tail in tails]
        kind = kinds[0] if len(kinds) == 1 else tuple(kinds)
        arguments = jax.lax.stop_gradient(x), jax.lax.stop_gradient(fixed)
        return jax.pure_callback(function, kind, *arguments, vmap_method="broadcast_all")

    @jax.custom_jvp
    def function(x: Tensor, fixed: Tensor) -> Tensor:  # both are arguments, for the rule runs outside of loops, too
        return call(values, x, fixed, (flat,))

    @function.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x, fixed), (change, _) = primals, tangents
        found, jacobian = call(both, x, fixed, (flat,), (flat, x.shape[-1]))
        along = jax.numpy.einsum("...vp,...p->...v", jacobian, change)
        # A value that depends on x, for derivatives of this rule.
        return found + _zero_along(jacobian, x), along

    def _zero_along(jacobian: Tensor, x: Tensor) -> Tensor:
        return jax.numpy.einsum("...vp,...p->...v", jacobian, x - jax.lax.stop_gradient(x))

    return function(x, fixed)


def _on_tensorflow(values: Any, both: Any, x: Tensor, fixed: Tensor, flat: int) -> Tensor:
    import tensorflow as tf

    def call_both() -> tuple[Tensor, Tensor]:
        found, jacobian = tf.numpy_function(both, [x, fixed], [x.dtype, x.dtype], stateful=False)
        found.set_shape((*x.shape[:-1], flat))
        jacobian.set_shape((*x.shape[:-1], flat, x.shape[-1]))
        return found, tf.stop_gradient(jacobian)

    if is_recorded(x):  # a gradient is to come: one call gives both
        found, jacobian = call_both()
        return tf.stop_gradient(found) + tf.einsum("...vp,...p->...v", jacobian, x - tf.stop_gradient(x))

    @tf.custom_gradient
    def function(x: Tensor) -> Any:  # within a loop or a function that a tape sees from outside only
        found = tf.numpy_function(values, [x, fixed], x.dtype, stateful=False)
        found.set_shape((*x.shape[:-1], flat))
        return found, lambda upstream: tf.einsum("...v,...vp->...p", upstream, call_both()[1])

    return function(x)


def _on_torch(values: Any, both: Any, x: Tensor, fixed: Tensor, flat: int) -> Tensor:
    import torch

    arrays = x.detach().cpu().numpy(), fixed.detach().cpu().numpy()
    if not (x.requires_grad and torch.is_grad_enabled()):
        return torch.as_tensor(values(*arrays), device=x.device)
    found, jacobian = (torch.as_tensor(each, device=x.device) for each in both(*arrays))
    return found + torch.einsum("...vp,...p->...v", jacobian, x - x.detach())
