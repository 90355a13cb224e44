"""Schedules over training: of the KL weight, the temperature T, and of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.serialization import Serializable

_register = keras.saving.register_keras_serializable(package="bdl")


class KLSchedule(Serializable):
    """Base of schedules of the KL weight (the temperature T) over training."""

    needs_total_steps: bool = True

    def num_steps(self, total_steps: int) -> int:
        """Steps after which T stays where it is, of a training of that many; 0 where it never does."""
        return total_steps

    def __call__(self, step: Tensor, total_steps: Tensor) -> Tensor:
        """The weight at a step.

        Args:
            step: Training steps done so far, scalar float32.
            total_steps: Steps of the whole training, scalar float32.
        """
        raise NotImplementedError


@_register
@dataclass(frozen=True)
class LinearWarmup(KLSchedule):
    """T rises linearly from 0 to 1, then stays 1: the means find the data before the KL bites.

    Args:
        fraction: Part of the training over which T rises, in (0, 1].
        steps: Number of steps over which it rises instead, for training without a known end.

    Raises:
        ValueError: if an argument is out of range.

    Sources: Bowman et al. 2015; Sønderby et al. 2016, "Ladder variational autoencoders", section 2.3.

    Example:
    >>> [float(LinearWarmup(0.5)(np.float32(step), np.float32(100))) for step in (0, 25, 50, 100)]
    [0.0, 0.5, 1.0, 1.0]
    """

    fraction: float = 0.85
    steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` must be in (0, 1], not {self.fraction!r}.")
        if self.steps is not None and not (isinstance(self.steps, int) and self.steps > 0):
            raise ValueError(f"`steps` must be a positive integer or None, not {self.steps!r}.")

    @property
    def needs_total_steps(self) -> bool:  # type: ignore[override]
        """False where the length of the ramp is given in steps."""
        return self.steps is None

    def num_steps(self, total_steps: int) -> int:
        """Length of the ramp."""
        return self.steps if self.steps is not None else math.ceil(self.fraction * total_steps)

    def __call__(self, step: Tensor, total_steps: Tensor) -> Tensor:
        """`min(1, step / ramp)`."""
        ramp = float(self.steps) if self.steps is not None else self.fraction * total_steps
        return ops.minimum(1.0, step / ops.maximum(ramp, 1e-6))


@_register
@dataclass(frozen=True)
class CyclicalWarmup(KLSchedule):
    """Several linear warm-ups in a row; at 1 after the last.

    Args:
        cycles: Positive number of cycles.
        fraction: Part of each cycle over which T rises, in (0, 1].

    Raises:
        ValueError: if an argument is out of range.

    Source: Fu et al. 2019, "Cyclical annealing schedule", eq. 6-7.

    Example:
    >>> [float(CyclicalWarmup(2)(np.float32(step), np.float32(100))) for step in (0, 25, 50, 75, 100)]
    [0.0, 1.0, 0.0, 1.0, 1.0]
    """

    cycles: int = 4
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not (isinstance(self.cycles, int) and self.cycles > 0):
            raise ValueError(f"`cycles` must be a positive integer, not {self.cycles!r}.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` must be in (0, 1], not {self.fraction!r}.")

    def __call__(self, step: Tensor, total_steps: Tensor) -> Tensor:
        """Position in the cycle over its rising part, at most 1."""
        period = ops.maximum(total_steps / self.cycles, 1e-6)
        position = step / period
        phase = position - ops.floor(position)
        return ops.where(step >= total_steps, 1.0, ops.minimum(1.0, phase / self.fraction))


@_register
@dataclass(frozen=True)
class MinibatchWeights(KLSchedule):
    """Within each pass over M minibatches, batch i pays `M 2^(M-i) / (2^M - 1)` times its share; 1 on average.

    Args:
        num_batches: Positive number of minibatches in a pass, M.

    Raises:
        ValueError: if it is not a positive integer.

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.4.

    Example:
    >>> [round(float(MinibatchWeights(2)(np.float32(step), 0.0)), 4) for step in range(4)]
    [1.3333, 0.6667, 1.3333, 0.6667]
    """

    num_batches: int = 1
    needs_total_steps = False

    def __post_init__(self) -> None:
        if not (isinstance(self.num_batches, int) and self.num_batches > 0):
            raise ValueError(f"`num_batches` must be a positive integer, not {self.num_batches!r}.")

    def num_steps(self, total_steps: int) -> int:
        """None: the weights go on for ever, and are 1 on average."""
        return 0

    def __call__(self, step: Tensor, total_steps: Tensor) -> Tensor:
        """The weight of this minibatch, written without `2^M`, which overflows."""
        batch = step - self.num_batches * ops.floor(step / self.num_batches) + 1.0
        return self.num_batches * ops.exp(-math.log(2.0) * batch) / -math.expm1(-self.num_batches * math.log(2.0))


@keras.saving.register_keras_serializable(package="bdl")
class DecayOverFit(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that falls along half a cosine from its start to nearly nothing, over each `fit`.

    At a constant rate the last iterate jitters: it errs by more than the posterior's uncertainty, and a learned noise
    scale takes the jitter for noise in the data. A rate that falls can start three to ten times higher.
    `bdl.VariationalModel.fit` tells the schedule its length, so that nobody counts steps; the next fit starts high
    again. Before the first fit, and under other models, the rate is constant.

    Args:
        rate: Positive learning rate at the start.
        first_step: The optimizer's count of steps where a fit began.
        num_steps: Steps of a fit, or None before the first began. A cycle of that many follows another.

    Raises:
        ValueError: if `rate` is no positive number.

    Source: Loshchilov & Hutter 2017, "SGDR: Stochastic gradient descent with warm restarts", eq. 5.

    Example:
    >>> schedule = DecayOverFit(1e-2, num_steps=100)
    >>> [round(float(schedule(step)), 4) for step in (0, 25, 50, 99)]
    [0.01, 0.0085, 0.005, 0.0]
    """

    def __init__(self, rate: float, first_step: int = 0, num_steps: int | None = None) -> None:
        if not (isinstance(rate, (int, float)) and rate > 0 and math.isfinite(rate)):
            raise ValueError(f"`rate` must be a finite positive number, not {rate!r}.")
        self.rate = float(rate)
        self.first_step, self.num_steps = first_step, num_steps

    def begin_fit(self, first_step: int, num_steps: int) -> bool:
        """Begins a cycle of that many steps at a step of the optimizer; whether the schedule changed by that."""
        if num_steps == self.num_steps and (first_step - self.first_step) % num_steps == 0:
            return False
        self.first_step, self.num_steps = first_step, num_steps
        return True

    def __call__(self, step: Tensor) -> Tensor:
        """The rate at a step of the optimizer."""
        if not self.num_steps:
            return ops.convert_to_tensor(self.rate, dtype="float32")
        phase = ops.mod(ops.cast(step, "int32") - self.first_step, self.num_steps)
        return 0.5 * self.rate * (1.0 + ops.cos(math.pi * ops.cast(phase, "float32") / self.num_steps))

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {"rate": self.rate, "first_step": self.first_step, "num_steps": self.num_steps}
