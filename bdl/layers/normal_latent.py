"""A Gaussian code of each example: the latent variable of an autoencoder, in any Keras network."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from bdl import random
from bdl.arguments import is_positive_integer
from bdl.latents import ACTIVE_VARIANCE, GaussianCode, add_local_kl, is_kl_of_draw, report_latent
from bdl.layers.noise_layers import HasNoise
from bdl.random import Tensor

MIN_SCALE = 1e-6
"""Least standard deviation of a code: its logarithm and the gradient of that stay finite, whatever the network says."""

FIGURES = ("kl", "active_units")
"""What the logs say of a code: nats per example; share of its units whose mean varies within the batch."""

_UNIT_SCALE = math.log(math.expm1(1.0))
"""Softplus of it is 1."""


@keras.saving.register_keras_serializable(package="bdl")
class NormalLatent(HasNoise, keras.layers.Layer):
    """A code with a Gaussian posterior that a network computes from each example (amortized inference).

    Two dense heads of this layer make the posterior `q(z | x) = N(mean(x), scale(x)^2)` of the features that come in,
    and the layer returns a draw of it. `KL(q(z | x) || N(0, 1))`, summed over the units, joins the ELBO once an
    example, as the KL of any local latent variable does: `bdl.VariationalModel` and `bdl.ELBO` count it, undivided by
    the number of examples. An encoder, this layer and a decoder are a variational autoencoder; a code may stand
    anywhere else in a network as well.

    Each call draws, at prediction too, so that repeated predictions are samples. Within `bdl.mean_weights(model)` the
    layer returns the posterior's mean. A new layer has the scale 1 for every example, which is the prior's.

    The KL is in closed form. In a step of `VariationalModel(objective="multi_sample")` it is `log q(z | x) - log p(z)`
    of the draw instead, so that the loss is the importance weighted bound, wherever all randomness is in codes.

    Logs have `<name>_kl`, in nats per example, and `<name>_active_units`, the share of units whose mean varies within
    a batch by more than .01 (a constant that a decoder cannot use is a code that has collapsed).
    `bdl.diagnostics.diagnose` reads both from a probe.

    Args:
        units: Positive integer, size of the code.
        seed: Integer seed of the layer's noise, or None for a random one.
        **kwargs: `name`, `dtype` and other arguments of `keras.Layer`.

    Call arguments: `inputs`, features of each example; `mask`, True for positions that exist, `(batch, ...)`: others
    have no part in the KL.

    Input shape: `(batch, ..., features)`. Output shape: `(batch, ..., units)`: of a sequence one code at each position.

    Raises:
        ValueError: if `units` is not a positive integer.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", arXiv 1312.6114.

    Example:
    >>> encoder = [keras.Input((64,)), keras.layers.Dense(32, "relu"), bdl.layers.NormalLatent(2, name="code")]
    >>> network = keras.Sequential([*encoder, keras.layers.Dense(32, "relu"), keras.layers.Dense(64)])
    >>> model = bdl.VariationalModel(network, bdl.likelihoods.Bernoulli())
    >>> model.compile("adam")
    >>> history = model.fit(np.ones((20, 64)), np.ones((20, 64)), verbose=0)
    >>> sorted(history.history)
    ['code_active_units', 'code_kl', 'elbo', 'kl', 'loss', 'nll', 'temperature']
    """

    sums_latents = True
    uses_score_function = False
    decoder = None

    def __init__(self, units: int, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not is_positive_integer(units):
            raise ValueError(f"`units` must be a positive integer, the size of the code, not {units!r}.")
        self.units = int(units)
        self.supports_masking = True
        precision = self.dtype_policy.variable_dtype
        self.mean_head = keras.layers.Dense(self.units, name="mean", dtype=precision)
        start = keras.initializers.Constant(_UNIT_SCALE)
        self.scale_head = keras.layers.Dense(
            self.units, "softplus", kernel_initializer="zeros", bias_initializer=start, name="scale", dtype=precision
        )
        self.create_noise(seed)

    def build(self, input_shape: Any) -> None:
        """Builds both heads."""
        self.mean_head.build(input_shape)
        self.scale_head.build(input_shape)
        self.add_noise_strength()
        self.figures = self.add_weight(
            name="figures",
            shape=(len(FIGURES),),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="only_first_replica",
        )
        self.built = True

    def posterior(self, inputs: Tensor) -> GaussianCode:
        """The posterior of the codes of examples, float32.

        Args:
            inputs: Features, `(batch, ..., features)`.

        Returns:
            `mean` and `scale`, `(batch, ..., units)`.
        """
        mean, scale = (ops.cast(head(inputs), "float32") for head in (self.mean_head, self.scale_head))
        return GaussianCode(mean, scale + MIN_SCALE)

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """A draw of the code of each example."""
        q = self.posterior(inputs)
        key, strength = self.draw()
        noise = strength * random.normal(ops.shape(q.mean), random.of_examples(key))
        code = q.mean + q.scale * noise
        squares = ops.square(code) - ops.square(noise) if is_kl_of_draw() else q.mean**2 + q.scale**2 - 1.0
        kl = ops.sum(0.5 * squares - ops.log(q.scale), axis=-1)
        if mask is not None:
            exists = ops.reshape(ops.cast(mask, "bool"), (*ops.shape(mask), *[1] * (len(kl.shape) - len(mask.shape))))
            kl = ops.where(exists, kl, 0.0)
            exists = exists[..., None]
            q = GaussianCode(ops.where(exists, q.mean, 0.0), ops.where(exists, q.scale, 1.0))
        kl = ops.sum(kl, axis=tuple(range(1, len(kl.shape)))) if len(kl.shape) > 1 else kl
        add_local_kl(self, kl)
        report_latent(self, q)
        is_active = ops.var(q.mean, axis=0) > ACTIVE_VARIANCE
        figures = ops.stack([ops.mean(kl), ops.mean(ops.cast(is_active, "float32"))])
        self.figures.assign(ops.stop_gradient(figures))
        return ops.cast(code, self.compute_dtype)

    def latent_figure_names(self) -> list[str]:
        """`FIGURES`, under the layer's name."""
        return [f"{self.name}_{figure}" for figure in FIGURES]

    def latent_figures(self) -> Tensor:
        """The figures of the present batch, in the order of their names."""
        return ops.convert_to_tensor(self.figures)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The inputs' shape, with the code in the place of the features."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "units": self.units, "seed": self.seed}
