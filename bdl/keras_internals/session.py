"""What Python, NumPy, Keras and its backend keep for a whole process: names given so far, and random generators."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras.src.utils.module_utils import tensorflow as optional_tensorflow
from keras.src.utils.rng_utils import GLOBAL_RANDOM_SEED

_OF_KERAS = ("object_name_uids", GLOBAL_RANDOM_SEED, GLOBAL_SEED_GENERATOR)

_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def fresh_session(seed: int) -> Iterator[None]:
    """A context in which names and random numbers are those of a new process with this seed.

    What was there before is there again afterwards. One thread at a time is inside: generators are the process's.

    Args:
        seed: As of `keras.utils.set_random_seed`.

    Example:
    >>> with fresh_session(3):
    ...     first = keras.layers.Dense(1).name, np.random.rand()
    >>> with fresh_session(3):
    ...     print(first == (keras.layers.Dense(1).name, np.random.rand()))
    True
    """
    with _one_at_a_time, _generators_of_backends():
        kept = {name: global_state.get_global_attribute(name) for name in _OF_KERAS}
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is meant)
        try:
            global_state.set_global_attribute("object_name_uids", None)
            keras.utils.set_random_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for name, value in kept.items():
                global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def _generators_of_backends() -> Iterator[None]:
    """Puts back the global generators of Torch, and of TensorFlow, which Keras seeds on every backend."""
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "torch":
            import torch

            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
            stack.enter_context(torch.random.fork_rng(devices))
        if optional_tensorflow.available:
            stack.callback(_restore_tensorflow, *_state_of_tensorflow())
        yield


def _state_of_tensorflow() -> tuple[Any, Any]:
    from tensorflow.python.eager import context

    state = context.context()
    return state._seed, getattr(state, "_rng", None)  # it has none before a seed is set


def _restore_tensorflow(seed: Any, generator: Any) -> None:
    from tensorflow.python.eager import context

    state = context.context()
    state._seed, state._rng = seed, generator
