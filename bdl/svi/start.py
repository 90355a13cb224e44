"""Where a fit begins: on the real line, a point and, where it is known, the curvature there.

`"map"` and `"laplace"` look for the mode of the posterior density of the unconstrained values: L-BFGS from several
points and Newton steps from the best, then, for `"laplace"`, the inverse of the negative Hessian, whose Cholesky factor
makes the coordinates in which the guide is fitted (`bdl.svi.guides.base.LocationScaleGuide`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from bdl.keras_internals import without_gradients
from bdl.random import Tensor, fold_in, normal
from bdl.svi import supports
from bdl.svi.derivatives import hessian, in_graph, value_and_gradient
from bdl.svi.estimators import Estimator
from bdl.svi.story import Observed, Trace, Variable, run, support_of_site

STARTS = ("prior", "map", "laplace")

NUM_POINTS = 4
"""Points from which the mode is looked for: where the trace is, and around it."""

NUM_DRAWS = 64
"""Draws that tell which of several Gaussians is the best start."""

SMALLEST_EIGENVALUE = 1e-6
"""Of the Hessian with a diagonal of ones; float32 knows no smaller ones."""

_NUM_NEWTON_STEPS = 20
_WALL = 1e25  # in the place of a density that is not finite


@dataclass(frozen=True, eq=False)
class Start:
    """Where a fit begins, on the real line.

    Args:
        point: Numbers of each global site.
        covariance: Of all of them together, in the order of `point`; None where the curvature is not known.
    """

    point: dict[str, np.ndarray]
    covariance: np.ndarray | None = None

    def of(self, names: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Point and Cholesky factor of the covariance of some sites together."""
        origin = np.concatenate([self.point[name] for name in names])
        if self.covariance is None:
            return origin, None
        ends = dict(zip(self.point, np.cumsum([len(each) for each in self.point.values()]), strict=True))
        kept = np.concatenate([np.arange(ends[name] - len(self.point[name]), ends[name]) for name in names])
        return origin, np.linalg.cholesky(self.covariance[np.ix_(kept, kept)])


