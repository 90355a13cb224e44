"""Tables from files: .csv and .tsv, also as .gz, and .parquet, all read by pandas.

A column comes back as what it is: numbers, text, dates. What it means for an evaluation is decided by `files`.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import numbers
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
UNNAMED_INDEX = re.compile(r"|__index_level_\d+__")
"""Names of pandas' index: none in what `to_csv()` writes, this in parquet."""

_MISSING = ["", "nan", "NaN", "-nan"]  # not NA, None or null, which may be names of classes


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """Columns by name: numbers and dates as such, lists of one length as a second axis, anything else as objects.

    Args:
        path: A .csv, .tsv, .csv.gz, .tsv.gz or .parquet file. Text that is missing comes back as "".

    Raises:
        ValueError: if columns have no names or share one, or a row has more fields than there are names.
        ImportError: if pandas, or for .parquet pyarrow, is not installed.
        Exception: whatever pandas raises at a damaged file.
    """
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)


def _read_text(path: Path) -> dict[str, NDArray[Any]]:
    import pandas

    with _opened(path) as file:
        first = next((line for line in iter(file.readline, "") if line.strip()), "")
        separator = _separator(first)
        lines = itertools.chain([first], iter(file.readline, ""))  # a quoted name may go on in the next line
        names = [name.strip() for name in next(csv.reader(lines, delimiter=separator, skipinitialspace=True), [])]
        _check_names(names)
        start = file.tell()
        has_decimal_commas = separator == ";" and _has_decimal_commas(file)
        file.seek(start)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # of fields that would be dropped
            frame = pandas.read_csv(
                file,
                sep=separator,
                decimal="," if has_decimal_commas else ".",
                header=None,
                names=range(len(names) + 1),  # one more, for a separator at the end of each line
                index_col=False,
                skipinitialspace=True,
                keep_default_na=False,
                na_values=_MISSING,
                low_memory=False,
            )
    columns = {}
    for number, name in enumerate([*names, ""]):
        column = frame[number]
        if name == "" and column.isna().all():
            continue
        if name == "" and number > 0:
            row = int(column.notna().to_numpy().argmax())
            raise ValueError(f"it has a value without a column name in row {row}: {column[row]}.")
        columns[name] = _as_array(column)
    return columns


def _opened(path: Path) -> TextIO:
    # The encoding drops the byte order mark of spreadsheets.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _has_decimal_commas(file: TextIO) -> bool:
    """Whether one of the next hundred lines has a number such as 0,5 between semicolons."""
    lines = itertools.islice(iter(file.readline, ""), 100)
    number = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
    return any(number.fullmatch(field) for row in csv.reader(lines, delimiter=";") for field in row)


def _separator(header: str) -> str:
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=unquoted.count)


def _check_names(names: list[str]) -> None:
    """Raises ValueError unless a first line names columns; 0,1,2 does, and 0.5,0.2 or 2,0,1 is a line of numbers."""
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        raise ValueError(f"its columns must have different names, not {names}.")
    is_counting = all(name.isdecimal() for name in known) and known == sorted(known, key=int)
    if not known or (all(map(is_number, known)) and not is_counting):
        raise ValueError(f"its first line must name the columns, such as y,p0,p1, not be {names}.")


def is_number(value: Any) -> bool:
    """Whether Python reads a value, text above all, as a number."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    import pandas

    frame = pandas.read_parquet(path, engine="pyarrow")
    index = frame.index
    levels = {
        str(name) if name is not None else f"__index_level_{number}__": index.get_level_values(number)
        for number, name in enumerate(index.names)
        if name is not None or not isinstance(index, pandas.RangeIndex)
    }
    names = [*levels, *map(str, frame.columns)]
    if len(set(names)) < len(names):
        raise ValueError(f"its columns must have different names, not {names}.")
    columns = [*(level.to_series() for level in levels.values()), *(column for _, column in frame.items())]
    return {name: _as_array(column) for name, column in zip(names, columns, strict=True)}


def parquet_batches(path: Path, rows: int, columns: Sequence[str] | None = None) -> Iterator[dict[str, NDArray[Any]]]:
    """The rows of a .parquet file, some at a time: the rest stays on disk.

    Args:
        path: The file.
        rows: At most so many at a time.
        columns: Their names; None takes all.

    Yields:
        Columns by name, as of `read_table`.

    Raises:
        ImportError: if pyarrow is not installed.
        Exception: whatever pyarrow raises at a damaged file, or at a column that is not there.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=None if columns is None else list(columns)):
            frame = batch.to_pandas(ignore_metadata=True)
            yield {str(name): _as_array(column) for name, column in frame.items()}


def _as_array(column: Any) -> NDArray[Any]:
    """A pandas column as an array of numbers or dates if it holds such, else of objects."""
    import pandas

    if isinstance(column.dtype, pandas.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    kinds = pandas.api.types
    if kinds.is_datetime64_any_dtype(column.dtype):
        return column.to_numpy("datetime64[ns]")
    if kinds.is_numeric_dtype(column.dtype) or kinds.is_bool_dtype(column.dtype):
        return column.to_numpy("float64", na_value=np.nan) if column.isna().any() else column.to_numpy()
    values = column.to_numpy(object, na_value=None)
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (list, np.ndarray)) for value in known):
        return _stacked(values)
    if known and all(isinstance(value, numbers.Number) for value in known):  # decimals, True beside missing values
        return np.array([np.nan if value is None else float(value) for value in values])
    return np.array(["" if value is None else str(value) for value in values], object)


def _stacked(lists: NDArray[Any]) -> NDArray[Any]:
    """Lists of one length as the second axis of an array; others as objects."""
    try:
        return np.array([np.asarray(each).tolist() for each in lists])
    except ValueError:
        return lists
