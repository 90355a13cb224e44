"""Predictions and labels from files: .npz, .npy and tables, and which of their arrays or columns mean what."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdl.calibration._events import blocks_of_rows
from bdl.calibration._validation import SUM_TOLERANCE
from bdl.evaluation.forecasts import FIELDS
from bdl.evaluation.tables import TABLE_SUFFIXES, UNNAMED_INDEX, is_number, read_table

SUFFIXES = (".npz", ".npy", *TABLE_SUFFIXES)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class FilePrediction:
    """What the arrays or columns of a file were taken for.

    Attributes:
        arrays: The prediction, under the names that `evaluate` takes.
        columns: Names of the columns that became classes or samples, in the order of that axis; empty if an array has
            the axis itself.
        left_out: Why other arrays or columns are no part of it, by name.
    """

    arrays: dict[str, NDArray[Any]]
    columns: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Which columns were taken as what, in one line."""
        names = [name for name in self.arrays if name != "classes" or not self.columns]
        taken = ", ".join(f"{name} from {', '.join(self.columns)}" if self.columns else name for name in names)
        left_out = ", ".join(f"{name or 'a column without a name'} ({why})" for name, why in self.left_out.items())
        return f"{taken}; left out: {left_out}" if left_out else taken


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays or columns of a file by name; the one array of a .npy file by the file's name, without suffix.

    Args:
        path: File to read: .npz, .npy, .csv, .tsv, .csv.gz, .tsv.gz or .parquet. What a .npy file holds stays on disk
            (a memory map): an array, or rows with named fields, each of them a column. Tables need pandas
            (`pip install 'keras-bdl[tables]'`).

    Raises:
        ValueError: if the file is missing, damaged, empty or of another kind, or what reads it is not installed.
    """
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must be one of {', '.join(SUFFIXES)}, not {path.suffix or 'no suffix'!r}.")
    if not os.path.isfile(path):
        raise ValueError(f"{path} does not exist, or is no file. Give the path of a file of predictions.")
    try:
        arrays = {".npz": _read_npz, ".npy": _read_npy}.get(suffix, read_table)(path)
    except ImportError as error:
        raise ValueError(
            f"{path} needs {error.name} to be read. Install it with: pip install 'keras-bdl[tables]'."
        ) from error
    except Exception as error:  # readers raise what they like at a damaged file
        raise ValueError(f"{path} cannot be read as {suffix}: {error or type(error).__name__}") from error
    if not arrays or any(array.size == 0 for array in arrays.values()):
        raise ValueError(f"{path} holds no examples. Write at least one row.")
    return arrays


def read_labels(labels: str, predictions: Path, content: Arrays) -> NDArray[Any]:
    """Labels or targets, by their name inside the predictions' file or from a file of their own.

    Args:
        labels: Name of an array or column, or path of a file that holds one array or column beside pandas' index.
        predictions: The predictions' file, for messages.
        content: Its arrays by name.

    Raises:
        ValueError: if it is neither, or some are missing.
    """
    path, found = predictions, content.get(labels)
    if found is None:
        path = Path(labels)
        if not os.path.isfile(path):  # False for a name that no file can have, too
            raise ValueError(
                f"`--labels` must name an array in {predictions} or a file, not {labels!r}. "
                f"The file holds {sorted(content)}."
            )
        arrays = {name: array for name, array in read_arrays(path).items() if not UNNAMED_INDEX.fullmatch(name)}
        if len(arrays) != 1:
            raise ValueError(f"{path} must hold the labels alone. It holds {sorted(arrays)}. Save one array or column.")
        (found,) = arrays.values()
    if found.dtype.kind == "O":
        found = found.astype(str)
    is_missing = np.isnan(found) if found.dtype.kind == "f" else found == "" if found.dtype.kind == "U" else None
    if is_missing is not None and is_missing.any():
        raise ValueError(f"`--labels` must have a value for each row, not none in row {is_missing.argmax()} of {path}.")
    return found


def read_common_labels(labels: str, contents: Mapping[Path, Arrays]) -> NDArray[Any]:
    """Labels of several files of predictions for the same rows: each file's own, which must agree, or those of a file.

    Args:
        labels: Name of an array or column of all files, or of none and then the path of a file.
        contents: Arrays by name, of each file.

    Raises:
        ValueError: if some files have the labels and others not, or they differ.
    """
    without = [path for path, content in contents.items() if labels not in content]
    (first, content), *others = contents.items()
    if without and len(without) < len(contents):
        raise ValueError(
            f"`--labels` must name an array in each file or in none: {without[0]} has no {labels!r}, but "
            f"{sorted(contents[without[0]])}. Labels of one file are not those of another's rows. If they are the same "
            "rows, give the labels in a file of their own."
        )
    found = read_labels(labels, first, content)
    if without:
        return found
    for path, content in others:
        own = read_labels(labels, path, content)
        if own.shape != found.shape or (own != found).any():
            where = f"lengths {len(found)} and {len(own)}"
            if own.shape == found.shape:
                where = f"row {int(np.argmax((own != found).reshape(len(own), -1).any(axis=1)))} is the first"
            raise ValueError(
                f"`--labels` must be the same in {first} and {path}, for models are compared on the same rows in the "
                f"same order. They differ: {where}."
            )
    return found


def take_prediction(
    content: Arrays,
    path: Path,
    labels: str,
    form: str | None = None,
    chosen: Sequence[str] = (),
    y: NDArray[Any] | None = None,
) -> FilePrediction:
    """The arrays or columns that make a prediction.

    Arrays under the names of `evaluate` are taken as these. Else it is the only array; or the columns of a table: those
    that were chosen, or columns with one name and different numbers (p0, p1, ...), or those with one prefix (p_cat),
    named after labels, of real numbers that vary, or of numbers. Where these are several sets, the probabilities are
    the one that sums to 1 in each row. Logits and samples have no such sum, and another number may stand beside them:
    they are taken by their names alone, or if each of three or more columns has its label (two may be a single logit
    and another number).

    Args:
        content: Arrays or columns of the file, by name.
        path: The file, for messages.
        labels: Name of the labels, which are no part of it.
        form: `"probabilities"`, `"logits"` or `"samples"` for arrays that do not say what they are; None if the names
            say so, and for probabilities.
        chosen: Names or patterns of the columns; empty to find them.
        y: The labels, after which columns may be named.

    Raises:
        ValueError: if it cannot be told which arrays are the prediction.
    """
    arrays = {name: array for name, array in content.items() if name != labels}
    named = {name: array for name, array in arrays.items() if name in FIELDS}
    if set(named) - {"classes"} and form is None and not chosen:
        for name in set(named) - {"classes"}:
            _check_numbers(name, named[name], path)
        return FilePrediction(named, left_out=_left_out(arrays, named))
    if chosen:
        names = _chosen(arrays, chosen, path)
    elif len(arrays) == 1:
        names = list(arrays)
    elif len({array.shape for array in arrays.values()}) == 1 and next(iter(arrays.values())).ndim == 1:
        names = _class_columns(arrays, form, path, y)
    else:
        names = []
    if not names:
        raise ValueError(
            f"{path} must hold arrays named {', '.join(FIELDS)}, or one array, or one column of numbers for each "
            f"class. It holds {sorted(content)}. Rename them, or name the columns with `--columns`."
        )
    for name in names:
        _check_numbers(name, arrays[name], path)
    _check_lengths(names, arrays, path)
    left_out = _left_out(arrays, names)
    if len(names) == 1:
        return FilePrediction({form or "probabilities": arrays[names[0]]}, left_out=left_out)
    table = np.stack([arrays[name] for name in names], axis=1)
    if form == "samples":
        return FilePrediction({form: table.T}, tuple(names), left_out)
    found = {form or "probabilities": table, "classes": np.array(names)}
    return FilePrediction(found, tuple(names), left_out)


def by_output(content: Arrays, path: Path) -> dict[str | None, dict[str, NDArray[Any]]]:
    """Arrays of each output, which stands before a slash in their names (`kind/probabilities`); None for one output.

    Args:
        content: Arrays or columns of a file, by name.
        path: The file, for messages.

    Raises:
        ValueError: if some names have a slash and some have none.

    Example:
    >>> content = {"kind/logits": np.zeros((2, 3)), "kind/y": np.zeros(2), "size/mean": np.zeros(2)}
    >>> arrays = by_output(content, Path("predictions.npz"))
    >>> {output: list(names) for output, names in arrays.items()}
    {'kind': ['logits', 'y'], 'size': ['mean']}
    """
    if not any("/" in name for name in content):
        return {None: dict(content)}
    outputs: dict[str | None, dict[str, NDArray[Any]]] = {}
    for name, array in content.items():
        if UNNAMED_INDEX.fullmatch(name):
            continue
        output, slash, rest = name.partition("/")
        if not slash:
            raise ValueError(
                f"{path} must name the output of each array, as in 'kind/probabilities', or of none, not have "
                f"{name!r} alone. Rename it."
            )
        outputs.setdefault(output, {})[rest] = array
    return outputs


def _suffix(path: Path) -> str:
    """The suffix in small letters; that before .gz of a table."""
    suffix = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower() if suffix == ".gz" else suffix
    return inner if inner in (".csv", ".tsv") else suffix


def _chosen(arrays: Arrays, patterns: Sequence[str], path: Path) -> list[str]:
    """Columns by name or pattern, in the order of the patterns."""
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if pattern in arrays else _in_order([n for n in arrays if fnmatchcase(n, pattern)])
        if not names:
            raise ValueError(f"`--columns` must name columns of {path}, {sorted(arrays)}, not {pattern!r}.")
        found.update(dict.fromkeys(names))
    return list(found)


def _class_columns(columns: Arrays, form: str | None, path: Path, y: NDArray[Any] | None) -> list[str]:
    """The columns of a table that hold a number for each class or sample; empty if none does."""
    for name, column in columns.items():
        _check_readable(name, column, path)
    numeric = [
        name
        for name, column in columns.items()
        if _is_numeric(column) and not _is_index(name, column) and not _is_empty(column)
    ]
    numbered, prefixed = _families(numeric, r"(.*?)\d+"), _families(numeric, r"(.+_)[^_]+")
    classes = set() if y is None or y.dtype.kind not in "Ub" else {str(label) for label in np.unique(y)}
    whole = [name for name in numeric if columns[name].dtype.kind != "f"]
    varying = [name for name in numeric if (columns[name] != columns[name][0]).any()]
    real = [name for name in varying if len(whole) == len(numeric) or name not in whole]
    named = [name for name in numeric if name in classes]
    sets = [*numbered, *prefixed, named if len(named) > 1 else [], real, numeric]
    sets = [names for number, names in enumerate(sets) if names and set(names) not in map(set, sets[:number])]
    fitting = sets
    if form in (None, "probabilities") and len(sets) > 1:
        fitting = [names for names in sets if _are_probabilities([columns[name] for name in names])]
    first = [names for names in fitting if names in numbered] or fitting
    if not sets:
        return []
    if len(first) == 1:
        is_told = first[0] in [*numbered, *prefixed, named] or form in (None, "probabilities") or len(first[0]) == 1
        if is_told or (form == "logits" and len(first[0]) > 2 and _has_all_columns(y, len(first[0]))):
            return first[0]
    raise ValueError(
        f"{path} does not say which columns of numbers are the {form or 'probabilities'}: "
        f"{' or '.join(', '.join(names) for names in (first or sets))}. Name them with `--columns`"
        + ("." if form else ", or say with `--as` what else they are.")
    )


def _has_all_columns(y: NDArray[Any] | None, num_classes: int) -> bool:
    """Whether each column's number is a label, and nothing else is."""
    return y is not None and np.array_equal(np.unique(y), np.arange(num_classes))


