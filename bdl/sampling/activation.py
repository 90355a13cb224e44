"""Whether a network ends in what its likelihood expects, as far as that can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from bdl.likelihoods import Mixture
from bdl.protocols import HasLocalLatents

_SQUASHING = {"softmax": "Categorical", "sigmoid": "Bernoulli"}


def check_output_activation(network: keras.Model, likelihood: Any) -> None:
    """Raises ValueError where the network visibly squashes what the likelihood will squash again, or is a mixture."""
    if isinstance(likelihood, Mapping):
        return
    last = (getattr(network, "layers", None) or [network])[-1]
    is_mixture = isinstance(last, HasLocalLatents) and last.decoder is not None
    if is_mixture and not isinstance(likelihood, Mixture):
        name = type(likelihood).__name__
        raise ValueError(
            f"The network ends in {last.name!r}, whose decoder gives one output for each alignment, but `likelihood` "
            f"is {name}. Use bdl.likelihoods.Mixture({name}(...))."
        )
    likelihood = likelihood.component if isinstance(likelihood, Mixture) else likelihood
    if not getattr(likelihood, "from_logits", False):
        return
    activation = _output_activation(network)
    if activation in _SQUASHING:
        name = type(likelihood).__name__
        raise ValueError(
            f"The network ends in {activation}, but `likelihood` is {name}(from_logits=True), which expects raw "
            f"logits. Remove the {activation} (better conditioned), or use {name}(from_logits=False)."
        )


def _output_activation(network: Any) -> str | None:
    """Name of the activation of the network's last layer, where it can be seen."""
    layers = getattr(network, "layers", None)
    while layers:
        last: Any = layers[-1]
        if isinstance(last, keras.layers.Softmax):
            return "softmax"
        if isinstance(last, keras.layers.Wrapper):
            last = last.layer
        if isinstance(last, HasLocalLatents):
            last = last.decoder
        activation = getattr(last, "activation", None)
        if activation is not None:
            return getattr(activation, "__name__", None)
        layers = getattr(last, "layers", None)
    return None
