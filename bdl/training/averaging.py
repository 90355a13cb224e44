"""Averages of the iterates, which take the weights' place at the end of `fit`.

`AveragingAdam` is an optimizer whose average needs no length of the training; `TailAverage` is the plain mean over the
second half of a training of known length, whatever the optimizer, or from where `restart` says; `MeanOfReads` is one
that needs no part in the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bdl.keras_internals import current_value
from bdl.random import Tensor

LAST_PART = 0.2
"""Part of the steps done so far over which a short training averages; a tenth to a half serve equally well."""


@keras.saving.register_keras_serializable(package="bdl")
class AveragingAdam(keras.optimizers.Adam):
    """Adam with an average of the weights over the last steps, which takes their place at the end of `fit`.

    An exponential average of momentum .99 covers 100 steps, so that after 150 it still holds 22 % of the first weights.
    Here step `t` has the momentum

        min(ema_momentum, 1 - 1 / (1 + t / 5))

    so that the average covers the last fifth of the steps done (of weight `(s / t)^4` for step `s`), until that is
    longer than the exponential average, which it then is. The length of the training need not be known.

    Args:
        learning_rate: As of `keras.optimizers.Adam`.
        ema_momentum: Momentum of the average in a long training, from 0 to 1.
        **kwargs: Other arguments of `keras.optimizers.Adam`; `use_ema` is True.

    Raises:
        ValueError: as `keras.optimizers.Adam` does.

    Source: the polynomial-decay average of Shamir & Zhang 2013, "Stochastic gradient descent for non-smooth
    optimization: convergence results and optimal averaging schemes".

    Example:
    >>> optimizer = AveragingAdam(1e-2)
    >>> optimizer.build([keras.Variable(1.0)])
    >>> float(optimizer.ema_momentum)
    0.0
    """

    def __init__(self, learning_rate: Any = 1e-3, ema_momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(learning_rate, ema_momentum=ema_momentum, **{**kwargs, "use_ema": True})

    @property
    def ema_momentum(self) -> Tensor:
        """Momentum of the present step, which Keras asks for at each."""
        steps = ops.cast(ops.convert_to_tensor(self.iterations), "float32")
        return ops.minimum(self._longest_momentum, 1.0 - 1.0 / (1.0 + LAST_PART * steps))

    @ema_momentum.setter
    def ema_momentum(self, value: float) -> None:
        self._longest_momentum = value

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "ema_momentum": self._longest_momentum}


class TailAverage:
    """Mean of variables over the second half of the steps of a `fit`.

    Counts and averages are variables of the model, so that an interrupted training that is resumed ends with the same
    mean, and weights that a callback restores come with the average of their time.

    Args:
        model: The model that is trained.
        variables: What is averaged; of floating point numbers.

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the second half alone as
    in Rakhlin, Shamir and Sridharan 2012, arXiv 1109.5647.

    Example:
    >>> model = keras.Sequential()
    >>> weight = keras.Variable(0.0)
    >>> average = TailAverage(model, [weight])
    >>> average.begin(4)
    >>> for value in (1.0, 2.0, 3.0, 4.0):
    ...     average.update()
    ...     _ = weight.assign(value)
    >>> average.put_in_place()
    >>> float(weight)
    3.5
    """

    def __init__(self, model: keras.Model, variables: Sequence[keras.Variable]) -> None:
        self._variables = list(variables)
        self._means = [
            model.add_weight(
                name=f"average_{number}", shape=each.shape, dtype=each.dtype, initializer="zeros", trainable=False
            )
            for number, each in enumerate(self._variables)
        ]
        self._seen = model.add_weight(
            name="averaged_steps", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self._first = model.add_weight(
            name="average_from", shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def begin(self, total_steps: int | None) -> None:
        """Begins a training.

        Args:
            total_steps: Its length; None where it is not known, so that nothing is averaged.
        """
        self._seen.assign(0)
        self._first.assign(2**30 if total_steps is None else total_steps // 2 + 1)

    def restart(self) -> None:
        """Forgets what came before: the average begins with the next step."""
        self._first.assign(int(ops.convert_to_numpy(ops.convert_to_tensor(self._seen))))

    def update(self) -> None:
        """Adds the variables as they are now; once in each step, which may be compiled, before it moves them."""
        number = ops.convert_to_tensor(self._seen) + 1 - ops.convert_to_tensor(self._first)
        share = ops.where(number > 0, 1.0 / ops.cast(ops.maximum(number, 1), "float32"), 0.0)
        for mean, variable in zip(self._means, self._variables, strict=True):
            before, value = ops.convert_to_tensor(mean), ops.stop_gradient(current_value(variable))
            mean.assign(before + ops.cast(share, mean.dtype) * (value - before))
        self._seen.assign_add(1)

    def put_in_place(self) -> None:
        """Gives the variables their means, unless the training ended before its second half began.

        What the last step made of them counts, so that a training of one step ends with that.
        """
        self.update()
        if int(ops.convert_to_numpy(self._seen)) <= int(ops.convert_to_numpy(self._first)):
            return
        for mean, variable in zip(self._means, self._variables, strict=True):
            variable.assign(ops.copy(ops.convert_to_tensor(mean)))


class MeanOfReads:
    """Mean of variables, read from outside of the step: for models that keep no average of their own.

    Args:
        variables: What is averaged.

    Example:
    >>> weight = keras.Variable(1.0)
    >>> average = MeanOfReads([weight])
    >>> for value in (1.0, 2.0):
    ...     _ = weight.assign(value)
    ...     average.update()
    >>> average.put_in_place()
    >>> float(weight)
    1.5
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self._variables = list(variables)
        self.restart()

    def restart(self) -> None:
        """Forgets what was read."""
        self._number = 0
        self._means: list[Any] = [0.0] * len(self._variables)

    def update(self) -> None:
        """Reads the variables."""
        self._number += 1
        for place, variable in enumerate(self._variables):
            value = ops.convert_to_numpy(current_value(variable))
            # In the variables' own dtype: in float64 the copy of a large network would be twice as large.
            self._means[place] = self._means[place] + (value - self._means[place]) / value.dtype.type(self._number)

    def put_in_place(self) -> None:
        """Gives the variables their means, if anything was read."""
        if self._number:
            for mean, variable in zip(self._means, self._variables, strict=True):
                variable.assign(mean)
