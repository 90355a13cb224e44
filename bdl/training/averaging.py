"""Adam that ends a training with the average of its last weights, however short the training is."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

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
