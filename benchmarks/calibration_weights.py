"""Sample weights in the recalibrators: beside examples that stand there repeatedly, and beside scikit-learn's.

calibration_parity.py runs it. Weights are 1, 2 and 3, and the labels noisy (three of ten are drawn anew), or classes
would be separable and some maps without a best one. A comparison gives the largest difference of calibrated
probabilities, or of quantiles, and 0. Penalised maps have a fixed penalty: cross-validation would deal the repeated
examples into other folds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from calibration_labels import Comparison
from scipy.special import logit
from sklearn.base import BaseEstimator, ClassifierMixin

from bdl import calibration as bdl

LEVELS = np.arange(1, 10) / 10


class Spoken(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are what it says."""

    def __init__(self, scores: Callable[[np.ndarray], np.ndarray]) -> None:
        self.scores = scores

    def fit(self, X: np.ndarray, y: np.ndarray) -> Spoken:
        """Learns nothing but the classes."""
        self.classes_, self.n_features_in_ = np.arange(X.shape[1]), X.shape[1]
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """The scores."""
        return self.scores(X)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class."""
        return X.argmax(axis=1)


def weighted(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy labels, probabilities inside 0 and 1, and weights.

    Of probabilities that differ by rounding alone scikit-learn's isotonic regression would make one.
    """
    random = np.random.default_rng(3)
    noisy = np.where(random.random(len(y)) < 0.3, random.integers(0, p.shape[1], len(y)), y)
    inside = np.clip(p, 1e-6, 1)
    return noisy, np.round(inside / inside.sum(axis=1, keepdims=True), 10), random.integers(1, 4, len(y))


def largest(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The largest difference, and 0."""
    return float(np.abs(ours - theirs).max()), 0.0


def by_repetition() -> list[Comparison]:
    """Each recalibrator of class probabilities."""

    def repeated(make: Callable[[], Any]) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
        def compared(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
            y, p, weight = weighted(y, p)
            copies = np.repeat(np.arange(len(y)), weight)
            once = make().fit(p, y, sample_weight=weight).predict_proba(p)
            return largest(once, make().fit(p[copies], y[copies]).predict_proba(p))

        return compared

    made: dict[str, Callable[[], Any]] = {
        "temperature": bdl.TemperatureScaling,
        "vector": lambda: bdl.VectorScaling(regularization=1.0),
        "matrix": lambda: bdl.MatrixScaling(regularization=1.0),
        "Dirichlet": lambda: bdl.DirichletCalibration(regularization=1.0),
        "Platt": bdl.PlattScaling,
        "beta": bdl.BetaCalibration,
        "isotonic": bdl.IsotonicCalibration,
        "histogram": bdl.HistogramBinning,
        "histogram, equal width": lambda: bdl.HistogramBinning(binning="width"),
    }
    return [(f"{name}, weights", "repetition", repeated(make)) for name, make in made.items()]


def by_repetition_of_targets() -> list[Comparison]:
    """Each recalibrator of predictive Normals."""

    def repeated(make: Callable[[], Any], quantiles: Callable[[Any, np.ndarray], np.ndarray]) -> Callable[..., Any]:
        def compared(y: np.ndarray, prediction: Any) -> tuple[float, float]:
            said, weight = np.stack(prediction, axis=1), np.random.default_rng(3).integers(1, 4, len(y))
            copies = np.repeat(np.arange(len(y)), weight)
            once = quantiles(make().fit(said, y, sample_weight=weight), said)
            return largest(once, quantiles(make().fit(said[copies], y[copies]), said))

        return compared

    return [
        ("variance, weights", "repetition", repeated(bdl.VarianceScaling, lambda each, x: each.predict_scale(x))),
        (
            "quantiles, weights",
            "repetition",
            repeated(bdl.QuantileCalibration, lambda m, x: m.predict_quantile(x, LEVELS)),
        ),
    ]


def by_sklearn() -> list[Comparison]:
    """scikit-learn's own recalibration, where it fits the same model, and regressions that are one."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    def cross_validated(ours: Any, method: str, scores: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Any]:
        def compared(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
            y, p, weight = weighted(y, p)
            model = FrozenEstimator(Spoken(scores).fit(p, y))
            theirs = CalibratedClassifierCV(model, method=method).fit(p, y, sample_weight=weight)
            return largest(ours().fit(p, y, sample_weight=weight).predict_proba(p), theirs.predict_proba(p))

        return compared

    def probabilities(p: np.ndarray) -> np.ndarray:
        return p[:, 1] if p.shape[1] == 2 else p

    def log_odds(p: np.ndarray) -> np.ndarray:
        return logit(probabilities(p))

    def log_probabilities(p: np.ndarray) -> np.ndarray:
        return log_odds(p) if p.shape[1] == 2 else np.log(p)  # of one column scikit-learn makes two, plus and minus it

    def beta(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        y, p, weight = weighted(y, p)
        is_first, first = (y == 1).astype(int), p[:, 1]
        features = np.stack([np.log(first), -np.log1p(-first)], axis=1)
        theirs = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky").fit(
            features, is_first, sample_weight=weight
        )
        ours = bdl.BetaCalibration().fit(first, is_first, sample_weight=weight)
        if (theirs.coef_ < 0).any():
            raise ValueError("`p` must be such that no coefficient is negative, which beta calibration forbids.")
        return largest(ours.predict_proba(first), theirs.predict_proba(features))

    def matrix(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        y, p, weight = weighted(y, p)
        theirs = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky").fit(
            np.log(p), y, sample_weight=weight
        )
        ours = bdl.MatrixScaling(regularization=0.0).fit(p, y, sample_weight=weight)
        said = ours.predict_proba(p), theirs.predict_proba(np.log(p))
        return tuple(log_loss(y, each, sample_weight=weight, labels=range(p.shape[1])) for each in said)

    return [
        (
            "temperature, weights",
            "scikit-learn",
            cross_validated(bdl.TemperatureScaling, "temperature", log_probabilities),
        ),
        ("Platt, weights", "scikit-learn", cross_validated(bdl.PlattScaling, "sigmoid", log_odds)),
        ("isotonic, weights", "scikit-learn", cross_validated(bdl.IsotonicCalibration, "isotonic", probabilities)),
        ("beta, weights", "scikit-learn", beta),
        ("matrix, weights: NLL", "scikit-learn", matrix),
    ]


FAMILIES: list[tuple[str, bool, Callable[[], list[Comparison]]]] = [
    ("numpy", True, by_repetition),
    ("numpy", False, by_repetition_of_targets),
    ("sklearn", True, by_sklearn),
]
