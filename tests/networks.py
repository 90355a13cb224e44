"""Small networks of every kind that conversions have to serve, with inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers


@keras.saving.register_keras_serializable(package="bdl_tests")
class Subclassed(keras.Model):
    """A model whose graph only its code knows."""

    def __init__(self, rate: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.blocks = [layers.Dense(6, activation="relu"), layers.Dense(6, activation="relu")]
        self.norm = layers.BatchNormalization()
        self.dropout = layers.Dropout(rate)
        self.head = layers.Dense(3)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        for block in self.blocks:
            inputs = block(inputs)
        inputs = self.norm(inputs, training=training)
        return self.head(self.dropout(inputs, training=training))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


def images() -> Any:
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.SpatialDropout2D(0.2)(x)
    x = layers.SeparableConv2D(6, (3, 2))(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.3)(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def transformer() -> Any:
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 8)(inputs)
    attended = layers.MultiHeadAttention(2, 4, dropout=0.2)(x, x)
    x = layers.LayerNormalization()(x + attended)
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, activation="gelu")(x)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def tagger() -> Any:
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True, dropout=0.2, recurrent_dropout=0.2))(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(3))(x))


def several_inputs_and_outputs() -> Any:
    first, second = keras.Input((4,), name="first"), keras.Input((3,), name="second")
    x = layers.Concatenate()([layers.Dense(5, activation="relu")(first), layers.Dense(5, activation="relu")(second)])
    x = layers.Dropout(0.3)(x)
    return keras.Model([first, second], {"a": layers.Dense(3)(x), "b": layers.Dense(1)(x)})


def shared_and_nested() -> Any:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu"), layers.Dropout(0.2)])
    inputs = keras.Input((4,))
    shared = layers.Dense(4, activation="relu")
    x = inner(shared(shared(inputs)))
    return keras.Model(inputs, layers.Dense(3)(inner(x)))


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    return model


_RANDOM = np.random.default_rng(0)
TOKENS = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 2], [3, 3, 0, 0, 0], [6, 5, 4, 3, 2]], "int32")

NETWORKS: dict[str, tuple[Callable[[], Any], Any]] = {
    "images": (images, _RANDOM.normal(size=(4, 8, 8, 2)).astype("float32")),
    "transformer": (transformer, TOKENS),
    "tagger": (tagger, TOKENS),
    "several inputs and outputs": (
        several_inputs_and_outputs,
        [_RANDOM.normal(size=(4, 4)).astype("float32"), _RANDOM.normal(size=(4, 3)).astype("float32")],
    ),
    "shared and nested": (shared_and_nested, _RANDOM.normal(size=(4, 4)).astype("float32")),
    "subclassed": (subclassed, _RANDOM.normal(size=(4, 4)).astype("float32")),
}


def made(name: str) -> tuple[Any, Any]:
    """A network with weights that depend on the name alone, and inputs for it."""
    keras.utils.set_random_seed(1)
    make, inputs = NETWORKS[name]
    return make(), inputs


def outputs(model: Any, inputs: Any, **kwargs: Any) -> np.ndarray:
    """All outputs of a model, flat for each example."""
    leaves = keras.tree.flatten(model(inputs, **kwargs))
    return np.concatenate([keras.ops.convert_to_numpy(leaf).reshape(len(leaf), -1) for leaf in leaves], axis=1)


def batch_statistics(model: Any) -> list[np.ndarray]:
    """Moving means and variances, wherever they are in the model."""
    return [
        keras.ops.convert_to_numpy(variable) for variable in model.non_trainable_variables if "moving" in variable.path
    ]
