"""Supports of vectors: simplex, ordered, several supports side by side, and a map that a library gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from bdl.keras_internals import cumsum
from bdl.svi.supports.base import Support, Tensor, at_least, flatten, in_dtype_of, smallest, sum_last, unflatten


class Event(Support):
    """Base of supports whose last axes belong together; its methods map `(..., free numbers)` to `(..., *event)`."""

    event_rank = 1

    def flat_size(self, shape: Sequence[int]) -> int:
        """As of `Support`."""
        self._check_rank(shape)
        batch, event = self._split(shape)
        return math.prod(batch) * self.free(event)

    def constrain(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """As of `Support`."""
        batch, event = self._split(shape)
        return self.value(unflatten(u, (*batch, self.free(event))), event)

    def unconstrain(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """As of `Support`."""
        batch, event = self._split(shape)
        return flatten(self.inverse(ops.convert_to_tensor(value), event), (*batch, self.free(event)))

    def log_det(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """As of `Support`."""
        batch, event = self._split(shape)
        return sum_last(self.log_slope(unflatten(u, (*batch, self.free(event))), event), len(batch))

    def free(self, event: tuple[int, ...]) -> int:
        """How many free numbers an event of this shape has."""
        raise NotImplementedError

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """`constrain` of events: `(..., free)` to `(..., *event)`."""
        raise NotImplementedError

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """`unconstrain` of events: `(..., *event)` to `(..., free)`."""
        raise NotImplementedError

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """`log_det` of events: `(..., free)` to `(...)`."""
        raise NotImplementedError

    def _split(self, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        batch = len(shape) - self.event_rank
        return tuple(shape[:batch]), tuple(shape[batch:])


class Simplex(Event):
    """Vectors of positive numbers that sum to one, by breaking a stick of length 1.

    The k-th of K pieces is the fraction `sigmoid(u_k - log(K - k))` of what is left of the stick, so that `u = 0` is
    the uniform vector. All of it is computed from logarithms. The log determinant is the sum of the logarithms of all
    K pieces.

    Source: the Stan reference manual, "Unit simplex".

    Example:
    >>> support = Simplex()
    >>> np.asarray(support.constrain(np.zeros((1, 3)), (4,)))
    array([[0.25, 0.25, 0.25, 0.25]])
    """

    def free(self, event: tuple[int, ...]) -> int:
        """One less than the pieces."""
        return event[-1] - 1

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        pieces = ops.exp(self._log_pieces(u))
        return at_least(pieces, smallest(pieces))

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        # Sums of what follows, and not 1 less what was before, which has no correct digit where little is left.
        rest = ops.flip(cumsum(ops.flip(value, axis=-1)), axis=-1)
        return ops.log(value[..., :-1]) - ops.log(rest[..., 1:]) + _uniform_breaks(value, event[-1])

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return ops.sum(self._log_pieces(u), axis=-1)

    def _log_pieces(self, u: Tensor) -> Tensor:
        breaks = u - _uniform_breaks(u, u.shape[-1] + 1)
        log_rest = ops.log_sigmoid(-breaks)
        last = ops.sum(log_rest, axis=-1, keepdims=True)
        return ops.concatenate([before(log_rest) + ops.log_sigmoid(breaks), last], axis=-1)


class Ordered(Event):
    """Vectors whose numbers increase: the first is `u_1`, each next one `exp(u_k)` greater.

    Source: the Stan reference manual, "Ordered vector".

    Example:
    >>> np.asarray(Ordered().constrain(np.zeros((1, 3)), (3,)))
    array([[0., 1., 2.]])
    """

    def free(self, event: tuple[int, ...]) -> int:
        """As many as numbers."""
        return event[-1]

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return cumsum(ops.concatenate([u[..., :1], ops.exp(u[..., 1:])], axis=-1))

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return ops.concatenate([value[..., :1], ops.log(value[..., 1:] - value[..., :-1])], axis=-1)

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return ops.sum(u[..., 1:], axis=-1)


class Product(Event):
    """Vectors whose parts, one after the other, have supports of their own.

    Args:
        parts: Support and length of each part.

    Example:
    >>> from bdl.svi.supports import Above, Real
    >>> support = Product([(Real(), 1), (Above(0.0), 2)])
    >>> np.asarray(support.constrain(np.zeros((1, 3)), (3,)))
    array([[0., 1., 1.]])
    """

    def __init__(self, parts: Sequence[tuple[Support, int]]) -> None:
        self._parts = tuple(parts)

    def free(self, event: tuple[int, ...]) -> int:
        """Those of all parts."""
        lengths = sum(length for _, length in self._parts)
        if event[-1] != lengths:
            raise ValueError(f"`shape` must end with {lengths}, the sum of the parts' lengths, not with {event[-1]}.")
        return sum(support.flat_size((length,)) for support, length in self._parts)

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return ops.concatenate([part.constrain(piece, shape) for part, piece, shape in self._pieces(u)], axis=-1)

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        pieces, start = [], 0
        for support, length in self._parts:
            pieces.append(support.unconstrain(value[..., start : start + length], (length,)))
            start += length
        return ops.concatenate(pieces, axis=-1)

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return sum(part.log_det(piece, shape) for part, piece, shape in self._pieces(u))

    def _pieces(self, u: Tensor) -> Any:
        start = 0
        for support, length in self._parts:
            size = support.flat_size((length,))
            yield support, u[..., start : start + size], (length,)
            start += size


class Mapped(Event):
    """Events onto which a map from elsewhere takes free numbers: a library's own, where bdl has none.

    Args:
        event_rank: Trailing axes of an event.
        free_shape: From an event's shape to the shape of its free numbers.
        forward: From free numbers to events, with leading axes.
        inverse: From events to free numbers.
        log_det: Of free numbers and events, one number for each event.
    """

    is_the_same_everywhere = False

    def __init__(
        self,
        event_rank: int,
        free_shape: Callable[[tuple[int, ...]], tuple[int, ...]],
        forward: Callable[[Tensor], Tensor],
        inverse: Callable[[Tensor], Tensor],
        log_det: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.event_rank = event_rank
        self._free_shape, self._forward, self._inverse, self._log_det = free_shape, forward, inverse, log_det

    def free(self, event: tuple[int, ...]) -> int:
        """As many as the map takes."""
        return math.prod(self._free_shape(event))

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return self._forward(unflatten(u, self._free_shape(event)))

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return flatten(self._inverse(value), self._free_shape(event))

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        u = unflatten(u, self._free_shape(event))
        return self._log_det(u, self._forward(u))


def _uniform_breaks(like: Tensor, pieces: int) -> Tensor:
    """`log(K - k)` for k = 1, ..., K - 1: with u = 0 all K pieces are equal."""
    return in_dtype_of(like, np.log(np.arange(pieces - 1, 0, -1)))


def before(values: Tensor) -> Tensor:
    """Sums along the last axis of what comes before each entry."""
    sums = cumsum(values)
    return ops.concatenate([ops.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
