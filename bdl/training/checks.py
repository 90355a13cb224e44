"""Whether a network can be trained as it is asked for."""

from __future__ import annotations

import warnings

import keras

from bdl.keras_internals import flatten_layers
from bdl.protocols import HasKL, HasLocalLatents


def check_estimators(network: keras.Layer, objective: str) -> None:
    """Refuses a gradient that is not that of the objective.

    Args:
        network: The network.
        objective: `"elbo"` or `"multi_sample"`.

    Raises:
        ValueError: if a layer takes a score function and the objective is not a sum of log likelihoods.
    """
    for layer in flatten_layers(network):
        if objective == "multi_sample" and isinstance(layer, HasLocalLatents) and layer.uses_score_function:
            raise ValueError(
                f"`objective` must be 'elbo', not 'multi_sample', with the score function of {layer.name}: its "
                "gradient is that of a sum of log likelihoods, not of the logarithm of a mean."
            )


def warn_if_deterministic(network: keras.Layer) -> None:
    """Warns of a network with no layer that has a KL or sums over latent variables."""
    layers = flatten_layers(network)
    if not any(
        isinstance(layer, HasKL) or (isinstance(layer, HasLocalLatents) and layer.sums_latents) for layer in layers
    ):
        warnings.warn(
            "`network` has no variational layer: the KL is zero, training is by maximum likelihood, and the epistemic "
            "uncertainty will be zero unless the network is random in another way. Use bdl.layers.",
            stacklevel=3,
        )
