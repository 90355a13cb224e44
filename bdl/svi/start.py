"""Where a fit begins: on the real line, a point and, where it is known, the curvature there.

`"map"` and `"laplace"` look for the mode of the posterior density of the unconstrained values: L-BFGS from several
points around the median of the prior, or around given values, and Newton steps from the best. For `"laplace"` the
Gaussian of the curvature there is spread out to where the mass is, and the Cholesky factor of its covariance makes the
coordinates in which the guide is fitted (`bdl.svi.guides.base.LocationScaleGuide`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from bdl.random import Tensor, fold_in, normal
from bdl.svi import supports
from bdl.svi.derivatives import Differentiable
from bdl.svi.estimators import Estimator
from bdl.svi.story import Observed, Variable, num_rows, run, support_of_site
from bdl.svi.tracing import Trace

STARTS = ("prior", "map", "laplace")

NUM_POINTS = 4
"""Points from which the mode is looked for: where the trace is, and around it."""

NUM_DRAWS = 64
"""Draws over which gradient and curvature are averaged."""

NUM_SPREAD_STEPS = 30
ENOUGH_NATS = 0.05
"""Gain of the ELBO below which such steps end; the fit does the rest."""

LARGEST_SPREAD = 100
"""Numbers above which 64 Hessians a step cost more than they save."""

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
    """Checks the argument `start`: one of the names, a dict of values by site, or a name and values where it begins.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(start, Mapping) or (isinstance(start, str) and start in STARTS):
        return start
    if (
        isinstance(start, (tuple, list))
        and len(start) == 2
        and start[0] in STARTS[1:]
        and isinstance(start[1], Mapping)
    ):
        return tuple(start)
    raise ValueError(
        f"`start` must be one of {STARTS}, a dict of values by site, or a pair such as ('laplace', values) of a search "
        f"and where it begins, not {start!r}."
    )


def search_of(start: Any) -> str | None:
    """The search that `start` asks for, `"map"` or `"laplace"`; None where it asks for none.

    Example:
    >>> search_of("laplace"), search_of(("map", {"rate": 2.0})), search_of({"rate": 2.0})
    ('laplace', 'map', None)
    """
    name = start[0] if isinstance(start, tuple) else start
    return name if name in STARTS[1:] else None


def values_of(start: Any) -> Mapping[str, Any] | None:
    """The values by site in `start`; None where there are none.

    Example:
    >>> values_of(("map", {"rate": 2.0})), values_of("map")
    ({'rate': 2.0}, None)
    """
    values = start[1] if isinstance(start, tuple) else start
    return values if isinstance(values, Mapping) else None


def find_starts(
    start: Any,
    points: Sequence[dict[str, np.ndarray]],
    trace: Trace,
    estimator: Estimator,
    data: Any,
    key: Tensor,
    weights: Tensor | None = None,
) -> list[Start]:
    """Where each chain of a fit of these data begins.

    Args:
        start: As of the model.
        points: Of each chain, where its search begins, as of `on_the_real_line`.
        trace: Of the story.
        estimator: Of the model.
        data: The whole data, as tensors.
        key: Of the points from which the searches begin, too.
        weights: How often each row counts, `(rows,)`; None counts each once.

    Raises:
        ValueError: if a mode is asked for and the story has local sites, or none with a finite curvature is found.
    """
    search = search_of(start)
    if search is None:
        return [Start(point) for point in points]
    local = [site.name for site in trace.of_kind("local")]
    if local:
        raise ValueError(
            f"`start` must be 'prior' or a dict of values, not {start!r}, for a story with local sites ({local}): its "
            "mode over all rows says little of the globals' posterior."
        )
    ends = np.cumsum([0, *(len(each) for each in points[0].values())])

    def split(x: Any) -> dict[str, Any]:
        return {name: x[ends[number] : ends[number + 1]] for number, name in enumerate(points[0])}

    def joint(x: Tensor) -> Tensor:
        return estimator.log_joint(data, split(x), weights)

    density = Differentiable(joint, estimator.dtype)

    def found(first: np.ndarray, key: Tensor) -> Start:
        mode, precision = find_mode(density, first, key)
        if search == "map":
            _check_found(search, mode)
            return Start(split(mode))
        mean, precision = spread_out(density, mode, precision, key)
        covariance = np.linalg.inv(precision)
        _check_found(search, mean, covariance)
        return Start(split(mean), covariance)

    keys = [key, *(fold_in(key, 1 + chain) for chain in range(1, len(points)))]
    return [found(np.concatenate(list(point.values())), own) for point, own in zip(points, keys, strict=True)]


