"""What a model said, in one of four forms, whoever said it: class probabilities, a Normal, samples or a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import (
    count_probability_integral_transform,
    normal_probability_integral_transform,
)
from bdl.calibration._classes import column_names
from bdl.calibration._validation import SUM_TOLERANCE, check_positive, check_targets, real_array
from bdl.calibration.metrics.regression import normal_crps_terms, normal_log_losses, sample_crps_terms
from bdl.evaluation.class_forecasts import ClassForecast, Labels, LogitForecast
from bdl.evaluation.samples import SampleForecast
from bdl.likelihoods import Likelihood, Mixture
from bdl.likelihoods.heads import Heads, Likelihoods, naming
from bdl.model import VariationalModel
from bdl.prediction import (
    ClassificationPrediction,
    RegressionPrediction,
    RegressionSummary,
    predict_distribution,
)
from bdl.prediction.requests import Prediction

FIELDS = ("probabilities", "logits", "samples", "mean", "scale", "std", "classes")
"""Names of arrays that make a prediction; the last alone does not."""


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


Forecast = ClassForecast | LogitForecast | NormalForecast | SampleForecast | MixtureForecast


def forecasts_of(
    prediction: Any, x: Any = None, likelihood: Likelihoods | None = None, outputs: Any = None, **options: Any
) -> dict[str | None, Forecast]:
    """What a prediction, or a model with its inputs, says of each output; a single output has the name None.

    Args:
        prediction: As of `forecast_of`; a model, also of several outputs: `VariationalModel`, Keras model, list of
            Keras models, scikit-learn estimator; or what `predict_distribution` returned for several outputs.
        x: Inputs of a model.
        likelihood: What the outputs of a Keras model, or logits, mean; a `VariationalModel` knows.
        outputs: Names of several outputs, where predictions are by these.
        **options: Further arguments of `predict_distribution`.

    Raises:
        ValueError: if it is none of these, or does not fit.
    """
    is_model = isinstance(prediction, keras.Model) or hasattr(prediction, "predict_proba")
    is_ensemble = isinstance(prediction, (list, tuple)) and any(isinstance(each, keras.Model) for each in prediction)
    if is_model or is_ensemble:
        prediction = _of_model(prediction, x, likelihood, **options)
    if isinstance(prediction, (list, tuple)) and any(isinstance(each, Prediction) for each in prediction):
        prediction = {f"output_{number}": each for number, each in enumerate(prediction)}
    is_by_output = isinstance(prediction, Mapping) and (
        bool(set(prediction) & set(outputs or ())) or any(isinstance(each, Prediction) for each in prediction.values())
    )
    if is_by_output:
        of_outputs = likelihood if isinstance(likelihood, Mapping) else dict.fromkeys(prediction, likelihood)
        forecasts = {}
        for name, each in prediction.items():
            with naming(name):
                if each is not None:
                    forecasts[name] = forecast_of(each, of_outputs.get(name))
        return forecasts
    return {None: prediction if isinstance(prediction, Forecast) else forecast_of(prediction, likelihood)}


def forecast_of(prediction: Any, likelihood: Any = None) -> Forecast:
    """What a prediction of one output says.

    Args:
        prediction: Probabilities as an array or table; a mapping of arrays by the names in `FIELDS`; or what
            `predict_distribution` returned.
        likelihood: What logits mean, or None if their shape and the labels tell.

    Raises:
        ValueError: if it is none of these, or does not fit.
    """
    if isinstance(prediction, ClassificationPrediction):
        p, epistemic = prediction.probabilities, prediction.epistemic
        likelihood = prediction.likelihood
        likelihood = likelihood.component if isinstance(likelihood, Mixture) else likelihood
        p = p if likelihood.has_class_axis else p.reshape(epistemic.shape)
        ignore_class = getattr(likelihood, "ignore_class", None)
        scores = prediction.log_probabilities
        return ClassForecast(
            p,
            prediction.aleatoric,
            epistemic,
            likelihood.has_class_axis,
            ignore_class,
            scores=None if scores is None else scores.reshape(*epistemic.shape, scores.shape[-1]),
        )
    if isinstance(prediction, RegressionPrediction):
        return MixtureForecast(prediction)
    if isinstance(prediction, RegressionSummary):
        raise ValueError(
            "`prediction` must say how probable each target is, not be a RegressionSummary, which keeps no "
            "distribution. Predict without `summary`, or pass {'mean': prediction.mean, 'std': prediction.std} to "
            "judge it as a Normal."
        )
    if isinstance(prediction, Mapping):
        return _of_arrays(prediction, likelihood)
    return ClassForecast(real_array("prediction", prediction), classes=_class_names(prediction))


def _of_arrays(arrays: Mapping[str, ArrayLike], likelihood: Any) -> Forecast:
    names = set(arrays) - {"classes"}
    classes: Any = arrays.get("classes")
    if names == {"probabilities"}:
        p = arrays["probabilities"]
        return ClassForecast(real_array("probabilities", p), classes=_class_names(p) if classes is None else classes)
    if names == {"logits"}:
        z = arrays["logits"]
        return LogitForecast(
            real_array("logits", z),
            _class_names(z) if classes is None else classes,
            likelihood.has_class_axis if isinstance(likelihood, Likelihood) else None,
            getattr(likelihood, "ignore_class", None),
        )
    if names == {"samples"}:
        samples = real_array("samples", arrays["samples"])
        return _of_class_samples(samples, classes) if _are_classes(samples) else SampleForecast(samples)
    if names in ({"mean", "scale"}, {"mean", "std"}):
        return NormalForecast(arrays["mean"], arrays["scale" if "scale" in arrays else "std"])
    raise ValueError(
        "`prediction` must hold probabilities, logits, samples, or mean and scale, "
        f"not the names {sorted(map(str, arrays))}. Rename them, or give each model a mapping of its own."
    )


def _are_classes(samples: NDArray[Any]) -> bool:
    """Whether samples have an axis of classes, over which they sum to 1, after those of samples and events."""
    return samples.ndim >= 3 and bool(np.all(np.abs(samples.sum(axis=-1, dtype=np.float64) - 1) <= SUM_TOLERANCE))


def _of_class_samples(samples: NDArray[Any], classes: Any = None) -> ClassForecast:
    """Mean probabilities of samples `(samples, ..., classes)`, and the parts of their uncertainty."""
    p = samples.astype(np.float64)
    mean = p.mean(axis=0)
    aleatoric = _entropy(p).mean(axis=0)
    return ClassForecast(mean, aleatoric, np.maximum(_entropy(mean) - aleatoric, 0.0), classes=classes)


def told_by_labels(forecast: Forecast, y: Any, mask: ArrayLike | None, ignore_class: Any) -> Forecast:
    """The forecast, or where samples are probabilities of label 1, as of a sigmoid, that of these labels.

    Samples between 0 and 1 are such where the labels are 0 and 1, or -1 and 1. (Draws of labels are whole numbers, and
    stay draws.)

    Args:
        forecast: What was said.
        y: Labels or targets.
        mask: True where one counts, or None.
        ignore_class: Label of events that do not count, or None.
    """
    if not isinstance(forecast, SampleForecast) or not forecast.are_probabilities():
        return forecast
    labels = Labels.of(y, mask)
    shape, kept = labels.values.shape, labels.kept
    if labels.values.dtype.kind not in "buif" or (kept is not None and kept.shape != shape):
        return forecast
    counted = labels.values if kept is None else labels.values[kept]
    found = set(np.unique(counted[counted != ignore_class]).tolist())
    is_of_labels = bool(found) and (found <= {0, 1} or found == {-1, 1})
    if not is_of_labels or not same_but_for_ones(shape, forecast.mean.shape):
        return forecast
    p = forecast.samples.reshape(-1, *shape)
    of_classes = _of_class_samples(np.stack([1 - p, p], axis=-1))
    return ClassForecast(of_classes.probabilities[..., 1], of_classes.aleatoric, of_classes.epistemic)


def same_but_for_ones(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes differ in axes of size 1 at most, so that one array may be reshaped to the other."""
    return [size for size in shape if size != 1] == [size for size in other if size != 1]


