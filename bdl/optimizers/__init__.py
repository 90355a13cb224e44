"""Keras optimizers that know posteriors: which variables are a mean and its scale, or a posterior of their own."""

from bdl.optimizers.ivon import IVON
from bdl.optimizers.natural_gradient import NaturalGradient, RobbinsMonro

__all__ = ["IVON", "NaturalGradient", "RobbinsMonro"]
