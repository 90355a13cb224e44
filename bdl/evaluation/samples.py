"""Draws of targets as a forecast: of real numbers, or of whole ones."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.calibration import sample_probability_integral_transform
from bdl.calibration._validation import check_targets
from bdl.calibration.metrics.regression import sample_crps_terms


class SampleForecast:
    """Draws from the predictive distribution of each target, noise included.

    The draws of a target may all be equal, as those of small counts often are: its forecast has no spread then.

    Args:
        samples: `(samples, ...)`, at least two.
    """

    parts: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def __init__(self, samples: ArrayLike) -> None:
        (self.samples,) = check_targets(("samples", samples))
        if self.samples.ndim < 2 or len(self.samples) < 2:
            raise ValueError(
                "`samples` must have shape (samples, n), with two samples or more, "
                f"not shape {self.samples.shape}. Move the axis of samples first."
            )
        first = self.samples[0]
        is_equal = (self.samples == first).all(axis=0)  # whose mean and scale would carry rounding
        self.mean = np.where(is_equal, first, self.samples.mean(axis=0))
        self.std = np.where(is_equal, 0.0, self.samples.std(axis=0, ddof=1))
        self.is_count = bool(np.all(self.samples == np.floor(self.samples)))

    def are_probabilities(self) -> bool:
        """Whether they may be probabilities: between 0 and 1, and not all whole numbers."""
        return not self.is_count and self.samples.min() >= 0 and self.samples.max() <= 1

    def log_losses(self, y: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """None: samples have no density."""
        return None

    def crps(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fair continuous ranked probability score of each target."""
        return sample_crps_terms(y, self.samples, fair=True)

    def transform(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rank of each target among its samples, as a probability; of whole numbers the ends of its possible ranks."""
        if not self.is_count:
            rank = sample_probability_integral_transform(y, self.samples)
            return rank, rank
        below, up_to = np.sum(self.samples < y, axis=0), np.sum(self.samples <= y, axis=0)
        return below / (len(self.samples) + 1), (up_to + 1) / (len(self.samples) + 1)

    def interval(self, coverage: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Central quantiles of the samples, `(k - 1/2) / samples` being the level of the k-th (Hazen 1914).

        Quantiles of whole numbers are samples themselves, because nothing lies between 0 and 1.
        """
        method: Literal["inverted_cdf", "hazen"] = "inverted_cdf" if self.is_count else "hazen"
        low, high = np.quantile(self.samples, [0.5 - coverage / 2, 0.5 + coverage / 2], axis=0, method=method)
        return low, high
