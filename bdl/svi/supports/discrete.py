"""The values of a discrete distribution, by their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from keras import ops

from bdl.svi.supports.base import Support, Tensor, flatten, unflatten


class Discrete(Support):
    """Values of a discrete distribution: the unconstrained numbers are whole, places of values among all, or counts.

    There is nothing to be stretched: the log determinant is 0.

    Args:
        values: All values of one entry, `(values, *event)`, in the dtype in which the story wants them; None where
            there is no end of them, or their number is not known: then a value is the number itself.
        as_drawn: Gives such a number the dtype of the library's own draws.

    Example:
    >>> one_hot = Discrete(np.eye(3, dtype="int32"))
    >>> np.asarray(one_hot.constrain(np.array([2.0, 0.0]), (2, 3))).tolist(), one_hot.flat_size((2, 3))
    ([[0, 0, 1], [1, 0, 0]], 2)
    """

    def __init__(self, values: Tensor | None = None, as_drawn: Callable[[Tensor], Tensor] = lambda u: u) -> None:
        self._values = None if values is None else ops.convert_to_tensor(values)
        self._as_drawn = as_drawn
        self._event: tuple[int, ...] = () if self._values is None else tuple(self._values.shape[1:])
        self.event_rank = len(self._event)

    @property
    def num_values(self) -> int:
        """Values of one entry; 0 where they are counts."""
        return 0 if self._values is None else int(self._values.shape[0])

    def flat_size(self, shape: Sequence[int]) -> int:
        """One number for each entry."""
        return math.prod(shape) // math.prod(self._event)

    def constrain(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """The values in these places; places that are not there are the nearest."""
        if self._values is None:
            return self._as_drawn(unflatten(u, shape))
        places = ops.cast(ops.clip(u, 0, self.num_values - 1), "int32")
        values = ops.take(self._values, places, axis=0)
        return ops.reshape(values, (*ops.shape(u)[:-1], *shape))

    def unconstrain(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """The places of values, in the dtype of `value`; of what is no value the first."""
        value = ops.convert_to_tensor(value)
        flat = flatten(value, shape)
        if self._values is None:
            return flat
        entries = unflatten(flat, (self.flat_size(shape), 1, math.prod(self._event)))
        values = ops.cast(ops.reshape(self._values, (self.num_values, -1)), value.dtype)
        return ops.cast(ops.argmax(ops.all(entries == values, axis=-1), axis=-1), value.dtype)

    def log_det(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """Zeros."""
        return ops.zeros_like(u[..., 0])

    def has(self, value: Tensor, shape: Sequence[int]) -> bool:
        """Whether these are values of the distribution; of counts, whether they are whole and none is negative.

        Example:
        >>> Discrete(np.arange(3)).has(np.array([2.0, 3.0]), (2,))
        False
        """
        value = ops.convert_to_tensor(value)
        if self._values is None:
            return bool(ops.all((value >= 0) & (value == ops.floor(value))))
        found = self.constrain(self.unconstrain(value, shape), shape)
        return bool(ops.all(ops.cast(found, value.dtype) == value))
