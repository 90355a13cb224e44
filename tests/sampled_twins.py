"""The Keras layer with the weights that a variational layer is about to draw."""

from typing import Any

import keras
from keras import ops
from layer_contract import reset_noise

import bdl
from bdl.estimators.weights import Noise, sample_weights
from bdl.layers import Variational


def sampled_twin(layer: Variational, *shapes: Any, seed: int = 3) -> keras.Layer:
    """A Keras layer with the weights that the next call of a built variational layer samples.

    Args:
        layer: The variational layer; its noise is set to `seed`.
        *shapes: What the Keras layer is built from.
        seed: Seed of the draw.
    """
    reset_noise(layer, seed)
    values = sample_weights(layer.sampled_weights, Noise(bdl.random.draw_key(layer.seed_generator), ops.ones(())))
    reset_noise(layer, seed)
    names = {id(weight.mean): name for name, weight in layer.sampled_weights.items()}
    twin = type(layer.layer).from_config(layer.layer.get_config())
    twin.build(*shapes)
    for weight, own in zip(layer.layer.weights, twin.weights, strict=True):
        own.assign(values[names[id(weight)]] if id(weight) in names else weight)
    return twin
