"""Random factors on the inputs of a network: what lets it know that it sees features it was never taught to use."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl.estimators.linear import Scale
from bdl.layers.variational import Variational
from bdl.posteriors import MeanFieldNormal, Posterior
from bdl.priors import InputNormal, Prior
from bdl.random import Tensor
from bdl.serialization import serialize

DEFAULT_INPUT_PRIOR = InputNormal()
DEFAULT_INPUT_POSTERIOR = MeanFieldNormal(initial_scale=0.1, speed=30.0)


@keras.saving.register_keras_serializable(package="bdl")
class InputFactors(Variational):
    """Multiplies each input feature by a random factor around 1, drawn for each example.

    It is the input side of a rank-1 posterior by itself, with a factor for every entry of an example: every pixel of an
    image, where a rank-1 convolution has one for a channel. The factor of a feature that is always zero in training
    keeps the broad prior: inputs that use it make the network unsure. It belongs first in a network, in front of
    deterministic or variational layers. `EmbeddingRank1` does the same for token numbers.

    How broad is a matter of the data, which the default prior looks at: where a feature is empty in training, or nearly
    so, its factor has the prior `N(1, 3^2)`; where it varies as others do, `N(1, .1^2)` or so (`bdl.priors.InputNormal`
    has the rule). Photographs and standardised tables, all of whose features carry something, then get a little noise
    and no more. Under this prior the layer multiplies the difference of each feature to its mean in training, so that
    the zero point of the inputs does not matter.

    A prior of one scale, `Normal(1, 3)`, multiplies the features themselves, whose zero should then mean that nothing
    is there. It is for data with many empty features: where all are in use, thousands of factors have to tighten at
    some 3 nats each, which costs accuracy unless the examples are as many.

    Input and output shape: `(batch, ...)`, all but the batch known.

    Args:
        prior: `bdl.priors.Prior` of the factors. Default: `InputNormal()`.
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

    observes_inputs = True
    """Whether the layer shows the inputs of its training to a prior that asks for them."""

    def __init__(
        self,
        prior: Prior | str | dict[str, Any] = DEFAULT_INPUT_PRIOR,
        posterior: Posterior | str | dict[str, Any] = DEFAULT_INPUT_POSTERIOR,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        own = {name: kwargs[name] for name in ("dtype", "trainable") if name in kwargs}
        super().__init__(Scale(name="mean", **own), "local_reparameterization", prior, posterior, seed=seed, **kwargs)

    @property
    def centre(self) -> Tensor:
        """What a factor of 1 leaves in place: the inputs' mean in training, or 0 under a prior that does not ask."""
        (weight,) = self.sampled_weights.values()
        mean = weight.prior_variables.get("mean") if isinstance(weight.prior, InputNormal) else None
        return ops.zeros(weight.mean.shape) if mean is None else ops.convert_to_tensor(mean)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:  # type: ignore[override]
        """The inputs for one draw of the factors of each example."""
        (weight,) = self.sampled_weights.values()
        if not isinstance(weight.prior, InputNormal):
            return super().call(inputs, training=training)
        if training and self.trainable and self.layer.trainable:
            weight.prior.observe(inputs, weight.prior_variables)
        centre = ops.cast(ops.convert_to_tensor(self.centre), inputs.dtype)
        return centre + super().call(inputs - centre, training=training)

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
