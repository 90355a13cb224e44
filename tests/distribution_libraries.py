"""The library of distributions of the active backend, and float64 on each backend."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

NAMES = {"tensorflow": "tensorflow_probability.distributions", "jax": "numpyro.distributions"}


def distributions() -> Any:
    """The module of distributions; the test is skipped where it is not installed."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow_probability

        return tensorflow_probability.distributions
    return pytest.importorskip(NAMES.get(backend, "torch.distributions"))


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Within this context JAX has 64 bits; other backends always do."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def double(values: Any) -> Any:
    """A tensor of float64."""
    return ops.convert_to_tensor(np.asarray(values, "float64"))


def single(values: Any) -> Any:
    """A tensor of float32."""
    return ops.convert_to_tensor(np.asarray(values, "float32"))


def array(values: Any) -> np.ndarray:
    """The numbers of a tensor."""
    return np.asarray(ops.convert_to_numpy(values))
