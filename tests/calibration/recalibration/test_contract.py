"""scikit-learn's own checks of its contract, on scores that are no probabilities: of logits."""

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
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

# One of each mechanism: a number, affine maps, and of one class against the rest a formula and a table.
ESTIMATORS = [
    TemperatureScaling(from_logits=True),
    VectorScaling(from_logits=True, regularization=1.0),
    PlattScaling(from_logits=True),
    HistogramBinning(from_logits=True),
]
# The others add a constructor, and arrays that are fitted; the contract beyond these is in what they inherit.
OTHERS = [
    MatrixScaling(from_logits=True, regularization=1.0),
    DirichletCalibration(from_logits=True, regularization=1.0),
    BetaCalibration(from_logits=True),
    IsotonicCalibration(from_logits=True),
]
OWN = [
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
    estimator_checks.check_dict_unchanged,
    estimator_checks.check_fit_idempotent,
    estimator_checks.check_estimators_pickle,
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


@pytest.mark.parametrize("check", OWN, ids=lambda check: check.__name__)
@pytest.mark.parametrize("estimator", OTHERS, ids=lambda estimator: type(estimator).__name__)
def test_what_each_recalibrator_adds_to_the_contract(estimator, check):
    check(type(estimator).__name__, clone(estimator))
