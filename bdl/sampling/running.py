"""What is kept of samples while they come one by one: sums, in memory that does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from bdl.likelihoods import Likelihood
from bdl.random import Tensor

MOMENTS = ("mean", "deviation", "noise")
"""Those of targets and counts; see `Kept`."""

SUMS = ("p_scale", "p_sum", "entropy_sum", *MOMENTS)
"""Results that are sums over samples, without an axis of them."""


@dataclass(frozen=True)
class Kept:
    """What a prediction keeps of its samples, besides the sums of a classifier.

    Args:
        outputs: All outputs, `(num_samples, n, ...)`.
        parameters: The likelihood's parameters of every sample, `(num_samples, n, ...)`; of targets and counts.
        moments: Mean of the samples' means, sum of the squares of their deviations from it, and sum of the samples'
            variances; of targets and counts.
    """

    outputs: bool = False
    parameters: bool = True
    moments: bool = False

    def all_outputs(self, likelihood: Likelihood) -> bool:
        """Whether the outputs of all samples are there at the end of a batch."""
        return self.outputs or (self.parameters and not likelihood.is_classifier)


PARAMETERS = Kept()
"""What a prediction keeps that was asked for nothing else."""


def no_samples(likelihood: Likelihood, shape: tuple[int, ...], num_samples: int, kept: Kept) -> dict[str, Tensor]:
    """What is kept before the first of so many samples, for outputs of a shape."""
    empty: dict[str, Tensor] = {}
    if likelihood.is_classifier:
        p_shape = likelihood.mean_shape(shape)
        events = p_shape[:-1] if likelihood.has_class_axis else p_shape
        empty["p_sum"] = ops.zeros(p_shape if likelihood.has_class_axis else (*p_shape, 2), dtype="float32")
        empty["p_scale"] = ops.full_like(empty["p_sum"], -float("inf"))
        empty["entropy_sum"] = ops.zeros(events, dtype="float32")
    elif kept.moments:
        mean = ops.zeros_like(likelihood.mean(ops.zeros(shape, dtype="float32")))
        empty.update(mean=mean, deviation=mean, noise=mean)
    if kept.all_outputs(likelihood):
        empty["outputs"] = ops.zeros((num_samples, *shape), dtype="float32")
    return empty


def with_sample(likelihood: Likelihood, before: dict[str, Tensor] | None, outputs: Tensor, number: Any) -> Any:
    """What is kept with one more sample in it.

    Args:
        likelihood: Of the outputs.
        before: What `no_samples` or this function gave; None before the first, where there are to be sums alone.
        outputs: The sample, float32.
        number: How many came before it.
    """
    after: dict[str, Tensor] = {}
    if likelihood.is_classifier:
        log_p = likelihood.log_probabilities(outputs)
        start = {"p_scale": ops.full_like(log_p, -float("inf")), "p_sum": ops.zeros_like(log_p), "entropy_sum": 0.0}
        sums = start if before is None else before
        after["p_scale"], after["p_sum"] = add_probability(sums["p_scale"], sums["p_sum"], log_p)
        after["entropy_sum"] = sums["entropy_sum"] + label_entropy(log_p)
    elif before is None or "mean" in before:
        mean, variance = likelihood.mean(outputs), likelihood.variance(outputs)
        sums = {"mean": ops.zeros_like(mean), "deviation": 0.0, "noise": 0.0} if before is None else before
        change = mean - sums["mean"]
        after["mean"] = sums["mean"] + change / ops.cast(number + 1, "float32")  # Welford's recurrence
        after["deviation"] = sums["deviation"] + change * (mean - after["mean"])
        after["noise"] = sums["noise"] + variance
    if before is not None and "outputs" in before:
        place = (number, *(0 for _ in outputs.shape))
        after["outputs"] = ops.slice_update(before["outputs"], place, ops.expand_dims(outputs, 0))
    return after


def label_entropy(log_p: Any) -> Tensor:
    """Entropy in nats of log probabilities over their last axis; a class of probability 0 adds nothing."""
    log_p = ops.convert_to_tensor(log_p)
    finite = ops.maximum(log_p, float(np.finfo(np.float32).min))  # 0 * inf is nan
    return -ops.sum(ops.exp(log_p) * finite, axis=-1)


def add_probability(scale: Tensor, total: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """A sum of probabilities that may be too small for float32, with one more in it: the sum is `exp(scale) * total`.

    `scale` is the greatest log probability so far, so that the sum's logarithm is `scale + log(total)` ("online
    softmax", Milakov & Gimelshein 2018). It costs one exponential function; the first `scale` is -inf.
    """
    high = ops.maximum(scale, log_p)
    gap = ops.exp(ops.where(high > -float("inf"), ops.minimum(scale, log_p) - high, 0.0))
    return high, ops.where(log_p > scale, total * gap + 1.0, total + gap)