def _check_found(start: str, mean: np.ndarray, covariance: np.ndarray | None = None) -> None:
    """Refuses a point or a covariance that are no numbers."""
    if not np.isfinite(mean).all() or (covariance is not None and not np.isfinite(covariance).all()):
        raise ValueError(
            f"`start` must be 'prior' or a dict of values here, not {start!r}: the posterior density on the real line "
            "has no mode with a curvature. So it is where a latent scale may go to zero, together with what it is the "
            "scale of."
        )


def spread_out(
    density: Differentiable, mean: np.ndarray, precision: np.ndarray, key: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Moves a Gaussian from the mode to where the mass is: to gradient and curvature averaged over its own draws.

    The best Gaussian q of a density p has `E_q[grad log p] = 0` and the precision `-E_q[hess log p]`; each step goes
    part of the way there, as long as the ELBO rises. At the mode of a funnel the curvature is that of a place with
    little mass, and a fit in its coordinates would take long. Where p is Gaussian nothing changes.

    Args:
        density: From a vector to its log density.
        mean: Of the Gaussian at the start, the mode.
        precision: The curvature there.
        key: Of the draws, the same ones in each step.

    Returns:
        Mean and precision.

    Source: Opper and Archambeau 2009, "The variational Gaussian approximation revisited", eq. 8 and 9; the steps are
    those of Khan and Lin 2017, "Conjugate-computation variational inference", arXiv 1703.04265.
    """
    if len(mean) > LARGEST_SPREAD:
        return mean, precision
    half = ops.convert_to_numpy(normal((NUM_DRAWS // 2, len(mean)), fold_in(key, 1))).astype("float64")
    noise = np.concatenate([half, -half])

    def at(mean: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """ELBO up to a constant, mean gradient, and the draws."""
        root = np.linalg.cholesky(np.linalg.inv(precision))
        draws = mean + noise @ root.T
        values, gradients = zip(*(density.value_and_gradient(u) for u in draws), strict=True)
        elbo = float(np.mean(values) + np.log(np.diag(root)).sum())
        return (elbo if np.isfinite(elbo) else -np.inf), np.mean(gradients, axis=0), draws

    elbo, gradient, draws = at(mean, precision)
    for _ in range(NUM_SPREAD_STEPS):
        average = -np.mean([density.hessian(u) for u in draws], axis=0)
        if not (np.isfinite(average).all() and np.isfinite(gradient).all()):
            break
        new_precision = positive_definite(0.5 * precision + 0.5 * average)
        new_mean = mean + 0.5 * np.linalg.solve(new_precision, gradient)
        new_elbo, new_gradient, new_draws = at(new_mean, new_precision)
        if new_elbo < elbo + ENOUGH_NATS:
            break
        mean, precision, elbo, gradient, draws = new_mean, new_precision, new_elbo, new_gradient, new_draws
    return mean, precision


def find_mode(density: Differentiable, first: np.ndarray, key: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Looks for the maximum of a log density.

    Args:
        density: From a vector to its log density.
        first: Where to begin.
        key: Of further points around it, one unit away in each coordinate.

    Returns:
        The maximum, and the negative Hessian there, made positive definite.

    Raises:
        ValueError: if the density is finite nowhere that was tried.
    """
    from scipy.optimize import minimize

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density.value_and_gradient(x)
        is_finite = np.isfinite(value) and np.isfinite(gradient).all()
        return (-value, -gradient) if is_finite else (_WALL, np.zeros_like(gradient))

    around = ops.convert_to_numpy(normal((NUM_POINTS - 1, len(first)), key)).astype("float64")
    points = [first, *(first + around)]
    settings = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-6}
    ends = [minimize(cost, point, jac=True, method="L-BFGS-B", options=settings) for point in points]
    best = min(ends, key=lambda end: end.fun)
    if best.fun >= _WALL:
        raise ValueError("`start` must be a dict of values here: the log joint density is finite at no point tried.")
    return _newton(cost, lambda x: -density.hessian(x), best.x)


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
    """The trace's values of latent sites, unconstrained; enumerated ones have none.

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
        if estimator.sites[variable.name].kind == "enumerated":
            return estimator.combinations.value(variable, estimator.combinations.first(num_rows(batch)))
        site = estimator.sites[variable.name]
        value = ops.convert_to_tensor(trace.values[site.name], dtype=None if site.is_discrete else estimator.dtype)
        real = support_of_site(variable, site).unconstrain(ops.cast(value, estimator.dtype), site.shape)
        point[site.name] = ops.convert_to_numpy(real).astype("float64")
        return value

    batch = trace.data if data is None else data
    with supports.unchecked():
        run(estimator.story, batch, answer, estimator.networks)
    return point
