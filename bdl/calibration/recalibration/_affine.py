"""Affine maps of scores before a softmax, fitted by least negative log likelihood: of one number, a diagonal, a matrix.

Each kind contains the one before. A fit of the richer starts at the solution of the poorer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bdl.calibration.recalibration._base import log_softmax, softmax
from bdl.calibration.recalibration._convex import MAX_STEPS, minimum

_MAX_LOG_TEMPERATURE = 10.0  # scikit-learn's bound; 22,000 is a uniform distribution, and its inverse a certain one
_PRECISIONS = (1e5, 1e4, 1e3, 100.0, 10.0, 1.0)
_FOLDS = 3
_FOLD_TOLERANCE, _FOLD_STEPS = 1e-5, 30  # a choice among powers of ten needs no more


@dataclass(frozen=True, eq=False)
class AffineMap:
    """`W z + b`.

    Attributes:
        weights: `W`, `(classes, classes)`, or its diagonal, `(classes,)`.
        intercepts: `b`, `(classes,)`.
    """

    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]

    def __call__(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        linear = z * self.weights if self.weights.ndim == 1 else z @ self.weights.T
        return linear + self.intercepts

    @property
    def matrix(self) -> NDArray[np.float64]:
        """`W` as a matrix."""
        return np.diag(self.weights) if self.weights.ndim == 1 else self.weights

    def as_matrix(self) -> AffineMap:
        """The same map, all entries of `W` its parameters."""
        return AffineMap(self.matrix, self.intercepts)


@dataclass(frozen=True, eq=False)
class Examples:
    """Scores `(n, classes)`, the labels' columns `(n,)`, and how often each example counts `(n,)`."""

    z: NDArray[np.float64]
    labels: NDArray[np.intp]
    counts: NDArray[np.float64]

    def part(self, kept: NDArray[np.bool_]) -> Examples:
        """The examples of a mask."""
        return Examples(self.z[kept], self.labels[kept], self.counts[kept])

    def loss(self, affine: AffineMap) -> float:
        """Negative log likelihood, in nats, total."""
        log_p = log_softmax(affine(self.z))
        return -float(np.sum(self.counts * log_p[np.arange(len(log_p)), self.labels]))


def inverse_temperature(examples: Examples) -> float:
    """The factor on all scores of least negative log likelihood, from exp(-10) to exp(10)."""
    from scipy.optimize import brentq

    z, labels = examples.z, examples.labels
    centered = z - z[np.arange(len(labels)), labels][:, None]  # the label's score is 0
    shares = examples.counts / examples.counts.sum()

    def slope(log_inverse: float) -> float:
        """Derivative of the NLL by the inverse temperature: it grows, as the NLL is convex in it."""
        p = softmax(np.exp(log_inverse) * centered)
        return float(shares @ np.einsum("ij,ij->i", p, centered))

    low, high = -_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE
    if slope(low) >= 0:
        return float(np.exp(low))  # the scores say nothing, or the contrary
    if slope(high) <= 0:
        return float(np.exp(high))  # every label has the largest score
    return float(np.exp(brentq(slope, low, high, xtol=1e-12)))


def scaled(examples: Examples) -> AffineMap:
    """Temperature scaling, as a map with a diagonal."""
    num_classes = examples.z.shape[1]
    return AffineMap(np.full(num_classes, inverse_temperature(examples)), np.zeros(num_classes))


def richer(examples: Examples, poorer: AffineMap, regularization: float | None) -> tuple[AffineMap, float, int]:
    """The map of least penalised loss of the kind of `poorer`, or `poorer` itself where that has the smaller loss.

    Args:
        examples: What to fit.
        poorer: Where to start, with a diagonal or a matrix of parameters.
        regularization: Precision of the prior, or None to choose it by cross-validation.

    Returns:
        The map, the precision, and the number of steps.
    """
    is_diagonal = poorer.weights.ndim == 1
    precision = _cross_validated(examples, is_diagonal) if regularization is None else float(regularization)
    found, steps = _fitted(examples, precision, poorer)
    return (found if examples.loss(found) <= examples.loss(poorer) else poorer), precision, steps


