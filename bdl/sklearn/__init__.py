"""scikit-learn estimators around Bayesian networks: in pipelines, cross-validation and searches like any other.

`bdl.sklearn` is loaded at its first use, so that `import bdl` does not import scikit-learn.
"""

from bdl.sklearn.classifier import BayesianClassifier
from bdl.sklearn.networks import default_network
from bdl.sklearn.regressor import BayesianRegressor

__all__ = ["BayesianClassifier", "BayesianRegressor", "default_network"]
