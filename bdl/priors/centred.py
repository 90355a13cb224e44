"""Priors centred on weights: on the posterior's own means, or on those that the layer had at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import ops

from bdl.priors.base import Prior, Variables, check_penalty, check_width, normal_kl, register, width
from bdl.priors.empirical_bayes import EmpiricalBayes
from bdl.priors.gaussian import FanInNormal
from bdl.random import Tensor


@register
@dataclass(frozen=True)
class TiedMean(Prior):
    """`N(posterior mean, scale^2)`: the divergence acts on the posterior's scales only.

    The means are then fitted by maximum likelihood, so this is variational EM and not a full Bayesian posterior; a
    report should say so. With `mean_prior` the model is hierarchical, `w ~ N(m, scale^2)` and `m ~ mean_prior`, and
    the means are its mode (MAP): `kl` adds `mean_prior.penalty(mean)`.

    Args:
        scale: Positive standard deviation, `"fan_in"` for `1 / sqrt(fan_in)`, or a prior of the weights' deviation
            from their mean, centred at 0.
        mean_prior: Prior of the means; None fits them by maximum likelihood.

    Raises:
        ValueError: if `scale` is none of these, or follows the posterior's scales at no cost (`EmpiricalBayes`, a
            learned `ScaleMixture`); if `mean_prior` is not one of point estimates.

    Source: Nado et al. 2021, "Uncertainty baselines", variational inference on CIFAR.

    Example:
    >>> mean, scale = np.full((4, 2), 7.0, "float32"), np.full((4, 2), 0.1, "float32")
    >>> float(TiedMean(scale=0.1).kl(mean, scale))
    0.0
    >>> float(TiedMean(scale=0.1, mean_prior=bdl.priors.Normal(scale=7.0)).kl(mean, scale))
    4.0
    """

    scale: float | str | Prior = "fan_in"
    mean_prior: Prior | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, EmpiricalBayes) or getattr(self.scale, "learned", False):
            raise ValueError(
                f"`scale` must not be {self.scale!r}: it would follow the posterior's scales at no cost, and nothing "
                "would hold these from zero."
            )
        if isinstance(self.scale, Prior):
            _check_deviation("scale", self.scale)
        else:
            check_width("scale", self.scale)
        check_penalty("mean_prior", self.mean_prior)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable) -> Variables:
        """Creates the variables of the prior of the deviation and of the prior of the means."""
        held = (self.scale, self.mean_prior)
        return {
            key: variable
            for prior in held
            if isinstance(prior, Prior)
            for key, variable in prior.create(layer, name, mean).items()
        }

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """The posterior's own mean, and the scale."""
        if isinstance(self.scale, Prior):
            return mean, self.scale.parameters(ops.zeros_like(mean), scale, input_axes, variables)[1]
        return mean, width(self.scale, mean.shape, input_axes)

    def resting_place(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """The posterior's own mean, and the scale of the deviation at rest."""
        if isinstance(self.scale, Prior):
            return mean, self.scale.resting_place(ops.zeros_like(mean), scale, input_axes, variables)[1]
        return self.parameters(mean, scale, input_axes, variables)

    def kl(
        self,
        mean: Tensor,
        scale: Tensor,
        input_axes: Sequence[int] = (),
        log_scale: Tensor | None = None,
        variables: Variables | None = None,
    ) -> Tensor:
        """Divergence of the deviation from the mean, plus the means' penalty; scalar, total, in nats."""
        if isinstance(self.scale, Prior):
            divergence = self.scale.kl(ops.zeros_like(mean), scale, input_axes, log_scale, variables)
        else:
            prior_scale = width(self.scale, mean.shape, input_axes)
            divergence = ops.sum(normal_kl(0.0, scale, 0.0, prior_scale, log_scale))
        if self.mean_prior is None:
            return divergence
        return divergence + self.mean_prior.penalty(mean, input_axes, variables)

    @property
    def why_no_penalty(self) -> str:
        """Why the prior cannot be that of a point estimate."""
        return "it is centred on the weight itself, and would charge nothing"


@register
@dataclass(frozen=True)
class Moped(Prior):
    """A prior centred on the weights that the layer had when its posterior was made: trained ones, in a conversion.

    The layer keeps those weights in a variable, so that they are saved with it and stay the centre however far the
    posterior moves. Using the training data twice, once for the centre and once for the posterior, makes this an
    empirical-Bayes method; it is honest only when the posterior is trained on other data or for few epochs.

    Args:
        spread: Prior of the deviation from the centre, with mean 0.

    Raises:
        ValueError: if `spread` is no prior or is centred itself; on use, if the centre is not handed in.

    Source: Krishnan et al. 2020, "Specifying weight priors in Bayesian deep neural networks with empirical Bayes"
    (MOdel Priors with Empirical Bayes using DNN), section 3.

    Example:
    >>> Moped(FanInNormal(0.5))
    Moped(spread=FanInNormal(scale=0.5))
    """

    spread: Prior = field(default_factory=FanInNormal)

    def __post_init__(self) -> None:
        _check_deviation("spread", self.spread)

    def create(self, layer: keras.Layer, name: str, mean: keras.Variable) -> Variables:
        """Adds `{name}_centre`, the weight's present value, and what the spread keeps."""
        value = ops.convert_to_numpy(mean)
        centre = layer.add_weight(
            name=f"{name}_centre",
            shape=mean.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype=dtype),
            trainable=False,
            dtype="float32",
            autocast=False,
        )
        return {"centre": centre, **self.spread.create(layer, name, mean)}

    def parameters(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """The centre (plus the spread's mean, 0), and the spread's scale."""
        shift, spread = self.spread.parameters(_deviation(mean, variables), scale, input_axes, variables)
        return _centre(variables) + shift, spread

    def resting_place(
        self, mean: Tensor, scale: Tensor, input_axes: Sequence[int], variables: Variables | None = None
    ) -> tuple[Any, Any]:
        """The centre, and the scale of the deviation at rest."""
        shift, spread = self.spread.resting_place(_deviation(mean, variables), scale, input_axes, variables)
        return _centre(variables) + shift, spread

    def kl(
        self,
        mean: Tensor,
        scale: Tensor,
        input_axes: Sequence[int] = (),
        log_scale: Tensor | None = None,
        variables: Variables | None = None,
    ) -> Tensor:
        """Returns the divergence of the deviation from the centre, in nats."""
        return self.spread.kl(_deviation(mean, variables), scale, input_axes, log_scale, variables)

    @property
    def why_no_penalty(self) -> str | None:
        """Why the prior of the deviation has no penalty, or None if it has one."""
        return self.spread.why_no_penalty

    def penalty(self, mean: Tensor, input_axes: Sequence[int] = (), variables: Variables | None = None) -> Tensor:
        """Returns the penalty of the deviation from the centre, in nats."""
        return self.spread.penalty(_deviation(mean, variables), input_axes, variables)


def _centre(variables: Variables | None) -> Tensor:
    if not variables or "centre" not in variables:
        raise ValueError("A prior centred on earlier weights needs them: pass `variables` as `Moped.create` made them.")
    return ops.convert_to_tensor(variables["centre"])


def _deviation(mean: Tensor, variables: Variables | None) -> Tensor:
    return ops.convert_to_tensor(mean) - _centre(variables)


def _check_deviation(argument: str, prior: Any) -> None:
    """Refuses what cannot be the prior of a deviation: it must be centred at 0."""
    is_centred = isinstance(prior, (Moped, TiedMean)) or getattr(prior, "mean", 0.0) != 0.0
    if not isinstance(prior, Prior) or is_centred:
        raise ValueError(f"`{argument}` must be a bdl.priors.Prior with a centre of its own at 0, not {prior!r}.")
