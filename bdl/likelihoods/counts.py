"""Likelihoods of counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.likelihoods import constants
from bdl.likelihoods.base import (
    LEARNED_SPEED,
    MIN_LIKELIHOOD_SCALE,
    Likelihood,
    check_entries,
    check_numbers,
    check_shape,
    density_of_labels,
)
from bdl.likelihoods.frozen_mixture import FrozenDistribution
from bdl.priors import check_positive as _check_positive
from bdl.random import Tensor

_register = keras.saving.register_keras_serializable(package="bdl")


@_register
class Poisson(Likelihood):
    """Counts; each output is the logarithm of a rate.

    Labels: non-negative integers, `(batch,)` or the outputs' shape.

    Example:
    >>> nll = Poisson().nll(np.array([0]), np.zeros((1, 1), "float32"))
    >>> float(nll[0])
    1.0
    """

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`mu`, the rate."""
        return {"mu": self.mean(outputs)}

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The outputs' shape, in nats; -inf where the label is no count, as its probability is 0."""
        return _density_of_counts(y, lambda count: count * outputs - ops.exp(outputs) - log_gamma(count + 1.0))

    def mean(self, outputs: Tensor) -> Tensor:
        """The rate."""
        return ops.exp(ops.cast(outputs, "float32"))

    def variance(self, outputs: Tensor) -> Tensor:
        """The rate."""
        return self.mean(outputs)

    def distribution(self, parameters: dict[str, np.ndarray]) -> FrozenDistribution:
        """scipy.stats.poisson."""
        from scipy import stats

        return stats.poisson(**parameters)

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are counts, one for each output."""
        _check_counts(y, output_shape, "Poisson")

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """Takes the mean count for the constant, of each output its own."""
        return constants.poisson(y)


@_register
class NegativeBinomial(Likelihood):
    """Overdispersed counts; each output is the logarithm of a mean.

    The variance is `mean + mean^2 / total_count`; Poisson is the limit of a large `total_count`.

    Args:
        total_count: Positive number (inverse dispersion), or None to learn one by maximum likelihood.
        **kwargs: `name` of the layer.

    Labels: non-negative integers, `(batch,)` or the outputs' shape.

    Raises:
        ValueError: if `total_count` is not positive.

    Example:
    >>> nll = NegativeBinomial(total_count=1.0).nll(np.array([0]), np.zeros((1, 1), "float32"))
    >>> bool(np.allclose(nll, np.log(2)))  # geometric with success probability one half
    True
    """

    def __init__(self, total_count: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if total_count is not None:
            _check_positive("total_count", total_count, "None (learned) or ")
        self.total_count = total_count
        if total_count is None:
            self.raw_total_count = self.add_weight(
                name="raw_total_count",
                shape=(),
                initializer=keras.initializers.Constant(math.log(math.expm1(1.0)) / LEARNED_SPEED),
                dtype="float32",
            )

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`n` (total count) and `p`, as in scipy.stats.nbinom."""
        mean = self.mean(outputs)
        count = self._count()
        return {"n": ops.broadcast_to(count, ops.shape(mean)), "p": count / (count + mean)}

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The outputs' shape, in nats; -inf where the label is no count, as its probability is 0."""
        total = self._count()
        log_sum = ops.logaddexp(ops.log(total), outputs)

        def density(count: Tensor) -> Tensor:
            normaliser = log_gamma(count + total) - log_gamma(total) - log_gamma(count + 1.0)
            return normaliser + total * (ops.log(total) - log_sum) + count * (outputs - log_sum)

        return _density_of_counts(y, density)

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean count."""
        return ops.exp(ops.cast(outputs, "float32"))

    def variance(self, outputs: Tensor) -> Tensor:
        """`mean + mean^2 / total_count`."""
        mean = self.mean(outputs)
        return mean + ops.square(mean) / self._count()

    def distribution(self, parameters: dict[str, np.ndarray]) -> FrozenDistribution:
        """scipy.stats.nbinom."""
        from scipy import stats

        return stats.nbinom(**parameters)

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that labels are counts, one for each output."""
        _check_counts(y, output_shape, "NegativeBinomial")

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """Takes the mean count for the constant, of each output its own; fits the total count where it is learned."""
        return constants.negative_binomial(y, self.total_count)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "total_count": self.total_count}

    def _count(self) -> Tensor:
        if self.total_count is not None:
            return ops.convert_to_tensor(np.float32(self.total_count))
        return MIN_LIKELIHOOD_SCALE + ops.softplus(LEARNED_SPEED * ops.convert_to_tensor(self.raw_total_count))


def log_gamma(x: Tensor) -> Tensor:
    """Logarithm of the gamma function, which `keras.ops` lacks."""
    return _special(x, tensorflow="lgamma", jax="gammaln", torch="lgamma")


def digamma(x: Tensor) -> Tensor:
    """Derivative of `log_gamma`, which `keras.ops` lacks.

    Example:
    >>> round(float(digamma(np.float32(1.0))), 4)
    -0.5772
    """
    return _special(x, tensorflow="digamma", jax="digamma", torch="digamma")


def _special(x: Tensor, **names: str) -> Tensor:
    """A special function by the name that it has in each backend."""
    x = ops.convert_to_tensor(x)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return getattr(tf.math, names[backend])(x)
    if backend == "jax":
        import jax

        return getattr(jax.scipy.special, names[backend])(x)
    import torch

    return getattr(torch, names["torch"])(x)


def _density_of_counts(y: Tensor, density: Callable[[Tensor], Tensor]) -> Tensor:
    """-inf for numbers that are no counts, as scipy.stats has it, and NaN for NaN."""
    y = ops.cast(y, "float32")
    is_count = (y >= 0) & (y == ops.floor(y)) & ops.isfinite(y)
    return density_of_labels(y, is_count, density, otherwise=ops.where(ops.isnan(y), y, -float("inf")))


def _check_counts(y: np.ndarray, output_shape: tuple[int | None, ...], name: str) -> None:
    check_shape(y, output_shape, name, "one count for each output")
    check_numbers(y, f"counts for {name}")
    is_count = (y >= 0) & (y == np.floor(y)) & np.isfinite(y)
    check_entries(y, is_count, f"a non-negative integer, for {name} models counts")