def _cross_validated(examples: Examples, is_diagonal: bool) -> float:
    """The precision of least loss in folds that were held out."""
    n = len(examples.labels)
    folds = np.random.default_rng(0).permutation(n) % _FOLDS
    losses = np.zeros(len(_PRECISIONS))
    for fold in range(min(_FOLDS, n)):
        rest, held_out = examples.part(folds != fold), examples.part(folds == fold)
        affine = scaled(rest) if is_diagonal else scaled(rest).as_matrix()
        for number, precision in enumerate(_PRECISIONS):  # from the strongest, each from the last one's solution
            affine, _ = _fitted(rest, precision, affine, _FOLD_TOLERANCE, _FOLD_STEPS)
            losses[number] += held_out.loss(affine)
    return _PRECISIONS[int(losses.argmin())]


def _fitted(
    examples: Examples, precision: float, start: AffineMap, tolerance: float = 1e-8, max_steps: int = MAX_STEPS
) -> tuple[AffineMap, int]:
    """The map of least penalised loss, of the kind of `start`, and the number of steps."""
    loss = _PenalisedLoss(examples, precision, start.weights.shape)
    found, steps = minimum(loss, loss.packed(start.weights, start.intercepts), tolerance, max_steps)
    return AffineMap(*loss.unpacked(found)), steps


class _PenalisedLoss:
    """Mean negative log likelihood and the penalty of each example's share, of `W` times the scores' scale, and `b`."""

    def __init__(self, examples: Examples, precision: float, shape: tuple[int, ...]) -> None:
        total = float(examples.counts.sum())
        self._z, self._labels, self._shares = examples.z, examples.labels, examples.counts / total
        self._precision, self._shape = precision / total, shape
        self._off_diagonal = np.zeros(shape) if len(shape) == 1 else 1 - np.eye(shape[0])
        spread = examples.z - self._shares @ examples.z
        self._scale = max(float(np.sqrt(np.mean(self._shares @ spread**2))), 1e-12)
        self._at, self._p = np.empty(0), np.empty(0)

    def packed(self, weights: NDArray[np.float64], intercepts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameters as one vector."""
        return np.concatenate([(weights * self._scale).ravel(), intercepts])

    def unpacked(self, parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`W`, or its diagonal, and `b`."""
        num_classes = self._shape[0]
        return parameters[:-num_classes].reshape(self._shape) / self._scale, parameters[-num_classes:]

    def value_and_slope(self, at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The penalised mean loss, and its gradient."""
        weights, intercepts = self.unpacked(at)
        log_p = log_softmax(AffineMap(weights, intercepts)(self._z))
        self._at, self._p = at.copy(), np.exp(log_p)
        rows = np.arange(len(self._labels))
        penalty = 0.5 * self._precision * (np.sum(self._off_diagonal * weights**2) + np.sum(intercepts**2))
        residual = self._p.copy()
        residual[rows, self._labels] -= 1
        value = -float(self._shares @ log_p[rows, self._labels]) + float(penalty)
        return value, self._slope(residual, weights, intercepts)

    def curvature(self, at: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.float64]:
        """The Hessian times a direction."""
        if not np.array_equal(at, self._at):
            self.value_and_slope(at)
        weights, intercepts = self.unpacked(along)
        change = AffineMap(weights, intercepts)(self._z)
        change -= np.einsum("ij,ij->i", self._p, change)[:, None]
        return self._slope(self._p * change, weights, intercepts)

    def _slope(
        self, residual: NDArray[np.float64], weights: NDArray[np.float64], intercepts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Back from scores to parameters, with the slope of the penalty."""
        residual = residual * self._shares[:, None]
        back = np.sum(residual * self._z, axis=0) if len(self._shape) == 1 else residual.T @ self._z
        back = (back + self._precision * self._off_diagonal * weights) / self._scale
        return np.concatenate([back.ravel(), residual.sum(axis=0) + self._precision * intercepts])
