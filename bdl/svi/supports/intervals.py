"""Supports of single numbers: the real line, half-lines and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from bdl.keras_internals import is_concrete, maximum, minimum
from bdl.svi.supports.base import (
    Support,
    Tensor,
    at_least,
    flatten,
    in_dtype_of,
    smallest,
    spacing,
    sum_last,
    unflatten,
)


class _Single(Support):
    """Base of supports whose values are single numbers, each with an unconstrained one of its own."""

    def constrain(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """As of `Support`."""
        return self.value(unflatten(u, shape))

    def unconstrain(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """As of `Support`."""
        return flatten(self.inverse(ops.convert_to_tensor(value)), shape)

    def log_det(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """As of `Support`."""
        return sum_last(self.log_slope(unflatten(u, shape)), len(shape))

    def value(self, u: Tensor) -> Tensor:
        """`constrain` of single numbers."""
        raise NotImplementedError

    def inverse(self, value: Tensor) -> Tensor:
        """`unconstrain` of single numbers."""
        raise NotImplementedError

    def log_slope(self, u: Tensor) -> Tensor:
        """`log_det` of single numbers."""
        raise NotImplementedError


_Function = Callable[[_Single, Tensor], Tensor]


class Real(_Single):
    """All real numbers: `value = u`."""

    def value(self, u: Tensor) -> Tensor:
        """As of the base."""
        return u

    def inverse(self, value: Tensor) -> Tensor:
        """As of the base."""
        return value

    def log_slope(self, u: Tensor) -> Tensor:
        """As of the base."""
        return ops.zeros_like(u)


class Above(_Single):
    """Numbers greater than a bound: `value = low + exp(u)`.

    It is `exp` and not softplus. A change of the unit of a positive parameter then moves `u` and leaves its spread as
    it is, so that one start and one learning rate serve 1e-3 and 1e5; the posterior of a scale is closer to a Gaussian
    in its logarithm; and a log-normal prior is a Gaussian of `u`, whose divergence from a Gaussian guide has a closed
    form. Stan, PyMC and NumPyro take `exp`, too.

    Args:
        low: Number or tensor that broadcasts against values. It may depend on other variables; gradients reach it.

    Example:
    >>> np.asarray(Above(1.0).constrain(np.log([[2.0, 3.0]]), (2,)))
    array([[3., 4.]])
    """

    def __init__(self, low: Any = 0.0) -> None:
        self._low = low
        self.is_the_same_everywhere = _is_number(low)

    def value(self, u: Tensor) -> Tensor:
        """As of the base."""
        low = in_dtype_of(u, self._low)
        return maximum(low + ops.exp(u), low + _step(low))

    def inverse(self, value: Tensor) -> Tensor:
        """As of the base."""
        return ops.log(value - in_dtype_of(value, self._low))

    def log_slope(self, u: Tensor) -> Tensor:
        """As of the base."""
        return u

    def over_mixture(self, axis: int) -> Support:
        """The half-line that holds those of all components."""
        return Above(_over(axis, ops.min, self._low))


class Below(_Single):
    """Numbers less than a bound: `value = high - exp(-u)`.

    Args:
        high: Number or tensor that broadcasts against values. It may depend on other variables; gradients reach it.
    """

    def __init__(self, high: Any = 0.0) -> None:
        self._high = high
        self.is_the_same_everywhere = _is_number(high)

    def value(self, u: Tensor) -> Tensor:
        """As of the base."""
        high = in_dtype_of(u, self._high)
        return minimum(high - ops.exp(-u), high - _step(high))

    def inverse(self, value: Tensor) -> Tensor:
        """As of the base."""
        return -ops.log(in_dtype_of(value, self._high) - value)

    def log_slope(self, u: Tensor) -> Tensor:
        """As of the base."""
        return -u

    def over_mixture(self, axis: int) -> Support:
        """The half-line that holds those of all components."""
        return Below(_over(axis, ops.max, self._high))


class Between(_Single):
    """Numbers between two bounds: `value = low + (high - low) sigmoid(u)`.

    Args:
        low: Number or tensor that broadcasts against values. It may depend on other variables; gradients reach it.
        high: The same of the upper bound.

    Example:
    >>> support = Between(-1.0, 1.0)
    >>> u = support.unconstrain(np.array([-0.5, 0.0]), (2,))
    >>> np.asarray(support.constrain(u, (2,)))
    array([-0.5,  0. ])
    """

    def __init__(self, low: Any = 0.0, high: Any = 1.0) -> None:
        self._low, self._high = low, high
        self.is_the_same_everywhere = _is_number(low) and _is_number(high)

    def value(self, u: Tensor) -> Tensor:
        """As of the base."""
        low, high = in_dtype_of(u, self._low), in_dtype_of(u, self._high)
        width = high - low
        # Counted from the nearer bound: 1 - 1e-9 is no float32, but 1e-9 below an upper bound of zero is one.
        value = ops.where(u < 0, low + width * ops.sigmoid(u), high - width * ops.sigmoid(-u))
        return minimum(maximum(value, low + _step(low)), high - _step(high))

    def inverse(self, value: Tensor) -> Tensor:
        """As of the base."""
        return ops.log(value - in_dtype_of(value, self._low)) - ops.log(in_dtype_of(value, self._high) - value)

    def log_slope(self, u: Tensor) -> Tensor:
        """As of the base."""
        width = in_dtype_of(u, self._high) - in_dtype_of(u, self._low)
        return ops.log(width) + ops.log_sigmoid(u) + ops.log_sigmoid(-u)

    def over_mixture(self, axis: int) -> Support:
        """The interval that holds those of all components."""
        return Between(_over(axis, ops.min, self._low), _over(axis, ops.max, self._high))


class Truncated(_Single):
    """Numbers between two bounds, some of which are infinite: which, is known only when the numbers are there.

    Args:
        low: Tensor that broadcasts against values.
        high: The same of the upper bound.
    """

    def __init__(self, low: Any, high: Any) -> None:
        self._low, self._high = low, high
        self.is_the_same_everywhere = _is_number(low) and _is_number(high)

    def value(self, u: Tensor) -> Tensor:
        """As of the base."""
        return self._by_case(u, lambda single, x: single.value(x), lambda single, zero: zero)

    def inverse(self, value: Tensor) -> Tensor:
        """As of the base."""
        return self._by_case(value, lambda single, x: single.inverse(x), lambda single, zero: single.value(zero))

    def log_slope(self, u: Tensor) -> Tensor:
        """As of the base."""
        return self._by_case(u, lambda single, x: single.log_slope(x), lambda single, zero: zero)

    def over_mixture(self, axis: int) -> Support:
        """The interval that holds those of all components."""
        return interval(_over(axis, ops.min, self._low), _over(axis, ops.max, self._high))

    def _by_case(self, x: Tensor, function: _Function, inside: _Function) -> Tensor:
        """For each entry the function of the support that its bounds make.

        Supports that an entry does not have see finite bounds and a point inside them, for a gradient that is masked
        must be finite all the same: 0 times infinity is not a number.

        Args:
            x: Unconstrained numbers or values.
            function: Of a support and `x`.
            inside: Of a support and zeros: an `x` at which the function is finite.
        """
        low, high = in_dtype_of(x, self._low), in_dtype_of(x, self._high)
        zero = ops.zeros_like(low + high + x)
        has_low, has_high = ops.isfinite(low + zero), ops.isfinite(high + zero)
        both = ops.logical_and(has_low, has_high)
        cases = [
            (both, Between(ops.where(both, low, zero), ops.where(both, high, zero + 1.0))),
            (ops.logical_and(has_low, ops.logical_not(has_high)), Above(ops.where(has_low, low, zero))),
            (ops.logical_and(has_high, ops.logical_not(has_low)), Below(ops.where(has_high, high, zero))),
        ]
        result = function(Real(), x + zero)
        for is_case, single in cases:
            result = ops.where(is_case, function(single, ops.where(is_case, x, inside(single, zero))), result)
        return result


def interval(low: Any = None, high: Any = None) -> Support:
    """The support of numbers between two bounds.

    Args:
        low: Number or tensor that broadcasts against values; None or `-inf` where there is none.
        high: Number or tensor that broadcasts against values; None or `inf` where there is none.

    Raises:
        ValueError: if a lower bound is not less than the upper one.

    Example:
    >>> interval(0.0), interval(0.0, np.inf), interval(), interval(0.0, 1.0)
    (Above, Above, Real, Between)
    """
    has_low, has_high = _has(low), _has(high)
    least, greatest = _known(low), _known(high)
    if has_low and has_high and not np.all(least < greatest):
        raise ValueError(f"`low` must be less than `high`, not {low!r} with `high` {high!r}.")
    if has_low is None or has_high is None:
        low = -np.inf if low is None else low
        high = np.inf if high is None else high
        return Truncated(low, high)
    if has_low and has_high:
        return Between(low, high)
    if has_low:
        return Above(low)
    return Below(high) if has_high else Real()


def _has(bound: Any) -> bool | None:
    """Whether a bound is finite everywhere (True) or nowhere (False); None where it differs or is not known yet."""
    if bound is None:
        return False
    values = _known(bound)
    if values is None:
        return None
    finite = np.isfinite(values)
    return True if finite.all() else None if finite.any() else False


def _known(bound: Any) -> Any:
    """The numbers of a bound, or None where there is none, or a compiler or a gradient traces them."""
    if bound is None:
        return None
    if isinstance(bound, (int, float)):
        return np.asarray(bound, "float64")
    return np.asarray(ops.convert_to_numpy(bound)) if is_concrete(bound) else None


def _is_number(bound: Any) -> bool:
    return len(getattr(bound, "shape", ())) == 0


def _over(axis: int, reduce: Callable[..., Tensor], bound: Any) -> Any:
    """The least or greatest bound over an axis, if there is one."""
    return reduce(bound, axis=axis) if len(getattr(bound, "shape", ())) >= -axis else bound


def _step(bound: Tensor) -> Tensor:
    """Distance from a bound to a number that is surely not rounded to it."""
    return at_least(ops.abs(bound) * spacing(bound), smallest(bound))
