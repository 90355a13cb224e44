"""The scores of predictive distributions of targets."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import (
    expected_normalized_calibration_error,
    mean_interval_width,
    pit_histogram,
    quantile_calibration_error,
    risk_coverage_curve,
    sharpness,
)
from bdl.calibration._resampling import Statistic
from bdl.calibration.metrics import observed_coverage
from bdl.calibration.metrics.intervals import covered, interval_score_terms
from bdl.calibration.metrics.regression import squared_error_terms
from bdl.evaluation.forecasts import TargetForecast
from bdl.evaluation.scores import NUM_SURPRISES, ModelEvaluation, Resampling, Surprise

PIT_BINS = 20
COVERAGES = (0.5, 0.9)


@np.errstate(over="ignore")  # what is too large for a float is infinite
def evaluate_targets(y: ArrayLike, forecast: TargetForecast, resampling: Resampling) -> ModelEvaluation:
    """Scores of predictive distributions of targets."""
    target = np.asarray(y, dtype=np.float64).reshape(forecast.mean.shape)
    statistics, left_out = _losses(target, forecast, resampling)
    below, up_to = forecast.transform(target)
    if forecast.is_count:
        left_out["qce"] = "quantiles of whole numbers hold more targets than their level says"
    else:
        statistics["qce"] = Statistic(quantile_calibration_error(below))
    pit = pit_histogram(below, up_to, PIT_BINS)
    coverage = None if forecast.is_count else observed_coverage(below)[0]
    del below, up_to
    without_spread = int(np.sum(forecast.std == 0))
    if without_spread:
        left_out["ence"] = (
            f"it divides by the spread, which {without_spread:,} of {target.size:,} forecasts do not have"
        )
    else:
        statistics["ence"] = Statistic(expected_normalized_calibration_error(target, forecast.mean, forecast.std))
    statistics["sharpness"] = Statistic(sharpness(forecast.std))
    parts = None
    if forecast.parts is not None:
        parts = (np.sqrt(forecast.parts[0]).ravel(), np.sqrt(forecast.parts[1]).ravel())
    return ModelEvaluation(
        resampling.intervals(statistics),
        _surprising_targets(target, forecast),
        risk_coverage_curve(np.abs(target - forecast.mean).ravel(), forecast.std.ravel()),
        pit=pit,
        coverage=coverage,
        parts=parts,
        left_out=left_out,
        not_resampled=resampling.refusal,
    )


def _losses(
    target: NDArray[np.float64], forecast: TargetForecast, resampling: Resampling
) -> tuple[dict[str, Statistic], dict[str, str]]:
    """The means of losses by name, whose terms are let go one after the other; and why one cannot be had."""
    statistics: dict[str, Statistic] = {}
    left_out: dict[str, str] = {}
    log_losses = forecast.log_losses(target)
    if log_losses is None:
        left_out["nll"] = "samples have no density"
    else:
        statistics["nll"] = resampling.mean(log_losses)
    del log_losses
    statistics["crps"] = resampling.mean(forecast.crps(target))
    statistics["rmse"] = resampling.mean(squared_error_terms(target, forecast.mean)).root()
    for nominal in COVERAGES:
        low, high = forecast.interval(nominal)
        statistics[f"coverage_{nominal:.0%}"] = resampling.mean(covered(target, low, high))
        statistics[f"width_{nominal:.0%}"] = Statistic(mean_interval_width(low, high))
        statistics[f"interval_score_{nominal:.0%}"] = resampling.mean(interval_score_terms(target, low, high, nominal))
    return statistics, left_out


def _surprising_targets(y: NDArray[np.float64], forecast: TargetForecast) -> list[Surprise]:
    """Targets furthest from the mean, in standard deviations; without any spread, every other value is furthest."""
    target, mean, std = y.ravel(), forecast.mean.ravel(), forecast.std.ravel()
    off = np.abs(target - mean)
    off = np.divide(off, std, out=np.where(off > 0, np.inf, 0.0), where=std > 0)
    least = np.partition(off, -NUM_SURPRISES)[-NUM_SURPRISES] if len(off) > NUM_SURPRISES else 0.0
    among = np.flatnonzero(off >= least)  # more than are wanted where several are equally far
    worst = among[np.argsort(-off[among], kind="stable")[:NUM_SURPRISES]]
    return [Surprise(int(i), float(target[i]), float(mean[i]), float(std[i])) for i in worst]
