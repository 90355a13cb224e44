"""Kinds of arrays and data sets that Keras takes, and its masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable, train_validation_split


def row_picker(arrays: Any) -> Callable[[np.ndarray], Any]:
    """What gives rows of arrays of any kind that Keras takes, by their numbers.

    Args:
        arrays: Arrays, tensors, pandas or scipy sparse matrices in any structure; None stays None.

    Returns:
        A function of row numbers. Its arrays are dense NumPy ones, floating point numbers in Keras' `floatx`; tensors
        only of text and where rows differ in length.

    Example:
    >>> row_picker({"a": np.array([[1], [2], [3]]), "b": None})(np.array([2, 0]))
    {'a': array([[3],
           [1]]), 'b': None}
    """
    tables = keras.tree.map_structure(
        lambda leaf: leaf if _is_plain(leaf) else convert_to_sliceable(leaf, target_backend="numpy"), arrays
    )

    def pick(rows: np.ndarray) -> Any:
        return keras.tree.map_structure(lambda table: None if table is None else _rows(table, rows), tables)

    return pick


def _is_plain(leaf: Any) -> bool:
    """Whether this is an array of floating point numbers, which Keras would convert as a whole: it may lie on disk."""
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"


def _rows(table: Any, rows: np.ndarray) -> Any:
    if _is_plain(table):
        return np.asarray(table[rows], dtype=keras.config.floatx())
    picked = table[rows]
    if is_ragged(picked) or is_text(picked):
        return picked
    return np.asarray(table.convert_to_numpy(picked))


def is_ragged(values: Any) -> bool:
    """Whether these are rows of different lengths, which TensorFlow alone has a tensor for."""
    return keras.backend.backend() == "tensorflow" and hasattr(values, "flat_values")


def cut_as(padded: Any, ragged: Any) -> Any:
    """A tensor without its padding: its rows as long as those of a ragged one."""
    return ragged.from_tensor(padded, lengths=ragged.nested_row_lengths())


def is_sparse(values: Any) -> bool:
    """Whether this is a sparse tensor of TensorFlow or JAX; Keras has none on Torch.

    Example:
    >>> is_sparse(keras.ops.ones((2, 2)))
    False
    """
    return hasattr(values, "dense_shape") or hasattr(values, "todense")


def is_text(values: Any) -> bool:
    """Whether a tensor holds strings, which TensorFlow alone has a tensor for.

    Example:
    >>> is_text(np.ones(2))
    False
    """
    return keras.backend.backend() == "tensorflow" and getattr(values, "dtype", None) == "string"


def py_dataset_batches(data: keras.utils.PyDataset) -> Iterator[Any]:
    """What a `PyDataset` gives in one epoch, read by its workers as in `fit`, and told of its beginning and end."""
    return _one_epoch(get_data_adapter(data))


def training_batches(x: Any, y: Any, sample_weight: Any, class_weight: Any, batch_size: int) -> Iterator[Any]:
    """One pass over training data in their order, batch by batch, as `fit` unpacks them: NumPy arrays in tuples.

    Args:
        x: Whatever `keras.Model.fit` takes; what can be read once is used up.
        y: Labels, or None.
        sample_weight: As `fit` takes it, or None.
        class_weight: As `fit` takes it, or None.
        batch_size: For arrays only; data sets have their own.

    Example:
    >>> [len(batch[0]) for batch in training_batches(np.zeros((5, 2)), np.zeros(5), None, None, batch_size=4)]
    [4, 1]
    """
    return _one_epoch(get_data_adapter(x, y, sample_weight, batch_size=batch_size, class_weight=class_weight))


def split_for_validation(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """What `fit` trains and validates on, of arrays of any kind in any structure.

    Example:
    >>> split_for_validation((np.arange(4), None), 0.25)
    ((array([0, 1, 2]), None), (array([3]), None))
    """
    return train_validation_split(arrays, validation_split=validation_split)


def _one_epoch(adapter: Any) -> Iterator[Any]:
    adapter.on_epoch_begin()
    try:
        yield from adapter.get_numpy_iterator()
    finally:
        adapter.on_epoch_end()


def keras_mask(tensor: Any) -> Any:
    """The mask that Keras attached to a layer's output, or None."""
    return get_keras_mask(tensor)


def with_mask(tensor: Any, mask: Any) -> Any:
    """The tensor, with a mask on it as Keras attaches one to a layer's output."""
    set_keras_mask(tensor, mask)
    return tensor
