"""Priors over the weights of one tensor, and their Kullback-Leibler divergence from a Gaussian posterior.

Every prior here is Gaussian given the posterior: it names its mean and scale, and one closed form gives the divergence

    KL(N(mu, sigma^2) || N(m, s^2)) = log(s / sigma) + (sigma^2 + (mu - m)^2) / (2 s^2) - 1/2   [nats per weight]

An empirical-Bayes scale is the maximiser of the ELBO in closed form inside the divergence, without extra variables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.serialization import Serializable, resolve

_register = keras.saving.register_keras_serializable(package="bdl.priors")  # `Normal` is a likelihood as well

EMPIRICAL_BAYES_GROUPS = ("layer", "row", "column", "row_column")
_SMALLEST_VARIANCE = 1e-12  # keeps an empirical-Bayes scale positive where a whole group is exactly zero


def normal_kl(
    mean: Tensor,
    scale: Tensor,
    prior_mean: Tensor | float,
    prior_scale: Tensor | float,
    log_scale: Tensor | None = None,
) -> Tensor:
    """Divergence between two Gaussians, element by element.

    Args:
        mean: Posterior means.
        scale: Positive posterior scales.
        prior_mean: Prior means; broadcasts.
        prior_scale: Positive prior scales; broadcasts.
        log_scale: Logarithm of `scale`, where it is known.

    Returns:
        `KL(N(mean, scale^2) || N(prior_mean, prior_scale^2))`, elementwise, in nats.

    Example:
    >>> float(normal_kl(1.0, 1.0, 0.0, 1.0))
    0.5
    """
    ratio = scale / prior_scale
    shift = (mean - prior_mean) / prior_scale
    log_ratio = ops.log(ratio) if log_scale is None else log_scale - ops.log(prior_scale)
    return 0.5 * (ops.square(ratio) + ops.square(shift) - 1.0) - log_ratio


class Prior(Serializable):
    """Base of all priors: what `kernel_prior` and its kin accept."""

    def parameters(self, mean: Tensor, scale: Tensor, input_axes: Sequence[int]) -> tuple[Any, Any]:
        """Mean and scale of the Gaussian prior of each weight.

        Args:
            mean: Posterior means, the shape of the weight.
            scale: Posterior scales, the same shape.
            input_axes: Axes of the weight that are summed over in the layer (fan-in); empty for a bias.

        Returns:
            The prior's mean and scale, each broadcastable to the weight.
        """
        raise NotImplementedError

    def kl(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int] = (), log_scale: Tensor | None = None
    ) -> Tensor:
        """Divergence of the posterior `N(mean, scale^2)` from this prior.

        Args:
            mean: Posterior means, the shape of the weight.
            scale: Posterior scales, the same shape.
            input_axes: Axes of the weight that are summed over in the layer (fan-in); empty for a bias.
            log_scale: Logarithm of `scale`, where it is known: it saves a pass, and stays finite where the scale
                underflows.

        Returns:
            Scalar, total over the weights, in nats.

        Example:
        >>> float(Normal().kl(np.ones((2, 3), "float32"), np.ones((2, 3), "float32")))
        3.0
        """
        prior_mean, prior_scale = self.parameters(mean, scale, input_axes)
        return ops.sum(normal_kl(mean, scale, prior_mean, prior_scale, log_scale))


@_register
@dataclass(frozen=True)
class Normal(Prior):
    """`N(mean, scale^2)` on each weight.

    Args:
        mean: Mean of the prior.
        scale: Positive standard deviation (not variance) of the prior.

    Raises:
        ValueError: if `scale` is not positive and finite.

    Example:
    >>> Normal(scale=0.5)
    Normal(mean=0.0, scale=0.5)
    """

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)

    def parameters(self, mean: Tensor, scale: Tensor, input_axes: Sequence[int]) -> tuple[Any, Any]:
        """The fixed mean and scale."""
        return self.mean, self.scale


@_register
@dataclass(frozen=True)
class FanInNormal(Prior):
    """`N(0, scale^2 / fan_in)` on each weight, so that the prior of a unit's input does not grow with the width.

    Args:
        scale: Positive standard deviation of a unit's pre-activation for inputs of unit size.

    Raises:
        ValueError: if `scale` is not positive and finite.

    Source: Neal 1996, "Bayesian learning for neural networks", section 2.1.

    Example:
    >>> FanInNormal().parameters(np.zeros((100, 2)), np.ones((100, 2)), input_axes=(0,))
    (0.0, 0.1)
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)

    def parameters(self, mean: Tensor, scale: Tensor, input_axes: Sequence[int]) -> tuple[Any, Any]:
        """Zero and `scale / sqrt(fan_in)`."""
        return 0.0, self.scale / math.sqrt(fan_in(mean.shape, input_axes))


