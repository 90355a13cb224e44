"""What `fit` must know about its data before it starts: how many examples, how many steps, and that they are sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    if is_data_set(x):
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
    batch = _peeked(x)
    return None if batch is None or batch[1] is None else batch


def first_inputs(x: Any) -> Any:
    """Inputs of one batch of a data set, with labels or without, or None where reading one would consume it."""
    batch = _peeked(x)
    return None if batch is None else batch[0]


def _peeked(x: Any) -> tuple[Any, Any, Any] | None:
    if is_dataset(x):
        return _parts_of(next(iter(x.take(1)), None))
    if isinstance(x, keras.utils.PyDataset):
        return _parts_of(x[0])
    return None


def is_read_once(x: Any) -> bool:
    """Whether reading the data uses them up: a generator or another iterator.

    Example:
    >>> is_read_once(iter([])), is_read_once(np.zeros(3))
    (True, False)
    """
    return isinstance(x, Iterator) or callable(getattr(x, "__next__", None))


def is_data_set(x: Any) -> bool:
    """Whether this gives batches by itself: a data set of TensorFlow, Keras, Torch or grain, or an iterator.

    Example:
    >>> is_data_set(np.ones((2, 3))), is_data_set(iter([np.ones((2, 3))]))
    (False, True)
    """
    is_iterator = is_read_once(x)
    return is_iterator or isinstance(x, keras.utils.PyDataset) or is_dataset(x) or _is_data_loader(x) or _is_grain(x)


def is_dataset(x: Any) -> bool:
    """Whether this is a tf.data.Dataset; TensorFlow is not imported to find out."""
    return _is_of(x, "tensorflow.", "DatasetV2")


def is_endless(x: Any) -> bool:
    """Whether a data set is known to give batches for ever."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is None
    return is_dataset(x) and int(x.cardinality()) == -1


