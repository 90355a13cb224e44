"""Calibration: do the probabilities mean what they say? Plain arrays in, so it serves any model."""

from bdl.calibration.metrics import (
    accuracy,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    out_of_distribution_auroc,
    predictive_entropy,
)
from bdl.calibration.reliability import ReliabilityBins, reliability_bins

__all__ = [
    "ReliabilityBins",
    "accuracy",
    "brier_score",
    "expected_calibration_error",
    "negative_log_likelihood",
    "out_of_distribution_auroc",
    "predictive_entropy",
    "reliability_bins",
]
