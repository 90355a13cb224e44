"""Whether a network can be trained as it is asked for."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from bdl.keras_internals import flatten_layers
from bdl.latents import without_local_kl
from bdl.likelihoods.heads import Heads, naming
from bdl.protocols import HasKL, HasLocalLatents
from bdl.training.batches import batches

_NUM_LOOKED_AT = 8
"""Examples whose outputs tell logits from probabilities: rows of logits do not sum to 1, not even one of them."""


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


def outputs_on(network: keras.Model, x: Any, count: int) -> Any:
    """What a network says of the first examples, with Keras' masks on it; no variable changes, seeds neither."""
    inputs = next(batches(x, count, 1, network)).inputs
    first = keras.tree.map_structure(lambda leaf: None if leaf is None else keras.ops.convert_to_tensor(leaf), inputs)
    with without_local_kl(), keras.StatelessScope():
        return network(first, training=False)


def check_outputs(network: keras.Model, heads: Heads, x: Any, outputs: Any) -> None:
    """Looks at the outputs for some examples where it cannot be seen whether they are logits or probabilities.

    Args:
        network: A built network.
        heads: Its likelihoods.
        x: Inputs.
        outputs: Outputs, or anything in their structure.

    Raises:
        ValueError: if they are not what a likelihood expects.
    """
    endings = heads.endings(outputs)
    doubtful = {name: head for name, head in heads.by_name(outputs).items() if head.is_in_doubt(endings[name])}
    found = heads.flat(outputs_on(network, x, _NUM_LOOKED_AT)) if doubtful else {}
    for name, head in doubtful.items():
        with naming(name):
            head.check_outputs(keras.ops.convert_to_numpy(found[name]).astype(np.float32))
