"""Recalibration by an affine map of the scores before the softmax: temperature, vector, matrix and Dirichlet scaling.

With scores `z` (logits or log probabilities) the calibrated probabilities are `softmax(W z + b)`, and `W`, `b` minimise

    NLL of all n examples + regularization / 2 (sum of the squared off-diagonal entries of W and entries of b),

which is convex: the posterior mode under Normal priors of that precision. Guo et al. 2017, "On calibration of modern
neural networks", section 4.2; Kull et al. 2019, "Beyond temperature scaling", eq. 8 (ODIR, off-diagonal and intercept
regularisation, whose weight is `regularization K (K - 1) / (2 n)`). As Kull et al. do, the weight is chosen by
cross-validation unless it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration.recalibration._base import ProbabilityCalibrator, log_softmax, softmax

if TYPE_CHECKING:
    import keras

_MAX_LOG_TEMPERATURE = 10.0  # scikit-learn's bound; 22,000 is a uniform distribution, and its inverse a certain one
_MAX_ITERATIONS = 2000
_PRECISIONS = (1e5, 1e4, 1e3, 100.0, 10.0, 1.0)
_FOLDS = 3


class TemperatureScaling(ProbabilityCalibrator):
    """One temperature for all scores: `softmax(z / T)`, the `T` of least negative log likelihood.

    It never changes which class is the most probable, and cannot overfit: the first recalibration to try (Guo et al.
    2017, eq. 9).

    Args:
        from_logits: Whether X are logits; else probabilities.

    Attributes:
        temperature_: Above 1 the classifier was overconfident. From exp(-10) to exp(10).
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import TemperatureScaling
    >>> p = [[0.99, 0.01]] * 9 + [[0.01, 0.99]]
    >>> scaling = TemperatureScaling().fit(p, [0] * 8 + [1, 1])  # sure of 10, right on 9
    >>> scaling.predict_proba([[0.99, 0.01]])
    array([[0.9, 0.1]])
    """

    def __init__(self, from_logits: bool = False) -> None:
        self.from_logits = from_logits

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """The most probable class, `(n,)`: that before the scaling, also where a huge temperature blurs them.

        Args:
            X: As for `fit`.
        """
        self.predict_proba(X)  # checks it
        return self.classes_[self._scores(X, reset=False).argmax(axis=1)]

    def to_layer(self) -> keras.Layer:
        """The same map as a Keras layer, to put on top of a network that ends in logits."""
        from sklearn.utils.validation import check_is_fitted

        from bdl.layers import TemperatureScaling as Layer

        check_is_fitted(self)
        return Layer(self.temperature_)

    def _fit(self, scores: NDArray[np.float64], labels: NDArray[np.intp]) -> None:
        from scipy.optimize import brentq

        centered = scores - scores[np.arange(len(labels)), labels][:, None]  # the label's score is 0

        def slope(log_inverse: float) -> float:
            """Derivative of the NLL by the inverse temperature: it grows, as the NLL is convex in it."""
            p = softmax(np.exp(log_inverse) * centered)
            return float(np.mean(np.einsum("ij,ij->i", p, centered)))

        low, high = -_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE
        if slope(low) >= 0:
            log_inverse = low  # the scores say nothing, or the contrary
        elif slope(high) <= 0:
            log_inverse = high  # every label has the largest score
        else:
            log_inverse = brentq(slope, low, high, xtol=1e-12)
        self.temperature_ = float(np.exp(-log_inverse))

    def _calibrate(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return softmax(scores / self.temperature_)


class _AffineScaling(ProbabilityCalibrator):
    """Fits the entries of W and b that `_free` allows, from the identity."""

    regularization: float | None

    def _free(self, num_classes: int) -> NDArray[np.bool_]:
        """Which entries of W are fitted, `(classes, classes)`."""
        raise NotImplementedError

    def _features(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return scores

    def _fit(self, scores: NDArray[np.float64], labels: NDArray[np.intp]) -> None:
        given = self.regularization
        if given is not None and not 0 <= given < np.inf:
            raise ValueError(f"`regularization` must be a number of at least 0, or None, not {given!r}. None chooses.")
        z = self._features(scores)
        free = self._free(z.shape[1])
        self.regularization_ = _cross_validated(z, labels, free) if given is None else float(given)
        start = np.eye(z.shape[1]), np.zeros(z.shape[1])
        self.weights_, self.intercepts_, self.n_iter_ = _fit_affine(z, labels, free, self.regularization_, start)

    def _calibrate(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return softmax(self._features(scores) @ self.weights_.T + self.intercepts_)


def _cross_validated(z: NDArray[np.float64], labels: NDArray[np.intp], free: NDArray[np.bool_]) -> float:
    """The precision of least NLL in folds that were held out."""
    folds = np.random.default_rng(0).permutation(len(labels)) % _FOLDS
    losses = np.zeros(len(_PRECISIONS))
    for fold in range(min(_FOLDS, len(labels))):
        rest = folds != fold
        weights, intercepts = np.eye(z.shape[1]), np.zeros(z.shape[1])
        for number, precision in enumerate(_PRECISIONS):  # from the strongest, each from the last one's solution
            start = weights, intercepts
            weights, intercepts, _ = _fit_affine(z[rest], labels[rest], free, precision, start, tolerance=1e-7)
            log_p = log_softmax(z[~rest] @ weights.T + intercepts)
            losses[number] -= log_p[np.arange(len(log_p)), labels[~rest]].sum()
    return _PRECISIONS[int(losses.argmin())]


def _fit_affine(
    z: NDArray[np.float64],
    labels: NDArray[np.intp],
    free: NDArray[np.bool_],
    precision: float,
    start: tuple[NDArray[np.float64], NDArray[np.float64]],
    tolerance: float = 1e-13,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """W, b and the number of iterations, by L-BFGS; the tolerance is relative to the NLL."""
    from scipy.optimize import minimize

    n, num_classes = z.shape
    off_diagonal = ~np.eye(num_classes, dtype=bool)
    truth = np.zeros_like(z)
    truth[np.arange(n), labels] = 1
    scale = max(float(np.std(z)), 1e-12)  # entries of W times this are of the order of 1, as those of b

    def unpack(parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weights = np.zeros((num_classes, num_classes))
        weights[free] = parameters[:-num_classes] / scale
        return weights, parameters[-num_classes:]

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, intercepts = unpack(parameters)
        log_p = log_softmax(z @ weights.T + intercepts)
        residual = (np.exp(log_p) - truth) / n
        outside = weights * off_diagonal
        penalty = 0.5 * precision / n * (np.sum(outside**2) + np.sum(intercepts**2))
        slope = residual.T @ z + precision / n * outside
        intercept_slope = residual.sum(axis=0) + precision / n * intercepts
        value = -float(np.mean(log_p[np.arange(n), labels])) + float(penalty)
        return value, np.concatenate([slope[free] / scale, intercept_slope])

    first = np.concatenate([start[0][free] * scale, start[1]])
    options = {"maxiter": _MAX_ITERATIONS, "ftol": tolerance, "gtol": 1e-7}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    return *unpack(found.x), max(int(found.nit), 1)


class VectorScaling(_AffineScaling):
    """A factor and an intercept for each class: `softmax(w z + b)` (Guo et al. 2017, section 4.2).

    Args:
        from_logits: Whether X are logits; else probabilities.
        regularization: Precision of the Normal prior of the intercepts; 0 for none, None to choose it by
            cross-validation.

    Attributes:
        weights_: `W`, diagonal, `(classes, classes)`.
        intercepts_: `b`, `(classes,)`.
        regularization_: The precision that was used.
        n_iter_: Iterations of the optimiser.
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import VectorScaling
    >>> p = [[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 5
    >>> scaling = VectorScaling(regularization=0.0).fit(p, [0, 0, 0, 0, 1, 0, 1, 1, 1, 1])
    >>> scaling.predict_proba([[0.9, 0.1], [0.4, 0.6]]).round(4)
    array([[0.8, 0.2],
           [0.2, 0.8]])
    """

    def __init__(self, from_logits: bool = False, regularization: float | None = None) -> None:
        self.from_logits = from_logits
        self.regularization = regularization

    def _free(self, num_classes: int) -> NDArray[np.bool_]:
        return np.eye(num_classes, dtype=bool)


class MatrixScaling(_AffineScaling):
    """Any affine map of the scores: `softmax(W z + b)` (Guo et al. 2017, section 4.2).

    With many classes and few examples it overfits: without regularisation far below temperature scaling, which
    `benchmarks/calibration_guo.py` shows. The off-diagonal entries are therefore held back (ODIR; Kull et al. 2019).

    Args:
        from_logits: Whether X are logits; else probabilities, and the scores are their logarithms.
        regularization: Precision of the Normal prior of off-diagonal entries and intercepts; 0 for none, None to choose
            it by cross-validation.

    Attributes:
        weights_: `W`, `(classes, classes)`.
        intercepts_: `b`, `(classes,)`.
        regularization_: The precision that was used.
        n_iter_: Iterations of the optimiser.
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import MatrixScaling
    >>> p = [[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 5
    >>> scaling = MatrixScaling(regularization=0.0).fit(p, [0, 0, 0, 0, 1, 0, 1, 1, 1, 1])
    >>> scaling.predict_proba([[0.9, 0.1], [0.4, 0.6]]).round(4)
    array([[0.8, 0.2],
           [0.2, 0.8]])
    """

    def __init__(self, from_logits: bool = False, regularization: float | None = None) -> None:
        self.from_logits = from_logits
        self.regularization = regularization

    def _free(self, num_classes: int) -> NDArray[np.bool_]:
        return np.ones((num_classes, num_classes), dtype=bool)


class DirichletCalibration(MatrixScaling):
    """Matrix scaling of log probabilities: right if the probabilities of each class are Dirichlet distributed.

    Kull et al. 2019, eq. 6 (linear parametrisation), with their ODIR. Of logits, unlike `MatrixScaling`, it takes the
    log-softmax first, so that adding a constant to all logits of an example changes nothing.

    Args:
        from_logits: Whether X are logits; else probabilities.
        regularization: Precision of the Normal prior of off-diagonal entries and intercepts; 0 for none, None to choose
            it by cross-validation.

    Attributes:
        weights_: `W`, `(classes, classes)`.
        intercepts_: `b`, `(classes,)`.
        regularization_: The precision that was used.
        n_iter_: Iterations of the optimiser.
        classes_: Labels, in the order of the columns.

    Example:
    >>> from bdl.calibration import DirichletCalibration
    >>> p = [[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 5
    >>> scaling = DirichletCalibration(regularization=0.0).fit(p, [0, 0, 0, 0, 1, 0, 1, 1, 1, 1])
    >>> scaling.predict_proba([[0.9, 0.1], [0.4, 0.6]]).round(4)
    array([[0.8, 0.2],
           [0.2, 0.8]])
    """

    def _features(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return log_softmax(scores)
