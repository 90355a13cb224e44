"""Data of a story: arrays of one precision, whole or in endless batches, and a first batch of any data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from bdl.keras_internals import endless, generated
from bdl.training.data import (
    DEFAULT_BATCH_SIZE,
    as_inputs,
    check_finite,
    check_lengths,
    first_inputs,
    is_data_set,
    is_dataset,
    is_endless,
    is_read_once,
)
from bdl.training.resident import Resident, on_device


def as_data(x: Any, dtype: str, argument: str = "x") -> Any:
    """Arrays in any structure as NumPy arrays, floating point numbers in one dtype; a data set stays as it is.

    Lists of arrays become tuples.

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
    try:
        check_finite(arrays, argument)
    except ValueError as error:
        raise ValueError(
            f"{error} Or put any number in the place of what is missing and declare it: Observed(..., mask=...)."
        ) from error

    def converted(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return {key: converted(value) for key, value in leaf.items()}
        if isinstance(leaf, (list, tuple)):  # TensorFlow's data sets take lists for tensors
            return tuple(converted(value) for value in leaf)
        array = keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)
        return array.astype(dtype) if array.dtype.kind == "f" else array

    return converted(arrays)


def refuse_arguments_of_labels(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of Keras' `fit` that have no meaning for data without labels.

    Raises:
        ValueError: naming one that is given.
    """
    for name, fix in (("validation_split", "validation_data=rows"), ("class_weight", "sample_weight=weights")):
        if arguments.get(name):
            raise ValueError(f"`{name}` must be left out, not {arguments[name]!r}. Pass {fix}.")


def as_validation(data: Any) -> Any:
    """What Keras is to validate on: arrays as a tuple of one, or it would take some of them for labels."""
    return data if is_data_set(data) else (data,)


def as_weights(weights: Any, x: Any, dtype: str) -> Any:
    """Weights of the rows of arrays as an array, or None.

    Raises:
        ValueError: if they are not as many as the rows, or one is not finite.
    """
    if weights is None:
        return None
    weights = as_data(weights, dtype, "sample_weight")
    check_lengths({"x": x, "sample_weight": weights})
    return weights


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


def first_batch(x: Any, batch_size: int | None) -> Any:
    """The first batch of arrays or of a data set; None where reading one would consume it.

    Example:
    >>> first_batch({"x": np.arange(5)}, 2)
    {'x': array([0, 1])}
    """
    if is_data_set(x):
        return first_inputs(x)
    return keras.tree.map_structure(lambda leaf: np.asarray(leaf)[: batch_size or DEFAULT_BATCH_SIZE], x)


def all_rows(x: Any) -> int:
    """Number of rows of arrays, for a fit with the whole data in each step.

    Raises:
        ValueError: if they are a data set.
    """
    if is_data_set(x):
        raise ValueError(f"`batch_size` must be a number for {type(x).__name__}, not 'all', which is for arrays.")
    return int(keras.tree.flatten(x)[0].shape[0])


def steps_per_epoch(steps: int | None, epochs: int) -> int | None:
    """Steps between two reports; None where passes over the data are asked for.

    Raises:
        ValueError: if `steps` is no positive multiple of `epochs`.

    Example:
    >>> steps_per_epoch(2000, 10)
    200
    """
    if steps is None:
        return None
    if steps <= 0 or steps % epochs:
        raise ValueError(f"`steps` must be a positive multiple of epochs={epochs}, not {steps!r}.")
    return steps // epochs


def repeated(x: Any) -> Any:
    """A data set whose batches come again and again, for a fit of a number of steps; what is read once stays as it is.

    Raises:
        ValueError: if the data set cannot be repeated.
    """
    if is_dataset(x):
        return x.repeat()
    if is_read_once(x) or is_endless(x):
        return x
    if isinstance(x, keras.utils.PyDataset):
        return _Repeated(x)
    raise ValueError(f"`steps` must be None for {type(x).__name__}, which cannot be repeated. Pass epochs.")


class _Repeated(keras.utils.PyDataset):
    """The batches of another `PyDataset` for ever."""

    num_batches = None

    def __init__(self, batches: keras.utils.PyDataset) -> None:
        super().__init__()
        self._batches = batches

    def __getitem__(self, index: int) -> Any:
        number = self._batches.num_batches
        if index and index % number == 0:
            self._batches.on_epoch_end()
        return self._batches[index % number]


class EndlessRows(keras.utils.PyDataset):
    """Batches of arrays for ever: one random order of all rows after another, cut into batches of one size.

    So nothing is compiled twice, every row comes equally often, and the order is known from a seed and the number of
    steps done: a training that was interrupted goes on with the batches it would have had.

    Args:
        data: NumPy arrays in any structure.
        batch_size: Rows in a batch; as many as there are, or more, hands all of them on in their order.
        seed: Of the orders.
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
        sample_weight: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        rows = int(keras.tree.flatten(data)[0].shape[0])
        self._data, self._weights, self._rows, self._seed = data, sample_weight, rows, seed
        self._batch_size = min(batch_size, rows)
        self._first = self._done = 0
        self._orders: dict[int, np.ndarray] = {}

    def for_fit(self) -> Any:
        """These as Keras reads them, on TensorFlow a data set of them: Keras would leave their size open there."""
        if keras.backend.backend() != "tensorflow":
            return endless(self)
        import tensorflow as tf

        spec = keras.tree.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), self[0])
        return generated(self._for_ever, spec).prefetch(2)

    def _for_ever(self) -> Iterator[Any]:
        return (self[index] for index in itertools.count())

    def on_device(self, steps_in_call: int, steps_per_epoch: int) -> Resident:
        """The same batches as rows of data on the device."""
        is_whole = self._batch_size == self._rows
        numbers = self._row_numbers(steps_in_call, steps_per_epoch, is_whole)
        return Resident(on_device(self._batch(self._data, self._weights)), numbers, is_whole)

    def _row_numbers(self, steps_in_call: int, steps_per_epoch: int, is_whole: bool) -> Iterator[np.ndarray]:
        """Row numbers of one call after another, `(steps, batch)`; the last call of an epoch ends with it."""
        for epoch in itertools.count():
            for done in range(0 if epoch else self._done, steps_per_epoch, steps_in_call):
                steps = min(steps_in_call, steps_per_epoch - done)
                begin = (self._first - self._done + epoch * steps_per_epoch + done) * self._batch_size
                width = 1 if is_whole else self._batch_size
                yield (
                    np.zeros((steps, 1), "int32")
                    if is_whole
                    else self._picked(begin, begin + steps * width).reshape(steps, width)
                )

    def begin_after(self, seeds: Sequence[int], steps: int, done: int) -> None:
        """As of `bdl.training.resumption.Follows`: the model's own seed decides the orders."""
        self._seed, self._first, self._done = seeds[0], steps, done

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
