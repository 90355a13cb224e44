"""A prediction of targets without its samples: what remains of many inputs in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bdl.likelihoods import Likelihood
from bdl.prediction.glances import glance_at_targets
from bdl.prediction.variances import SplitVariance
from bdl.report import Paragraph, Shown, Table


@dataclass(frozen=True, eq=False, repr=False)
class RegressionSummary(SplitVariance, Shown):
    """Mean, variances and some quantiles of a predictive distribution; it shows its first events.

    It has no density and no other quantiles, which need the samples: `predict_distribution` without `summary` keeps
    these.

    Args:
        likelihood: The likelihood of the targets.
        mean: Predictive mean, `(n, ...)`.
        aleatoric: Mean variance of the samples' distributions, `(n, ...)`: noise in the data.
        epistemic: Variance of the samples' means, `(n, ...)`: what more data could remove.
        num_samples: Number of samples behind it.
        levels: Levels of the quantiles.
        quantiles: Quantiles of the mixture of the samples' distributions, `(levels, n, ...)`.

    Example:
    >>> half = np.array([[1.0, 5.0]])
    >>> RegressionSummary(bdl.likelihoods.Normal(), half[0], np.ones(2), np.array([1.0, 0.0]), 64, (0.5,), half)
    RegressionSummary: 2 examples of Normal, 64 samples
             mean  std    aleatoric std  epistemic std
    event 0  1     1.414  1              1
    event 1  5     1      1              0
    """

    likelihood: Likelihood
    mean: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    num_samples: int
    levels: tuple[float, ...]
    quantiles: np.ndarray

    def glance(self) -> list[Paragraph | Table]:
        """What it is, and mean and standard deviations of the first events."""
        return glance_at_targets(self, self, len(self.mean))

    def joined(self, others: Sequence[RegressionSummary]) -> RegressionSummary:
        """This summary and those of the inputs after it as one."""
        parts = [self, *others]
        return RegressionSummary(
            self.likelihood,
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.aleatoric for part in parts]),
            np.concatenate([part.epistemic for part in parts]),
            self.num_samples,
            self.levels,
            np.concatenate([part.quantiles for part in parts], axis=1),
        )

    def quantile(self, q: float | Sequence[float]) -> np.ndarray:
        """Quantiles of the levels that were asked for.

        Args:
            q: One of `levels`, or several.

        Returns:
            `(n, ...)`, or `(levels, n, ...)` for several levels.

        Raises:
            ValueError: if a level was not asked for.
        """
        wanted = [float(level) for level in np.ravel(q)]
        missing = [level for level in wanted if level not in self.levels]
        if missing:
            raise ValueError(
                f"`q` must be of the levels that were kept, {list(self.levels)}, not {missing}. Predict once more with "
                f"summary={tuple(sorted({*self.levels, *missing}))}."
            )
        found = self.quantiles[[self.levels.index(level) for level in wanted]]
        return found[0] if np.ndim(q) == 0 else found
