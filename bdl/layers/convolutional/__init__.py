"""Convolutions with a posterior over their kernels."""
