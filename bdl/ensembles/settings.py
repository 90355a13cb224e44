"""What a member was trained with, as its file of settings says it: numbers and words, and digests of all else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

_ROWS = 65_536
"""Rows of an array that are read at a time, for it may be a file larger than memory."""


def session_settings() -> dict[str, Any]:
    """What a training takes from its process rather than from arguments."""
    return {
        "backend": keras.backend.backend(),
        "floatx": keras.config.floatx(),
        "dtype policy": keras.config.dtype_policy().name,
        "image data format": keras.config.image_data_format(),
    }


def described(value: Any) -> Any:
    """A value in a form that a JSON file holds and that is equal where the value is.

    Args:
        value: Numbers, strings and None are told as they are, all else by a digest: of what arrays hold, of the
            configuration of Keras' objects, and of others, such as callbacks, of their class and of the numbers,
            strings and arrays among their attributes. Of a function it is the name, not the code.

    Example:
    >>> described(30), described(np.zeros(2)) == described(np.zeros(2)), described(np.zeros(2)) == described(np.ones(2))
    (30, True, False)
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest.update, value)
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}{'' if shape is None else tuple(shape)} {digest.hexdigest()}"


def described_model(model: keras.Model) -> dict[str, Any]:
    """Digests of what a model is and how it was compiled, and of its weights.

    Args:
        model: A compiled Keras model.

    Raises:
        TypeError: if Keras cannot save the model, as its `get_config` says.
    """
    config = json.dumps(keras.saving.serialize_keras_object(model), sort_keys=True)
    return {"model": described([config]), "weights": described(weights_of(model))}


def weights_of(model: keras.Model) -> list[np.ndarray]:
    """The weights of a model as arrays."""
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Where two descriptions differ, in words; None where they do not.

    Args:
        one: A description.
        other: Another.

    Example:
    >>> difference({"epochs": 3, "seed": 0}, {"epochs": 4, "seed": 0})
    'epochs=3, not 4'
    """
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return ", ".join(f"{name}={one.get(name)!r}, not {other.get(name)!r}" for name in names) or None


def _feed(update: Callable[[bytes], object], value: Any) -> None:
    """Gives a digest all that a value holds."""
    update(type(value).__name__.encode())
    if value is None or isinstance(value, (bool, int, float, str)):
        update(repr(value).encode())
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            update(repr(key).encode())
            _feed(update, inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _feed(update, inner)
    elif hasattr(value, "tocoo"):  # a sparse matrix of scipy
        parts = value.tocoo()
        _feed(update, [*parts.coords, parts.data])
    elif hasattr(value, "__array__"):
        _feed_array(update, value)
    elif hasattr(value, "get_config"):
        _feed(update, value.get_config())
    else:
        update(getattr(value, "__qualname__", type(value).__qualname__).encode())
        held = {name: each for name, each in getattr(value, "__dict__", {}).items() if _is_plain(each)}
        _feed(update, held)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or hasattr(value, "__array__")


def _feed_array(update: Callable[[bytes], object], value: Any) -> None:
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    update(f"{array.dtype} {array.shape}".encode())
    for start in range(0, len(array), _ROWS) if array.ndim else [None]:
        part = array[() if start is None else slice(start, start + _ROWS)]
        update(repr(part.tolist()).encode() if array.dtype.kind == "O" else np.ascontiguousarray(part).tobytes())
