"""Recalibration by an affine map of the scores before the softmax: temperature, vector, matrix and Dirichlet scaling.

With scores `z` (logits or log probabilities) the calibrated probabilities are `softmax(W z + b)`, and `W`, `b` minimise

    NLL of all n examples + regularization / 2 (sum of the squared off-diagonal entries of W and entries of b),

which is convex: the posterior mode under Normal priors of that precision. Guo et al. 2017, "On calibration of modern
neural networks", section 4.2; Kull et al. 2019, "Beyond temperature scaling", eq. 8 (ODIR, off-diagonal and intercept
regularisation, whose weight is `regularization K (K - 1) / (2 n)`). As Kull et al. do, the weight is chosen by
cross-validation unless it is given.

Temperature scaling is a case of vector scaling, and that of matrix scaling. Each fit starts at the solution of the
simpler one and keeps that where its NLL is smaller: on its own data a richer calibrator is never worse than a simpler
one with the same `regularization`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration.recalibration._affine import AffineMap, Examples, inverse_temperature, richer, scaled
from bdl.calibration.recalibration._base import ProbabilityCalibrator, log_softmax, softmax

if TYPE_CHECKING:
    import keras


class TemperatureScaling(ProbabilityCalibrator):
    """One temperature for all scores: `softmax(z / T)`, with the `T` of the smallest negative log likelihood.

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
        return self.classes_[self._scores(X).argmax(axis=1)]

    def to_layer(self) -> keras.Layer:
        """The same map as a Keras layer, to put on top of a network that ends in logits."""
        from sklearn.utils.validation import check_is_fitted

        from bdl.layers import TemperatureScaling as Layer

        check_is_fitted(self)
        return Layer(self.temperature_)

    def _fit(self, scores: NDArray[np.float64], labels: NDArray[np.intp], counts: NDArray[np.float64]) -> None:
        self.temperature_ = 1 / inverse_temperature(Examples(scores, labels, counts))

    def _calibrate(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return softmax(scores / self.temperature_)


class _AffineScaling(ProbabilityCalibrator):
    """Fits the diagonal of W, and b, from temperature scaling; then, if `_is_full`, all of W from that."""

    regularization: float | None
    _is_full = False

    def _features(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return scores

    def _fit(self, scores: NDArray[np.float64], labels: NDArray[np.intp], counts: NDArray[np.float64]) -> None:
        given = self.regularization
        if given is not None and not 0 <= given < np.inf:
            raise ValueError(f"`regularization` must be a number of at least 0, or None, not {given!r}. None chooses.")
        examples = Examples(self._features(scores), labels, counts)
        found, self.regularization_, self.n_iter_ = richer(examples, scaled(examples), given)
        if self._is_full:
            found, self.regularization_, self.n_iter_ = richer(examples, found.as_matrix(), given)
        self.weights_, self.intercepts_ = found.matrix, found.intercepts

    def _calibrate(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return softmax(AffineMap(self.weights_, self.intercepts_)(self._features(scores)))


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

    _is_full = True

    def __init__(self, from_logits: bool = False, regularization: float | None = None) -> None:
        self.from_logits = from_logits
        self.regularization = regularization


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
