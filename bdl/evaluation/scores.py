"""What the evaluation of one model holds: scores with intervals, and the curves that the report draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdl.calibration import Interval, ReliabilityBins, RiskCoverageCurve
from bdl.calibration._resampling import Statistic, intervals

MAX_RESAMPLED_EXAMPLES = 200_000
"""Resampling more takes minutes, for intervals that are narrower than the digits shown."""

NUM_SURPRISES = 10


@dataclass(frozen=True)
class Surprise:
    """A prediction that was sure and wrong.

    Attributes:
        index: Its place among the events (rows; where there is a mask, all of them are counted).
        truth: The column of its label, or its target.
        said: The column of the predicted class, or the predictive mean.
        confidence: Probability of the predicted class; of a target, the predictive standard deviation.
    """

    index: int
    truth: float
    said: float
    confidence: float


@dataclass(frozen=True, eq=False)
class ModelEvaluation:
    """What one model's predictions are worth.

    Attributes:
        scores: Figures by name, with their intervals; ends are NaN where there is none.
        surprises: The most confident errors.
        bins: Reliability bins of a classifier, else None.
        risk_coverage: Error rate or mean absolute error of the most certain predictions.
        pit: Shares of probability integral transforms in bins, of targets, else None.
        coverage: Shares of targets inside central intervals of the levels 0.01 to 0.99, else None.
        parts: Aleatoric and epistemic uncertainty of each event, or None.
        classes: The label of each column, which `surprises` number; None of targets, and where labels are the numbers.
        left_out: Why a score cannot be had, by its name.
        not_resampled: Why no score has an interval by resampling; empty if some have.
    """

    scores: dict[str, Interval]
    surprises: list[Surprise]
    risk_coverage: RiskCoverageCurve
    bins: ReliabilityBins | None = None
    pit: NDArray[np.float64] | None = None
    coverage: NDArray[np.float64] | None = None
    parts: tuple[NDArray[Any], NDArray[Any]] | None = None
    classes: tuple[Any, ...] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    not_resampled: str = ""


@dataclass(frozen=True)
class Resampling:
    """How intervals of scores are made.

    Attributes:
        level: Their confidence level.
        num_resamples: Number of resamples, 0 for none.
        seed: Decides the draws.
        examples: Number of examples.
    """

    level: float = 0.95
    num_resamples: int = 1000
    seed: int = 0
    examples: int = 0

    @property
    def refusal(self) -> str:
        """Why there are no intervals; empty if there are."""
        if self.num_resamples == 0:
            return "`num_resamples` is 0"
        if self.examples < 2:
            return "that needs two examples"
        if self.examples > MAX_RESAMPLED_EXAMPLES:
            return f"there are {self.examples:,} examples, more than {MAX_RESAMPLED_EXAMPLES:,}, and chance adds little"
        return ""

    def intervals(self, statistics: Mapping[str, Statistic]) -> dict[str, Interval]:
        """The scores with their intervals, or with NaN for one."""
        if self.refusal:
            return {name: self.without(each.value) for name, each in statistics.items()}
        random = np.random.default_rng(self.seed)
        return intervals(statistics, [self.examples], self.level, self.num_resamples, random)

    def mean(self, terms: NDArray[Any]) -> Statistic:
        """The mean of terms, rows of those of each example, which are not kept where they are not resampled."""
        if self.refusal:
            return Statistic(float(np.mean(terms)))
        return Statistic.mean_of_rows(terms.reshape(self.examples, -1))

    def without(self, value: float) -> Interval:
        """A figure whose interval is not known."""
        return Interval(value, float("nan"), float("nan"), self.level)
