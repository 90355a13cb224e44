"""Dropout whose rate is learned with the weights, by the ELBO: its divergence is part of the model's.

Rates are stored as `logit / speed`, for the reason given in `bdl.posteriors`: an optimizer with normalised steps would
otherwise leave them where they began.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from bdl import random
from bdl.estimators import linear
from bdl.estimators.weights import draws_whole_functions
from bdl.layers.freezing import FrozenWithLayer
from bdl.layers.noise_layers import HasNoise
from bdl.layers.regularization.dropout import check_rate, dropout_kl
from bdl.random import Tensor
from bdl.uncounted import note_reading, warn_if_uncounted

_SMALLEST_UNIFORM = 1e-7
# Molchanov et al. 2017, eq. 14: a fit of the divergence from the log-uniform prior.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


@keras.saving.register_keras_serializable(package="bdl")
class ConcreteDropout(FrozenWithLayer, HasNoise, keras.layers.Wrapper):
    """Drops a layer's inputs at a rate that is learned: more data, less dropout.

    The mask is a relaxed (concrete) Bernoulli variable, so that the rate has a gradient; it is relaxed at prediction
    too, as in the paper. `kl_divergence()` is that of dropout's approximate posterior over the wrapped kernel, and part
    of the ELBO, so the layer needs a `bdl.VariationalModel` or `bdl.ELBO` to learn its rate.

    Args:
        layer: A layer that is linear in its kernel: Dense, EinsumDense or a convolution.
        length_scale: Positive inverse of the standard deviation of the kernel's Gaussian prior. Large: small weights.
        initial_rate: Rate at the start, in (0, 1).
        relaxation: Positive temperature of the relaxed mask; towards 0 it becomes Bernoulli and the gradient noisy.
        spatial: Whether whole channels are dropped (for convolutions), and not each value.
        speed: Positive factor between the stored parameter and the logit of the rate.
        seed: Integer seed of the masks, or None for a random one.
        **kwargs: `name`, `dtype` and other arguments of `keras.Layer`.

    Input and output shape: those of the wrapped layer.

    Raises:
        ValueError: if an argument is out of range or the layer is not linear in its kernel.

    Source: Gal, Hron and Kendall 2017, "Concrete dropout", arXiv 1705.07832, eq. 3-5.

    Example:
    >>> layer = ConcreteDropout(keras.layers.Dense(3), initial_rate=0.2, seed=0)
    >>> layer(np.ones((2, 4))).shape == (2, 3), round(float(keras.ops.convert_to_numpy(layer.rate)), 4)
    (True, 0.2)
    """

    def __init__(
        self,
        layer: keras.Layer,
        length_scale: float = 0.1,
        initial_rate: float = 0.1,
        relaxation: float = 0.1,
        spatial: bool = False,
        speed: float = 10.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.Layer) or not linear.is_linear(layer):
            raise ValueError(f"`layer` must be a Dense, EinsumDense or convolution layer, not {layer!r}.")
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        if check_rate(initial_rate, "initial_rate") == 0:
            raise ValueError("`initial_rate` must be above 0: a rate of 0 has no gradient. Start at 0.01, say.")
        for argument, value in (("length_scale", length_scale), ("relaxation", relaxation), ("speed", speed)):
            _check_positive(argument, value)
        self.length_scale = length_scale
        self.initial_rate = initial_rate
        self.relaxation = relaxation
        self.spatial = spatial
        self.speed = speed
        self.create_noise(seed)
        self.supports_masking = layer.supports_masking

    @property
    def rate(self) -> Tensor:
        """The rate as it is now: scalar tensor in (0, 1)."""
        return ops.sigmoid(self.speed * ops.convert_to_tensor(self.rate_rho))

    def build(self, input_shape: Any = None) -> None:
        """Builds the wrapped layer and adds the rate's parameter."""
        super().build(input_shape)
        logit = math.log(self.initial_rate / (1.0 - self.initial_rate))
        self.rate_rho = self.add_weight(
            name="rate_rho",
            shape=(),
            initializer=keras.initializers.Constant(logit / self.speed),
            dtype="float32",
            autocast=False,
        )
        self.follow(self.layer.kernel, [self.rate_rho])
        self.add_noise_strength()
        axes = linear.feature_axes(self.layer)[0]
        # What is dropped independently: channels, or each of the features that the kernel sums over.
        self._num_dropped = math.prod(input_shape[axis] for axis in axes)
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Any:
        """The layer on dropped inputs, in training and outside it."""
        warn_if_uncounted(self, training)
        key, strength = self.draw()
        shape = tuple(ops.shape(inputs))
        if self.spatial:
            shape = (shape[0], *linear.feature_shape(inputs.shape, linear.feature_axes(self.layer)[0]))
        shape, key = ((1, *shape[1:]), key) if draws_whole_functions() else (shape, random.of_examples(key))
        uniform = ops.clip(random.uniform(shape, key), _SMALLEST_UNIFORM, 1.0 - _SMALLEST_UNIFORM)
        logit = self.speed * ops.convert_to_tensor(self.rate_rho)
        dropped = ops.sigmoid((logit + ops.log(uniform) - ops.log(1.0 - uniform)) / self.relaxation)
        factor = (1.0 - dropped) * (1.0 + ops.exp(logit))  # 1 / (1 - rate) = 1 + exp(logit)
        return self.layer(inputs * ops.cast(1.0 + strength * (factor - 1.0), inputs.dtype))

    def kl_divergence(self) -> Tensor:
        """Divergence of the approximate posterior from the prior, up to a constant: scalar, total, in nats."""
        if not self.built:
            raise ValueError(f"Layer {self.name} has no weights yet: build it, or call it once.")
        note_reading(self)
        return dropout_kl(ops.convert_to_tensor(self.layer.kernel), self.rate, self.length_scale, self._num_dropped)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape that the wrapped layer computes."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        names = ("length_scale", "initial_rate", "relaxation", "spatial", "speed", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="bdl")
