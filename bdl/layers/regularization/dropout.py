"""Dropout that stays on at prediction: its repeated predictions are samples of an approximate posterior.

The layers take the arguments of their Keras namesakes. `shared_axes` holds masks fixed: `(1,)` gives a sequence one
mask for all of its steps, `(0,)` one function for the batch; within a prediction with `consistent=True` every example
has the same.

Source: Gal and Ghahramani 2016, "Dropout as a Bayesian approximation", arXiv 1506.02142; masks fixed over time: Gal and
Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural networks", arXiv 1512.05287.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from bdl.estimators.dropout import apply_dropout
from bdl.layers.documentation import complete_docstring
from bdl.layers.noise_layers import HasNoise
from bdl.random import Tensor


class _MonteCarloNoise(HasNoise, keras.layers.Layer):
    """What these layers share: they have the attributes of the Keras layer whose noise they draw.

    Args:
        shared_axes: Axes along which one draw serves all.
        seed: Integer seed of the noise, or None for a random one.
    """

    wraps: type

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_docstring(cls, [base for base in cls.__mro__[1:] if issubclass(base, _MonteCarloNoise)])

    def __init__(self, shared_axes: Sequence[int] = (), seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shared_axes = tuple(shared_axes)
        self.create_noise(seed)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Adds the strength of the noise."""
        rank = len(input_shape)
        if any(not -rank <= axis < rank for axis in self.shared_axes):
            raise ValueError(f"`shared_axes` must be axes of an input with {rank} axes, not {self.shared_axes}.")
        self.add_noise_strength()
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """The inputs with noise, in training and outside it."""
        return apply_dropout(self, inputs, *self.draw(), self.shared_axes, self.wraps)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The inputs' shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "shared_axes": list(self.shared_axes), "seed": self.seed}


class _RateNoise(_MonteCarloNoise):
    """Noise that has a rate.

    Args:
        rate: Share of the values that is dropped, in [0, 1).

    Raises:
        ValueError: if the rate is not in [0, 1).
    """

    def __init__(self, rate: float, shared_axes: Sequence[int] = (), seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(shared_axes, seed, **kwargs)
        self.rate = check_rate(rate)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="bdl")
class MCDropout(_RateNoise):
    """`keras.layers.Dropout` that stays on at prediction.

    Input and output shape: any, the same.

    Args:
        noise_shape: Shape of the mask, None for an axis of the input, as in Keras.

    Source: Gal and Ghahramani 2016, "Dropout as a Bayesian approximation".

    Example:
    >>> layer = MCDropout(0.5, shared_axes=(1,), seed=0)
    >>> dropped = np.asarray(keras.ops.convert_to_numpy(layer(np.ones((1, 3, 8), "float32"))))
    >>> bool((dropped == dropped[:, :1]).all()), sorted({float(value) for value in dropped.ravel()})
    (True, [0.0, 2.0])
    """

    wraps = layers.Dropout

    def __init__(
        self,
        rate: float,
        shared_axes: Sequence[int] = (),
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, shared_axes, seed, **kwargs)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "noise_shape": self.noise_shape}


class _SpatialNoise(_RateNoise):
    """Noise of whole channels.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; None is Keras' `image_data_format()`.
    """

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        shared_axes: Sequence[int] = (),
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, shared_axes, seed, **kwargs)
        self.data_format = keras.config.image_data_format() if data_format is None else data_format

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "data_format": self.data_format}


@keras.saving.register_keras_serializable(package="bdl")
class MCSpatialDropout1D(_SpatialNoise):
    """`keras.layers.SpatialDropout1D` that stays on at prediction: whole channels are dropped, fixed over time.

    Input and output shape `(batch, time, channels)`.

    Source: Tompson et al. 2015, "Efficient object localization using convolutional networks".

    Example:
    >>> MCSpatialDropout1D(0.5)(np.ones((2, 3, 4))).shape == (2, 3, 4)
    True
    """

    wraps = layers.SpatialDropout1D


@keras.saving.register_keras_serializable(package="bdl")
class MCSpatialDropout2D(_SpatialNoise):
    """`keras.layers.SpatialDropout2D` that stays on at prediction: whole channels are dropped.

    Input and output shape `(batch, height, width, channels)`.

    Source: Tompson et al. 2015, "Efficient object localization using convolutional networks".

    Example:
    >>> MCSpatialDropout2D(0.5)(np.ones((2, 3, 3, 4))).shape == (2, 3, 3, 4)
    True
    """

    wraps = layers.SpatialDropout2D


