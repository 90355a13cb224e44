"""What layers with noise share: a scalar that turns it off, and a seed that is saved."""

from __future__ import annotations

from typing import Any

import keras

_SEED_KEY = "seed_generator_state"


class SavesSeed:
    """Saves the state of a layer's `seed_generator` with its variables, which Keras does not.

    So a loaded layer draws what the saved one would have drawn. To be inherited before the Keras class.
    """

    seed_generator: keras.random.SeedGenerator

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables and the seed's state."""
        super().save_own_variables(store)  # type: ignore[misc]
        store[_SEED_KEY] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        """Loads the variables and the seed's state."""
        keys = [key for key in store.keys() if key != _SEED_KEY]  # noqa: SIM118 - Keras' store is no mapping
        super().load_own_variables({key: store[key] for key in keys})  # type: ignore[misc]
        self.seed_generator.state.assign(store[_SEED_KEY])