class VariationalGaussianDropout(HasNoise, keras.layers.Layer):
    """Multiplies its inputs by `N(1, alpha)` with a learned `alpha`, one for each input feature or one for all.

    `kl_divergence()` is the divergence from the log-uniform prior, one term for each feature that has noise of its own.
    That prior is improper, so the divergence is fixed only up to a constant: it is chosen so that it vanishes as alpha
    grows.

    Args:
        initial_alpha: Variance at the start, positive and at most `max_alpha`.
        max_alpha: Cap of the variance; Kingma et al. 2015 take 1 (a dropout rate of one half), since beyond it the
            gradient is too noisy to learn from.
        per_feature: Whether each feature (on the last axis) has a variance of its own.
        speed: Positive factor between the stored parameter and the logarithm of alpha.
        seed: Integer seed of the noise, or None for a random one.
        **kwargs: `name`, `dtype` and other arguments of `keras.Layer`.

    Input and output shape: `(batch, ..., features)`, the same.

    Raises:
        ValueError: if an argument is out of range.

    Sources: Kingma, Salimans and Welling 2015, arXiv 1506.02557, section 3; the fit of the divergence: Molchanov,
    Ashukha and Vetrov 2017, arXiv 1701.05369, eq. 14.

    Example:
    >>> VariationalGaussianDropout(seed=0)(np.ones((2, 4))).shape == (2, 4)
    True
    """

    def __init__(
        self,
        initial_alpha: float = 0.1,
        max_alpha: float = 1.0,
        per_feature: bool = True,
        speed: float = 10.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for argument, value in (("initial_alpha", initial_alpha), ("max_alpha", max_alpha), ("speed", speed)):
            _check_positive(argument, value)
        if initial_alpha > max_alpha:
            raise ValueError(f"`initial_alpha` must be at most `max_alpha`={max_alpha!r}, not {initial_alpha!r}.")
        self.initial_alpha = initial_alpha
        self.max_alpha = max_alpha
        self.per_feature = per_feature
        self.speed = speed
        self.create_noise(seed)
        self.supports_masking = True

    @property
    def alpha(self) -> Tensor:
        """The variances as they are now: a vector of one for each feature, or of one."""
        return ops.exp(self._log_alpha())

    def build(self, input_shape: Any) -> None:
        """Adds the parameters of the variances."""
        self.alpha_rho = self.add_weight(
            name="alpha_rho",
            shape=(input_shape[-1] if self.per_feature else 1,),
            initializer=keras.initializers.Constant(math.log(self.initial_alpha) / self.speed),
            dtype="float32",
            autocast=False,
        )
        self._num_features = input_shape[-1]
        self.add_noise_strength()
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """The inputs with noise, in training and outside it."""
        warn_if_uncounted(self, training)
        key, strength = self.draw()
        shape = tuple(ops.shape(inputs))
        shape, key = ((1, *shape[1:]), key) if draws_whole_functions() else (shape, random.of_examples(key))
        noise = random.normal(shape, key)
        return inputs * ops.cast(1.0 + strength * ops.sqrt(self.alpha) * noise, inputs.dtype)

    def kl_divergence(self) -> Tensor:
        """Divergence from the log-uniform prior, zero for infinite alpha: scalar, total, in nats."""
        if not self.built:
            raise ValueError(f"Layer {self.name} has no weights yet: build it, or call it once.")
        note_reading(self)
        log_alpha = self._log_alpha()
        each = _K1 * ops.sigmoid(-_K2 - _K3 * log_alpha) + 0.5 * ops.softplus(-log_alpha)
        return ops.sum(each) * (1 if self.per_feature else self._num_features)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The inputs' shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        names = ("initial_alpha", "max_alpha", "per_feature", "speed", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _log_alpha(self) -> Tensor:
        return ops.minimum(self.speed * ops.convert_to_tensor(self.alpha_rho), math.log(self.max_alpha))


def _check_positive(argument: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and value > 0 and math.isfinite(value)):
        raise ValueError(f"`{argument}` must be a finite positive number, not {value!r}.")