def _families(names: list[str], pattern: str) -> list[list[str]]:
    """Names, two or more, whose beginnings, which the pattern takes, are the same."""
    by_stem: dict[str, list[str]] = {}
    for name in names:
        match = re.fullmatch(pattern, name, re.DOTALL)
        if match:
            by_stem.setdefault(match[1], []).append(name)
    return [_in_order(family) for family in by_stem.values() if len(family) > 1]


def _in_order(names: list[str]) -> list[str]:
    """Names by the number at their end (p0 ... p10), if all have one; else as they stand."""
    numbers = {name: re.search(r"\d+$", name) for name in names}
    if not all(numbers.values()):
        return names
    return sorted(names, key=lambda name: int(numbers[name].group()))  # type: ignore[union-attr]


def _is_numeric(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "buif"


def _is_index(name: str, column: NDArray[Any]) -> bool:
    """Whether a column only numbers the rows."""
    is_counting = column.dtype.kind in "ui" and column.ndim == 1 and len(column) > 2 and (np.diff(column) == 1).all()
    return bool(is_counting) or UNNAMED_INDEX.fullmatch(name) is not None


def _is_empty(column: NDArray[Any]) -> bool:
    return column.dtype.kind == "f" and bool(np.isnan(column).all())


def _are_probabilities(columns: list[NDArray[Any]]) -> bool:
    parts = blocks_of_rows(len(columns[0]), len(columns))
    return all(_are_rows_of_probabilities([column[part] for column in columns]) for part in parts)


def _are_rows_of_probabilities(columns: list[NDArray[Any]]) -> bool:
    table = np.stack(columns, axis=1).astype(np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    in_range = bool(((table >= 0) & (table <= 1 + SUM_TOLERANCE)).all())
    return in_range and (len(columns) == 1 or bool((np.abs(table.sum(axis=1) - 1) <= SUM_TOLERANCE).all()))


def _check_readable(name: str, column: NDArray[Any], path: Path) -> None:
    """Raises ValueError for a column of numbers with some that are none, which is damaged rather than text."""
    if column.dtype.kind != "O":
        return
    are_numbers = np.array([is_number(value) for value in column])
    if 0.5 < are_numbers.mean() < 1:
        row = int(np.argmin(are_numbers))
        raise ValueError(
            f"{path} has a number in most rows of column {name!r}, but {column[row]!r} in row {row}. Mend it, or name "
            "the columns to take with `--columns`."
        )


def _check_numbers(name: str, array: NDArray[Any], path: Path) -> None:
    if not _is_numeric(array):
        raise ValueError(f"{path} must hold numbers in {name!r}, not {_kind(array)}, such as {array.item(0)!r}.")


def _check_lengths(names: list[str], arrays: Arrays, path: Path) -> None:
    """Raises ValueError unless columns are such, of one length; a single array may have any shape."""
    shapes = {name: arrays[name].shape for name in names}
    if len(names) > 1 and (len(set(shapes.values())) > 1 or len(shapes[names[0]]) != 1):
        found = ", ".join(f"{shape} in {name!r}" for name, shape in shapes.items())
        raise ValueError(
            f"{path} must hold columns of one length, not shapes {found}. Name one array with `--columns`, or columns "
            "of the same examples."
        )


def _left_out(arrays: Arrays, taken: Any) -> dict[str, str]:
    return {
        name: "numbers the rows" if _is_numeric(array) and _is_index(name, array) else _kind(array)
        for name, array in arrays.items()
        if name not in taken
    }


def _kind(array: NDArray[Any]) -> str:
    if array.dtype.kind == "M":
        return "dates"
    if _is_empty(array):
        return "empty"
    if _is_numeric(array):
        is_constant = array.ndim == 1 and (array == array[0]).all()
        return "constant" if is_constant else "other numbers"
    return "text" if all(isinstance(value, str) for value in array.flat) else f"dtype {array.dtype}"


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    # NumPy leaves a damaged file open that it has opened itself.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_npy(path: Path) -> dict[str, NDArray[Any]]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {name: array[name] for name in array.dtype.names} if array.dtype.names else {path.stem: array}
