"""Data of a story: arrays of one precision, whole or in endless batches, and a first batch of any data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from bdl.training.data import as_inputs, check_finite, check_lengths, is_data_set


def as_data(x: Any, dtype: str, argument: str = "x") -> Any:
    """Arrays in any structure as NumPy arrays, floating point numbers in one dtype; a data set stays as it is.

    Args:
        x: Arrays of any kind, in a dict for a story that reads several, or a data set.
        dtype: Of floating point numbers.
        argument: Name of the argument, for the message.

    Raises:
        ValueError: if arrays differ in length, or one holds a number that is not finite, naming its row.

    Example:
    >>> as_data({"x": [1.0, 2.0], "n": np.array([1, 2])}, "float32")
    {'x': array([1., 2.], dtype=float32), 'n': array([1, 2])}
    """
    if is_data_set(x):
        return x
    arrays = as_inputs(x, argument)
    check_lengths({argument: arrays})
    check_finite(arrays, argument)

    def converted(leaf: Any) -> np.ndarray:
        array = keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)
        return array.astype(dtype) if array.dtype.kind == "f" else array

    return keras.tree.map_structure(converted, arrays)


def as_tensors(data: Any, dtype: str) -> Any:
    """The arrays of a batch as tensors, floating point numbers in one dtype.

    Example:
    >>> as_tensors({"x": np.zeros(2)}, "float32")["x"].dtype == keras.ops.zeros(1, "float32").dtype
    True
    """

    def converted(leaf: Any) -> Any:
        tensor = keras.ops.convert_to_tensor(leaf)
        is_float = "float" in keras.backend.standardize_dtype(tensor.dtype)
        return keras.ops.cast(tensor, dtype) if is_float else tensor

    return keras.tree.map_structure(converted, data)


class EndlessRows(keras.utils.PyDataset):
    """Batches of arrays for ever: one random order of all rows after another, cut into batches of one size.

    So nothing is compiled twice, every row comes equally often, and the order is known from a seed and the number of
    steps done: a training that was interrupted goes on with the batches it would have had.

    Args:
        data: NumPy arrays in any structure.
        batch_size: Rows in a batch; as many as there are, or more, hands all of them on in their order.
        seed: Of the orders.
        steps_done: Gives the number of training steps done before the first batch is asked for.
        sample_weight: `(rows,)`, or None.

    Example:
    >>> batches = EndlessRows({"x": np.arange(5)}, batch_size=2, seed=0)
    >>> sorted(row for index in range(5) for row in batches[index]["x"].tolist())
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    num_batches = None

    def __init__(
        self,
        data: Any,
        batch_size: int,
        seed: int,
        steps_done: Callable[[], int] = int,
        sample_weight: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        rows = int(keras.tree.flatten(data)[0].shape[0])
        self._data, self._weights, self._rows, self._seed = data, sample_weight, rows, seed
        self._batch_size = min(batch_size, rows)
        self._steps_done, self._first = steps_done, 0
        self._orders: dict[int, np.ndarray] = {}

    def for_fit(self) -> Any:
        """This, or on TensorFlow a data set of the same batches: Keras would leave their size open there."""
        if keras.backend.backend() != "tensorflow":
            return self
        import tensorflow as tf

        def batches() -> Iterator[Any]:
            self.on_epoch_begin()
            return (self[index] for index in itertools.count())

        first = self[0]
        self._orders = {}
        spec = keras.tree.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), first)
        return tf.data.Dataset.from_generator(batches, output_signature=spec).prefetch(2)

    def on_epoch_begin(self) -> None:
        """Looks how many steps were done before the first epoch; a callback may have restored them."""
        if not self._orders:
            self._first = self._steps_done()

    def __getitem__(self, index: int) -> Any:
        if self._batch_size == self._rows:
            return self._batch(self._data, self._weights)
        begin = (self._first + index) * self._batch_size
        rows = self._picked(begin, begin + self._batch_size)
        data = keras.tree.map_structure(lambda leaf: leaf[rows], self._data)
        return self._batch(data, None if self._weights is None else self._weights[rows])

    def _picked(self, begin: int, end: int) -> np.ndarray:
        """Rows from one place to another of the orders one after the other."""
        passes = range(begin // self._rows, (end - 1) // self._rows + 1)
        self._orders = {number: self._order(number) for number in passes}
        # Slices before they are joined: a copy of whole orders would make a step of many rows slower than of few.
        return np.concatenate(
            [
                order[max(begin - number * self._rows, 0) : end - number * self._rows]
                for number, order in self._orders.items()
            ]
        )

    def _order(self, number: int) -> np.ndarray:
        known = self._orders.get(number)
        return np.random.default_rng([self._seed, number]).permutation(self._rows) if known is None else known

    def _batch(self, data: Any, weights: np.ndarray | None) -> Any:
        if weights is not None:
            return data, np.zeros(len(weights), "float32"), weights  # Keras wants labels before weights
        return data if isinstance(data, dict) else (data,)
