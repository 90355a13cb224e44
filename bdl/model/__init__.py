"""`VariationalModel`: what trains on the ELBO (`variational_model`) and how it predicts (`predicting`)."""

from bdl.model.variational_model import FORMAT_VERSION, VariationalModel

__all__ = ["FORMAT_VERSION", "VariationalModel"]