def _of_model(model: Any, x: Any, likelihood: Likelihoods | None, **options: Any) -> Any:
    """What a model predicts: a `Prediction`, several by their outputs' names, or a `ClassForecast`."""
    if x is None:
        raise ValueError("`x` must hold the inputs of the model, not be None. Call evaluate(y, model, x).")
    if isinstance(model, VariationalModel):
        return _by_output(model.predict_distribution(x, **options), model.likelihood, model)
    if hasattr(model, "predict_proba"):
        p, classes = np.asarray(model.predict_proba(x)), getattr(model, "classes_", None)
        if getattr(model, "multilabel_", False):
            return ClassForecast(p)
        return ClassForecast(p[:, 1] if p.ndim == 2 and p.shape[1] == 2 else p, classes=classes)
    if likelihood is None:
        raise ValueError(
            "`likelihood` must say what the outputs of a Keras model mean, not be None. Pass for example "
            "bdl.likelihoods.Categorical() for classes; it follows a network that visibly ends in softmax."
        )
    predictions = predict_distribution(model, x, likelihood, **options)
    return _by_output(predictions, likelihood, model[0] if isinstance(model, (list, tuple)) else model)


def _by_output(predictions: Any, likelihood: Likelihoods, network: Any) -> Any:
    return Heads(likelihood, network).flat(predictions) if isinstance(predictions, list) else predictions


def _class_names(table: Any) -> list[Any] | None:
    """Names of a table's columns, if there are several."""
    names = column_names(table)
    return names if names is not None and len(names) > 1 else None


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import entr

    return entr(p).sum(axis=-1)
