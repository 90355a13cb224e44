"""The compiled Monte Carlo engine: many forward passes of a network for each batch of the data."""

from bdl.sampling.activation import check_output_activation
from bdl.sampling.draws import draw
from bdl.sampling.sampler import Sampler, add_probability, label_entropy

__all__ = ["Sampler", "add_probability", "check_output_activation", "draw", "label_entropy"]
