"""Batches of inputs from whatever Keras' `fit` takes: arrays of any kind, and data sets.

Arrays are NumPy arrays, tensors of any backend, pandas, scipy sparse matrices, text, ragged tensors, and plain lists of
numbers. A data set is a `tf.data.Dataset`, a `keras.utils.PyDataset`, a Torch `DataLoader`, a grain data set or an
iterator over batches. Either way the batches of one prediction have one size, so that nothing is compiled twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bdl.keras_internals import input_structure, is_ragged, py_dataset_batches, row_picker
from bdl.training.data import (
    DEFAULT_BATCH_SIZE,
    as_arrays,
    as_inputs,
    check_finite,
    check_lengths,
    is_data_set,
    is_endless,
    without_optionals,
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs that are evaluated together.

    Args:
        inputs: NumPy arrays in the structure of the data; tensors where they hold text or are ragged, and None for an
            optional input that is left out.
        size: How many examples count; those after them repeat the last one.
    """

    inputs: Any
    size: int


def batches(x: Any, batch_size: int | None = None, steps: int | None = None, network: Any = None) -> Iterator[Batch]:
    """The batches of a prediction.

    Args:
        x: Arrays of any kind, in a list or dict for several inputs, or a data set.
        batch_size: Examples in a batch of arrays; None takes as many as `steps` need, or Keras' 32. The batches of a
            data set have the size of its first one.
        steps: Number of batches of the data; None takes all.
        network: The network that they are for: entries of a dict that it has no input for are left out.

    Raises:
        ValueError: if there are no examples or endlessly many, if inputs are not finite or no arrays, or if they differ
            in length.

    Example:
    >>> [(batch.inputs.shape, batch.size) for batch in batches(np.ones((5, 2)), batch_size=3)]
    [((3, 2), 3), ((3, 2), 2)]
    """
    is_stream = is_data_set(x)
    if is_stream and steps is None and is_endless(x):
        raise ValueError("`x` must end, not give batches for ever. Predict on a part: data.take(number of batches).")
    width = None
    for inputs, _ in itertools.islice(_parts(x), steps if is_stream else None):
        inputs = as_inputs(known_inputs(network, inputs))
        check_finite(inputs, "x")
        total = check_lengths({"x": inputs})
        if not total:
            continue
        if is_stream:
            width = width or total
        else:
            width = min(total, batch_size or (math.ceil(total / steps) if steps else DEFAULT_BATCH_SIZE))
            total = min(total, steps * width) if steps else total
        yield from _cut(inputs, total, width)
    if width is None:
        raise ValueError("`x` must hold at least one example, but holds no examples.")


def known_inputs(network: Any, x: Any) -> Any:
    """The entries of a dict that a network has inputs for; anything else, or for any other network, as it is.

    Keras finds the inputs of a network that takes a dict by their order, and would take a superfluous entry for one.

    Args:
        network: A Keras model, or a conversion of one.
        x: Its inputs.

    Example:
    >>> network = keras.Sequential([keras.Input((2,), name="size"), keras.layers.Dense(1)])
    >>> known_inputs(network, {"id": 1, "size": 2})
    {'size': 2}
    """
    structure = input_structure(network)
    while structure is None and hasattr(network, "network"):
        network = network.network
        structure = input_structure(network)
    if structure is None or not isinstance(x, dict):
        return x
    names = structure if isinstance(structure, dict) else [spec.name for spec in keras.tree.flatten(structure)]
    return {name: x[name] for name in names} if all(name in x for name in names) else x


def symbolic(inputs: Any, is_any_size: bool = False) -> Any:
    """Keras tensors like the inputs of a batch.

    Args:
        inputs: Of a batch.
        is_any_size: Whether to leave open how many examples there are.

    Example:
    >>> symbolic(np.ones((5, 2), "float32"), is_any_size=True).shape
    (None, 2)
    """

    def spec(leaf: Any) -> Any:
        if leaf is None:
            return None
        shape = tuple(leaf.shape)
        shape = (None, *shape[1:]) if is_any_size else shape
        return keras.KerasTensor(shape, keras.backend.standardize_dtype(leaf.dtype), ragged=is_ragged(leaf))

    return keras.tree.map_structure(spec, inputs)


def num_rows(inputs: Any) -> Any:
    """How many examples the inputs of a batch hold, those that only fill it up included; a tensor if that is open."""
    return keras.ops.shape(next(leaf for leaf in keras.tree.flatten(inputs) if leaf is not None))[0]


class LabelledData:
    """A data set whose labels are kept while its inputs are read, so that it need not give them twice in one order.

    Args:
        x: A data set of (inputs, labels), or of inputs.
        num_readings: How often the inputs will be read. Once, they pass by; otherwise all are kept.

    Example:
    >>> data = LabelledData(iter([(np.ones((3, 2)), np.array([0, 1, 0]))]))
    >>> sum(batch.size for batch in batches(data.inputs())), data.labels()
    (3, array([0, 1, 0]))
    """

    def __init__(self, x: Any, num_readings: int = 1) -> None:
        self._parts: Iterator[tuple[Any, Any]] | None = _parts(x)
        self._is_kept = num_readings > 1
        self._inputs: list[tuple[Any]] = []
        self._labels: list[Any] = []

    def inputs(self) -> Iterator[tuple[Any]]:
        """One reading of the batches of inputs."""
        if self._parts is None:
            yield from self._inputs
            return
        parts, self._parts = self._parts, None
        for inputs, labels in parts:
            self._labels.append(labels)
            if self._is_kept:
                self._inputs.append((inputs,))
            yield (inputs,)

    def labels(self) -> Any:
        """The labels of what was read, joined; None if there were none."""
        if not self._labels or self._labels[0] is None:
            return None
        parts = [keras.tree.map_structure(_to_numpy, as_arrays(part, "y")) for part in self._labels]
        return keras.tree.map_structure(lambda *each: np.concatenate(each), *parts)


def _cut(inputs: Any, total: int, width: int) -> Iterator[Batch]:
    """Examples in batches of one size; the last batch repeats the last example."""
    pick = row_picker(inputs)
    for start in range(0, total, width):
        rows = np.minimum(np.arange(start, start + width), total - 1)
        yield Batch(pick(rows), min(width, total - start))


def _parts(x: Any) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels of each batch of a data set; of arrays the whole."""
    if not is_data_set(x):
        yield x, None
        return
    for batch in py_dataset_batches(x) if isinstance(x, keras.utils.PyDataset) else x:
        inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(without_optionals(batch))
        yield inputs, labels


def _to_numpy(values: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else np.asarray(values)