def as_arrays(values: Any, argument: str) -> Any:
    """Makes arrays of plain lists of Python numbers, which Keras leaves to its user; all else stays as it is.

    Args:
        values: A structure of arrays, or of (nested) lists of numbers or strings; or a data set.
        argument: Name of the argument, for the message.

    Raises:
        ValueError: if rows of a list differ in length.

    Example:
    >>> as_arrays({"a": [[1, 2], [3, 4]], "b": None}, "x")
    {'a': array([[1, 2],
           [3, 4]]), 'b': None}
    """
    if isinstance(values, dict):
        return {key: as_arrays(value, f"{argument}[{key!r}]") for key, value in values.items()}
    if not isinstance(values, (list, tuple)):
        return values
    if not _is_plain(values):
        parts = [as_arrays(value, f"{argument}[{number}]") for number, value in enumerate(values)]
        return parts if isinstance(values, list) else tuple(parts)
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{argument}` must be a list of rows of one length, not of several. Pad them.") from error


def as_inputs(x: Any, argument: str = "x") -> Any:
    """`as_arrays` for inputs, which on TensorFlow may be text: NumPy strings of any kind become tensors of strings.

    Raises:
        ValueError: if they are text on another backend, whose tensors hold numbers only.

    Example:
    >>> as_inputs([0.5, 1.5])
    array([0.5, 1.5])
    """

    def converted(path: str, leaf: Any) -> Any:
        if not _is_text_array(leaf):
            return leaf
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"`{path}` must hold numbers on {keras.backend.backend()}, not text, of which only TensorFlow has "
                "tensors. Look strings up first: keras.layers.TextVectorization or StringLookup, called on the data."
            )
        return keras.ops.convert_to_tensor(leaf, dtype="string")

    return x if is_data_set(x) else _map_leaves(converted, as_arrays(x, argument), argument)


def check_lengths(data: Mapping[str, Any]) -> int:
    """Checks that arrays have one row for each example.

    Args:
        data: Structures of arrays by the names of their arguments; None where there are none.

    Returns:
        The number of examples.

    Raises:
        ValueError: naming arrays of different length, or what is no array.

    Example:
    >>> check_lengths({"x": {"a": np.ones((5, 2)), "b": np.ones((3, 2))}, "y": np.ones(5)})
    Traceback (most recent call last):
    ...
    ValueError: `x` and `y` must have one row for each example, not 5 in x['a'], 3 in x['b'] and 5 in y.
    """
    lengths = {path: _rows(path, leaf) for name, values in data.items() for path, leaf in _leaves(values, name)}
    given = " and ".join(f"`{name}`" for name, values in data.items() if values is not None)
    if not lengths:
        raise ValueError(f"{given or '`x`'} must hold arrays with one row for each example, not {dict(data)!r}.")
    if len(set(lengths.values())) > 1:
        *first, last = (f"{rows} in {path}" for path, rows in lengths.items())
        raise ValueError(f"{given} must have one row for each example, not {', '.join(first)} and {last}.")
    return next(iter(lengths.values()))


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
        array = _numbers(leaf)
        if array.dtype.kind not in "fc":
            continue
        # The sum is finite unless an entry is not (or it overflows): one fast pass in the usual case.
        with np.errstate(all="ignore"):
            if np.isfinite(array.sum(dtype=np.float64)):
                continue
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            index = tuple(int(i) for i in bad[0])
            # The numbers of a sparse or ragged array have places of their own.
            is_dense = tuple(array.shape) == tuple(getattr(leaf, "shape", array.shape))
            entry = f"{path}[{', '.join(map(str, index))}]" if is_dense else f"an entry of {path}"
            raise ValueError(
                f"`{path}` must be finite; {entry} is {array[index]}. Remove or impute such examples first."
            )


def _leaves(values: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Arrays of a structure and what to call them; a list of numbers is an array."""
    if values is None:
        return
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{path}[{key!r}]")
    elif isinstance(values, (list, tuple)) and not _is_plain(values):
        for number, value in enumerate(values):
            yield from _leaves(value, f"{path}[{number}]")
    else:
        yield path, values


def _map_leaves(function: Any, values: Any, path: str) -> Any:
    """The structure with `function(path, leaf)` in the place of each array."""
    if values is None:
        return None
    if isinstance(values, dict):
        return {key: _map_leaves(function, value, f"{path}[{key!r}]") for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        parts = [_map_leaves(function, value, f"{path}[{number}]") for number, value in enumerate(values)]
        return parts if isinstance(values, list) else tuple(parts)
    return function(path, values)


def _is_plain(values: Any) -> bool:
    """Whether this is a list of Python numbers or strings, or of such lists."""
    return len(values) > 0 and all(
        _is_plain(value) if isinstance(value, (list, tuple)) else isinstance(value, (bool, int, float, str, np.generic))
        for value in values
    )


def _is_text_array(leaf: Any) -> bool:
    if not isinstance(leaf, np.ndarray):
        return False
    is_object = leaf.dtype.kind == "O" and leaf.size > 0 and all(isinstance(each, (str, bytes)) for each in leaf.flat)
    return leaf.dtype.kind in "US" or is_object


def _rows(path: str, leaf: Any) -> int:
    shape = getattr(leaf, "shape", None)
    if shape is None and isinstance(leaf, (list, tuple)):
        return len(leaf)
    if shape is None or len(shape) == 0:
        raise ValueError(
            f"`{path}` must be an array with one row for each example, a list or dict of arrays, or a data set, not "
            f"{leaf!r}."
        )
    return int(shape[0])


def _numbers(leaf: Any) -> np.ndarray:
    """What an array of any kind holds; of a sparse one only what is there."""
    if isinstance(leaf, np.ndarray):
        return leaf
    if hasattr(leaf, "tocoo"):  # of scipy
        return np.asarray(leaf.tocoo().data)
    for name in ("flat_values", "values"):  # of ragged and sparse tensors, and of pandas
        inside = getattr(leaf, name, None)
        if inside is not None and not callable(inside):
            return _numbers(inside)
    if hasattr(leaf, "indices_dtype") or hasattr(leaf, "nse"):  # of JAX
        return np.asarray(leaf.data)
    return keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)


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
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    return check_lengths({"x": inputs})


def _parts_of(batch: Any) -> tuple[Any, Any, Any] | None:
    if batch is None:
        return None
    return keras.utils.unpack_x_y_sample_weight(without_optionals(batch))


def without_optionals(batch: Any) -> Any:
    """A batch of a tf.data.Dataset with None in the place of each `tf.experimental.Optional`, as Keras reads it."""
    return keras.tree.map_structure(lambda leaf: None if _is_of(leaf, "tensorflow.", "Optional") else leaf, batch)


def _is_of(x: Any, package: str, name: str) -> bool:
    """Whether an object is of a class, whose package need not be there."""
    return any(cls.__module__.startswith(package) and cls.__name__ == name for cls in type(x).__mro__)


def _is_data_loader(x: Any) -> bool:
    return _is_of(x, "torch.utils.data", "DataLoader")


def _is_grain(x: Any) -> bool:
    return any(_is_of(x, "grain", name) for name in ("MapDataset", "IterDataset", "DataLoader"))


def _length(x: Any) -> int | None:
    try:
        return len(x)
    except TypeError:  # an iterable data set has no length
        return None
