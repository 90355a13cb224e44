"""The compiled Monte Carlo engine: many forward passes of a network for each batch of the data."""

from bdl.sampling.draws import draw
from bdl.sampling.sampler import Sampler, add_probability, label_entropy

__all__ = ["Sampler", "add_probability", "draw", "label_entropy"]
