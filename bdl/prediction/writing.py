"""Predictions written to a file, a part at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from bdl.prediction.columns import columns_of
from bdl.report import replacing

Columns = dict[str, np.ndarray]


class _Writer(Protocol):
    def write(self, columns: Columns) -> None:
        """Adds rows."""


def write_predictions(
    path: str | Path,
    parts: Iterable[Any],
    quantiles: Sequence[float] | None = None,
    classes: Sequence[Any] | None = None,
) -> int:
    """Writes predictions as a table, a part at a time, in memory that does not grow.

    The file appears whole at the end: where a part fails, or the process is killed, a file that was there stays.

    Args:
        path: A `.parquet` file (needs pyarrow), each part a row group; or a `.npy` file, an array of rows with named
            fields, which `np.load(path, mmap_mode="r")["mean"]` reads without loading it.
        parts: What `predict_parts` yields, or a list of what `predict_distribution` returned. The columns are those of
            `bdl.prediction.columns_of`.
        quantiles: As of `bdl.prediction.columns_of`.
        classes: As of `bdl.prediction.columns_of`.

    Returns:
        The number of rows written.

    Raises:
        ValueError: if the suffix is another, there are no parts, or a part has other columns than the first.
        ImportError: if pyarrow is needed and not installed.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(1)])
    >>> parts = bdl.predict_parts(network, np.ones((100, 4)), bdl.likelihoods.Normal(), summary=(0.05, 0.95))
    >>> path = getfixture("tmp_path") / "predictions.npy"
    >>> write_predictions(path, parts)
    100
    >>> np.load(path).dtype.names
    ('mean', 'std', 'aleatoric', 'epistemic', 'quantile_0.05', 'quantile_0.95')
    """
    path = Path(path)
    opened = _OPENED.get(path.suffix.lower())
    if opened is None:
        raise ValueError(f"`path` must end in {' or '.join(_OPENED)}, not be {path.name!r}.")
    rows = 0
    names: list[str] = []
    with replacing(path) as draft, opened(draft) as writer:
        for part in parts:
            columns = columns_of(part, quantiles, classes)
            names = names or list(columns)
            if list(columns) != names:
                raise ValueError(f"`parts` must have the same columns, {names}, not {list(columns)}.")
            rows += len(columns[names[0]])
            writer.write(columns)
        if not rows:
            raise ValueError("`parts` must hold at least one prediction, but there are none.")
    return rows


class _Parquet:
    """Row groups of a parquet file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def write(self, columns: Columns) -> None:
        """Adds a row group."""
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table(columns)
        if self._file is None:
            self._file = pyarrow.parquet.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)

    def close(self) -> None:
        """Writes the index of row groups."""
        if self._file is not None:
            self._file.close()


class _Rows:
    """Rows of a `.npy` file; how many there are is known, and written, at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._dtype = np.dtype([])
        self._count = 0

    def write(self, columns: Columns) -> None:
        """Adds rows."""
        if not self._dtype.names:
            self._dtype = np.dtype([(name, column.dtype) for name, column in columns.items()])
            self._write_header()
        rows = np.empty(len(next(iter(columns.values()))), self._dtype)
        for name, column in columns.items():
            rows[name] = column
        self._file.write(rows.tobytes())
        self._count += len(rows)

    def close(self) -> None:
        """Writes the number of rows over the header, which has room for it."""
        if self._dtype.names:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        described = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_2_0(self._file, header)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[_Writer]:
    with contextlib.closing(_Parquet(path)) as writer:
        yield writer


@contextlib.contextmanager
def _npy(path: Path) -> Iterator[_Writer]:
    with path.open("wb") as file, contextlib.closing(_Rows(file)) as writer:
        yield writer


_OPENED = {".parquet": _parquet, ".npy": _npy}
