"""Several devices: replicas of a strategy, and the state that a step on JAX takes out of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np


def num_replicas() -> int:
    """Replicas over which Keras sums the gradient of a loss: it expects each to return its share.

    Keras divides what goes through `compile(loss=...)` itself, but not the result of an overridden `compute_loss` or of
    a loss with its own `__call__`.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def rows_per_replica(rows: Any) -> Any:
    """Rows of a batch by which each replica divides its sums, so that the replicas' results are together the mean.

    A strategy deals a batch out to its replicas, the last of which may get fewer rows, or none: their own means would
    count rows unequally, and that of no rows is not a number.

    Args:
        rows: Of this replica.

    Returns:
        Their mean over the replicas in a step of several; elsewhere `rows`.

    Example:
    >>> rows_per_replica(5)
    5
    """
    context = _replica_context()
    return rows if context is None else context.all_reduce("MEAN", keras.ops.cast(rows, "float32"))


def mean_over_replicas(part: Any) -> Any:
    """The mean of the replicas' parts in value, and the replica's own part in its gradient.

    Keras adds up gradients, so that together they are those of the sum of the parts.

    Args:
        part: Scalar, the replica's.

    Returns:
        The mean in a step of several replicas; elsewhere `part`.

    Example:
    >>> mean_over_replicas(2.0)
    2.0
    """
    context = _replica_context()
    if context is None:
        return part
    held = keras.ops.stop_gradient(part)
    return part + (context.all_reduce("MEAN", held) - held)


def _replica_context() -> Any:
    """TensorFlow's context of a replica; None outside of a step of several replicas."""
    if num_replicas() == 1:
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context()


def num_shards() -> int:
    """Parts into which `keras.distribution` deals out a batch.

    Example:
    >>> num_shards()
    1
    """
    distribution = keras.distribution.distribution()
    mesh = None if distribution is None else distribution.device_mesh
    if mesh is None:
        return 1
    return int(mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)])


def _has_workers(strategy: Any) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


class TakesUnevenBatches:
    """Mixin of a Keras model that may begin a fit with a batch whose replicas' shares differ in size, on TensorFlow.

    Keras learns the shapes of the data from the mean of the shares of the first batch, which fails where they differ.

    Raises:
        ValueError: under `MultiWorkerMirroredStrategy`, where Keras' own loops fail with what a step returns.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        model: Any = self
        strategy = model._distribute_strategy
        if strategy is not None and _has_workers(strategy):
            raise ValueError(
                "`fit` and `evaluate` must not run under MultiWorkerMirroredStrategy, under which they fail in Keras "
                "3.15. Call train_step and test_step in a loop of your own: docs/guides/distributed.md has one."
            )
        if strategy is not None and iterator is not None:
            _, _, batches = next(iter(iterator))
            first = keras.tree.map_structure(lambda leaf: strategy.experimental_local_results(leaf)[0], next(batches))
            iterator, data_batch = None, first
        super()._maybe_symbolic_build(iterator, data_batch)  # type: ignore[misc]


def even_rows(rows: Any) -> Any:
    """As many of the first rows as `keras.distribution` can deal out evenly, for trainings of bdl's own.

    Example:
    >>> even_rows(np.arange(3)).tolist()
    [0, 1, 2]
    """
    return rows[: len(rows) - len(rows) % num_shards()]


def even_batch(batch_size: int) -> int:
    """The next batch size that `keras.distribution` can deal out evenly.

    Example:
    >>> even_batch(3)
    3
    """
    return batch_size + -batch_size % num_shards()


def dealt_out(batch: Any) -> Any:
    """A batch spread over the devices of `keras.distribution`, on JAX; elsewhere the batch.

    Several processes, each of which wants the whole result, keep it whole.

    Args:
        batch: NumPy arrays with the rows on their first axis, in any structure; None stays None.

    Returns:
        Tensors of as many rows, or of a multiple of the devices: the last row is then repeated.

    Example:
    >>> dealt_out({"x": np.ones((3, 2)), "left out": None})["x"].shape
    (3, 2)
    """
    distribution = keras.distribution.distribution()
    if keras.backend.backend() != "jax" or distribution is None:
        return batch
    import jax

    if jax.process_count() > 1:
        return batch

    def place(leaf: Any) -> Any:
        if leaf is None:
            return None
        whole = np.pad(leaf, [(0, even_batch(len(leaf)) - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)], mode="edge")
        return keras.distribution.distribute_tensor(whole, distribution.get_data_layout(whole.shape))

    return keras.tree.map_structure(place, batch)


def is_one_device(model: keras.Model) -> bool:
    """Whether Keras trains a model on one device: under no strategy of TensorFlow, and no `keras.distribution`.

    Example:
    >>> is_one_device(keras.Sequential([keras.layers.Dense(1)]))
    True
    """
    if keras.distribution.distribution() is not None:
        return False
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return getattr(model, "_distribute_strategy", None) is None and not tf.distribute.has_strategy()


def keeping_state(step: Callable[..., Any], model: keras.Model, names: Sequence[str]) -> Callable[..., Any]:
    """A compiled step that leaves a model its state where it fails.

    Keras' JAX trainer takes the state out of the model's variables before a step, and puts it back after the last one.

    Args:
        step: From a state, a tuple of lists, and an iterator; not of JAX it is returned as it is.
        model: The model.
        names: What the lists of the state hold: `"trainable"`, `"non_trainable"`, `"optimizer"`, `"metrics"`.
    """
    if keras.backend.backend() != "jax":
        return step

    def run(state: Any, iterator: Any) -> Any:
        try:
            return step(state, iterator)
        except BaseException:
            if not any(leaf.is_deleted() for leaf in keras.tree.flatten(state)):
                model._jax_state = {f"{name}_variables": part for name, part in zip(names, state, strict=True)}
            raise

    return run


@contextlib.contextmanager
def putting_state_back(model: keras.Model) -> Iterator[None]:
    """Within this context a failure leaves a model's state in its variables, where Keras' JAX trainer took it out."""
    try:
        yield
    except BaseException:
        if keras.backend.backend() == "jax":
            model.jax_state_sync()
        raise