def check_start(start: Any) -> Any:
    """Checks the argument `start`: one of the names, or a dict of values by site.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(start, Mapping) or start in STARTS:
        return start
    raise ValueError(f"`start` must be one of {STARTS}, or a dict of values by site, not {start!r}.")


def find_start(start: Any, trace: Trace, estimator: Estimator, data: Any, key: Tensor) -> Start:
    """Where a fit of these data begins.

    Args:
        start: As of the model.
        trace: Of the story; its values are where the search begins.
        estimator: Of the model.
        data: The whole data, as tensors.
        key: Of the points from which the search begins, too.

    Raises:
        ValueError: if a mode is asked for and the story has local sites, or none is found.
    """
    point = on_the_real_line(trace, estimator)
    if start not in STARTS[1:]:
        return Start(point)
    local = [site.name for site in trace.of_kind("local")]
    if local:
        raise ValueError(
            f"`start` must be 'prior' or a dict of values, not {start!r}, for a story with local sites ({local}): its "
            "mode over all rows says little of the globals' posterior."
        )
    ends = np.cumsum([0, *(len(each) for each in point.values())])

    def split(x: Any) -> dict[str, Any]:
        return {name: x[ends[number] : ends[number + 1]] for number, name in enumerate(point)}

    first = np.concatenate(list(point.values()))

    def joint(x: Tensor) -> Tensor:
        return estimator.log_joint(data, split(x))

    mode, precision = find_mode(joint, first, key, estimator.dtype)
    if start == "map":
        return Start(split(mode))
    mean, precision = best_approximation(joint, [(mode, precision), (first, None)], key, estimator.dtype)
    return Start(split(mean), np.linalg.inv(precision))


def best_approximation(
    joint: Callable[[Tensor], Tensor], candidates: Sequence[tuple[np.ndarray, Any]], key: Tensor, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of Gaussians at several points, with the precision by the curvature there, the one with the greatest ELBO.

    The mode of a funnel lies far from its mass, so that the Gaussian around another point may be the better start.

    Args:
        joint: From a vector to its log density.
        candidates: Means, with their precisions or None where these are to be found.
        key: Of the noise, which all share.
        dtype: In which the density is computed.

    Returns:
        Mean and precision of the best.
    """
    noise = ops.convert_to_numpy(normal((NUM_DRAWS // 2, len(candidates[0][0])), fold_in(key, 1))).astype("float64")
    evaluate, curvature = in_graph(joint), hessian(lambda x: -joint(x), dtype)
    found = []
    for mean, given in candidates:
        precision = positive_definite(curvature(mean)) if given is None else given
        root = np.linalg.cholesky(np.linalg.inv(precision))
        draws = mean + np.concatenate([noise, -noise]) @ root.T
        with without_gradients():
            values = [float(ops.convert_to_numpy(evaluate(ops.convert_to_tensor(u, dtype=dtype)))) for u in draws]
        elbo = np.mean(values) + np.log(np.diag(root)).sum()
        found.append((elbo if np.isfinite(elbo) else -np.inf, mean, precision))
    _, mean, precision = max(found, key=lambda each: each[0])
    return mean, precision


def find_mode(joint: Callable[[Tensor], Tensor], first: np.ndarray, key: Tensor, dtype: str) -> tuple[Any, Any]:
    """Looks for the maximum of a log density.

    Args:
        joint: From a vector to its log density.
        first: Where to begin.
        key: Of further points around it, one unit away in each coordinate.
        dtype: In which the density is computed.

    Returns:
        The maximum, and the negative Hessian there, made positive definite.

    Raises:
        ValueError: if the density is finite nowhere that was tried.
    """
    from scipy.optimize import minimize

    evaluate = value_and_gradient(lambda x: -joint(x), dtype)

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(x)
        is_finite = np.isfinite(value) and np.isfinite(gradient).all()
        return (value, gradient) if is_finite else (_WALL, np.zeros_like(gradient))

    around = ops.convert_to_numpy(normal((NUM_POINTS - 1, len(first)), key)).astype("float64")
    points = [first, *(first + around)]
    settings = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-6}
    ends = [minimize(cost, point, jac=True, method="L-BFGS-B", options=settings) for point in points]
    best = min(ends, key=lambda end: end.fun)
    if best.fun >= _WALL:
        raise ValueError("`start` must be a dict of values here: the log joint density is finite at no point tried.")
    return _newton(cost, hessian(lambda x: -joint(x), dtype), best.x)


def _newton(cost: Any, curvature: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps, halved until the cost falls, and the curvature where they end."""
    value, gradient = cost(x)
    for _ in range(_NUM_NEWTON_STEPS):
        precision = positive_definite(curvature(x))
        step = np.linalg.solve(precision, gradient)
        if gradient @ step < 1e-8:
            return x, precision
        for halvings in range(10):
            tried = x - 0.5**halvings * step
            new_value, new_gradient = cost(tried)
            if new_value < value:
                break
        else:  # as low as this precision can tell
            return x, precision
        x, value, gradient = tried, new_value, new_gradient
    return x, positive_definite(curvature(x))


def positive_definite(matrix: np.ndarray) -> np.ndarray:
    """The nearest use of a Hessian that is not positive definite: its eigenvalues' sizes, the smallest clipped.

    Scales are taken out first, so that the clip depends on correlations alone.

    Example:
    >>> positive_definite(np.array([[4.0, 0.0], [0.0, -1.0]]))
    array([[4., 0.],
           [0., 1.]])
    """
    matrix = 0.5 * (matrix + matrix.T)
    sizes = np.sqrt(np.abs(np.diag(matrix)))
    scale = np.where(sizes > 0, sizes, 1.0)
    values, vectors = np.linalg.eigh(matrix / np.outer(scale, scale))
    values = np.maximum(np.abs(values), SMALLEST_EIGENVALUE)
    return (vectors * values) @ vectors.T * np.outer(scale, scale)


def on_the_real_line(trace: Trace, estimator: Estimator, data: Any = None) -> dict[str, np.ndarray]:
    """The trace's values of latent sites, unconstrained.

    Args:
        trace: Of the story.
        estimator: That runs it.
        data: On which it is run; None takes the batch of the trace.

    Returns:
        By site `(numbers,)`, and `(rows, numbers)` of local ones, in the order of the story.
    """
    point: dict[str, np.ndarray] = {}

    def answer(variable: Variable) -> Tensor:
        if isinstance(variable, Observed):
            return variable.value
        value = ops.convert_to_tensor(trace.values[variable.name], dtype=estimator.dtype)
        site = estimator.sites[variable.name]
        real = support_of_site(variable).unconstrain(value, site.shape)
        point[site.name] = ops.convert_to_numpy(real).astype("float64")
        return value

    with supports.unchecked():
        run(estimator.story, trace.data if data is None else data, answer, estimator.networks)
    return point
