"""Calibration: do the probabilities mean what they say? Plain arrays in, so it serves any model.

Metrics with their intervals, recalibrators that mend probabilities, and conformal prediction. Recalibrators and
conformal predictors are scikit-learn estimators and are loaded at their first use, so that `import bdl` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bdl.calibration import metrics
from bdl.calibration._classes import class_indices
from bdl.calibration._resampling import Interval
from bdl.calibration.bootstrap import bootstrap_interval
from bdl.calibration.metrics import *  # noqa: F403
from bdl.calibration.reliability import ReliabilityBins, reliability_bins

if TYPE_CHECKING:
    from bdl.calibration.conformal import (
        SplitConformalClassifier,
        SplitConformalRegressor,
        class_conditional_coverage,
        coverage_of_sets,
        mean_set_size,
    )
    from bdl.calibration.recalibration import (
        BetaCalibration,
        DirichletCalibration,
        HistogramBinning,
        IsotonicCalibration,
        MatrixScaling,
        PlattScaling,
        QuantileCalibration,
        TemperatureScaling,
        VarianceScaling,
        VectorScaling,
    )

_LOADED_LATE = {
    "BetaCalibration": "recalibration",
    "DirichletCalibration": "recalibration",
    "HistogramBinning": "recalibration",
    "IsotonicCalibration": "recalibration",
    "MatrixScaling": "recalibration",
    "PlattScaling": "recalibration",
    "QuantileCalibration": "recalibration",
    "SplitConformalClassifier": "conformal",
    "SplitConformalRegressor": "conformal",
    "TemperatureScaling": "recalibration",
    "VarianceScaling": "recalibration",
    "VectorScaling": "recalibration",
    "class_conditional_coverage": "conformal",
    "coverage_of_sets": "conformal",
    "mean_set_size": "conformal",
}

__all__ = [
    *metrics.__all__,
    "BetaCalibration",
    "DirichletCalibration",
    "HistogramBinning",
    "Interval",
    "IsotonicCalibration",
    "MatrixScaling",
    "PlattScaling",
    "QuantileCalibration",
    "ReliabilityBins",
    "SplitConformalClassifier",
    "SplitConformalRegressor",
    "TemperatureScaling",
    "VarianceScaling",
    "VectorScaling",
    "bootstrap_interval",
    "class_conditional_coverage",
    "class_indices",
    "coverage_of_sets",
    "mean_set_size",
    "metrics",
    "reliability_bins",
]


def __getattr__(name: str) -> Any:
    if name not in _LOADED_LATE:
        raise AttributeError(f"module 'bdl.calibration' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bdl.calibration.{_LOADED_LATE[name]}"), name)
