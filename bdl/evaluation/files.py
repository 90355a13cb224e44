"""Predictions from files: .npz, .npy, .csv and .parquet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdl.evaluation.forecasts import FIELDS

SUFFIXES = (".npz", ".npy", ".csv", ".parquet")


def read_labels(labels: str, predictions: Path, content: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Labels or targets, by their name inside the predictions' file or from a file of their own.

    Args:
        labels: Name of an array or column, or path of a file that holds one array or column.
        predictions: The predictions' file, for messages.
        content: Its arrays by name.

    Raises:
        ValueError: if it is neither.
    """
    if labels in content:
        return content[labels]
    path = Path(labels)
    if not path.is_file():
        raise ValueError(
            f"`--labels` must name an array in {predictions} or a file, not {labels!r}. "
            f"The file holds {sorted(content)}."
        )
    arrays = read_arrays(path)
    if len(arrays) != 1:
        raise ValueError(f"{path} must hold the labels alone. It holds {sorted(arrays)}. Save one array or column.")
    return next(iter(arrays.values()))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays or columns of a file by name; the one array of a .npy file by the file's name, without suffix.

    Args:
        path: File to read. Arrays of a .npy file stay on disk (a memory map).

    Raises:
        ValueError: if the file is missing, damaged, empty, of another kind or not numeric.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must be one of {', '.join(SUFFIXES)}, not {path.suffix or 'no suffix'!r}.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist, or is no file. Give the path of a file of predictions.")
    readers = {".npz": _read_npz, ".npy": _read_npy, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        arrays = readers[path.suffix](path)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs pyarrow to be read. Install it with: pip install 'bdl[parquet]'.") from error
    except Exception as error:  # readers raise what they like at a damaged file
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if not arrays or any(array.size == 0 for array in arrays.values()):
        raise ValueError(f"{path} holds no examples. Write at least one row.")
    return arrays


def as_prediction(content: Mapping[str, NDArray[Any]], path: Path, labels: str, form: str | None) -> dict[str, Any]:
    """The arrays that make a prediction, under the names that `evaluate` takes.

    Args:
        content: Arrays or columns of the file, by name.
        path: The file, for messages.
        labels: Name of the labels, which are no part of it.
        form: `"probabilities"`, `"logits"` or `"samples"` for arrays that do not say what they are; None if the names
            say so, and for probabilities.

    Raises:
        ValueError: if it cannot be told which arrays are the prediction.
    """
    arrays = {name: array for name, array in content.items() if name != labels}
    named = {name: array for name, array in arrays.items() if name in FIELDS}
    if named and form is None:
        return named
    if len(arrays) == 1:
        (array,) = arrays.values()
        return {form or "probabilities": array}
    columns = {name: array for name, array in arrays.items() if array.ndim == 1}
    if columns and len(columns) == len(arrays):
        table = np.stack([columns[name] for name in _in_order(columns)], axis=1)
        return {form or "probabilities": table.T if form == "samples" else table}
    raise ValueError(
        f"{path} must hold arrays named {', '.join(FIELDS)}, or one array, or one column for each class. "
        f"It holds {sorted(content)}. Rename them."
    )


def by_output(content: Mapping[str, NDArray[Any]]) -> dict[str | None, dict[str, NDArray[Any]]]:
    """Arrays of each output, which stands before a slash in their names (`kind/probabilities`); None for one output.

    Args:
        content: Arrays or columns of a file, by name.

    Raises:
        ValueError: if some names have a slash and some have none.

    Example:
    >>> arrays = by_output({"kind/logits": np.zeros((2, 3)), "kind/y": np.zeros(2), "size/mean": np.zeros(2)})
    >>> {output: list(names) for output, names in arrays.items()}
    {'kind': ['logits', 'y'], 'size': ['mean']}
    """
    if not any("/" in name for name in content):
        return {None: dict(content)}
    outputs: dict[str | None, dict[str, NDArray[Any]]] = {}
    for name, array in content.items():
        output, slash, rest = name.partition("/")
        if not slash:
            raise ValueError(
                f"A file of several outputs must name the output of each array, as in 'kind/probabilities', not "
                f"{name!r} alone. Rename it."
            )
        outputs.setdefault(output, {})[rest] = array
    return outputs


def _in_order(columns: Mapping[str, Any]) -> list[str]:
    """Columns by the number at the end of their name (p0 ... p10), if all have one; else as they stand."""
    numbers = [re.search(r"(\d+)$", name) for name in columns]
    if all(numbers):
        return sorted(columns, key=lambda name: int(re.search(r"(\d+)$", name).group(1)))  # type: ignore[union-attr]
    return list(columns)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    # NumPy leaves a damaged file open that it has opened itself.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_npy(path: Path) -> dict[str, NDArray[Any]]:
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of numbers below a line of names."""
    with path.open(encoding="utf-8-sig") as file:
        names = [name.strip().strip('"') for name in file.readline().rstrip("\r\n").split(",")]
        if all(_is_number(name) for name in names):
            raise ValueError("its first line must name the columns, such as y,p0,p1.")
        if len(set(names)) < len(names) or "" in names:
            raise ValueError(f"its columns must have different names, not {names}.")
        table = np.loadtxt(file, delimiter=",", ndmin=2)
    if len(table) and table.shape[1] != len(names):
        raise ValueError(f"it names {len(names)} columns, but has {table.shape[1]}.")
    return {name: table[:, number] for number, name in enumerate(names)} if len(table) else {}


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return {name: _column(table.column(name).combine_chunks()) for name in table.column_names}


def _column(column: Any) -> NDArray[Any]:
    """A column as an array; lists of one length, as of probabilities, as its second axis."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_list(column.type) or kinds.is_fixed_size_list(column.type) or kinds.is_large_list(column.type):
        return np.array(column.to_pylist())
    return column.to_numpy(zero_copy_only=False)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
