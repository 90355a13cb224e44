"""Gaussian layers whose KL enters the loss by `add_loss`, as other libraries write them."""

from typing import Any

import keras

import bdl


class AddLossDense(bdl.layers.DenseReparameterization):
    """Adds its KL by `add_loss` with a weight of the user's."""

    def __init__(self, units: int, kl_weight: float, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.kl_weight = kl_weight

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self.add_loss(self.kl_weight * self.kl_divergence())
        return super().call(*args, **kwargs)


class ForeignDense(keras.layers.Layer):
    """A layer that bdl knows nothing of: `kernel_mu`, `kernel_rho`, the KL of one sample."""

    def __init__(self, units: int, kl_weight: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.kl_weight, self.prior_sigma = units, kl_weight, 1.0
        self.seed_generator = keras.random.SeedGenerator(0)

    def build(self, shape: Any) -> None:
        self.mu = self.add_weight(shape=(shape[-1], self.units), name="kernel_mu")
        rho = keras.initializers.Constant(-3.0)
        self.rho = self.add_weight(shape=(shape[-1], self.units), name="kernel_rho", initializer=rho)

    def call(self, inputs: Any) -> Any:
        scale = keras.ops.softplus(self.rho)
        noise = keras.random.normal(self.mu.shape, seed=self.seed_generator)
        weight = self.mu + scale * noise
        log_ratio = -keras.ops.log(scale) - 0.5 * noise**2 + 0.5 * weight**2
        self.add_loss(self.kl_weight * keras.ops.sum(log_ratio))
        return keras.ops.matmul(inputs, weight)
