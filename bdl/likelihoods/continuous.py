"""Likelihoods of real targets."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl import priors
from bdl.likelihoods import constants
from bdl.likelihoods.base import (
    LEARNED_SPEED,
    MIN_LIKELIHOOD_SCALE,
    Likelihood,
    check_entries,
    check_numbers,
    check_shape,
)
from bdl.likelihoods.frozen_mixture import FrozenDistribution
from bdl.priors import check_positive as _check_positive
from bdl.random import Tensor
from bdl.serialization import deserialize, serialize

_register = keras.saving.register_keras_serializable(package="bdl")


class _LocationScale(Likelihood):
    """A real target around the network's output, with a fixed, learned or predicted scale."""

    is_location_scale = True

    def __init__(
        self,
        scale: float | None = None,
        heteroscedastic: bool = False,
        scale_prior: priors.Normal | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if scale is not None:
            _check_positive("scale", scale, "None (learned) or ")
            if heteroscedastic:
                raise ValueError(
                    f"`scale` must be None, not {scale!r}, with `heteroscedastic=True`: the network predicts the scale."
                )
        self.scale = scale
        self.heteroscedastic = heteroscedastic
        self.scale_prior = _check_scale_prior(scale_prior, is_learned=scale is None and not heteroscedastic)
        if scale is None and not heteroscedastic:
            self.raw_scale = self.add_weight(
                name="raw_scale",
                shape=(),
                initializer=keras.initializers.Constant(math.log(math.expm1(1.0)) / LEARNED_SPEED),
                dtype="float32",
            )

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """`loc` and `scale`, the shape of the targets."""
        outputs = ops.cast(outputs, "float32")
        if not self.heteroscedastic:
            return {"loc": outputs, "scale": ops.broadcast_to(self._shared_scale(), ops.shape(outputs))}
        location, raw = ops.split(outputs, 2, axis=-1)
        return {"loc": location, "scale": MIN_LIKELIHOOD_SCALE + ops.softplus(raw)}

    def mean(self, outputs: Tensor) -> Tensor:
        """The location. It reads no variable: metrics call it where, on JAX, variables have no value."""
        outputs = ops.cast(outputs, "float32")
        return ops.split(outputs, 2, axis=-1)[0] if self.heteroscedastic else outputs

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks that there is one finite target for each location."""
        name = type(self).__name__
        if self.heteroscedastic and output_shape[-1] is not None and output_shape[-1] % 2:
            raise ValueError(
                f"The network's last axis must be even, not {output_shape[-1]}, for `likelihood` "
                f"{name}(heteroscedastic=True), which reads mean and raw scale from its halves."
            )
        check_shape(y, self.event_shape(output_shape), name, "one target for each output")
        check_numbers(y, f"numbers for {name}")
        check_entries(y, np.isfinite(y), "finite targets")

    def penalty(self) -> Tensor:
        """`(log scale - mean)^2 / (2 s^2)` of a scale with the prior `N(mean, s^2)` on its logarithm."""
        prior = self.scale_prior
        if prior is None:
            return super().penalty()
        return 0.5 * ops.square((ops.log(self._shared_scale()) - prior.mean) / prior.scale)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        settings = {"scale": self.scale, "heteroscedastic": self.heteroscedastic}
        return {**super().get_config(), **settings, "scale_prior": serialize(self.scale_prior)}

    def event_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The outputs' shape, or half of their last axis where they hold mean and scale."""
        last = output_shape[-1]
        halved = last if last is None or not self.heteroscedastic else last // 2
        return (*output_shape[:-1], halved)

    def _shared_scale(self) -> Tensor:
        if self.scale is not None:
            return ops.convert_to_tensor(np.float32(self.scale))
        return MIN_LIKELIHOOD_SCALE + ops.softplus(LEARNED_SPEED * ops.convert_to_tensor(self.raw_scale))

    def _align(self, y: Tensor, outputs: Tensor) -> Tensor:
        return ops.cast(super()._align(y, outputs), "float32")


def _check_scale_prior(scale_prior: Any, is_learned: bool) -> priors.Normal | None:
    """The prior of a learned scale, which may be given as its configuration."""
    scale_prior = deserialize(scale_prior)
    if scale_prior is None:
        return None
    if not isinstance(scale_prior, priors.Normal):
        raise ValueError(
            f"`scale_prior` must be None or a bdl.priors.Normal of log(scale), not {scale_prior!r}. "
            "bdl.priors.Normal(mean=-1.0, scale=0.5) expects a scale around exp(-1)."
        )
    if not is_learned:
        raise ValueError(
            f"`scale_prior` must be None with a scale that is given or predicted, not {scale_prior!r}: it is the prior "
            "of a learned one (scale=None, heteroscedastic=False)."
        )
    return scale_prior


@_register
class Normal(_LocationScale):
    """Gaussian targets around the network's output.

    Args:
        scale: Positive standard deviation, or None to learn one (by maximum likelihood, or with `scale_prior`).
        heteroscedastic: True to read mean and raw scale from the two halves of the network's last axis; the scale
            is `softplus(raw)`.
        scale_prior: Prior of a learned scale, `bdl.priors.Normal(mean, scale)` **of its logarithm**: a log-normal one
            of the scale, whose median is `exp(mean)`. The learned value is the mode of log(scale) (MAP); `penalty()`
            is charged with the weights' KL, and is part of `kl` in the logs. None is maximum likelihood.
        **kwargs: `name` of the layer.

    Targets: `(batch,)` or the shape of the means. Standardise them: a learned scale starts at 1.

    Raises:
        ValueError: if `scale` is not positive, or is given together with `heteroscedastic`; or if `scale_prior` is no
            `bdl.priors.Normal`, or the scale is not learned.

    Example:
    >>> nll = Normal(scale=1.0).nll(np.array([0.0]), np.zeros((1, 1), "float32"))
    >>> bool(np.allclose(nll, 0.5 * np.log(2 * np.pi)))
    True
    >>> round(float(Normal(scale_prior=bdl.priors.Normal(mean=-1.0, scale=0.5)).penalty()), 2)  # of scale 1
    2.0
    """

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The targets' shape, in nats."""
        values = self.parameters(outputs)
        z = (y - values["loc"]) / values["scale"]
        return -0.5 * ops.square(z) - ops.log(values["scale"]) - 0.5 * math.log(2 * math.pi)

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """Takes each output's mean and fits a scale, shared or predicted for each; a given one is the least."""
        return constants.gaussian(y, self.scale, is_shared=self.scale is None and not self.heteroscedastic)

    def variance(self, outputs: Tensor) -> Tensor:
        """The squared scale."""
        return ops.square(self.parameters(outputs)["scale"])

    def distribution(self, parameters: dict[str, np.ndarray]) -> FrozenDistribution:
        """scipy.stats.norm."""
        from scipy import stats

        return stats.norm(**parameters)


@_register
class StudentT(_LocationScale):
    """Heavy-tailed targets around the network's output.

    Args:
        degrees_of_freedom: Number above 2, so that the variance exists.
        scale: Positive scale, or None to learn one.
        heteroscedastic: True to read location and raw scale from the two halves of the network's last axis.
        scale_prior: As of `Normal`: a `bdl.priors.Normal` of log(scale), or None.
        **kwargs: `name` of the layer.

    Targets: `(batch,)` or the shape of the locations.

    Raises:
        ValueError: if an argument is out of range.

    Example:
    >>> likelihood = StudentT(degrees_of_freedom=5.0, scale=1.0)
    >>> float(likelihood.nll(np.array([0.0]), np.zeros((1, 1), "float32"))[0])
    0.9686
    """

    def __init__(
        self,
        degrees_of_freedom: float = 4.0,
        scale: float | None = None,
        heteroscedastic: bool = False,
        scale_prior: priors.Normal | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(scale=scale, heteroscedastic=heteroscedastic, scale_prior=scale_prior, **kwargs)
        if not (degrees_of_freedom > 2 and math.isfinite(degrees_of_freedom)):
            raise ValueError(f"`degrees_of_freedom` must be a finite number above 2, not {degrees_of_freedom!r}.")
        self.degrees_of_freedom = degrees_of_freedom

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The targets' shape, in nats."""
        values = self.parameters(outputs)
        df = self.degrees_of_freedom
        z = (y - values["loc"]) / values["scale"]
        constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        return constant - ops.log(values["scale"]) - 0.5 * (df + 1) * ops.log1p(ops.square(z) / df)

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """Fits each output's location and a scale, shared or predicted for each; a given one is the least."""
        is_shared = self.scale is None and not self.heteroscedastic
        return constants.student_t(y, self.degrees_of_freedom, self.scale, is_shared)

    def variance(self, outputs: Tensor) -> Tensor:
        """`scale^2 df / (df - 2)`."""
        df = self.degrees_of_freedom
        return ops.square(self.parameters(outputs)["scale"]) * (df / (df - 2))

    def distribution(self, parameters: dict[str, np.ndarray]) -> FrozenDistribution:
        """scipy.stats.t."""
        from scipy import stats

        return stats.t(self.degrees_of_freedom, **parameters)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "degrees_of_freedom": self.degrees_of_freedom}
