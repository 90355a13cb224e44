"""Posteriors over the weights of one tensor. The wrapped layer's own weight is always the mean.

A posterior object holds settings only; its variables live in the layer, as a dictionary that the layer hands back on
each call. So one object can serve many layers.

Scales are `exp(speed * rho)`. An optimizer with normalised steps, such as Adam, moves `rho` by about its learning
rate a step whatever the gradient; with `speed = 1` a scale then changes by 0.1 % a step at rate 1e-3 and is still near
its start after 2,000 steps. With the default speed of 10 it arrives with the means. Rate and speed multiply: above a
rate of 3e-3 lower the speed in proportion, or the scales overshoot (docs/defaults.md has a run that did).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from bdl import random
from bdl.priors import Normal, Prior, Variables, check_penalty, check_positive, fan_in
from bdl.random import Tensor
from bdl.serialization import Serializable, resolve

_register = keras.saving.register_keras_serializable(package="bdl.posteriors")

INITIAL_RELATIVE_SCALE = 0.1
"""Initial standard deviation of a mean-field weight, in units of `1 / sqrt(fan_in)`."""

INITIAL_RELATIVE_FACTOR = 0.1
"""Standard deviation of a low-rank factor's entries at the start, in units of the initial scale."""

_SMALLEST_LOG_SCALE = -30.0  # far below float32's resolution of a weight; the squared ratio to a factor stays finite
_SMALLEST_PIVOT = 1e-12  # of columns of length one: below float32's resolution squared, above where gradients overflow


class Posterior(Serializable):
    """Base of all posteriors: what `kernel_posterior` and its kin accept."""

    has_independent_weights: ClassVar[bool] = True
    """Whether the weights' random parts are independent of each other, as flipout and local reparameterization need."""

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds the posterior's variables to the layer.

        Args:
            layer: The layer that owns them.
            name: Name of the weight, used as a prefix.
            mean: The wrapped layer's weight.
            input_axes: Axes of the weight that are summed over in the layer.

        Returns:
            The variables by name, to be handed back to the other methods.
        """
        raise NotImplementedError

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior | None,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Divergence from the prior: scalar, total over the weights, in nats.

        Args:
            mean: The wrapped layer's weight.
            variables: The posterior's, from `create`.
            prior: The prior; None where the posterior holds priors of its own.
            input_axes: Axes of the weight that are summed over in the layer.
            prior_variables: The prior's, from its `create`.
        """
        raise NotImplementedError


@_register
@dataclass(frozen=True)
class MeanFieldNormal(Posterior):
    """Independent Gaussians `N(mean, scale^2)`, the mean being the wrapped weight.

    Args:
        initial_scale: Positive standard deviation at the start. None takes `0.1 / sqrt(fan_in)`.
        initial_ratio: Positive ratio of the standard deviation to the weight's size at the start, in place of
            `initial_scale`: for trained weights, whose size tells how finely they are known. Weights near 0 count as a
            hundredth of the tensor's root mean square.
        speed: Positive factor between the stored parameter and the logarithm of the scale; see the module's docstring.

    Raises:
        ValueError: if an argument is not positive and finite, or both the scale and the ratio are given.

    Source: Graves 2011; Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.

    Example:
    >>> MeanFieldNormal(initial_scale=0.05)
    MeanFieldNormal(initial_scale=0.05, speed=10.0, initial_ratio=None)
    """

    initial_scale: float | None = None
    speed: float = 10.0
    initial_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.initial_scale is not None:
            check_positive("initial_scale", self.initial_scale, "None or ")
        if self.initial_ratio is not None:
            check_positive("initial_ratio", self.initial_ratio, "None or ")
            if self.initial_scale is not None:
                raise ValueError(
                    f"`initial_scale`={self.initial_scale!r} and `initial_ratio`={self.initial_ratio!r} both say where "
                    "the scales start: give one of them."
                )
        check_positive("speed", self.speed)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds `{name}_rho`, of the weight's shape."""
        if self.initial_ratio is not None:
            scale: Any = self.initial_ratio * _sizes(mean)
            return {"rho": _add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed)}
        scale = _initial_scale(self.initial_scale, mean, input_axes)
        return {"rho": _add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed)}

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations, the shape of the weight, in float32 or better."""
        return ops.exp(_log_scale(variables["rho"], self.speed))

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        return _scaled_noise(_log_scale(variables["rho"], self.speed), key)

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior | None,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Closed form of a Gaussian posterior; scalar, total, in nats."""
        assert prior is not None
        log_scale = _log_scale(variables["rho"], self.speed)
        return prior.kl(ops.convert_to_tensor(mean), ops.exp(log_scale), input_axes, log_scale, prior_variables)


