"""The scores of one model's forecast, with intervals, and the curves that the report draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import (
    Interval,
    ReliabilityBins,
    RiskCoverageCurve,
    accuracy,
    area_under_risk_coverage,
    bootstrap_interval,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    expected_normalized_calibration_error,
    interval_coverage,
    interval_score,
    mean_interval_width,
    negative_log_likelihood,
    out_of_distribution_auroc,
    pit_histogram,
    quantile_calibration_error,
    reliability_bins,
    risk_coverage_curve,
    root_mean_square_error,
    sharpness,
)
from bdl.calibration._events import event_blocks
from bdl.calibration.bootstrap import mean_of_events
from bdl.calibration.metrics import observed_coverage
from bdl.evaluation.class_forecasts import ClassForecast
from bdl.evaluation.forecasts import TargetForecast

MAX_RESAMPLED_EVENTS = 200_000
"""Intervals of more events would take minutes, and be narrower than the digits shown."""

NUM_SURPRISES = 10
PIT_BINS = 20
COVERAGES = (0.5, 0.9)


@dataclass(frozen=True)
class Surprise:
    """A prediction that was sure and wrong.

    Attributes:
        index: Its place among the events (rows; where there is a mask, all of them are counted).
        truth: The column of its label, or its target.
        said: The column of the predicted class, or the predictive mean.
        confidence: Probability of the predicted class; of a target, the predictive standard deviation.
    """

    index: int
    truth: float
    said: float
    confidence: float


@dataclass(frozen=True, eq=False)
class ModelEvaluation:
    """What one model's predictions are worth.

    Attributes:
        scores: Figures by name, with their intervals; ends are NaN where there is none.
        surprises: The most confident errors.
        bins: Reliability bins of a classifier, else None.
        risk_coverage: Error rate or mean absolute error of the most certain predictions.
        pit: Shares of probability integral transforms in bins, of targets, else None.
        coverage: Shares of targets inside central intervals of the levels 0.01 to 0.99, else None.
        parts: Aleatoric and epistemic uncertainty of each event, or None.
        classes: The label of each column, which `surprises` number; None of targets, and where labels are the numbers.
        left_out: Why a score cannot be had, by its name.
    """

    scores: dict[str, Interval]
    surprises: list[Surprise]
    risk_coverage: RiskCoverageCurve
    bins: ReliabilityBins | None = None
    pit: NDArray[np.float64] | None = None
    coverage: NDArray[np.float64] | None = None
    parts: tuple[NDArray[Any], NDArray[Any]] | None = None
    classes: tuple[Any, ...] | None = None
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resampling:
    """How intervals of scores are made: their confidence level, the number of resamples (0 for none) and the seed."""

    level: float = 0.95
    num_resamples: int = 1000
    seed: int = 0
    examples: int = field(default=0)

    def of(self, metric: Any, *arrays: Any, **options: Any) -> Interval:
        """The metric with its interval, or with NaN for one."""
        if self.num_resamples == 0 or not 2 <= self.examples <= MAX_RESAMPLED_EVENTS:
            return self.without(float(metric(*arrays, **options)))
        return bootstrap_interval(
            metric, *arrays, level=self.level, num_resamples=self.num_resamples, seed=self.seed, **options
        )

    def without(self, value: float) -> Interval:
        """A figure whose interval is not known."""
        return Interval(value, float("nan"), float("nan"), self.level)


def evaluate_classes(
    y: NDArray[np.int64], forecast: ClassForecast, mask: NDArray[np.bool_] | None, num_bins: int, resampling: Resampling
) -> ModelEvaluation:
    """Scores of class probabilities; those of ranks and bins have intervals only where resampling gives right ones."""
    p = forecast.probabilities
    events = _Events.of(y, p, mask)
    bins = reliability_bins(y, p, num_bins, mask=mask)
    errors = ~events.is_right
    doubt = 1 - events.confidence
    scores = {
        "accuracy": resampling.of(accuracy, y, p, mask=mask),
        "nll": _nll(y, forecast, mask, resampling),
        "brier": resampling.of(brier_score, y, p, mask=mask),
        "ece": resampling.without(expected_calibration_error(y, p, num_bins, mask=mask)),
        "debiased_ce": Interval(
            bins.debiased_calibration_error, *bins.debiased_interval(resampling.level), resampling.level
        ),
        "classwise_ece": resampling.without(classwise_calibration_error(y, p, num_bins, mask=mask)),
        "aurc": _independent(resampling, y).of(area_under_risk_coverage, errors, doubt),
    }
    if errors.any() and not errors.all():
        scores["error_auroc"] = resampling.without(out_of_distribution_auroc(doubt[~errors], doubt[errors]))
    parts = None
    if forecast.aleatoric is not None and forecast.epistemic is not None:
        kept = slice(None) if mask is None else np.asarray(mask, dtype=bool).ravel()
        parts = (np.ravel(forecast.aleatoric)[kept], np.ravel(forecast.epistemic)[kept])
        scores["aleatoric"] = resampling.without(float(np.mean(parts[0])))
        scores["epistemic"] = resampling.without(float(np.mean(parts[1])))
    return ModelEvaluation(scores, events.surprises(), risk_coverage_curve(errors, doubt), bins=bins, parts=parts)


def _nll(
    y: NDArray[np.int64], forecast: ClassForecast, mask: NDArray[np.bool_] | None, resampling: Resampling
) -> Interval:
    """The negative log likelihood: of logits or log probabilities where these are known, which no rounding ends."""
    losses = forecast.log_losses(y)
    if losses is None:
        return resampling.of(negative_log_likelihood, y, forecast.probabilities, mask=mask)
    return resampling.of(mean_of_events, losses, mask=mask)


@np.errstate(over="ignore")  # what is too large for a float is infinite
def evaluate_targets(y: ArrayLike, forecast: TargetForecast, resampling: Resampling) -> ModelEvaluation:
    """Scores of predictive distributions of targets."""
    target = np.asarray(y, dtype=np.float64).reshape(forecast.mean.shape)
    error = np.abs(target - forecast.mean)
    scores: dict[str, Interval] = {}
    left_out: dict[str, str] = {}
    log_losses = forecast.log_losses(target)
    if log_losses is None:
        left_out["nll"] = "samples have no density"
    else:
        scores["nll"] = resampling.of(_mean, log_losses)
    scores["crps"] = resampling.of(_mean, forecast.crps(target))
    scores["rmse"] = resampling.of(root_mean_square_error, target, forecast.mean)
    for nominal in COVERAGES:
        low, high = forecast.interval(nominal)
        scores[f"coverage_{nominal:.0%}"] = resampling.of(interval_coverage, target, low, high)
        scores[f"width_{nominal:.0%}"] = resampling.without(mean_interval_width(low, high))
        scores[f"interval_score_{nominal:.0%}"] = resampling.of(interval_score, target, low, high, coverage=nominal)
    below, up_to = forecast.transform(target)
    if forecast.is_count:
        left_out["qce"] = "quantiles of whole numbers hold more targets than their level says"
    else:
        scores["qce"] = resampling.without(quantile_calibration_error(below))
    without_spread = int(np.sum(forecast.std == 0))
    if without_spread:
        left_out["ence"] = (
            f"it divides by the spread, which {without_spread:,} of {target.size:,} forecasts do not have"
        )
    else:
        scores["ence"] = resampling.without(expected_normalized_calibration_error(target, forecast.mean, forecast.std))
    scores["sharpness"] = resampling.without(sharpness(forecast.std))
    parts = None
    if forecast.parts is not None:
        parts = (np.sqrt(forecast.parts[0]).ravel(), np.sqrt(forecast.parts[1]).ravel())
    return ModelEvaluation(
        scores,
        _surprising_targets(target, forecast),
        risk_coverage_curve(error.ravel(), forecast.std.ravel()),
        pit=pit_histogram(below, up_to, PIT_BINS),
        coverage=None if forecast.is_count else observed_coverage(below)[0],
        parts=parts,
        left_out=left_out,
    )


@dataclass(frozen=True, eq=False)
class _Events:
    """What the ranking scores need of every event that the mask keeps."""

    index: NDArray[np.intp]
    labels: NDArray[np.int64]
    predicted: NDArray[np.intp]
    confidence: NDArray[np.float64]

    @classmethod
    def of(cls, y: ArrayLike, probabilities: ArrayLike, mask: ArrayLike | None) -> _Events:
        blocks = list(event_blocks(y, probabilities, mask))
        size = np.size(y)
        index = np.arange(size) if mask is None else np.flatnonzero(np.asarray(mask))
        predicted = [block.predicted for block in blocks]
        confidence = [block.of_class(best) for block, best in zip(blocks, predicted, strict=True)]
        labels = np.concatenate([block.labels for block in blocks])
        return cls(index, labels, np.concatenate(predicted), np.concatenate(confidence).astype(np.float64))

    @property
    def is_right(self) -> NDArray[np.bool_]:
        return self.predicted == self.labels

    def surprises(self) -> list[Surprise]:
        wrong = np.flatnonzero(~self.is_right)
        worst = wrong[np.argsort(-self.confidence[wrong], kind="stable")[:NUM_SURPRISES]]
        return [
            Surprise(int(self.index[i]), float(self.labels[i]), float(self.predicted[i]), float(self.confidence[i]))
            for i in worst
        ]


def _surprising_targets(y: NDArray[np.float64], forecast: TargetForecast) -> list[Surprise]:
    """Targets furthest from the mean, in standard deviations; without any spread, every other value is furthest."""
    target, mean, std = y.ravel(), forecast.mean.ravel(), forecast.std.ravel()
    off = np.abs(target - mean)
    off = np.divide(off, std, out=np.where(off > 0, np.inf, 0.0), where=std > 0)
    worst = np.argsort(-off, kind="stable")[:NUM_SURPRISES]
    return [Surprise(int(i), float(target[i]), float(mean[i]), float(std[i])) for i in worst]


def _independent(resampling: Resampling, y: ArrayLike) -> Resampling:
    """No interval where events are not independent: tokens of a sequence are resampled with it, which ranks forget."""
    return resampling if np.ndim(y) == 1 else Resampling(resampling.level, 0)


def _mean(values: ArrayLike) -> float:
    return float(np.mean(np.asarray(values)))
