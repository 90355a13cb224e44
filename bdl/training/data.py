"""What `fit` must know about its data before it starts: how many examples, how many steps, and that they are sound."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

DEFAULT_BATCH_SIZE = 32  # Keras' own


@dataclass(frozen=True)
class DataSize:
    """Size of a training set; None where it cannot be known without reading the data.

    Args:
        num_examples: Number of examples.
        steps_per_epoch: Number of batches.
    """

    num_examples: int | None
    steps_per_epoch: int | None


def measure(x: Any, batch_size: int | None = None, validation_split: float = 0.0) -> DataSize:
    """Finds the size of what was given to `fit` as `x`.

    Args:
        x: Arrays (or a list or dict of them), a `tf.data.Dataset`, a `keras.utils.PyDataset` (which may say its size
            by an attribute `num_examples`), a Torch `DataLoader`, or an iterator, whose size is unknown.
        batch_size: As given to `fit`; for arrays only.
        validation_split: As given to `fit`; for arrays only.

    Example:
    >>> measure(np.zeros((100, 3)), batch_size=32, validation_split=0.1)
    DataSize(num_examples=90, steps_per_epoch=3)
    """
    if is_dataset(x):
        return _measure_tensorflow(x)
    if isinstance(x, keras.utils.PyDataset):
        return _measure_py_dataset(x)
    if _is_data_loader(x):
        return DataSize(_length(x.dataset), _length(x))
    if isinstance(x, Iterator) or callable(getattr(x, "__next__", None)):
        return DataSize(None, None)
    arrays = [leaf for leaf in keras.tree.flatten(x) if hasattr(leaf, "shape")]
    if not arrays:
        return DataSize(None, None)
    total = int(arrays[0].shape[0])
    # Keras takes the first floor(n * (1 - split)) examples for training.
    kept = math.floor(total * (1.0 - validation_split)) if validation_split else total
    return DataSize(kept, math.ceil(kept / (batch_size or DEFAULT_BATCH_SIZE)))


def first_batch(x: Any) -> tuple[Any, Any, Any] | None:
    """Inputs, labels and weights (or None) of one batch of a data set, or None where reading one would consume it."""
    if is_dataset(x):
        return _parts_of(next(iter(x.take(1)), None))
    if isinstance(x, keras.utils.PyDataset):
        return _parts_of(x[0])
    return None


def is_dataset(x: Any) -> bool:
    """Whether this is a tf.data.Dataset; TensorFlow is not imported to find out."""
    return any(cls.__module__.startswith("tensorflow.") and cls.__name__ == "DatasetV2" for cls in type(x).__mro__)


def check_finite(values: Any, argument: str) -> None:
    """Checks that arrays hold finite numbers.

    Args:
        values: An array or a nested structure of arrays.
        argument: Name of the argument, for the message.

    Raises:
        ValueError: naming the first entry that is not finite.

    Example:
    >>> check_finite(np.array([[0.0, np.nan]]), "x")
    Traceback (most recent call last):
    ...
    ValueError: `x` must be finite; x[0, 1] is nan. Remove or impute such examples first.
    """
    for path, leaf in _leaves(values, argument):
        array = np.asarray(leaf)
        if array.dtype.kind not in "fc":
            continue
        # The sum is finite unless an entry is not (or it overflows): one fast pass in the usual case.
        with np.errstate(all="ignore"):
            if np.isfinite(array.sum(dtype=np.float64)):
                continue
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            index = tuple(int(i) for i in bad[0])
            raise ValueError(
                f"`{path}` must be finite; {path}[{', '.join(map(str, index))}] is {array[index]}. "
                "Remove or impute such examples first."
            )


def _leaves(values: Any, path: str) -> Iterator[tuple[str, Any]]:
    if values is None:
        return
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{path}[{key!r}]")
    elif isinstance(values, (list, tuple)) and any(hasattr(value, "shape") for value in values):
        for number, value in enumerate(values):
            yield from _leaves(value, f"{path}[{number}]")
    else:
        yield path, keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else values


def _measure_tensorflow(x: Any) -> DataSize:
    cardinality = int(x.cardinality())
    steps = cardinality if cardinality >= 0 else None
    leaves = keras.tree.flatten(x.element_spec)
    batch_size = leaves[0].shape[0] if leaves and leaves[0].shape.rank else None
    known = steps is not None and batch_size is not None
    return DataSize(steps * batch_size if known else None, steps)  # type: ignore[operator]


def _measure_py_dataset(x: Any) -> DataSize:
    steps = x.num_batches
    own = getattr(x, "num_examples", None)  # one whose batches never end may say over how many examples they go
    if own is not None or not steps:
        return DataSize(own, steps or None)
    # All batches but the last have the size of the first.
    first, last = (_batch_length(x[index]) for index in (0, steps - 1))
    return DataSize((steps - 1) * first + last, steps)


def _batch_length(batch: Any) -> int:
    inputs = batch[0] if isinstance(batch, tuple) else batch
    return int(keras.tree.flatten(inputs)[0].shape[0])


def _parts_of(batch: Any) -> tuple[Any, Any, Any] | None:
    return (*batch, None)[:3] if isinstance(batch, tuple) and len(batch) > 1 else None


def _is_data_loader(x: Any) -> bool:
    return any(cls.__module__.startswith("torch.utils.data") for cls in type(x).__mro__)


def _length(x: Any) -> int | None:
    try:
        return len(x)
    except TypeError:  # an iterable data set has no length
        return None


def inputs_as_arrays(x: Any, steps: int | None = None) -> Any:
    """Inputs as arrays: those of a data set are read and joined, anything else is returned as it is.

    Args:
        x: Arrays, or a data set of inputs or of (inputs, labels).
        steps: Number of batches to read from a data set; None reads all.
    """
    if isinstance(x, keras.utils.PyDataset):
        batches: Any = (x[index] for index in range(x.num_batches or 0))
    elif is_dataset(x) or _is_data_loader(x) or isinstance(x, Iterator):
        batches = iter(x)
    else:
        return x
    inputs = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in itertools.islice(batches, steps)]
    arrays = [keras.tree.map_structure(keras.ops.convert_to_numpy, part) for part in inputs]
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *arrays)
