"""A temperature on top of a network: calibrated logits without touching the weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.random import Tensor


@keras.saving.register_keras_serializable(package="bdl")
class TemperatureScaling(keras.Layer):
    """Divides logits by a temperature (Guo et al. 2017, "On calibration of modern neural networks", eq. 9).

    `bdl.calibration.TemperatureScaling(from_logits=True).fit(logits, y).to_layer()` makes one with the temperature of
    least negative log likelihood on held-out data. The temperature is no trainable weight: fitted on the training data
    it would undo what it is for.

    Args:
        temperature: Positive number; above 1 makes probabilities more modest.
        **kwargs: Other arguments of `keras.Layer`.

    Input shape: any, `(batch, ..., classes)`. Output shape: the same.

    Raises:
        ValueError: if `temperature` is not positive and finite.

    Example:
    >>> import keras
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> calibrated = keras.Sequential([network, TemperatureScaling(2.0), keras.layers.Softmax()])
    >>> calibrated.output_shape
    (None, 3)
    """

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(temperature, bool) or not np.isreal(temperature) or not 0 < temperature < np.inf:
            raise ValueError(f"`temperature` must be a positive number, not {temperature!r}. Pass 1.0 for none.")
        self.initial_temperature = float(temperature)
        self.supports_masking = True
        self.temperature = self.add_weight(
            name="temperature",
            shape=(),
            initializer=keras.initializers.Constant(self.initial_temperature),
            trainable=False,
            dtype="float32",
            autocast=False,
        )
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """The logits divided by the temperature, in the layer's compute type."""
        return inputs / ops.cast(self.temperature, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The temperature it started from; that of today is saved with the weights."""
        return {**super().get_config(), "temperature": self.initial_temperature}
