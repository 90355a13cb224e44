"""Gaussian weights that are correlated along a few directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import keras
from keras import ops

from bdl import random
from bdl.posteriors.base import Posterior, add_rho, log_scale_of, register, scaled_noise, start_scale
from bdl.priors import Prior, Variables, check_positive
from bdl.random import Tensor

INITIAL_RELATIVE_FACTOR = 0.1
"""Standard deviation of a low-rank factor's entries at the start, in units of the initial scale."""

_SMALLEST_LOG_SCALE = -30.0  # far below float32's resolution of a weight; the squared ratio to a factor stays finite
_SMALLEST_PIVOT = 1e-12  # of columns of length one: below float32's resolution squared, above where gradients overflow


@register
@dataclass(frozen=True)
class LowRankNormal(Posterior):
    """A Gaussian over all weights of a tensor that are correlated along a few directions.

    `q(w) = N(mean, S)` with `S = diag(d^2) + V V^T` for the flattened weight `w`, drawn as `mean + d * eps + V @ z`
    with standard normal `eps` (one number for each weight) and `z` (`rank` numbers). With `V = 0` it is
    `MeanFieldNormal`, so its best ELBO is at least as high under the same prior. `V` costs `rank` numbers for each
    weight. Correlated weights admit the reparameterization estimator only.

    Divergence, with the marginal variance `v = d^2 + sum of V^2 over the rank`: that of independent `N(mean, v)`, plus
    the total correlation

        1/2 [sum(log v) - log det S] >= 0,   log det S = sum(log d^2) + log det(I + V^T diag(d^-2) V)

    Args:
        rank: Positive integer, number of columns of `V`.
        initial_scale: Positive value of `d` at the start. None takes `0.1 / sqrt(fan_in)`.
        speed: Positive factor between the stored parameter and the logarithm of `d`; see `bdl.posteriors`.
        initial_factor_scale: Positive standard deviation of the entries of `V` at the start, which are random: at
            `V = 0` their gradient vanishes. None takes a tenth of the initial `d`.

    Raises:
        ValueError: if `rank` is not a positive integer or another argument not positive and finite.

    Sources: Ong, Nott & Smith 2018, "Gaussian variational approximation with a factor covariance structure",
    arXiv 1701.03208, section 3; Tomczak et al. 2020, "Efficient low rank Gaussian variational inference for neural
    networks".

    Example:
    >>> layer = bdl.layers.DenseReparameterization(3, kernel_posterior=LowRankNormal(rank=2))
    >>> layer.build((None, 4))
    >>> {name: tuple(variable.shape) for name, variable in layer.sampled_weights["kernel"].variables.items()}
    {'rho': (4, 3), 'factor': (4, 3, 2)}
    """

    has_independent_weights: ClassVar[bool] = False

    rank: int = 2
    initial_scale: float | None = None
    speed: float = 10.0
    initial_factor_scale: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"`rank` must be a positive integer (a number of directions), not {self.rank!r}.")
        for argument in ("initial_scale", "initial_factor_scale"):
            if getattr(self, argument) is not None:
                check_positive(argument, getattr(self, argument), "None or ")
        check_positive("speed", self.speed)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds `{name}_rho`, of the weight's shape, and `{name}_factor`, with the rank as a further axis."""
        scale = start_scale(self.initial_scale, mean, input_axes)
        factor = layer.add_weight(
            name=f"{name}_factor",
            shape=(*mean.shape, self.rank),
            initializer=keras.initializers.RandomNormal(
                stddev=self.initial_factor_scale or INITIAL_RELATIVE_FACTOR * scale
            ),
            dtype="float32",
            autocast=False,
        )
        return {"rho": add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed), "factor": factor}

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations of each weight by itself, the shape of the weight, in float32 or better."""
        log_scale = self._log_scale(variables)
        return ops.exp(log_scale + 0.5 * _log_excess(self._ratios(variables, log_scale)))

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        directions = random.normal((self.rank,), random.fold_in(key, 1))
        shared = ops.matmul(ops.convert_to_tensor(variables["factor"]), directions)
        return scaled_noise(self._log_scale(variables), key) + shared

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Divergence of the marginals plus the total correlation; scalar, total, in nats."""
        log_scale = self._log_scale(variables)
        ratios = self._ratios(variables, log_scale)
        excess = _log_excess(ratios)
        marginal = log_scale + 0.5 * excess
        correlation = 0.5 * (ops.sum(excess) - _log_determinant(ops.reshape(ratios, (-1, self.rank))))
        independent = prior.kl(ops.convert_to_tensor(mean), ops.exp(marginal), input_axes, marginal, prior_variables)
        return independent + correlation

    def _log_scale(self, variables: Variables) -> Tensor:
        return ops.maximum(log_scale_of(variables["rho"], self.speed), _SMALLEST_LOG_SCALE)

    def _ratios(self, variables: Variables, log_scale: Tensor) -> Tensor:
        """`V / d`."""
        return ops.convert_to_tensor(variables["factor"]) * ops.expand_dims(ops.exp(-log_scale), -1)


def _log_excess(ratios: Tensor) -> Tensor:
    """Logarithm of each weight's variance in units of `d^2`, from `V / d`."""
    return ops.log1p(ops.sum(ops.square(ratios), axis=-1))


def _log_determinant(ratios: Tensor) -> Tensor:
    """`log det(I + U^T U)` for `U` of a few columns, by elimination.

    No pivot can be below one, before scaling. Held there, rounding cannot make the matrix indefinite where two long
    columns are nearly parallel, at which a Cholesky factorisation in float32 fails. Columns are first brought to a
    length of about one, by factors that cancel whatever they are and so need no gradient.
    """
    lengths = ops.stop_gradient(ops.sqrt(1.0 + ops.sum(ops.square(ratios), axis=0)))
    identity = 1.0 / ops.square(lengths)
    smallest = ops.maximum(identity, _SMALLEST_PIVOT)
    columns = ratios / lengths
    rest = ops.diag(identity) + ops.matmul(ops.transpose(columns), columns)
    total = 2.0 * ops.sum(ops.log(lengths))
    for index in range(ratios.shape[-1]):
        pivot = ops.maximum(rest[0, 0], smallest[index])
        total = total + ops.log(pivot)
        rest = rest[1:, 1:] - ops.outer(rest[0, 1:], rest[0, 1:]) / pivot
    return total
