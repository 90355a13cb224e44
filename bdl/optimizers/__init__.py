"""Optimizers that know which variables are the mean and the scale of a posterior."""

from bdl.optimizers.natural_gradient import NaturalGradient, RobbinsMonro

__all__ = ["NaturalGradient", "RobbinsMonro"]
