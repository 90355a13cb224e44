"""Layers of the zoo that are not bdl's own: with a KL by `add_loss`, of another library, and with a code."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np


@lru_cache(maxsize=1)
def add_loss_layer() -> Any:
    """A layer that adds its KL by `add_loss` with a weight of the user's, as other libraries do."""
    import bdl

    class AddLossDense(bdl.layers.DenseReparameterization):
        def __init__(self, units: int, kl_weight: float = 1.0, **kwargs: Any) -> None:
            super().__init__(units, kernel_prior=bdl.priors.EmpiricalBayes(), **kwargs)
            self.kl_weight = kl_weight

        def call(self, *args: Any, **kwargs: Any) -> Any:
            self.add_loss(self.kl_weight * self.kl_divergence())
            return super().call(*args, **kwargs)

    return AddLossDense


@lru_cache(maxsize=1)
def foreign_layer() -> Any:
    """A layer as another library writes it: means, something that scales are made of, and the KL of one sample.

    `kind` says how: `"rho"` holds softplus' argument under N(0, 1), `"log_std"` a logarithm, and `"mixture"` has a
    prior that is not Gaussian.
    """
    import keras
    from keras import ops

    class ForeignDense(keras.layers.Layer):
        def __init__(self, units: int, kl_weight: float = 1.0, kind: str = "rho", **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.units, self.kl_weight, self.kind = units, kl_weight, kind
            self.seed_generator = keras.random.SeedGenerator()

        def build(self, shape: Any) -> None:
            start = keras.initializers.Constant(-3.0)
            name = "kernel_log_std" if self.kind == "log_std" else "kernel_rho"
            self.kernel_mu = self.add_weight(shape=(shape[-1], self.units), name="kernel_mu")
            self.kernel_raw = self.add_weight(shape=(shape[-1], self.units), name=name, initializer=start)

        def call(self, inputs: Any) -> Any:
            scale = ops.exp(self.kernel_raw) if self.kind == "log_std" else ops.softplus(self.kernel_raw)
            noise = keras.random.normal(self.kernel_mu.shape, seed=self.seed_generator)
            weight = self.kernel_mu + scale * noise
            log_prior = -0.5 * weight**2
            if self.kind == "mixture":  # half of it N(0, 1 / 100)
                log_prior = ops.logaddexp(log_prior, log_prior * 100.0 + np.log(10.0)) - np.log(2.0)
            log_ratio = -ops.log(scale) - 0.5 * noise**2 - log_prior
            self.add_loss(self.kl_weight * ops.sum(log_ratio))
            return ops.matmul(inputs, weight)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "units": self.units, "kl_weight": self.kl_weight, "kind": self.kind}

    return ForeignDense


@lru_cache(maxsize=1)
def code_layer() -> Any:
    """A Gaussian code `q(z | x)` with prior N(0, 1): a local latent variable, whose KL it adds for each example."""
    import keras
    from keras import ops

    import bdl

    class Code(keras.layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.seed_generator = keras.random.SeedGenerator()

        def call(self, inputs: Any) -> Any:
            mean, raw = ops.split(inputs, 2, axis=-1)
            scale = ops.softplus(raw) + 1e-3
            kl = 0.5 * (ops.square(mean) + ops.square(scale) - 1.0) - ops.log(scale)
            bdl.layers.add_local_kl(self, ops.sum(kl, axis=-1))
            bdl.layers.report_latent(self, bdl.layers.GaussianCode(mean=mean, scale=scale))
            return mean + scale * keras.random.normal(ops.shape(mean), seed=self.seed_generator)

        def compute_output_shape(self, shape: Any) -> Any:
            return (*shape[:-1], shape[-1] // 2)

    return Code