@keras.saving.register_keras_serializable(package="bdl")
class MCSpatialDropout3D(_SpatialNoise):
    """`keras.layers.SpatialDropout3D` that stays on at prediction: whole channels are dropped.

    Input and output shape `(batch, ..., channels)`.

    Source: Tompson et al. 2015, "Efficient object localization using convolutional networks".

    Example:
    >>> MCSpatialDropout3D(0.5)(np.ones((2, 3, 3, 3, 4))).shape == (2, 3, 3, 3, 4)
    True
    """

    wraps = layers.SpatialDropout3D


@keras.saving.register_keras_serializable(package="bdl")
class MCGaussianDropout(_RateNoise):
    """`keras.layers.GaussianDropout` that stays on at prediction: values times `N(1, rate / (1 - rate))`.

    Input and output shape: any, the same.

    Source: Srivastava et al. 2014, "Dropout", section 10.

    Example:
    >>> MCGaussianDropout(0.5)(np.ones((2, 4))).shape == (2, 4)
    True
    """

    wraps = layers.GaussianDropout


@keras.saving.register_keras_serializable(package="bdl")
class MCAlphaDropout(_RateNoise):
    """`keras.layers.AlphaDropout` that stays on at prediction: mean 0 and variance 1 are kept, for SELU networks.

    Input and output shape: any, the same.

    Source: Klambauer et al. 2017, "Self-normalizing neural networks".

    Example:
    >>> MCAlphaDropout(0.5)(np.ones((2, 4))).shape == (2, 4)
    True
    """

    wraps = layers.AlphaDropout


@keras.saving.register_keras_serializable(package="bdl")
class MCGaussianNoise(_MonteCarloNoise):
    """`keras.layers.GaussianNoise` that stays on at prediction: values plus `N(0, stddev^2)`.

    Args:
        stddev: Non-negative standard deviation.

    Input and output shape: any, the same.

    Raises:
        ValueError: if `stddev` is negative.

    Example:
    >>> MCGaussianNoise(0.5)(np.ones((2, 4))).shape == (2, 4)
    True
    """

    wraps = layers.GaussianNoise

    def __init__(self, stddev: float, shared_axes: Sequence[int] = (), seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(shared_axes, seed, **kwargs)
        if isinstance(stddev, bool) or not isinstance(stddev, (int, float)) or not stddev >= 0:
            raise ValueError(f"`stddev` must be a number >= 0 (a standard deviation), not {stddev!r}.")
        self.stddev = stddev

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "stddev": self.stddev}


def check_rate(rate: Any, argument: str = "rate") -> float:
    """The rate, if it is one.

    Raises:
        ValueError: if it is not a number in [0, 1).
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"`{argument}` must be a number in [0, 1) (the share that is dropped), not {rate!r}.")
    return rate


def dropout_kl(kernel: Tensor, rate: float, length_scale: float, input_dim: int) -> Tensor:
    """Divergence of dropout's approximate posterior from a Gaussian prior, up to a constant.

    Dropout with rescaling multiplies row i of the kernel by `z_i / (1 - rate)`, `z_i ~ Bernoulli(1 - rate)`. With the
    prior `N(0, 1 / length_scale^2)` on each weight

        KL = length_scale^2 / (2 (1 - rate)) * sum of kernel^2 - input_dim * H(rate).

    Divided by the number of examples its first part is the L2 penalty that makes dropout training maximise an ELBO.

    Args:
        kernel: Kernel that follows the dropout.
        rate: Rate in [0, 1), or a scalar tensor.
        length_scale: Inverse of the prior's standard deviation.
        input_dim: Number of inputs that are dropped independently.

    Returns:
        Scalar, total, in nats; may be negative, as the constant is left out.

    Source: Gal and Ghahramani 2016, arXiv 1506.02157, appendix, eq. 27; Gal, Hron and Kendall 2017, arXiv 1705.07832,
    eq. 3-4, for a kernel that is not rescaled.

    Example:
    >>> round(float(dropout_kl(np.ones((4, 3), "float32"), 0.5, 1.0, 4)), 4)
    9.2274
    """
    rate = ops.convert_to_tensor(rate, dtype="float32")
    kept = 1.0 - rate
    entropy = -rate * ops.log(ops.maximum(rate, 1e-30)) - kept * ops.log(ops.maximum(kept, 1e-30))
    weights = ops.sum(ops.square(ops.cast(kernel, "float32")))
    return 0.5 * length_scale**2 / kept * weights - input_dim * entropy
