"""Schedules of the KL weight, the temperature T, over training."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
