"""scikit-learn's own checks of its contract, on scores that are no probabilities: of logits."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from bdl.calibration import (
    BetaCalibration,
    DirichletCalibration,
    HistogramBinning,
    IsotonicCalibration,
    MatrixScaling,
    PlattScaling,
    TemperatureScaling,
    VectorScaling,
)

ESTIMATORS = [
    TemperatureScaling(from_logits=True),
    VectorScaling(from_logits=True, regularization=1.0),
    MatrixScaling(from_logits=True, regularization=1.0),
    DirichletCalibration(from_logits=True, regularization=1.0),
    PlattScaling(from_logits=True),
    BetaCalibration(from_logits=True),
    IsotonicCalibration(from_logits=True),
    HistogramBinning(from_logits=True),
]

# A column is a class. These checks draw data with more classes than columns, which no recalibrator can fit.
AS_MANY_COLUMNS_AS_CLASSES = dict.fromkeys(
    [
        "check_estimators_overwrite_params",
        "check_estimators_fit_returns_self",
        "check_readonly_memmap_input",
        "check_classifiers_classes",
        "check_classifiers_train",
    ],
    "columns are classes",
)


@pytest.mark.filterwarnings("ignore")  # scikit-learn provokes its own warnings here
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=lambda _: AS_MANY_COLUMNS_AS_CLASSES)
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)
