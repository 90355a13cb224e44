"""Supports of matrices: covariances, correlations, and their Cholesky factors."""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from bdl.keras_internals import arcsinh, cumsum, matmul, tanh
from bdl.svi.supports.base import Support, Tensor, at_least, in_dtype_of, leading_shape, smallest
from bdl.svi.supports.vectors import Event, before


class LowerCholesky(Event):
    """Lower triangular matrices with a positive diagonal, which is `exp(u)`; entries below it are free.

    Example:
    >>> np.asarray(LowerCholesky().constrain(np.array([[0.5, 0.0, 0.0]]), (2, 2)))
    array([[[1. , 0. ],
            [0.5, 1. ]]])
    """

    event_rank = 2

    def free(self, event: tuple[int, ...]) -> int:
        """`n (n + 1) / 2`: first the entries below the diagonal, row by row, then the diagonal."""
        size = _square(self, event)
        return size * (size + 1) // 2

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        size = event[-1]
        diagonal = ops.exp(u[..., -size:])
        diagonal = at_least(diagonal, smallest(diagonal))
        return _into_matrix(u[..., :-size], size) + _into_matrix(diagonal, size, diagonal=True)

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        size = event[-1]
        below = _from_matrix(value, _below(size))
        return ops.concatenate([below, ops.log(_from_matrix(value, _on_diagonal(size)))], axis=-1)

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return ops.sum(self.log_diagonal(u, event), axis=-1)

    def log_diagonal(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """Logarithms of the diagonal, `(..., n)`."""
        return u[..., -event[-1] :]


class CorrelationCholesky(Event):
    """Lower Cholesky factors of correlation matrices: rows of length one, with a positive diagonal.

    The free numbers are partial correlations, `tanh(u)`, below the diagonal, row by row. What is left of a row's
    length after each of them is computed from logarithms, `1 - tanh(u)^2 = 4 sigmoid(2u) sigmoid(-2u)`, so that no
    square root meets a zero. The log determinant is that of the entries below the diagonal.

    Source: Lewandowski, Kurowicka, Joe 2009, "Generating random correlation matrices based on vines and extended onion
    method"; the Stan reference manual, "Cholesky factors of correlation matrices".

    Example:
    >>> np.asarray(CorrelationCholesky().constrain(np.arctanh([[0.6]]), (2, 2)))
    array([[[1. , 0. ],
            [0.6, 0.8]]])
    """

    event_rank = 2

    def free(self, event: tuple[int, ...]) -> int:
        """`n (n - 1) / 2`."""
        size = _square(self, event)
        return size * (size - 1) // 2

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        size = event[-1]
        raw = _into_matrix(u, size)
        eye = ops.eye(size, dtype=u.dtype)
        return (tanh(raw) + eye) * ops.exp(before(_log_left(raw)))

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        size = event[-1]
        squares = ops.flip(cumsum(ops.flip(ops.square(value), axis=-1)), axis=-1)
        # tanh(u) is an entry over the root of what it and all after it leave of the row; this is the same without
        # the difference 1 - tanh(u)^2.
        below = _below(size)
        after = _from_matrix(squares, below + 1)
        return arcsinh(_from_matrix(value, below) / ops.sqrt(after))

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        size = event[-1]
        log_left = _log_left(_into_matrix(u, size))
        is_below = in_dtype_of(u, np.tri(size, k=-1))
        return ops.sum(is_below * (2.0 * log_left + before(log_left)), axis=(-2, -1))

    def log_diagonal(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """Logarithms of the diagonal, `(..., n)`."""
        return ops.sum(_log_left(_into_matrix(u, event[-1])), axis=-1)


class _Square(Event):
    """Base of symmetric matrices `L L^T`, by the map of a support of their Cholesky factors `L`."""

    event_rank = 2
    factors: LowerCholesky | CorrelationCholesky

    def free(self, event: tuple[int, ...]) -> int:
        """Those of the factor."""
        return self.factors.free(event)

    def value(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        factor = self.factors.value(u, event)
        return matmul(factor, ops.swapaxes(factor, -1, -2))

    def inverse(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        return self.factors.inverse(ops.cholesky(value), event)

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base."""
        # An entry below the diagonal of L L^T grows by L_jj with L_ij, j < i, and one on it by 2 L_jj with L_jj.
        below = in_dtype_of(u, np.arange(event[-1])[::-1].copy())
        log_diagonal = self.factors.log_diagonal(u, event)
        return self.factors.log_slope(u, event) + ops.sum(below * log_diagonal, axis=-1)


class PositiveDefinite(_Square):
    """Symmetric positive definite matrices, such as covariances.

    Example:
    >>> np.asarray(PositiveDefinite().constrain(np.array([[0.5, 0.0, 0.0]]), (2, 2)))
    array([[[1.  , 0.5 ],
            [0.5 , 1.25]]])
    """

    factors = LowerCholesky()

    def log_slope(self, u: Tensor, event: tuple[int, ...]) -> Tensor:
        """As of the base, for the diagonal is free."""
        on_diagonal = ops.sum(self.factors.log_diagonal(u, event), axis=-1) + event[-1] * math.log(2.0)
        return super().log_slope(u, event) + on_diagonal


class CorrelationMatrix(_Square):
    """Correlation matrices: symmetric, positive definite, with ones on the diagonal.

    Example:
    >>> np.asarray(CorrelationMatrix().constrain(np.arctanh([[0.6]]), (2, 2)))
    array([[[1. , 0.6],
            [0.6, 1. ]]])
    """

    factors = CorrelationCholesky()


def _square(support: Support, event: tuple[int, ...]) -> int:
    if event[0] != event[1]:
        raise ValueError(f"`shape` must end with two equal sizes for values of {support!r}, not with {event}.")
    return event[0]


def _below(size: int) -> np.ndarray:
    """Places of the entries below the diagonal in a flat square matrix, row by row."""
    return np.flatnonzero(np.tri(size, k=-1))


def _on_diagonal(size: int) -> np.ndarray:
    return np.arange(size) * (size + 1)


def _from_matrix(matrix: Tensor, places: np.ndarray) -> Tensor:
    """Entries of `(..., n, n)` at places of the flat matrix: `(..., len(places))`."""
    flat = ops.reshape(matrix, (*leading_shape(matrix, 2), matrix.shape[-1] ** 2))
    return ops.take(flat, places, axis=-1)


def _into_matrix(entries: Tensor, size: int, diagonal: bool = False) -> Tensor:
    """Entries `(..., m)` below or on the diagonal of a matrix `(..., n, n)` that is zero elsewhere."""
    places = _on_diagonal(size) if diagonal else _below(size)
    sources = np.full(size * size, len(places))  # of a zero that is put behind the entries
    sources[places] = np.arange(len(places))
    zero = ops.zeros((*leading_shape(entries, 1), 1), dtype=entries.dtype)
    flat = ops.take(ops.concatenate([entries, zero], axis=-1), sources, axis=-1)
    return ops.reshape(flat, (*leading_shape(entries, 1), size, size))


def _log_left(raw: Tensor) -> Tensor:
    """`log sqrt(1 - tanh(raw)^2)`; zero at zero."""
    return 0.5 * (ops.log_sigmoid(2.0 * raw) + ops.log_sigmoid(-2.0 * raw)) + math.log(2.0)
