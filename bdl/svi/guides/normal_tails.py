"""Probabilities of a standard normal variable in log space, accurate in both tails, with finite gradients.

    log Phi(-z) = -z^2 / 2 + log erfcx(z / sqrt(2)) - log 2,     erfcx(x) = t exp(P(t)),   t = 1 / (1 + x / 2),   z >= 0

where P is smooth on (0, 1] and is replaced by its Chebyshev interpolation, whose error is 3e-15. Keras has no such
function, and the logarithm of its `erfc` is infinite from z = 14 on.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from keras import ops
from scipy import special

from bdl.random import Tensor

_DEGREE = 24
"""Of the interpolation: 20 leaves 1e-13, more gains nothing in float64."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(7)
"""Of the quadrature of an interval that is short: its error is 1e-12 where the integrand's logarithm changes by 2."""


@functools.cache
def _coefficients() -> tuple[float, ...]:
    """Of the Chebyshev polynomials in `2 t - 1`, interpolated at their nodes."""
    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    t = 0.5 * (nodes + 1.0)
    values = np.log(special.erfcx(2.0 * (1.0 / t - 1.0)) / t)
    return tuple(float(each) for each in np.polynomial.chebyshev.chebfit(nodes, values, _DEGREE))


def log_tail(z: Tensor) -> Tensor:
    """`log Phi(-z)`, of z that are not negative.

    Example:
    >>> [round(float(each), 3) for each in log_tail(np.array([0.0, 40.0]))]
    [-0.693, -804.608]
    """
    t = 1.0 / (1.0 + z * (0.5 * math.sqrt(0.5)))
    x = 4.0 * t - 2.0  # twice 2 t - 1, as Clenshaw's recurrence takes it
    first, *rest = _coefficients()
    one: Any = 0.0
    two: Any = 0.0
    for coefficient in reversed(rest):
        one, two = coefficient + x * one - two, one
    polynomial = first + 0.5 * x * one - two
    return -0.5 * z**2 + ops.log(t) + polynomial - math.log(2.0)


def log_cdf(x: Tensor) -> Tensor:
    """`log Phi(x)`.

    Example:
    >>> np.asarray(log_cdf(np.array([-1.0, 0.0, 1.0]))).round(4)
    array([-1.841 , -0.6931, -0.1728])
    """
    is_below = x <= 0.0
    tail = log_tail(ops.where(is_below, -x, x))
    return ops.where(is_below, tail, ops.log1p(-ops.exp(tail)))


def log_interval(centre: Tensor, half: Tensor) -> Tensor:
    """`log (Phi(centre + half) - Phi(centre - half))`.

    Where the density changes little within the interval, the difference of the two would have no correct digit left:
    there the density is integrated by Gauss and Legendre's quadrature.

    Args:
        centre: Of intervals.
        half: Half their widths, positive.

    Example:
    >>> [round(float(each), 3) for each in log_interval(np.array([0.0, 30.0]), np.array([1.0, 1e-6]))]
    [-0.382, -464.041]
    """
    centre = ops.abs(centre)
    is_wide = half * ops.where(centre > 1.0, centre, ops.ones_like(centre)) > 0.5
    # What is not chosen gets harmless numbers: its gradient, times zero, must be a number.
    upper, lower = half - centre, half + centre
    log_upper = log_cdf(upper)
    gap = log_tail(lower) - log_upper
    # Less than -.8 in exact arithmetic, of which float32 has no digit left from 10^4 standard deviations on.
    wide = log_upper + ops.log1p(-ops.exp(ops.where(is_wide & (gap < -0.8), gap, -0.8)))
    centre, half = ops.where(is_wide, 0.0, centre), ops.where(is_wide, 0.5, half)
    inside = sum(
        weight * ops.exp(-half * node * (centre + 0.5 * half * node))
        for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True)
    )
    narrow = ops.log(half) + ops.log(inside) - 0.5 * centre**2 - 0.5 * math.log(2.0 * math.pi)
    return ops.where(is_wide, wide, narrow)
