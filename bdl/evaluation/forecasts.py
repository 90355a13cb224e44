"""What a model said, in one of four forms, whoever said it: class probabilities, a Normal, samples or a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import (
    count_probability_integral_transform,
    normal_probability_integral_transform,
    sample_probability_integral_transform,
)
from bdl.calibration._validation import SUM_TOLERANCE, check_positive, check_targets, real_array
from bdl.calibration.metrics.regression import normal_crps_terms, normal_log_losses, sample_crps_terms
from bdl.likelihoods import Likelihood
from bdl.model import VariationalModel
from bdl.prediction import ClassificationPrediction, RegressionPrediction, predict_distribution

FIELDS = ("probabilities", "logits", "samples", "mean", "scale", "std")
"""Names of arrays that make a prediction."""


@dataclass(frozen=True, eq=False)
class ClassForecast:
    """Class probabilities, and the parts of their uncertainty where samples stand behind them.

    Attributes:
        probabilities: `(..., classes)`, or the shape of the labels for the probability of label 1.
        aleatoric: Expected entropy, `(...)`, in nats, or None.
        epistemic: Mutual information, `(...)`, in nats, or None.
    """

    probabilities: NDArray[Any]
    aleatoric: NDArray[Any] | None = None
    epistemic: NDArray[Any] | None = None


class TargetForecast(Protocol):
    """A predictive distribution of real targets or counts, of shape `(...)`.

    Attributes:
        mean: Predictive means.
        std: Predictive standard deviations.
        is_count: Whether targets are whole numbers.
        parts: Aleatoric and epistemic variance, or None.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    is_count: bool
    parts: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    def log_losses(self, y: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Negative log density of each target, or None where there is none."""

    def crps(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous ranked probability score of each target."""

    def transform(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predictive probability below each target, and up to it: equal but for counts."""

    def interval(self, coverage: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the central interval."""


class NormalForecast:
    """`N(mean, scale^2)` for each target.

    Args:
        mean: `(...)`.
        scale: Positive, that shape or a scalar.
    """

    is_count: bool = False
    parts: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def __init__(self, mean: ArrayLike, scale: ArrayLike) -> None:
        self.mean, self.std = check_targets(("mean", mean), ("scale", scale))
        check_positive("scale", self.std)

    def log_losses(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Negative log density of each target."""
        return normal_log_losses(y, self.mean, self.std)

    def crps(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous ranked probability score of each target."""
        return normal_crps_terms(y, self.mean, self.std)

    def transform(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predictive probability below each target."""
        below = normal_probability_integral_transform(y, self.mean, self.std)
        return below, below

    def interval(self, coverage: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the central interval."""
        from scipy.special import ndtri

        half = ndtri(0.5 + coverage / 2) * self.std
        return self.mean - half, self.mean + half


class SampleForecast:
    """Draws from the predictive distribution of each target, noise included.

    Args:
        samples: `(samples, ...)`, at least two.
    """

    is_count: bool = False
    parts: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def __init__(self, samples: ArrayLike) -> None:
        (self.samples,) = check_targets(("samples", samples))
        if self.samples.ndim < 2 or len(self.samples) < 2:
            raise ValueError(
                "`samples` must have shape (samples, n), with two samples or more, "
                f"not shape {self.samples.shape}. Move the axis of samples first."
            )
        self.mean, self.std = self.samples.mean(axis=0), self.samples.std(axis=0, ddof=1)

    def log_losses(self, y: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """None: samples have no density."""
        return None

    def crps(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fair continuous ranked probability score of each target."""
        return sample_crps_terms(y, self.samples, fair=True)

    def transform(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rank of each target among its samples, as a probability."""
        rank = sample_probability_integral_transform(y, self.samples)
        return rank, rank

    def interval(self, coverage: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Central quantiles of the samples, `(k - 1/2) / samples` being the level of the k-th (Hazen 1914)."""
        low, high = np.quantile(self.samples, [0.5 - coverage / 2, 0.5 + coverage / 2], axis=0, method="hazen")
        return low, high


class MixtureForecast:
    """The mixture of a `RegressionPrediction`.

    Args:
        prediction: What `predict_distribution` returned.
    """

    def __init__(self, prediction: RegressionPrediction) -> None:
        self.prediction = prediction
        self.mean, self.std = prediction.mean, prediction.std
        self.parts: tuple[NDArray[np.float64], NDArray[np.float64]] | None = (
            prediction.aleatoric,
            prediction.epistemic,
        )
        self.is_count: bool = prediction.is_count

    def log_losses(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Negative log density, or log probability, of each target."""
        return -self.prediction.log_prob(y)

    def crps(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fair score of one draw from each component; without bias for that of the mixture."""
        return sample_crps_terms(y, self.prediction.sample(), fair=self.prediction.num_samples > 1)

    def transform(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predictive probability below each target, and up to it."""
        if not self.is_count:
            below = self.prediction.cdf(y)
            return below, below
        return count_probability_integral_transform(y, _Counts(self.prediction))

    def interval(self, coverage: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the central interval."""
        low, high = self.prediction.quantile([0.5 - coverage / 2, 0.5 + coverage / 2])
        return low, high


class _Counts:
    """A prediction of counts with the names of `scipy.stats`."""

    def __init__(self, prediction: RegressionPrediction) -> None:
        self.cdf = prediction.cdf
        self.logpmf = prediction.log_prob


Forecast = ClassForecast | NormalForecast | SampleForecast | MixtureForecast


def forecast_of(prediction: Any, x: Any = None, likelihood: Likelihood | None = None, **options: Any) -> Forecast:
    """What a prediction, or a model with its inputs, says.

    Args:
        prediction: Probabilities as an array; a mapping of arrays by the names in `FIELDS`; what `predict_distribution`
            returned; or a model: `VariationalModel`, Keras model, list of Keras models, scikit-learn estimator.
        x: Inputs of a model.
        likelihood: What the outputs of a Keras model mean; a `VariationalModel` knows.
        **options: Further arguments of `predict_distribution`.

    Raises:
        ValueError: if it is none of these, or does not fit.
    """
    if isinstance(prediction, ClassificationPrediction):
        p, epistemic = prediction.probabilities, prediction.epistemic
        p = p if prediction.likelihood.has_class_axis else p.reshape(epistemic.shape)
        return ClassForecast(p, prediction.aleatoric, epistemic)
    if isinstance(prediction, RegressionPrediction):
        return MixtureForecast(prediction)
    if isinstance(prediction, Mapping):
        return _of_arrays(prediction)
    is_model = isinstance(prediction, keras.Model) or hasattr(prediction, "predict_proba")
    is_ensemble = isinstance(prediction, (list, tuple)) and any(isinstance(each, keras.Model) for each in prediction)
    if is_model or is_ensemble:
        return _of_model(prediction, x, likelihood, **options)
    return ClassForecast(real_array("prediction", prediction))


def _of_arrays(arrays: Mapping[str, ArrayLike]) -> Forecast:
    names = set(arrays)
    if names == {"probabilities"}:
        return ClassForecast(real_array("probabilities", arrays["probabilities"]))
    if names == {"logits"}:
        return ClassForecast(_softmax(real_array("logits", arrays["logits"])))
    if names == {"samples"}:
        samples = real_array("samples", arrays["samples"])
        return _of_class_samples(samples) if _are_classes(samples) else SampleForecast(samples)
    if names in ({"mean", "scale"}, {"mean", "std"}):
        return NormalForecast(arrays["mean"], arrays["scale" if "scale" in arrays else "std"])
    raise ValueError(
        "`prediction` must hold probabilities, logits, samples, or mean and scale, "
        f"not the names {sorted(map(str, names))}. Rename them, or give each model a mapping of its own."
    )


def _are_classes(samples: NDArray[Any]) -> bool:
    """Whether samples have an axis of classes, over which they sum to 1, after those of samples and events."""
    return samples.ndim >= 3 and bool(np.all(np.abs(samples.sum(axis=-1, dtype=np.float64) - 1) <= SUM_TOLERANCE))


def _of_class_samples(samples: NDArray[Any]) -> ClassForecast:
    """Mean probabilities of samples `(samples, ..., classes)`, and the parts of their uncertainty."""
    p = samples.astype(np.float64)
    mean = p.mean(axis=0)
    aleatoric = _entropy(p).mean(axis=0)
    return ClassForecast(mean, aleatoric, np.maximum(_entropy(mean) - aleatoric, 0.0))


def _of_model(model: Any, x: Any, likelihood: Likelihood | None, **options: Any) -> Forecast:
    if x is None:
        raise ValueError("`x` must hold the inputs of the model, not be None. Call evaluate(y, model, x).")
    if isinstance(model, VariationalModel):
        return forecast_of(model.predict_distribution(x, **options))
    if hasattr(model, "predict_proba"):
        p = np.asarray(model.predict_proba(x))
        return ClassForecast(p[:, 1] if p.ndim == 2 and p.shape[1] == 2 else p)
    if likelihood is None:
        raise ValueError(
            "`likelihood` must say what the outputs of a Keras model mean, not be None. Pass for example "
            "bdl.likelihoods.Categorical(from_logits=False) for a network that ends in softmax."
        )
    return forecast_of(predict_distribution(model, x, likelihood, **options))


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    if logits.ndim == 1:
        from scipy.special import expit

        return expit(logits)
    from scipy.special import softmax

    return softmax(logits, axis=-1)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import entr

    return entr(p).sum(axis=-1)
