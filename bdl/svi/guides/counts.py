"""The family of counts: whole parts of log-normal variables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.base import mean_and_scale
from bdl.svi.guides.discrete import DiscreteFamily
from bdl.svi.guides.gaussian import WithoutClosedForms
from bdl.svi.guides.normal_tails import log_cdf, log_interval

MIN_SCALE = 1e-4
"""Of the logarithm: finer than a Poisson variable's up to 10^8, above which float32 knows no odd number."""


@dataclass(frozen=True, eq=False)
class FlooredLogNormal(WithoutClosedForms):
    """Independent counts `k = floor(exp(m + s e))`.

    Their probabilities are `Phi((log(k + 1) - m) / s) - Phi((log k - m) / s)`.

    Args:
        mean: `m`, `(..., size)`.
        scale: `s`, `(..., size)`.

    Example:
    >>> family = FlooredLogNormal(np.array([0.0]), np.array([1.0]))
    >>> np.asarray(family.draw(np.array([1.0]))), np.exp(family.log_prob(np.array([0.0, 1.0]))).round(4)
    (array([2.]), array([0.5   , 0.2559]))
    """

    mean: Tensor
    scale: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """The counts."""
        return ops.stop_gradient(ops.floor(ops.exp(self.mean + self.scale * noise)))

    def log_density(self, noise: Tensor) -> Tensor:
        """Log probability of that draw by coordinate."""
        return self.log_prob(self.draw(noise))

    def log_prob(self, counts: Tensor) -> Tensor:
        """Log probability of counts.

        Args:
            counts: `(..., size)`.
        """
        is_zero = counts < 1.0
        counts = ops.where(is_zero, 1.0, counts)
        width = ops.log1p(1.0 / counts)  # log(k + 1) - log k
        centre = (ops.log(counts) + 0.5 * width - self.mean) / self.scale
        above_zero = log_interval(ops.where(is_zero, 0.0, centre), 0.5 * width / self.scale)
        return ops.where(is_zero, log_cdf(-self.mean / self.scale), above_zero)


@keras.saving.register_keras_serializable(package="bdl")
class Counts(DiscreteFamily):
    """Independent counts 0, 1, 2, ... without an upper end, for discrete local sites: whole parts of log-normals.

    It is a family of `Amortized`, of the name `"counts"`. Where a fit begins, half of the mass is at 0 unless
    `median` says otherwise, and the logarithm's standard deviation is 1. Its gradient is the score function's
    (`bdl.svi.score`).

    All counts must be possible. Where prior or likelihood rule some out, a draw of these costs infinitely many nats,
    and the fit has no finite loss. Tell the story in what is free to vary: not by how many there were,
    `Local("there", Poisson(rate))` and `Observed("seen", Binomial(there, chance), data["seen"])`, of which there cannot
    be fewer than were seen, but by how many were missed,

        missed = yield Local("missed", Poisson(rate * (1 - chance)))
        yield Observed("seen", Poisson(rate * chance), data["seen"])      # there = missed + seen

    Args:
        median: Positive number, roughly the median count where a fit begins.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `median` is not positive.

    Example:
    >>> family = Counts(median=20).of_parameters(np.zeros(2, "float32"), 1)
    >>> float(family.draw(np.full(1, 0.01, "float32"))[0])
    20.0
    """

    def __init__(self, median: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < median < math.inf:
            raise ValueError(f"`median` must be a positive number, the count where a fit begins, not {median!r}.")
        self.median = float(median)

    def misfit(self, num_values: int) -> str | None:
        """Why it is not for a site whose entries have so many values."""
        if num_values == 0:
            return None
        return f"has {num_values} values in each entry, and the guide has no end of them. Pass Categories({num_values})"

    def num_parameters(self, size: int) -> int:
        """Means and scales of the logarithms."""
        return 2 * size

    def of_parameters(self, parameters: Tensor, size: int) -> FlooredLogNormal:
        """The distribution of parameters `(..., 2 size)`."""
        mean, scale = mean_and_scale(parameters, size)
        return FlooredLogNormal(mean + math.log(self.median), scale + MIN_SCALE)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "median": self.median}
