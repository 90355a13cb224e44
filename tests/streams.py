"""Training on a stream of batches, many steps in a call: tiny models spend their time on epochs and calls otherwise."""

from collections.abc import Iterable
from typing import Any

import keras

_STEPS = 50  # in an epoch, and in a call of the compiled step where the backend can


def train_on_stream(model: keras.Model, optimizer: Any, batches: Iterable[Any], num_steps: int) -> None:
    """Trains for a multiple of 50 steps on batches `(x, y)`; the model has to know its `num_examples`."""
    model.compile(optimizer, steps_per_execution=1 if keras.backend.backend() == "torch" else _STEPS)
    stream = (batch for batch in batches)  # Keras takes generators
    model.fit(stream, epochs=num_steps // _STEPS, steps_per_epoch=_STEPS, shuffle=False, verbose=0)
