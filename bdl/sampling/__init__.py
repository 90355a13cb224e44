"""The compiled Monte Carlo engine: many forward passes of a network for each batch of the data."""

from bdl.sampling.draws import MAX_ROW, draw
from bdl.sampling.running import MOMENTS, Kept, add_probability, label_entropy, with_sample
from bdl.sampling.sampler import Sampler

__all__ = ["MAX_ROW", "MOMENTS", "Kept", "Sampler", "add_probability", "draw", "label_entropy", "with_sample"]