@_register
@dataclass(frozen=True)
class EmpiricalBayes(Prior):
    """`N(0, s^2)` with `s^2` fitted to the posterior: the second moment `E_q[w^2] = mean^2 + scale^2` of its group.

    With one scale a layer, row or column this maximises the ELBO over the scale exactly. `"row_column"` multiplies the
    row's and the column's second moment and divides by the layer's; a row is an input, a column an output, so inputs
    that the data never use and outputs that are not needed can be switched off each by one number.

    Args:
        groups: Which weights share a scale: `"layer"`, `"row"` (an input), `"column"` (an output) or `"row_column"`.
        pseudo_count: Non-negative strength of an inverse-gamma hyperprior on each row's and column's second
            moment, in weights: it acts as that many extra weights of second moment `1 / fan_in`, so that the scale
            of a direction that the data never see is not arbitrary. 0 is plain type-II maximum likelihood.

    A bias, and a kernel of a single row or column, has one scale whatever `groups` says: a scale fitted to one weight
    alone would not be a prior.

    Raises:
        ValueError: if `groups` is none of these or `pseudo_count` is negative.

    Sources: MacKay 1992, "A practical Bayesian framework for backpropagation networks"; closed form inside the KL as
    in Wu et al. 2018, arXiv 1810.03958, section 4.

    Example:
    >>> mean, scale = np.zeros((4, 2), "float32"), np.full((4, 2), 0.3, "float32")
    >>> prior = EmpiricalBayes("layer", pseudo_count=0.0)
    >>> bool(prior.kl(mean, scale, input_axes=(0,)) < 1e-6)  # the prior follows the posterior at no cost
    True
    """

    groups: str = "row_column"
    pseudo_count: float = 1.0

    def __post_init__(self) -> None:
        if self.groups not in EMPIRICAL_BAYES_GROUPS:
            raise ValueError(f"`groups` must be one of {EMPIRICAL_BAYES_GROUPS}, not {self.groups!r}.")
        if not (self.pseudo_count >= 0 and math.isfinite(self.pseudo_count)):
            raise ValueError(f"`pseudo_count` must be a finite number of weights >= 0, not {self.pseudo_count!r}.")

    def parameters(self, mean: Tensor, scale: Tensor, input_axes: Sequence[int]) -> tuple[Any, Any]:
        """Zero and the fitted scale."""
        rows, columns = self._variances(self._moments(mean, scale, input_axes))
        matrix = ops.sqrt(ops.outer(rows, columns))
        order = _matrix_order(len(mean.shape), input_axes)
        shape = [mean.shape[axis] for axis in order]
        return 0.0, ops.transpose(ops.reshape(matrix, shape), [order.index(axis) for axis in range(len(order))])

    def kl(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int] = (), log_scale: Tensor | None = None
    ) -> Tensor:
        """Divergence as `Prior.kl`, by matrix products: with `v = outer(r, c)` the sum of `moment / v` is bilinear.

        Elementwise it costs several passes over the weights, which is more than the rest of a small network.
        """
        moments = self._moments(mean, scale, input_axes)
        rows, columns = self._variances(moments)
        quadratic = ops.matmul(1.0 / rows, ops.matmul(moments, 1.0 / columns))
        num_rows, num_columns = moments.shape
        log_variance = num_columns * ops.sum(ops.log(rows)) + num_rows * ops.sum(ops.log(columns))
        return 0.5 * (quadratic - num_rows * num_columns + log_variance) - ops.sum(
            ops.log(scale) if log_scale is None else log_scale
        )

    def _moments(self, mean: Tensor, scale: Tensor, input_axes: Sequence[int]) -> Tensor:
        """Second moments as a matrix with a row for each input and a column for each output."""
        moments = ops.square(mean) + ops.square(scale)
        order = _matrix_order(len(moments.shape), input_axes)
        return ops.reshape(ops.transpose(moments, order), (fan_in(moments.shape, input_axes), -1))

    def _variances(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors whose outer product is the fitted variance of each weight."""
        num_rows, num_columns = moments.shape
        one_rows, one_columns = (ops.ones((size,), dtype=moments.dtype) for size in moments.shape)
        rows = self._mean(ops.matmul(moments, one_columns), num_columns, num_rows)
        columns = self._mean(ops.matmul(one_rows, moments), num_rows, num_rows)
        if self.groups == "layer" or 1 in (num_rows, num_columns):
            whole = self._mean(ops.sum(moments), num_rows * num_columns, num_rows)
            return whole * one_rows, one_columns
        if self.groups == "row":
            return rows, one_columns
        if self.groups == "column":
            return one_rows, columns
        return rows, columns / ops.mean(rows)

    def _mean(self, total: Tensor, count: int, inputs: int) -> Tensor:
        """Mean second moment of a group, with the hyperprior's weights in it."""
        return ops.maximum((total + self.pseudo_count / inputs) / (count + self.pseudo_count), _SMALLEST_VARIANCE)


def _matrix_order(rank: int, input_axes: Sequence[int]) -> list[int]:
    """Axes of a weight in the order in which it becomes a matrix: inputs first."""
    return [*input_axes, *(axis for axis in range(rank) if axis not in input_axes)]


@_register
@dataclass(frozen=True)
class TiedMean(Prior):
    """`N(posterior mean, scale^2)`: the divergence acts on the posterior's scales only.

    The means are then fitted by maximum likelihood, so this is variational EM and not a full Bayesian posterior; a
    report should say so.

    Args:
        scale: Positive standard deviation, or `"fan_in"` for `1 / sqrt(fan_in)`.

    Raises:
        ValueError: if `scale` is neither.

    Source: Nado et al. 2021, "Uncertainty baselines", variational inference on CIFAR.

    Example:
    >>> mean, scale = np.full((4, 2), 7.0, "float32"), np.full((4, 2), 0.1, "float32")
    >>> float(TiedMean(scale=0.1).kl(mean, scale))
    0.0
    """

    scale: float | str = "fan_in"

    def __post_init__(self) -> None:
        if self.scale != "fan_in":
            _check_positive("scale", self.scale, '"fan_in" or ')

    def parameters(self, mean: Tensor, scale: Tensor, input_axes: Sequence[int]) -> tuple[Any, Any]:
        """The posterior's own mean, and the scale."""
        width = self.scale if isinstance(self.scale, (int, float)) else 1.0 / math.sqrt(fan_in(mean.shape, input_axes))
        return mean, width


@_register
@dataclass(frozen=True)
class Moped(Prior):
    """A prior centred on the weights that the layer had when its posterior was made: trained ones, in a conversion.

    The layer keeps those weights in a variable, so that they are saved with it and stay the centre however far the
    posterior moves. Using the training data twice, once for the centre and once for the posterior, makes this an
    empirical-Bayes method; it is honest only when the posterior is trained on other data or for few epochs.

    Args:
        spread: Prior of the deviation from the centre, with mean 0.

    Raises:
        ValueError: if `spread` is no prior or is centred itself.

    Source: Krishnan et al. 2020, "Specifying weight priors in Bayesian deep neural networks with empirical Bayes"
    (MOdel Priors with Empirical Bayes using DNN), section 3.

    Example:
    >>> Moped(FanInNormal(0.5))
    Moped(spread=FanInNormal(scale=0.5))
    """

    spread: Prior = field(default_factory=FanInNormal)

    def __post_init__(self) -> None:
        if not isinstance(self.spread, Prior) or isinstance(self.spread, (Moped, TiedMean)):
            raise ValueError(f"`spread` must be a bdl.priors.Prior with a centre of its own at 0, not {self.spread!r}.")

    def parameters(self, mean: Tensor, scale: Tensor, input_axes: Sequence[int]) -> tuple[Any, Any]:
        """Those of the spread, for a mean that is given as its deviation from the centre."""
        return self.spread.parameters(mean, scale, input_axes)

    def kl(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int] = (), log_scale: Tensor | None = None
    ) -> Tensor:
        """That of the spread, for a mean that is given as its deviation from the centre."""
        return self.spread.kl(mean, scale, input_axes, log_scale)


