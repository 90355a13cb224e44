"""Existing Keras models made Bayesian, and back: `to_variational`, `to_mc_dropout`, `to_deterministic`."""

from bdl.convert.deterministic import to_deterministic
from bdl.convert.mc_dropout import DecorativeDropoutWarning, MCDropoutModel, to_mc_dropout
from bdl.convert.variational import ConvertedLayer, VariationalNetwork, to_variational

__all__ = [
    "ConvertedLayer",
    "DecorativeDropoutWarning",
    "MCDropoutModel",
    "VariationalNetwork",
    "to_deterministic",
    "to_mc_dropout",
    "to_variational",
]
