"""The recurrent network of examples/volatility.py."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import special

PRIOR_MEDIANS = (0.0, 0.0, special.logit(0.947), math.log(0.2), math.log(8.0), 0.0)
PRIOR_VARIANCES = (0.01, 0.1, 0.1, 0.1, 0.1, 0.1)
"""Of the parameters on the real line: their prior medians, and about the variances of a posterior."""


@keras.saving.register_keras_serializable(package="volatility")
class Memory(keras.layers.Layer):
    """A recurrent layer, forwards and backwards: `s_t = a_t s_{t-1} + (1 - a_t) v_t`, a and v linear in its inputs.

    What is kept, a_t in (0, 1), does not depend on the state. So all days are done together in log2(days) rounds, where
    a GRU takes one day after the other (Feng et al. 2024, "Were RNNs all we needed?", minGRU).
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(4 * units)

    def build(self, shape: Any) -> None:
        """Begins with memories of 1 to 100 days."""
        self.dense.build(shape)
        start = np.zeros(4 * self.units)
        start[: 2 * self.units] = np.tile(np.log(np.geomspace(1.0, 100.0, self.units)), 2)
        self.dense.bias.assign(start)

    def compute_output_shape(self, shape: Any) -> Any:
        """Two states for each unit."""
        return (*shape[:-1], 2 * self.units)

    def call(self, x: Any) -> Any:
        """`(rows, days, inputs)` to `(rows, days, 2 units)`."""
        parts = ops.split(self.dense(x), 4, axis=-1)
        found = []
        for keep, value, is_backwards in zip(parts[:2], parts[2:], (False, True), strict=True):
            keep = ops.sigmoid(ops.flip(keep, axis=1) if is_backwards else keep)
            state = (1.0 - keep) * (ops.flip(value, axis=1) if is_backwards else value)
            distance = 1
            while distance < x.shape[1]:  # `state` then remembers the last `distance` days
                state = state + keep * earlier(state, distance)
                keep = keep * earlier(keep, distance)
                distance *= 2
            found.append(ops.flip(state, axis=1) if is_backwards else state)
        return ops.concatenate(found, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "units": self.units}


def earlier(values: Any, days: int) -> Any:
    """Values of days before, zeros where there are none, `(rows, days, units)`."""
    return ops.pad(values[:, :-days], ((0, 0), (days, 0), (0, 0)))


def network_of(num_given: int) -> keras.Model:
    """From what is told of each day, and a draw of the parameters, to features of each day.

    The draw is centred at the prior's medians, and the features hold it again: how rough a path is, and how soon it
    forgets, depends on it directly.
    """
    centre = [0.0, 0.0, 0.0, *PRIOR_MEDIANS[:num_given]]
    inputs = keras.Input((None, len(centre)))
    days = keras.layers.Normalization(mean=centre, variance=[1.0, 1.0, 1.0, *PRIOR_VARIANCES[:num_given]])(inputs)
    hidden = keras.layers.Dense(32, "tanh")(keras.layers.Concatenate()([days, Memory(16)(days)]))
    return keras.Model(inputs, keras.layers.Concatenate()([days, hidden]))
