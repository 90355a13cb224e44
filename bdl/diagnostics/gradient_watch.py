"""When a callback measures the noise of the gradient: four times in a training at most, out of half of its budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bdl.diagnostics.gradient_analysis import GradientNoise
from bdl.diagnostics.gradient_noise import NOT_MEASURED, NUM_BATCHES, NUM_DRAWS, StepGradient, step_gradient_where_known
from bdl.diagnostics.pacing import Budget, shortest_epoch

_SPACING = 0.25  # of the planned epochs, between two measurements
_PART = 0.5  # of the budget may go to it: the rest is for the probes
_COMPILED = 1.0  # seconds that a compilation takes at least


class GradientWatch:
    """The noise of the gradient in the course of a training.

    The gradient is compiled once. Where a training does not tell how large its batches are, nothing is measured.

    Args:
        data: Training data `(x, y)`, arrays; None measures nothing.
        num_examples: Of them.
        steps: Batches in an epoch, None where that is not known.
        warn: Says what went wrong, after which nothing more is measured.
    """

    def __init__(
        self, data: Any, num_examples: int | None, steps: int | None, warn: Callable[[str], None] = warnings.warn
    ) -> None:
        self._data, self._warn = data, warn
        self._batch_size = math.ceil(num_examples / steps) if num_examples and steps else None
        self._steps = steps or 1
        self._step: StepGradient | None = None
        self._last_epoch: int | None = None
        self.noise: GradientNoise | None = None

    def look(
        self, model: Any, budget: Budget, epochs: Sequence[Mapping[str, Any]], planned: int, is_over: bool
    ) -> None:
        """Measures at the end of an epoch, where it is due and the budget has room for it.

        Args:
            model: The model that is trained.
            budget: Of the callback.
            epochs: Recorded epochs.
            planned: Epochs that were asked for.
            is_over: Whether the training is: then it pays by the time that it took.
        """
        epoch = epochs[-1]["epoch"]
        is_due = self._last_epoch is None or epoch - self._last_epoch >= _SPACING * planned
        if self._data is None or self._batch_size is None or not is_due or len(epochs) < 2:
            return
        shortest = shortest_epoch(epochs)
        compiling = max(epochs[0]["seconds"] - shortest, _COMPILED)  # as long as the training's own
        budget.expect("gradient", compiling + NUM_DRAWS * NUM_BATCHES * shortest / self._steps)
        if not (
            budget.pays("gradient", budget.elapsed(), part=_PART)
            if is_over
            else budget.pays_now("gradient", epochs, planned, is_urgent=False, part=_PART)
        ):
            return
        self._last_epoch = epoch
        with budget.measuring("gradient"):
            try:
                self._measure(model, self._batch_size)
            except Exception as error:  # of the model's own functions, perhaps; all else is still watched
                self._data = None
                self._warn(NOT_MEASURED.format(type(error).__name__, error))

    def _measure(self, model: Any, batch_size: int) -> None:
        if self._step is None:
            self._step = step_gradient_where_known(model, self._data[0])
        if self._step is None:
            self._data = None
        else:
            self.noise = self._step.noise(self._data[0], self._data[1], batch_size)
