"""Normalisation layers with a posterior over their scales."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import layers

from bdl import posteriors, priors
from bdl.layers.named import Families, NamedVariational
from bdl.layers.variational import DEFAULT_POSTERIOR
from bdl.posteriors import Posterior
from bdl.priors import Normal, Prior

DEFAULT_GAMMA_PRIOR = Normal(1.0, 1.0)  # a scale multiplies, so doing nothing is 1


class NamedNormalization(NamedVariational):
    """A normalisation layer whose scale (gamma) is sampled; its shift stays a point estimate.

    Args:
        *args: Positional arguments of the Keras layer.
        gamma_prior: `bdl.priors.Prior` of the scale, around 1, or its name. Default: `Normal(1, 1)`. Priors around 0
            would pull the layer's output to 0.
        gamma_posterior: `bdl.posteriors.Posterior` of the scale, or its name. Default: `MeanFieldNormal()`.
        seed: Integer seed of the layer's noise, or None for a random one.
        **kwargs: Keyword arguments of the Keras layer.

    Source: a scale is a factor of each feature, as in Dusenberry et al. 2020, "Efficient and scalable Bayesian neural
    nets with rank-1 factors", section 3, but one for all examples.
    """

    gamma_name: ClassVar[str] = "gamma"

    def __init__(
        self,
        *args: Any,
        gamma_prior: Prior | str | dict[str, Any] = DEFAULT_GAMMA_PRIOR,
        gamma_posterior: Posterior | str | dict[str, Any] = DEFAULT_POSTERIOR,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.gamma_prior = priors.get(gamma_prior, "gamma_prior")
        self.gamma_posterior = posteriors.get(gamma_posterior, "gamma_posterior")
        self._wrap(args, kwargs, self.estimator_name, seed)

    def families(self, layer: keras.Layer) -> Families:
        """Prior and posterior of the scale."""
        return {self.gamma_name: (self.gamma_prior, self.gamma_posterior)}


class LayerNormalizationReparameterization(
    NamedNormalization, wraps=layers.LayerNormalization, estimator="reparameterization"
):
    """`keras.layers.LayerNormalization` with one sampled scale per call.

    The output has the shape of the input.

    Source: the input factors of Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1
    factors", section 3, with one factor for all examples.

    Example:
    >>> LayerNormalizationReparameterization()(np.ones((2, 5, 4))).shape == (2, 5, 4)
    True
    """


class RMSNormalizationReparameterization(
    NamedNormalization, wraps=layers.RMSNormalization, estimator="reparameterization"
):
    """`keras.layers.RMSNormalization` with one sampled scale per call.

    The output has the shape of the input.

    Source: the input factors of Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1
    factors", section 3, with one factor for all examples.

    Example:
    >>> RMSNormalizationReparameterization()(np.ones((2, 5, 4))).shape == (2, 5, 4)
    True
    """

    gamma_name = "scale"


class GroupNormalizationReparameterization(
    NamedNormalization, wraps=layers.GroupNormalization, estimator="reparameterization"
):
    """`keras.layers.GroupNormalization` with one sampled scale per call.

    The output has the shape of the input.

    Source: the input factors of Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1
    factors", section 3, with one factor for all examples.

    Example:
    >>> GroupNormalizationReparameterization(groups=2)(np.ones((2, 5, 4))).shape == (2, 5, 4)
    True
    """


class BatchNormalizationReparameterization(
    NamedNormalization, wraps=layers.BatchNormalization, estimator="reparameterization"
):
    """`keras.layers.BatchNormalization` with one sampled scale per call, and Keras' moving statistics.

    The output has the shape of the input.

    Source: the input factors of Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1
    factors", section 3, with one factor for all examples.

    Example:
    >>> BatchNormalizationReparameterization()(np.ones((2, 5, 4)), training=True).shape == (2, 5, 4)
    True
    """
