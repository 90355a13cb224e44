"""The metrics of `bdl.calibration` as Keras metrics, for `compile(metrics=[...])` on every backend.

Those made of sums or of fixed bins merge over batches exactly; sums are compensated, so that they count beyond the 2^24
of a float32. `AreaUnderRiskCoverage`, a rank, says how it approximates.
"""

from bdl.metrics.calibration_error import (
    AreaUnderRiskCoverage,
    ClasswiseCalibrationError,
    DebiasedCalibrationError,
    ExpectedCalibrationError,
    MaximumCalibrationError,
    RootMeanSquareCalibrationError,
    TopLabelCalibrationError,
)
from bdl.metrics.classification import BrierScore, NegativeLogLikelihood, PredictiveEntropy
from bdl.metrics.regression import (
    IntervalCoverage,
    MeanIntervalWidth,
    NormalCRPS,
    NormalNegativeLogLikelihood,
    PinballLoss,
    QuantileCalibrationError,
    Sharpness,
)

__all__ = [
    "AreaUnderRiskCoverage",
    "BrierScore",
    "ClasswiseCalibrationError",
    "DebiasedCalibrationError",
    "ExpectedCalibrationError",
    "IntervalCoverage",
    "MaximumCalibrationError",
    "MeanIntervalWidth",
    "NegativeLogLikelihood",
    "NormalCRPS",
    "NormalNegativeLogLikelihood",
    "PinballLoss",
    "PredictiveEntropy",
    "QuantileCalibrationError",
    "RootMeanSquareCalibrationError",
    "Sharpness",
    "TopLabelCalibrationError",
]
