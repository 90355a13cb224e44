"""Conformal prediction: sets and intervals that contain the truth with a probability chosen by the user.

Split conformal prediction (Papadopoulos et al. 2002; Vovk, Gammerman and Shafer 2005, chapter 4) gives each calibration
example a score `s_i`, high where the model was surprised, and predicts for a new input all answers that score at most
the `k`-th smallest of them, `k = ceil((n + 1) coverage)`. If the new example is exchangeable with the `n` calibration
examples, then, whatever the model and the distribution,

    P(answer in set) >= coverage,    and    P(answer in set) <= coverage + 1 / (n + 1)    if no two scores are equal

(Lei et al. 2018, theorem 2.2). The probability is over calibration set and new example together: given one calibration
set without ties, the coverage is a draw from `Beta(k, n + 1 - k)` (Vovk 2012, proposition 2a), with a standard
deviation of 0.009 for 1,000 examples and a coverage of 0.9. The model must not have seen the calibration examples.
"""

from bdl.calibration._conformal_quantile import calibration_size_needed, conformal_quantile
from bdl.calibration.conformal_classification import (
    SplitConformalClassifier,
    class_conditional_coverage,
    coverage_of_sets,
    mean_set_size,
)
from bdl.calibration.conformal_regression import SplitConformalRegressor

__all__ = [
    "SplitConformalClassifier",
    "SplitConformalRegressor",
    "calibration_size_needed",
    "class_conditional_coverage",
    "conformal_quantile",
    "coverage_of_sets",
    "mean_set_size",
]
