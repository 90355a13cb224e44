"""What layers with noise share: a scalar that turns it off, and a seed that is saved."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl import random
from bdl.random import Tensor

SEED_KEY = "seed_generator_state"
"""Keras' name of the variable of a SeedGenerator."""


class SavesSeed:
    """Saves the state of a layer's `seed_generator` with its variables, which Keras does not.

    So a loaded layer draws what the saved one would have drawn. To be inherited before the Keras class.
    """

    seed_generator: keras.random.SeedGenerator

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables and the seed's state."""
        super().save_own_variables(store)  # type: ignore[misc]
        store[SEED_KEY] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        """Loads the variables and the seed's state."""
        keys = [key for key in store.keys() if key != SEED_KEY]  # noqa: SIM118 - Keras' store is no mapping
        super().load_own_variables({key: store[key] for key in keys})  # type: ignore[misc]
        self.seed_generator.state.assign(store[SEED_KEY])


class HasNoise(SavesSeed):
    """A layer with a seed and with a scalar, non-trainable `noise_strength`: 1, or 0 within `bdl.mean_weights`.

    To be inherited before the Keras class; the layer calls `create_noise` when it is made, and `add_noise_strength`
    when it is built.
    """

    seed: int | None
    noise_strength: keras.Variable

    def create_noise(self, seed: int | None) -> None:
        """Keeps the seed and makes its generator."""
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def add_noise_strength(self) -> None:
        """Adds the variable."""
        layer: Any = self
        self.noise_strength = layer.add_weight(
            name="noise_strength", shape=(), initializer="ones", trainable=False, dtype="float32", autocast=False
        )

    def draw(self) -> tuple[Tensor, Tensor]:
        """The key of a call, and the strength."""
        return random.draw_key(self.seed_generator), ops.convert_to_tensor(self.noise_strength)
