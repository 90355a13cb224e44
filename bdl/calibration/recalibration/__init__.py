"""Recalibration: scikit-learn estimators that learn, on held-out data, what a model's probabilities are worth."""

from bdl.calibration.recalibration.one_vs_rest import (
    BetaCalibration,
    HistogramBinning,
    IsotonicCalibration,
    PlattScaling,
)
from bdl.calibration.recalibration.regression import QuantileCalibration, VarianceScaling
from bdl.calibration.recalibration.scaling import (
    DirichletCalibration,
    MatrixScaling,
    TemperatureScaling,
    VectorScaling,
)

__all__ = [
    "BetaCalibration",
    "DirichletCalibration",
    "HistogramBinning",
    "IsotonicCalibration",
    "MatrixScaling",
    "PlattScaling",
    "QuantileCalibration",
    "TemperatureScaling",
    "VarianceScaling",
    "VectorScaling",
]
