"""What follows from the two parts of a predictive variance."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class _HasParts(Protocol):
    @property
    def aleatoric(self) -> np.ndarray: ...

    @property
    def epistemic(self) -> np.ndarray: ...


class SplitVariance:
    """Mixin of a prediction of targets that has `aleatoric` and `epistemic` variances."""

    @property
    def variance(self: _HasParts) -> np.ndarray:
        """Predictive variance, `(n, ...)`, the sum of both."""
        return self.aleatoric + self.epistemic

    @property
    def total_uncertainty(self: _HasParts) -> np.ndarray:
        """The predictive variance."""
        return self.aleatoric + self.epistemic

    @property
    def std(self: _HasParts) -> np.ndarray:
        """Predictive standard deviation, `(n, ...)`."""
        return np.sqrt(self.aleatoric + self.epistemic)
