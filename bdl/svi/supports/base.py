"""What a support is: a set of values, and a map onto it from the real line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import maximum

Tensor = Any
"""A tensor of the active backend; Keras has no common type for them."""


class Support:
    """The set of values that a random variable can take, and a smooth invertible map onto it.

    A guide works with unconstrained numbers `u`, flat on the last axis; `constrain` turns them into values of the
    support, and `log_det` is what the change of variables adds to a log density: `log q(u) = log q(value) +
    log_det(u)`. Every map is increasing where its values are single numbers. Values are rounded into the support and
    never onto its edge, where densities may be infinite. Tensors keep their dtype, float32 or float64.

    Each method takes the `shape` of a value: all of it, or the trailing part without leading axes such as rows, which
    then are leading axes of `u`.

    Attributes:
        event_rank: Number of trailing axes that belong together, such as 1 of a simplex and 0 of positive numbers.
        is_the_same_everywhere: Whether all entries of an array of values have the same support.
    """

    event_rank = 0
    is_the_same_everywhere = True

    def flat_size(self, shape: Sequence[int]) -> int:
        """How many unconstrained numbers one value takes.

        Args:
            shape: Shape of a value.

        Raises:
            ValueError: if values of the support cannot have this shape.
        """
        self._check_rank(shape)
        return math.prod(shape)

    def constrain(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """The values at unconstrained numbers.

        Args:
            u: `(..., flat_size)`.
            shape: Shape of a value.

        Returns:
            `(..., *shape)`.
        """
        raise NotImplementedError

    def unconstrain(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `constrain`. A value outside the support, or on its edge, gives numbers that are not finite.

        Args:
            value: `(..., *shape)`.
            shape: Shape of a value.

        Returns:
            `(..., flat_size)`.
        """
        raise NotImplementedError

    def log_det(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """`log |d value / d u|`, in nats, summed over the value.

        Where a value has more entries than free numbers (a simplex), those that the others determine do not count.

        Args:
            u: `(..., flat_size)`.
            shape: Shape of a value.

        Returns:
            `(...)`.
        """
        raise NotImplementedError

    def over_mixture(self, axis: int) -> Support:
        """The support of a mixture whose components have this one.

        Args:
            axis: Axis of the components in their parameters, negative: `-1 - event rank`.
        """
        return self

    def _check_rank(self, shape: Sequence[int]) -> None:
        if len(shape) < self.event_rank:
            raise ValueError(
                f"`shape` must have at least {self.event_rank} axes for values of the support {self!r}, not "
                f"{tuple(shape)}."
            )

    def __repr__(self) -> str:
        return type(self).__name__


def leading_shape(values: Tensor, rank: int) -> tuple[Any, ...]:
    """The axes of a tensor before its last `rank`; sizes that are not known yet are scalar tensors."""
    shape = ops.shape(values)
    return tuple(shape[: len(shape) - rank])


def unflatten(u: Tensor, shape: Sequence[int]) -> Tensor:
    """`(..., prod(shape))` to `(..., *shape)`."""
    return ops.reshape(u, (*leading_shape(u, 1), *shape))


def flatten(value: Tensor, shape: Sequence[int]) -> Tensor:
    """`(..., *shape)` to `(..., prod(shape))`."""
    return ops.reshape(value, (*leading_shape(value, len(shape)), math.prod(shape)))


def sum_last(values: Tensor, rank: int) -> Tensor:
    """Sums over the last `rank` axes."""
    return ops.sum(values, axis=tuple(range(-rank, 0))) if rank else values


def in_dtype_of(like: Tensor, value: Any) -> Tensor:
    """A number, array or tensor as a tensor of another's dtype; `ops.cast` of a number rounds it to float32 first."""
    return ops.convert_to_tensor(value, dtype=like.dtype)


def smallest(like: Tensor) -> float:
    """The smallest normal positive number of a tensor's dtype."""
    return float(np.finfo(keras.backend.standardize_dtype(like.dtype)).tiny)


def at_least(values: Tensor, least: float) -> Tensor:
    """Values, none of them below a number; what is not a number stays so."""
    return maximum(values, in_dtype_of(values, least))


def spacing(like: Tensor) -> float:
    """Relative distance of neighbouring numbers of a tensor's dtype."""
    return float(np.finfo(keras.backend.standardize_dtype(like.dtype)).eps)
