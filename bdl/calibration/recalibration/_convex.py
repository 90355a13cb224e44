"""The minimum of a smooth convex function, by Newton steps within a trust region."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 300
"""A minimum takes 10 to 60 steps."""

_ENOUGH = 1e-6  # nats: classes that are separable have no minimum, and the loss only comes ever closer to 0
_PATIENCE = 20  # steps, within which less than `_ENOUGH` of the loss was gained where there is no minimum, or rounding


class Convex(Protocol):
    """A convex function that is never negative, with its slope and its curvature."""

    def value_and_slope(self, at: NDArray[np.float64], /) -> tuple[float, NDArray[np.float64]]:
        """Value and gradient."""

    def curvature(self, at: NDArray[np.float64], along: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Hessian times a direction."""


def minimum(
    function: Convex, start: NDArray[np.float64], tolerance: float = 1e-8, max_steps: int = MAX_STEPS
) -> tuple[NDArray[np.float64], int]:
    """Where the function is least, and the number of steps; never where it is larger than at the start.

    Scores of -708 (the logarithm of a probability of zero) beside ordinary ones leave a quasi-Newton method far from
    the minimum. Newton steps need no scaling of the parameters (Steihaug 1983, conjugate gradients in a trust region).

    Args:
        function: What to minimise.
        start: First parameters.
        tolerance: Length of the slope at which the search ends.
        max_steps: Number of steps after which it ends in any case.
    """
    from scipy.optimize import minimize

    values: list[float] = []

    def stop_if_done(intermediate_result: Any) -> None:
        value = float(intermediate_result.fun)
        values.append(value)
        is_slow = len(values) > _PATIENCE and values[-_PATIENCE - 1] - value < _ENOUGH * value
        if value < _ENOUGH or is_slow:
            raise StopIteration

    found = minimize(
        function.value_and_slope,
        start,
        jac=True,
        hessp=function.curvature,
        method="trust-ncg",
        callback=stop_if_done,
        options={"maxiter": max_steps, "gtol": tolerance},
    )
    return found.x, max(int(found.nit), 1)
