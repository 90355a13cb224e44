"""What is asked of a prediction, and what is made of the draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bdl.arguments import check_count
from bdl.likelihoods import Likelihood
from bdl.prediction.distributions import ClassificationPrediction, RegressionPrediction
from bdl.prediction.summaries import RegressionSummary
from bdl.sampling import MAX_ROW, MOMENTS, Kept, Sampler, draw, label_entropy

Prediction = ClassificationPrediction | RegressionPrediction | RegressionSummary

PART_SIZE = 16_384
"""Inputs whose samples are in memory at a time, where they are not kept."""


@dataclass(frozen=True)
class Request:
    """Arguments of `predict_distribution`, checked.

    Args:
        num_samples: Of all networks together.
        batch_size: None for that of `steps`, or Keras' 32.
        consistent: Whether to draw whole functions.
        seed: Of the first network.
        keep_outputs: Whether to keep the raw outputs.
        summary: Whether to keep no samples; levels are those of quantiles to keep.
        first_row: Place of the first input in the data.
        steps: Number of batches of the data; None takes all.

    Raises:
        ValueError: if one is out of range.
    """

    num_samples: int = 64
    batch_size: int | None = 32
    consistent: bool = False
    seed: int | None = None
    keep_outputs: bool = False
    summary: bool | Sequence[float] = False
    first_row: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("batch_size", 1), ("steps", 1), ("first_row", 0)):
            value = getattr(self, name)
            if not (value is None and name in ("batch_size", "steps")):
                check_count(name, value, least)
        if self.seed is not None:
            check_count("seed", self.seed, 0)
        if self.first_row > MAX_ROW:
            raise ValueError(f"`first_row` must be at most {MAX_ROW:,}, not {self.first_row!r}.")
        if not isinstance(self.summary, (bool, Sequence)) or isinstance(self.summary, str):
            raise ValueError(f"`summary` must be True, False, or levels such as (0.05, 0.95), not {self.summary!r}.")
        if self.keep_outputs and self.is_summary:
            raise ValueError(
                "`keep_outputs` must be False with `summary`, which keeps no samples. Leave one of them out."
            )
        for level in self.levels:
            if not 0 < level < 1:
                raise ValueError(f"`summary` must hold levels between 0 and 1, both excluded, not {self.summary!r}.")

    @property
    def is_summary(self) -> bool:
        """Whether no samples are kept."""
        return self.summary is not False

    @property
    def levels(self) -> tuple[float, ...]:
        """Levels of the quantiles of a summary."""
        return () if isinstance(self.summary, bool) else tuple(float(level) for level in self.summary)

    @property
    def kept(self) -> Kept:
        """What sampling is to keep of a part."""
        return Kept(self.keep_outputs, not self.is_summary or bool(self.levels), self.is_summary)


def predict_with(samplers: Sequence[Sampler], x: Any, request: Request) -> Any:
    """`predict_distribution` with samplers that keep their compiled functions between calls.

    Args:
        samplers: Of the networks.
        x: As of `predict_distribution`.
        request: What is asked for.
    """
    parts = list(parts_with(samplers, x, request, PART_SIZE if request.is_summary else None))
    return parts[0] if len(parts) == 1 else joined(parts)


def parts_with(samplers: Sequence[Sampler], x: Any, request: Request, part_size: int | None) -> Iterator[Any]:
    """The predictions for one part of the data after the other; arguments as `predict_with`.

    Args:
        samplers: Of the networks.
        x: As of `predict_distribution`.
        request: What is asked for.
        part_size: Inputs of a part; None takes all.
    """
    share = -(-int(request.num_samples) // len(samplers))
    drawn = draw(
        samplers,
        x,
        share,
        request.batch_size,
        request.consistent,
        request.seed,
        request.kept,
        request.steps,
        int(request.first_row),
        part_size,
    )
    for draws in drawn:
        yield samplers[0].pack(
            {
                name: _prediction(head, [each[name] for each in draws], share, request)
                for name, head in samplers[0].heads.items()
            }
        )


def joined(parts: Sequence[Any]) -> Any:
    """Predictions for consecutive inputs as one; of several outputs in their structure.

    Args:
        parts: At least one.

    Example:
    >>> one = RegressionPrediction(bdl.likelihoods.Normal(), {"loc": np.zeros((4, 2)), "scale": np.ones((4, 2))})
    >>> joined([one, one]).mean.shape
    (4,)
    """
    return keras.tree.map_structure(lambda first, *others: None if first is None else first.joined(others), *parts)


def num_inputs(prediction: Any) -> int:
    """How many inputs a prediction is for; of several outputs of any."""
    first = next(leaf for leaf in keras.tree.flatten(prediction) if leaf is not None)
    return len(first.total_uncertainty)


def mean_of_prediction(prediction: Any) -> Any:
    """The predictive mean: class probabilities or the mean of targets; of several outputs in their structure."""
    return keras.tree.map_structure(lambda part: None if part is None else part.mean, prediction)


def _prediction(likelihood: Likelihood, draws: list[dict[str, np.ndarray]], share: int, request: Request) -> Prediction:
    """Joins the draws of the members of an ensemble, a share of each."""
    num_samples = share * len(draws)
    outputs = np.concatenate([draw["outputs"] for draw in draws]) if "outputs" in draws[0] else None
    if likelihood.is_classifier:
        log_sums = [draw["p_scale"] + np.log(draw["p_sum"], dtype=np.float64) for draw in draws]
        with np.errstate(invalid="ignore"):  # of outputs that are NaN
            log_p = (np.logaddexp.reduce(log_sums) - np.log(num_samples)).astype(np.float32)
        p = np.exp(log_p if likelihood.has_class_axis else log_p[..., 1])
        total = entropy(likelihood, log_p)
        aleatoric = (np.sum([draw["entropy_sum"] for draw in draws], axis=0) / num_samples).reshape(total.shape)
        return ClassificationPrediction(likelihood, p, total, aleatoric, num_samples, outputs, log_p)
    parameters = _parameters(draws)
    if not request.is_summary:
        return RegressionPrediction(likelihood, parameters, outputs)
    mean, aleatoric, epistemic = _moments(draws, share)
    levels = request.levels
    quantiles = RegressionPrediction(likelihood, parameters).quantile(levels) if levels else np.empty((0, *mean.shape))
    return RegressionSummary(
        likelihood, mean, aleatoric, epistemic, num_samples, levels, quantiles.astype(mean.dtype, copy=False)
    )


def _parameters(draws: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The likelihood's parameters of all members' samples; a single target has no axis."""
    names = [name for name in draws[0] if name not in ("outputs", *MOMENTS)]
    joined = {name: np.concatenate([draw[name] for draw in draws]) for name in names}
    is_single_target = all(value.ndim == 3 and value.shape[-1] == 1 for value in joined.values())
    return {name: value[..., 0] if is_single_target else value for name, value in joined.items()}


def _moments(draws: list[dict[str, np.ndarray]], share: int) -> Iterator[np.ndarray]:
    """Mean, aleatoric and epistemic variance of all members' samples, a share of each, by the law of total variance."""
    means = np.stack([draw["mean"] for draw in draws])
    mean, count = means.mean(axis=0), share * len(draws)
    deviation = np.sum([draw["deviation"] for draw in draws], axis=0) + share * np.sum((means - mean) ** 2, axis=0)
    noise = np.sum([draw["noise"] for draw in draws], axis=0)
    is_single_target = mean.ndim == 2 and mean.shape[-1] == 1
    return (found[..., 0] if is_single_target else found for found in (mean, noise / count, deviation / count))


def entropy(likelihood: Likelihood, log_p: np.ndarray) -> np.ndarray:
    """Entropy of log probabilities over their last axis, in nats; a single label has no axis."""
    values = keras.ops.convert_to_numpy(label_entropy(log_p))
    is_single_label = not likelihood.has_class_axis and values.ndim == 2 and values.shape[-1] == 1
    return values[..., 0] if is_single_label else values