@_register
@dataclass(frozen=True)
class MatrixNormal(Posterior):
    """Independent Gaussians whose scales are products: one number for each input times one for each output.

    `W ~ N(mean, outer(r, c)^2)`, a matrix-variate Gaussian with diagonal row covariance `r^2` and column covariance
    `c^2`. It is `MeanFieldNormal` with shared scales: `inputs + outputs` of them instead of `inputs * outputs`, and
    every estimator takes it. The axes of a kernel that are summed over count together as its inputs; a bias and an
    embedding have none, so that each of their weights keeps a scale of its own.

    Args:
        initial_scale: Positive standard deviation of a weight at the start. None takes `0.1 / sqrt(fan_in)`.
        speed: Positive factor between the stored parameters and the logarithm of a scale; see the module's docstring.
            Where both of a weight's parameters move the same way, its scale moves twice as fast as a mean-field one.

    Raises:
        ValueError: if an argument is not positive and finite.

    Source: Louizos & Welling 2016, "Structured and efficient variational deep learning with matrix Gaussian
    posteriors", arXiv 1603.04733, section 3 (without its pseudo-data).

    Example:
    >>> layer = bdl.layers.DenseFlipout(3, kernel_posterior=MatrixNormal())
    >>> layer.build((None, 4))
    >>> {name: tuple(variable.shape) for name, variable in layer.sampled_weights["kernel"].variables.items()}
    {'row_rho': (4, 1), 'column_rho': (1, 3)}
    """

    initial_scale: float | None = None
    speed: float = 10.0

    def __post_init__(self) -> None:
        if self.initial_scale is not None:
            check_positive("initial_scale", self.initial_scale, "None or ")
        check_positive("speed", self.speed)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable, input_axes: Sequence[int]) -> Variables:
        """Adds `{name}_row_rho` and `{name}_column_rho`, which broadcast to the weight's shape."""
        # Each starts with half of the logarithm.
        scale = math.sqrt(_initial_scale(self.initial_scale, mean, input_axes))
        rows = [size if axis in input_axes else 1 for axis, size in enumerate(mean.shape)]
        columns = [1 if axis in input_axes else size for axis, size in enumerate(mean.shape)]
        return {
            side: _add_rho(layer, f"{name}_{side}", shape, scale, self.speed)
            for side, shape in (("row_rho", rows), ("column_rho", columns))
        }

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations, the shape of the weight, in float32 or better."""
        return ops.exp(self._log_scale(variables))

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        return _scaled_noise(self._log_scale(variables), key)

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior | None,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Closed form of a Gaussian posterior; scalar, total, in nats."""
        assert prior is not None
        log_scale = self._log_scale(variables)
        return prior.kl(ops.convert_to_tensor(mean), ops.exp(log_scale), input_axes, log_scale, prior_variables)

    def _log_scale(self, variables: Variables) -> Tensor:
        return _log_scale(variables["row_rho"], self.speed) + _log_scale(variables["column_rho"], self.speed)


