"""Keras optimizers that know a posterior."""

from bdl.optimizers.ivon import IVON

__all__ = ["IVON"]
