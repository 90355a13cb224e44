"""Stochastic variational inference for probabilistic models that are not networks."""
