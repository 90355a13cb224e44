"""Targets of known Gaussians, and the seeds that hypothesis draws them by."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

quick = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def problem(seed, n=30):
    random = np.random.default_rng(seed)
    mean, scale = random.normal(size=n), random.uniform(0.2, 3, size=n)
    return mean + scale * random.normal(size=n), mean, scale
