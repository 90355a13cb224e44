"""Random factors on the inputs of a network: what lets it know that it sees features it was never taught to use."""

from __future__ import annotations

from typing import Any

import keras

from bdl.estimators.linear import Scale
from bdl.layers.variational import Variational
from bdl.posteriors import MeanFieldNormal, Posterior
from bdl.priors import Normal, Prior
from bdl.serialization import serialize

DEFAULT_INPUT_PRIOR = Normal(1.0, 10.0)
DEFAULT_INPUT_POSTERIOR = MeanFieldNormal(initial_scale=0.1, speed=30.0)


@keras.saving.register_keras_serializable(package="bdl")
class InputFactors(Variational):
    """Multiplies each input feature by a random factor around 1, drawn for each example.

    It is the input side of a rank-1 posterior by itself, with a factor for every entry of an example: every pixel of an
    image, where a rank-1 convolution has one for a channel. Under the broad default prior the factor of a feature that
    the data use becomes certain, and that of a feature which is always zero in training keeps a standard deviation of
    10: inputs that use it make the network unsure. It belongs first in a network, in front of deterministic or
    variational layers, on inputs whose zero means that nothing is there. `EmbeddingRank1` does the same for token
    numbers.

    Input and output shape: `(batch, ...)`, all but the batch known.

    Args:
        prior: `bdl.priors.Prior` of the factors. Default: `Normal(1, 10)`.
        posterior: `bdl.posteriors.Posterior` of the factors. Default: `MeanFieldNormal(0.1, speed=30)`.
        seed: Integer seed of the layer's noise, or None for a random one.
        **kwargs: `name`, `dtype` and other arguments of `keras.Layer`.

    Raises:
        ValueError: as `bdl.layers.Variational` does.

    Source: the input factors of Dusenberry et al. 2020, "Efficient and scalable Bayesian neural nets with rank-1
    factors", eq. 3, with one for each entry of an example.

    Example:
    >>> layer = InputFactors(seed=0)
    >>> layer(np.ones((2, 28, 28, 1))).shape == (2, 28, 28, 1)
    True
    """

    def __init__(
        self,
        prior: Prior | str | dict[str, Any] = DEFAULT_INPUT_PRIOR,
        posterior: Posterior | str | dict[str, Any] = DEFAULT_INPUT_POSTERIOR,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        own = {name: kwargs[name] for name in ("dtype", "trainable") if name in kwargs}
        super().__init__(Scale(name="mean", **own), "local_reparameterization", prior, posterior, seed=seed, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        prior, posterior = self._families["kernel"]
        own = {"prior": serialize(prior), "posterior": serialize(posterior), "seed": self.seed}
        trainable = self.trainable and self.layer.trainable
        return {"name": self.name, "trainable": trainable, "dtype": self.dtype_policy.name, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> InputFactors:
        """Builds the layer again from `get_config()`."""
        return cls(**config)