@_register
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
        speed: Positive factor between the stored parameter and the logarithm of `d`; see the module's docstring.
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
        scale = _initial_scale(self.initial_scale, mean, input_axes)
        factor = layer.add_weight(
            name=f"{name}_factor",
            shape=(*mean.shape, self.rank),
            initializer=keras.initializers.RandomNormal(
                stddev=self.initial_factor_scale or INITIAL_RELATIVE_FACTOR * scale
            ),
            dtype="float32",
            autocast=False,
        )
        return {"rho": _add_rho(layer, f"{name}_rho", mean.shape, scale, self.speed), "factor": factor}

    def scale(self, variables: Variables) -> Tensor:
        """Standard deviations of each weight by itself, the shape of the weight, in float32 or better."""
        log_scale = self._log_scale(variables)
        return ops.exp(log_scale + 0.5 * _log_excess(self._ratios(variables, log_scale)))

    def perturbation(self, variables: Variables, key: Tensor) -> Tensor:
        """One draw of the weight minus its mean, in float32."""
        directions = random.normal((self.rank,), random.fold_in(key, 1))
        shared = ops.matmul(ops.convert_to_tensor(variables["factor"]), directions)
        return _scaled_noise(self._log_scale(variables), key) + shared

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior | None,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Divergence of the marginals plus the total correlation; scalar, total, in nats."""
        assert prior is not None
        log_scale = self._log_scale(variables)
        ratios = self._ratios(variables, log_scale)
        excess = _log_excess(ratios)
        marginal = log_scale + 0.5 * excess
        correlation = 0.5 * (ops.sum(excess) - _log_determinant(ops.reshape(ratios, (-1, self.rank))))
        independent = prior.kl(ops.convert_to_tensor(mean), ops.exp(marginal), input_axes, marginal, prior_variables)
        return independent + correlation

    def _log_scale(self, variables: Variables) -> Tensor:
        return ops.maximum(_log_scale(variables["rho"], self.speed), _SMALLEST_LOG_SCALE)

    def _ratios(self, variables: Variables, log_scale: Tensor) -> Tensor:
        """`V / d`."""
        return ops.convert_to_tensor(variables["factor"]) * ops.expand_dims(ops.exp(-log_scale), -1)


@_register
@dataclass(frozen=True)
class Rank1(Posterior):
    """A point-estimated weight times one random factor for each input and each output feature.

    `W = mean * outer(r, s)` with `r ~ N(mean_r, scale_r^2)` and `s ~ N(mean_s, scale_s^2)`, so that
    `x @ W = ((x * r) @ mean) * s` needs no sampled weight and every example has factors of its own. The divergence is
    that of the factors. The weights themselves are point estimates (variational EM, not full Bayes): of maximum
    likelihood, or with `kernel_prior` of maximum posterior density, whose penalty `kl` then adds to the divergence.

    Args:
        input_factor_prior: Prior of the input features' factors. `Normal(1, 10)` on a network's first layer lets
            factors of features that the data never use stay broad, which is what detects unseen inputs.
        output_factor_prior: Prior of the output features' factors.
        initial_scale: Positive standard deviation of every factor at the start.
        speed: Positive factor between the stored parameter and the logarithm of a scale.
        kernel_prior: Prior of the weights, charged by its `penalty` in nats: `Normal(0, 1)` is weight decay of `1 / N`
            for `N` examples. None is maximum likelihood.

    Raises:
        ValueError: if a number is not positive and finite, a prior is no prior, or `kernel_prior` has no penalty.

    Source: Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1 factors", eq. 3-5.

    Example:
    >>> Rank1(input_factor_prior=Normal(1.0, 10.0)).input_factor_prior
    Normal(mean=1.0, scale=10.0)
    """

    input_factor_prior: Prior = field(default_factory=lambda: Normal(1.0, 1.0))
    output_factor_prior: Prior = field(default_factory=lambda: Normal(1.0, 1.0))
    initial_scale: float = 0.1
    speed: float = 30.0
    kernel_prior: Prior | None = None

    def __post_init__(self) -> None:
        check_penalty("kernel_prior", self.kernel_prior)
        for argument in ("input_factor_prior", "output_factor_prior"):
            if not isinstance(getattr(self, argument), Prior):
                raise ValueError(f"`{argument}` must be a bdl.priors.Prior, not {getattr(self, argument)!r}.")
        check_positive("initial_scale", self.initial_scale)
        check_positive("speed", self.speed)

    def create_factors(self, layer: keras.Layer, name: str, shapes: dict[str, tuple[int, ...]]) -> Variables:
        """Adds mean and rho of the factors, and what their priors keep.

        Args:
            layer: The layer that owns them.
            name: Name of the weight, used as a prefix.
            shapes: Shape of the `"input"` and of the `"output"` factor.
        """
        variables: Variables = {}
        for side, shape in shapes.items():
            prefix = f"{name}_{side}_factor"
            variables[f"{side}_mean"] = layer.add_weight(
                name=f"{prefix}_mean", shape=shape, initializer="ones", dtype="float32", autocast=False
            )
            variables[f"{side}_rho"] = _add_rho(layer, f"{prefix}_rho", shape, self.initial_scale, self.speed)
            held = self._factor_prior(side).create(layer, prefix, variables[f"{side}_mean"])
            variables |= {f"{side}_prior_{key}": variable for key, variable in held.items()}
        return variables

    def factor(self, variables: Variables, side: str, noise: Tensor) -> Tensor:
        """The factor of one side for standard normal noise of shape `(batch or 1, ...)`, in float32."""
        scale = ops.exp(_log_scale(variables[f"{side}_rho"], self.speed))
        return ops.convert_to_tensor(variables[f"{side}_mean"]) + scale * noise

    def kl(
        self,
        mean: Tensor,
        variables: Variables,
        prior: Prior | None,
        input_axes: Sequence[int],
        prior_variables: Variables | None = None,
    ) -> Tensor:
        """Divergence of both factors from their priors, plus the weights' penalty; scalar, total, in nats.

        `prior` does not enter, and `prior_variables` are those of `kernel_prior`.
        """
        total: Tensor = 0.0
        for side in ("input", "output"):
            log_scale = _log_scale(variables[f"{side}_rho"], self.speed)
            factor_mean = ops.convert_to_tensor(variables[f"{side}_mean"])
            total = total + self._factor_prior(side).kl(
                factor_mean,
                ops.exp(log_scale),
                log_scale=log_scale,
                variables=self.factor_prior_variables(variables, side),
            )
        if self.kernel_prior is None:
            return total
        return total + self.kernel_prior.penalty(ops.convert_to_tensor(mean), input_axes, prior_variables)

    def factor_prior_variables(self, variables: Variables, side: str) -> Variables:
        """Variables of the prior of one side's factor, as its `create` named them."""
        prefix = f"{side}_prior_"
        return {key.removeprefix(prefix): value for key, value in variables.items() if key.startswith(prefix)}

    def _factor_prior(self, side: str) -> Prior:
        return self.input_factor_prior if side == "input" else self.output_factor_prior


