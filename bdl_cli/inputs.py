"""A file of data as the inputs of a model, of which no more is in memory than is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bdl.evaluation.files import read_arrays
from bdl.evaluation.tables import parquet_batches
from bdl.keras_internals import input_structure

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ModelInputs:
    """What a model takes, and which columns that is.

    Args:
        names: Names of its inputs, in order; None of a model that does not tell.
        width: Size of the last axis of its only input; None where that is open, or there are several.
        columns: Columns of its only input; None takes all numbers.
    """

    names: tuple[str, ...] | None
    width: int | None
    columns: tuple[str, ...] | None

    @classmethod
    def of(cls, model: keras.Model, columns: Sequence[str]) -> ModelInputs:
        """The inputs of a model, or of the network in it.

        Raises:
            ValueError: if columns are chosen for several inputs.
        """
        while hasattr(model, "network"):
            model = model.network
        structure = input_structure(model)
        chosen = tuple(columns) or None
        if structure is None:
            return cls(None, None, chosen)
        specs = keras.tree.flatten(structure)
        if len(specs) > 1 and chosen:
            raise ValueError(
                f"`columns` are for a model of one input. This one has {len(specs)}, each a column of its name: "
                f"{', '.join(spec.name for spec in specs)}."
            )
        width = specs[0].shape[-1] if len(specs) == 1 and len(specs[0].shape) == 2 else None
        return cls(tuple(spec.name for spec in specs), width, chosen)

    @property
    def read(self) -> tuple[str, ...] | None:
        """Columns that must be read; None where only the file tells."""
        if self.columns is not None:
            return self.columns
        return self.names if self.names is not None and len(self.names) > 1 else None

    def among(self, arrays: Arrays, path: Path) -> Any:
        """The inputs in a file's arrays or columns.

        Raises:
            ValueError: if the file does not have them, or not as many columns as the model takes.
        """
        if self.names is not None and len(self.names) > 1:
            return {name: _axis(_found(arrays, name, path)) for name in self.names}
        if self.columns is None:
            array, *others = arrays.values()
            if self.names is not None and self.names[0] in arrays:
                return arrays[self.names[0]]
            if not others and (array.ndim > 1 or self.width != 1):
                return array
        names = self._numeric(arrays) if self.columns is None else self.columns
        if self.width is not None and len(names) != self.width:
            raise ValueError(
                f"{path} must have the {self.width} columns that the model takes, not {len(names)}: "
                f"{', '.join(names)}. Choose them, in the order of the training, with `columns`."
            )
        return np.stack([_found(arrays, name, path) for name in names], axis=-1)

    def _numeric(self, arrays: Arrays) -> list[str]:
        return [name for name, array in arrays.items() if array.dtype.kind in "buif" and array.ndim == 1]


@dataclass(frozen=True)
class Source:
    """Inputs of a model.

    Args:
        x: What `predict_parts` takes.
        num_rows: How many there are.
    """

    x: Any
    num_rows: int


def read_inputs(path: Path, inputs: ModelInputs, batch_size: int) -> Source:
    """The inputs in a file: those of a .parquet file come batch by batch, and those of a .npy file stay on disk.

    Args:
        path: The file.
        inputs: What the model takes.
        batch_size: Rows that are evaluated together.

    Raises:
        ValueError: if the file cannot be read, or does not hold the inputs.
    """
    if path.suffix.lower() != ".parquet":
        x = inputs.among(read_arrays(path), path)
        return Source(x, len(keras.tree.flatten(x)[0]))
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path} needs pyarrow to be read. Install it with: pip install 'keras-bdl[tables]'."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows, columns = file.metadata.num_rows, file.schema_arrow.names
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as .parquet: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no examples. Write at least one row.")
    for name in inputs.read or ():
        _found(dict.fromkeys(columns), name, path)
    return Source(_batches(path, inputs, batch_size), rows)


def _batches(path: Path, inputs: ModelInputs, batch_size: int) -> Iterator[tuple[Any]]:
    for columns in parquet_batches(path, batch_size, inputs.read):
        yield (inputs.among(columns, path),)


def _found(arrays: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in arrays:
        raise ValueError(f"{path} must have a column {name!r}; it has {', '.join(map(str, arrays))}.")
    return arrays[name]


def _axis(column: np.ndarray) -> np.ndarray:
    """A column of numbers as an input of one feature."""
    return column[:, None] if column.ndim == 1 else column
