"""bdl: Bayesian deep learning for Keras 3.

Variational layers, one honest ELBO, and predictions that know how sure they are, on TensorFlow, JAX and Torch.
`bdl.sklearn`, the scikit-learn estimators, is loaded at its first use.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from bdl import (
    calibration,
    convert,
    diagnostics,
    ensembles,
    layers,
    likelihoods,
    metrics,
    optimizers,
    plots,
    posteriors,
    prediction,
    priors,
    random,
    recipes,
    scoring,
    training,
)
from bdl.elbo import ELBO, kl_divergence
from bdl.evaluation import evaluate
from bdl.export import export_distribution
from bdl.layers import mean_weights
from bdl.model import VariationalModel
from bdl.prediction import predict_distribution, predict_parts, write_predictions

if TYPE_CHECKING:
    from bdl import sklearn

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "VariationalModel",
    "calibration",
    "convert",
    "diagnostics",
    "ensembles",
    "evaluate",
    "export_distribution",
    "kl_divergence",
    "layers",
    "likelihoods",
    "mean_weights",
    "metrics",
    "optimizers",
    "plots",
    "posteriors",
    "predict_distribution",
    "predict_parts",
    "prediction",
    "priors",
    "random",
    "recipes",
    "scoring",
    "sklearn",
    "training",
    "write_predictions",
]


def __getattr__(name: str) -> ModuleType:
    if name != "sklearn":
        raise AttributeError(f"module 'bdl' has no attribute {name!r}")
    return importlib.import_module("bdl.sklearn")