_POSTERIORS: dict[str, type] = {
    "mean_field": MeanFieldNormal,
    "matrix_normal": MatrixNormal,
    "low_rank": LowRankNormal,
    "rank1": Rank1,
}


def get(posterior: Posterior | str | dict[str, Any], argument: str = "posterior") -> Posterior:
    """Turns a name, a configuration or a posterior into a posterior.

    Args:
        posterior: A `Posterior`; one of `"mean_field"`, `"matrix_normal"`, `"low_rank"`, `"rank1"`; or a configuration.
        argument: Name of the argument, for the error message.

    Raises:
        ValueError: if it is none of these.

    Example:
    >>> get("mean_field")
    MeanFieldNormal(initial_scale=None, speed=10.0, initial_ratio=None)
    """
    return resolve(posterior, _POSTERIORS, argument, Posterior)


def _sizes(weight: keras.Variable) -> np.ndarray:
    """Absolute values, those near zero raised to a hundredth of the root mean square."""
    values = np.abs(np.asarray(ops.convert_to_numpy(weight), "float64"))
    return np.maximum(values, max(0.01 * math.sqrt(np.mean(values**2)), 1e-6))


def _initial_scale(initial_scale: float | None, mean: keras.Variable, input_axes: Sequence[int]) -> float:
    return initial_scale or INITIAL_RELATIVE_SCALE / math.sqrt(fan_in(mean.shape, input_axes))


def _add_rho(layer: keras.Layer, name: str, shape: Sequence[int], scale: Any, speed: float) -> keras.Variable:
    rho = np.log(scale) / speed
    # float32 whatever the policy: a half-precision scale would be quantised away.
    return layer.add_weight(
        name=name, shape=tuple(shape), initializer=keras.initializers.Constant(rho), dtype="float32", autocast=False
    )


def _log_scale(rho: keras.Variable, speed: float) -> Tensor:
    return speed * ops.convert_to_tensor(rho)


def _scaled_noise(log_scale: Tensor, key: Tensor) -> Tensor:
    """Independent noise of the given scales."""
    draw = ops.stop_gradient(ops.exp(log_scale) * random.normal(log_scale.shape, key))
    # Times one, whose gradient says that the draw's with respect to its log scale is the draw itself: the backward
    # pass then needs neither noise nor scale again.
    return draw * (1.0 + log_scale - ops.stop_gradient(log_scale))


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
