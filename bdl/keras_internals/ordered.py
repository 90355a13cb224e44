"""Arrays of a fit in an order that is given, where Keras would draw one from the global state of a library."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import numpy as np
from keras.src.trainers.data_adapters import ArrayDataAdapter, PyDatasetAdapter, get_data_adapter
from keras.src.trainers.data_adapters.array_slicing import (
    TensorflowSparseWrapper,
    convert_to_sliceable,
    slice_tensorflow_sparse_wrapper,
)
from keras.src.trainers.data_adapters.data_adapter import DataAdapter


class Order(Protocol):
    """The order of the rows of a fit, epoch by epoch."""

    def begin_epoch(self) -> None:
        """Notes that an epoch begins."""

    def rows(self, num_rows: int, batch_size: int) -> np.ndarray:
        """Row numbers of the epoch, without those of batches that were trained before a fit was interrupted."""


def in_order(order: Order, x: Any, y: Any, batch_size: int | None, settings: dict[str, Any]) -> Any:
    """What `keras.Model.fit` takes as `x` to train on arrays in an order; None for data that are no arrays.

    None, too, for epochs that are parts of a pass over them: Keras goes on in the pass with the next epoch.

    Args:
        order: The order.
        x: Inputs.
        y: Labels, or None.
        batch_size: As of `fit`.
        settings: `sample_weight`, `class_weight` and `steps_per_epoch`, as of `fit`.
    """
    given = get_data_adapter(x, y, batch_size=batch_size, **settings)
    if type(given) is not ArrayDataAdapter or settings.get("steps_per_epoch") not in (None, given.num_batches):
        return None
    return _OrderedArrays(given, order)


def endless(batches: keras.utils.PyDataset) -> Any:
    """What `keras.Model.fit` takes as `x` to read a data set without an end, whose epochs may be left early."""
    return _Endless(batches)


def generated(elements: Callable[[], Iterator[Any]], signature: Any) -> Any:
    """A `tf.data.Dataset` of what a method yields, that lets go of the method's object when it goes itself.

    TensorFlow keeps the function of each `from_generator` until the process ends or Keras' session is cleared, and so
    all that the function holds. Keep the data set, one made of it or an iterator while it is read.

    Args:
        elements: A bound method.
        signature: The `output_signature` of `from_generator`.
    """
    import tensorflow as tf

    method = weakref.WeakMethod(elements)

    def begin() -> Iterator[Any]:
        bound = method()
        if bound is None:
            raise RuntimeError("The data set is gone that this iterator reads. Keep a reference to it.")
        return bound()

    data_set = tf.data.Dataset.from_generator(begin, output_signature=signature)
    data_set.generated_by = elements
    return data_set


def begin_at_epoch(model: keras.Model, epoch: int) -> None:
    """Makes a fit that has called its callbacks' `on_train_begin` go on with an epoch, whatever they restored."""
    model._initial_epoch = epoch


class _Endless(PyDatasetAdapter):
    def on_epoch_begin(self) -> None:
        if self._within_epoch:
            self.on_epoch_end()
        super().on_epoch_begin()


class _OrderedArrays(DataAdapter):
    """Rows of arrays in an order, batch by batch.

    Keras gets the order of an epoch from a generator that it starts with the first batch, after `on_epoch_begin`.

    Args:
        arrays: Keras' adapter of the arrays.
        order: The order.
    """

    def __init__(self, arrays: ArrayDataAdapter, order: Order) -> None:
        self._arrays, self._order = arrays, order

    def on_epoch_begin(self) -> None:
        self._order.begin_epoch()

    def get_numpy_iterator(self) -> Iterator[Any]:
        return self._batches("numpy", lambda table, part: table.convert_to_numpy(part))

    def get_jax_iterator(self) -> Iterator[Any]:
        return self._batches("jax", lambda table, part: table.convert_to_jax_compatible(part))

    def _batches(self, backend: str, converted: Any) -> Iterator[Any]:
        tables = self._tables(backend)
        for rows in self._batches_of_rows():
            yield keras.tree.map_structure(
                lambda table, rows=rows: None if table is None else converted(table, table[rows]), tables
            )

    def get_torch_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        loader = self._arrays.get_torch_dataloader()
        return DataLoader(loader.dataset, batch_sampler=_Batches(self), collate_fn=loader.collate_fn)

    def get_tf_dataset(self) -> Any:
        import tensorflow as tf

        size, left = self.batch_size, self.partial_batch_size

        def batches(rows: Any) -> Any:  # whole ones and the last apart, so that TensorFlow knows their sizes
            whole = tf.size(rows) // size * size
            parts = tf.data.Dataset.from_tensor_slices(tf.reshape(rows[:whole], (-1, size)))
            return (
                parts.concatenate(tf.data.Dataset.from_tensors(tf.ensure_shape(rows[whole:], (left,))))
                if left
                else parts
            )

        def picked(rows: Any, tables: Any) -> Any:
            def part(table: Any) -> Any:
                if isinstance(table, TensorflowSparseWrapper):
                    return slice_tensorflow_sparse_wrapper(table, rows)
                if isinstance(table, (list, tuple, dict)):
                    return None  # goes on inside
                return tf.gather(table, rows) if tf.is_tensor(table) else table

            return keras.tree.traverse(part, tables)

        spec = tf.TensorSpec((None,), tf.int64)
        orders = generated(self._order_of_epoch, spec)
        tables = tf.data.Dataset.from_tensors(keras.tree.lists_to_tuples(self._tables("tensorflow"))).repeat()
        pairs = tf.data.Dataset.zip((orders.flat_map(batches), tables))
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        # Keras has no optimization for arrays, either: for a pipeline of this size they take longer than they save.
        options.experimental_optimization.apply_default_optimizations = False
        return pairs.map(picked, num_parallel_calls=tf.data.AUTOTUNE).with_options(options).prefetch(tf.data.AUTOTUNE)

    def _tables(self, backend: str) -> Any:
        return convert_to_sliceable(self._arrays._inputs, target_backend=backend)

    def _rows(self) -> np.ndarray:
        return self._order.rows(self._arrays._num_samples, self.batch_size)

    def _order_of_epoch(self) -> Iterator[np.ndarray]:
        yield self._rows()

    def _batches_of_rows(self) -> Iterator[np.ndarray]:
        rows = self._rows()
        return (rows[begin : begin + self.batch_size] for begin in range(0, len(rows), self.batch_size))

    @property
    def num_batches(self) -> int:
        return int(self._arrays.num_batches)

    @property
    def batch_size(self) -> int:
        return int(self._arrays.batch_size)

    @property
    def has_partial_batch(self) -> bool:
        return bool(self._arrays.has_partial_batch)

    @property
    def partial_batch_size(self) -> int | None:
        left: int | None = self._arrays.partial_batch_size
        return left


class _Batches:
    """What a Torch `DataLoader` takes as its `batch_sampler`."""

    def __init__(self, arrays: _OrderedArrays) -> None:
        self._arrays = arrays

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from self._arrays._batches_of_rows()

    def __len__(self) -> int:
        return self._arrays.num_batches
