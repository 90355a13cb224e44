"""A model in a file as a function of batches of a table, for engines that spread a table over many workers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bdl.arguments import check_count, check_positive_integer
from bdl.likelihoods.heads import Likelihoods
from bdl.model import VariationalModel
from bdl.prediction import columns_of, predict_distribution
from bdl.sampling import MAX_ROW

Columns = str | Sequence[str]

_loading = threading.Lock()


class Scorer:
    """Adds the columns of a prediction to batches of a table, the same ones however the table is cut.

    For `ray.data.Dataset.map_batches`, for Spark's `mapInPandas`, and for a loop over the parts of a table. It holds a
    path and settings, so that it is cheap to send to a worker, which loads the model at its first batch.

    The noise of a row follows its place in the data, which a column gives: batches may be cut anywhere and come in any
    order, may be scored twice or by a worker that takes over from one that died. The result is that of
    `bdl.predict_distribution` for the whole table with the same `seed` and `batch_size`. Rows are put where they stand
    in the batches of that prediction, which are filled up where rows are missing: consecutive rows cost least.

    A table of Ray Data is scored by `table.map_batches(scorer)`. Spark wants the types of all columns, old and new:
    `table.mapInPandas(scorer, "row long, a float, b float, class long, p_0 float, ...")`.

    Args:
        path: A `.keras` file that every worker can read, or several, of the members of an ensemble.
        inputs: Columns that the model takes: a list of columns of numbers, which become the last axis of its input;
            the name of one column that holds whole inputs; or a dict of such by the names of several inputs.
        likelihood: As of `bdl.predict_distribution`; None takes that of the `VariationalModel` in the file.
        num_samples: Positive number of Monte Carlo samples.
        batch_size: Positive number of rows that are evaluated together. The same one gives the same bits, where the
            table has as many rows.
        seed: Integer, the seed of the prediction.
        quantiles: Levels of the quantiles of targets and counts to add.
        consistent: True to draw whole functions; rows then need no number, and `row` may be None.
        row: Column with the number of each row in the data, from 0; each has one of its own.
        classes: Names of the classes; None takes their numbers.
        custom_objects: Classes by name that the model needs, if no module that the worker imports registers them.

    Raises:
        ValueError: if an argument is out of range or a file is missing; of a batch if a column is missing or already
            there, if numbers of rows are no such, or if the file has changed since the scorer was made.

    Example:
    >>> import tempfile
    >>> network = keras.Sequential([keras.Input((2,)), bdl.layers.DenseFlipout(3)])
    >>> path = f"{tempfile.mkdtemp()}/network.keras"
    >>> network.save(path)
    >>> scorer = Scorer(path, inputs=["a", "b"], likelihood=bdl.likelihoods.Categorical(), num_samples=8, batch_size=4)
    >>> batch = {"row": np.array([7, 5, 6]), "a": np.ones(3), "b": np.arange(3.0)}
    >>> list(scorer(batch))
    ['row', 'a', 'b', 'class', 'p_0', 'p_1', 'p_2', 'total_uncertainty', 'aleatoric', 'epistemic']
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        inputs: Columns | Mapping[str, Columns],
        likelihood: Likelihoods | None = None,
        num_samples: int = 64,
        batch_size: int = 256,
        seed: int = 0,
        quantiles: Sequence[float] = (),
        consistent: bool = False,
        row: str | None = "row",
        classes: Sequence[Any] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_samples = check_positive_integer(num_samples, "num_samples")
        self.batch_size = check_positive_integer(batch_size, "batch_size")
        check_count("seed", seed, 0)
        if row is None and not consistent:
            raise ValueError(
                "`row` must name the column with the number of each row in the data, which its noise follows, not be "
                "None. Or draw whole functions: consistent=True."
            )
        levels = tuple(float(level) for level in quantiles)
        if not all(0 < level < 1 for level in levels):
            raise ValueError(f"`quantiles` must be levels between 0 and 1, both excluded, not {quantiles!r}.")
        paths = [path] if isinstance(path, (str, Path)) else list(path)
        self.files = tuple((str(Path(each).resolve()), _digest(Path(each))) for each in paths)
        if not self.files:
            raise ValueError("`path` must be a .keras file or a list of at least one, not an empty list.")
        self.inputs, self.likelihood, self.seed, self.quantiles = inputs, likelihood, int(seed), levels
        self.consistent, self.row, self.classes, self.custom_objects = consistent, row, classes, custom_objects

    def __call__(self, batch: Any) -> Any:
        """Scores a batch.

        Args:
            batch: A dict of arrays, a pandas frame, or an iterator of either.

        Returns:
            The same with the columns of the prediction, as `bdl.prediction.columns_of` names them.
        """
        if isinstance(batch, Iterator):
            return (self(part) for part in batch)
        is_frame = hasattr(batch, "assign") and hasattr(batch, "columns")
        if not is_frame and not isinstance(batch, Mapping):
            raise ValueError(
                "`batch` must be a dict of arrays (batch_format='numpy' of Ray), a pandas frame or an iterator of "
                f"such, not {type(batch).__name__}."
            )
        names = list(batch.columns if is_frame else batch)
        if not names or not len(batch[names[0]]):
            return batch  # as Ray does with batches without rows
        found = self._columns(batch, names)
        there = [name for name in found if name in names]
        if there:
            raise ValueError(f"`batch` must not have columns {there} already. Rename or drop them.")
        return batch.assign(**found) if is_frame else {**batch, **found}

    def _columns(self, batch: Any, names: list[Any]) -> dict[str, np.ndarray]:
        """The prediction of all rows of a batch, in their order."""
        x = _inputs_of(batch, self.inputs, names)
        size = len(batch[names[0]])
        places = np.arange(size) if self.row is None else _checked_places(_column(batch, self.row, names))
        order = np.argsort(places)
        places = places[order]
        parts = []
        for first, last in _runs(np.unique(places // self.batch_size)):
            block = np.arange(first * self.batch_size, (last + 1) * self.batch_size)
            rows = order[np.minimum(np.searchsorted(places, block), size - 1)]  # the next one for one that is missing
            prediction = self._predict(_take(x, rows), int(block[0]))
            asked = places[(places >= block[0]) & (places <= block[-1])] - block[0]
            found = columns_of(prediction, classes=self.classes)
            parts.append({name: column[asked] for name, column in found.items()})
        back = np.argsort(order)
        return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}

    def _predict(self, x: Any, first_row: int) -> Any:
        models = _loaded(self.files, self.custom_objects)
        settings: dict[str, Any] = {
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "consistent": self.consistent,
            "seed": self.seed,
            "summary": self.quantiles or True,
            "first_row": first_row,
        }
        if self.likelihood is None and len(models) == 1 and isinstance(models[0], VariationalModel):
            return models[0].predict_distribution(x, **settings)
        likelihood = getattr(models[0], "likelihood", None) if self.likelihood is None else self.likelihood
        if likelihood is None:
            raise ValueError(
                f"`likelihood` is needed: {self.files[0][0]} holds no VariationalModel, which has its own. Pass one, "
                "such as bdl.likelihoods.Categorical()."
            )
        return predict_distribution(list(models), x, likelihood, **settings)


def _digest(path: Path) -> str:
    """Tells one content of a file from another."""
    if not path.is_file():
        raise ValueError(f"`path` must be a .keras file, as model.save('name.keras') writes it; {path} is no file.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


_kept: dict[tuple[tuple[str, str], ...], tuple[Any, ...]] = {}
"""The models of this process, by file and content: engines send a scorer anew with each of their tasks."""
_MAX_KEPT = 4


def _loaded(files: tuple[tuple[str, str], ...], custom_objects: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """The models in files, loaded once in each process."""
    with _loading:
        if files not in _kept:
            for path, digest in files:
                if _digest(Path(path)) != digest:
                    raise ValueError(
                        f"`path` must be the file that it was when the Scorer was made, but {path} has changed. Make "
                        "a new Scorer, and score all rows with it."
                    )
            while len(_kept) >= _MAX_KEPT:
                _kept.pop(next(iter(_kept)))
            _kept[files] = tuple(keras.saving.load_model(path, custom_objects=custom_objects) for path, _ in files)
        return _kept[files]


def _column(batch: Any, name: Any, names: Sequence[Any]) -> np.ndarray:
    """A column as an array; one of lists or arrays is put together."""
    if name not in names:
        raise ValueError(f"`batch` must have a column {name!r}; it has {list(names)}.")
    values = np.asarray(batch[name])
    return np.array(values.tolist()) if values.dtype == object else values


def _inputs_of(batch: Any, inputs: Any, names: Sequence[Any]) -> Any:
    """What the model takes, of the columns of a batch."""
    if isinstance(inputs, Mapping):
        return {name: _inputs_of(batch, columns, names) for name, columns in inputs.items()}
    if isinstance(inputs, str):
        return _column(batch, inputs, names)
    return np.stack([_column(batch, name, names) for name in inputs], axis=-1)


def _take(x: Any, rows: np.ndarray) -> Any:
    """Rows of the inputs of a batch."""
    return keras.tree.map_structure(lambda leaf: leaf[rows], x)


def _checked_places(places: np.ndarray) -> np.ndarray:
    """Numbers of rows that compiled code can take, each a row's own."""
    is_whole = places.dtype.kind in "iu"
    if not is_whole or places.min() < 0 or places.max() > MAX_ROW or len(np.unique(places)) < len(places):
        found = f"{places.dtype}" if not is_whole else f"numbers from {places.min()} to {places.max()}"
        raise ValueError(
            f"`row` must be a column of integers from 0 to {MAX_ROW:,}, each once, the places of rows in the data, not "
            f"{found}. numpy.arange numbers rows, and zipWithIndex those of Spark."
        )
    return places.astype(np.int64)


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers.

    Example:
    >>> [(int(first), int(last)) for first, last in _runs(np.array([3, 4, 5, 9]))]
    [(3, 5), (9, 9)]
    """
    ends = np.flatnonzero(np.diff(numbers) != 1)
    yield from zip(numbers[[0, *(ends + 1)]], numbers[[*ends, -1]], strict=True)