_PRIORS: dict[str, type] = {
    "normal": Normal,
    "fan_in_normal": FanInNormal,
    "empirical_bayes": EmpiricalBayes,
    "tied_mean": TiedMean,
    "moped": Moped,
}


def get(prior: Prior | str | dict[str, Any], argument: str = "prior") -> Prior:
    """Turns a name, a configuration or a prior into a prior.

    Args:
        prior: A `Prior`; one of `"normal"`, `"fan_in_normal"`, `"empirical_bayes"`, `"tied_mean"`, `"moped"`;
            or a configuration.
        argument: Name of the argument, for the error message.

    Raises:
        ValueError: if it is none of these.

    Example:
    >>> get("fan_in_normal")
    FanInNormal(scale=1.0)
    """
    return resolve(prior, _PRIORS, argument, Prior)


def fan_in(shape: Sequence[int], input_axes: Sequence[int]) -> int:
    """Number of weights summed into one output; 1 for a bias.

    Example:
    >>> fan_in((3, 3, 16, 32), input_axes=(0, 1, 2))
    144
    """
    return math.prod(shape[axis] for axis in input_axes)


def _check_positive(argument: str, value: Any, otherwise: str = "") -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and value > 0 and math.isfinite(value)):
        raise ValueError(
            f"`{argument}` must be {otherwise}a finite positive number (a standard deviation), not {value!r}."
        )
