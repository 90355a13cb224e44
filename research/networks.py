"""Plain Keras networks of the benchmarks, which end in raw outputs; `rate` > 0 puts dropout before their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def mlp(
    input_shape: Sequence[int], width: int, depth: int, outputs: int, activation: str = "relu", rate: float = 0.0
) -> Any:
    """`depth` hidden layers of one width."""
    from keras import Input, Sequential, layers

    parts: list[Any] = [Input(tuple(input_shape)), layers.Flatten()]
    for _ in range(depth):
        parts += [layers.Dense(width, activation=activation), *_dropout(rate)]
    return Sequential([*parts, layers.Dense(outputs)])


def lenet5(input_shape: Sequence[int], outputs: int, rate: float = 0.0) -> Any:
    """LeCun et al. 1998 with relu and maximum pooling, as in uncertainty-baselines."""
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input(tuple(input_shape)),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            *_dropout(rate),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(2),
            *_dropout(rate),
            layers.Conv2D(120, 5, activation="relu"),
            layers.Flatten(),
            *_dropout(rate),
            layers.Dense(84, activation="relu"),
            *_dropout(rate),
            layers.Dense(outputs),
        ]
    )


def text_cnn(vocabulary: int, length: int, outputs: int, rate: float = 0.0) -> Any:
    """Kim 2014, "Convolutional neural networks for sentence classification", with random embeddings."""
    from keras import Input, Model, layers

    words = Input((length,), dtype="int32")
    embedded = layers.Embedding(vocabulary, 128)(words)
    pooled = [
        layers.GlobalMaxPooling1D()(layers.Conv1D(100, size, activation="relu", padding="same")(embedded))
        for size in (3, 4, 5)
    ]
    features = layers.Concatenate()(pooled)
    for layer in _dropout(rate):
        features = layer(features)
    return Model(words, layers.Dense(outputs)(features))


def _dropout(rate: float) -> list[Any]:
    from keras import layers

    return [layers.Dropout(rate)] if rate else []


def small_cnn(input_shape: Sequence[int], outputs: int, rate: float = 0.0) -> Any:
    """Three convolutions with pooling and a hidden layer, for small colour images."""
    from keras import Input, Sequential, layers

    parts: list[Any] = [Input(tuple(input_shape))]
    for filters in (16, 32, 64):
        parts += [layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.MaxPooling2D(2), *_dropout(rate)]
    parts += [layers.Flatten(), layers.Dense(64, activation="relu"), *_dropout(rate), layers.Dense(outputs)]
    return Sequential(parts)
