"""The guide of a table: each row of the data has Gaussian parameters of its own, which no network makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_positive_integer
from bdl.keras_internals import assign_rows, num_replicas, rows_of
from bdl.random import Tensor
from bdl.svi.guides.base import Guide
from bdl.svi.guides.gaussian import Gaussian

FAMILIES = ("mean_field", "full_rank")
"""What a row may have."""

MOST_NUMBERS = 32
"""Numbers in a row's draw: a step takes 65 evaluations of the story for so many, and a row 1,000 numbers."""

START_MEAN = 0.01
"""Where rows begin. Not 0, where formulas with |x| or max(x, 0) have gradients that are half of the truth, or none."""


@dataclass(frozen=True, eq=False)
class RowState:
    """Gaussians of some rows, and how far their next step goes.

    Args:
        mean: `(rows, size)`.
        factor: Standard deviations `(rows, size)`, or Cholesky factors `(rows, size, size)`.
        rate: Part of a whole step, `(rows,)`.
    """

    mean: Tensor
    factor: Tensor
    rate: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """`m + F e` of each row, for noise `(..., rows, size)`."""
        return self.gaussian().draw(noise)

    def gaussian(self) -> Gaussian:
        """The Gaussians."""
        return Gaussian(self.mean, self.factor, is_diagonal=len(self.factor.shape) == 2)

    def where(self, condition: Tensor, other: RowState) -> RowState:
        """These rows where the condition `(rows,)` holds, others where it does not."""
        is_ours = condition[:, None]
        factor_is_ours = is_ours if len(self.factor.shape) == 2 else is_ours[..., None]
        return RowState(
            ops.where(is_ours, self.mean, other.mean),
            ops.where(factor_is_ours, self.factor, other.factor),
            ops.where(condition, self.rate, other.rate),
        )


@keras.saving.register_keras_serializable(package="bdl")
class PerRow(Guide):
    """A Gaussian of each row on the real line, whose parameters stand in a table with a line for each row; for locals.

    There is no network, and so nothing is lost by one that does not fit (no amortization gap). A training step takes
    the rows of its batch a few steps nearer to the best Gaussians for the globals that it drew
    (`bdl.svi.refining`), and then computes its objective with them; the optimizer does not see the table. What a step
    costs does not depend on how many rows the table has.

    The data must tell which row is which: add `"row": np.arange(num_rows)` to them. To read rows' posteriors, pass them
    with their numbers: `model.posterior({**some, "row": numbers})`. Rows that no step has fitted yet are NaN, and so
    are row numbers that the table does not have, where data stream; of arrays both are an error. New rows need further
    fitting, or `Amortized`.

    A line is as good as at its last visit. To take all to the globals that a fit ended with, freeze those and
    fit another pass. What the story reads with a value for each row must come from its data, for a step repeats rows.

    Args:
        num_rows: Number of rows of the table.
        index: Key of the data that holds each row's number, an integer from 0 to `num_rows - 1`.
        family: What each row has: `"mean_field"`, independent Gaussians within it; `"full_rank"`, a Gaussian with all
            correlations within it.
        steps: Steps of the rows in a training step.
        **kwargs: Of `keras.Layer`. With `trainable=False` a guide's rows stay as they are.

    Raises:
        ValueError: if an argument is of the wrong kind, a row has more than 32 numbers, or the data do not have the
            row numbers.

    Sources: Hoffman et al. 2013, "Stochastic variational inference", whose local steps these are; the step itself is
    Khan and Rue 2023, "The Bayesian learning rule", section 3.2, arXiv 2107.04562.

    Example:
    >>> guide = PerRow(num_rows=100)
    >>> guide.bind({"code": 3}, {"row": np.arange(5)})
    >>> tuple(guide.table.shape), guide.trainable_variables
    ((101, 7), [])
    """

    is_local = True

    def __init__(
        self, num_rows: int, index: str = "row", family: str = "mean_field", steps: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_rows = check_positive_integer(num_rows, "num_rows")
        self.steps = check_positive_integer(steps, "steps")
        if not isinstance(index, str):
            raise ValueError(f"`index` must be a key of the data, not {index!r}.")
        if family not in FAMILIES:
            raise ValueError(f"`family` must be one of {FAMILIES}, not {family!r}.")
        self.index = index
        self.family = family

    @property
    def iterates(self) -> list[keras.Variable]:
        """None: a mean over all steps would touch every row in each, and rows not fitted yet are NaN."""
        return []

    @property
    def is_diagonal(self) -> bool:
        """Whether rows have standard deviations, and no correlations."""
        return self.family == "mean_field"

    def make_variables(self, data: Any, given_size: int) -> None:
        """Makes the table: a line holds mean, factor and rate. Its last line stands for all rows that it has not."""
        if self.size > MOST_NUMBERS:
            raise ValueError(
                f"The sites of PerRow, {list(self.sizes)}, must have at most {MOST_NUMBERS} numbers on the real line "
                f"together, not {self.size}: each is two evaluations of the story. Take Amortized(network, "
                "inputs=[...])."
            )
        if num_replicas() > 1:
            raise ValueError("PerRow must be on one device, not on several, whose tables would differ. Take Amortized.")
        if data is not None:
            self._numbers(data, "x")
        columns = self.size + (self.size if self.is_diagonal else self.size**2) + 1
        self.table = self.add_weight(
            name="table", shape=(self.num_rows + 1, columns), initializer=_not_yet, trainable=False
        )

    def places(self, data: Any) -> Tensor:
        """Lines of the table for the rows of a batch, `(rows,)`."""
        numbers = ops.cast(self._numbers(data, "x"), "int64" if self.num_rows >= 2**31 - 1 else "int32")
        return ops.where((numbers >= 0) & (numbers < self.num_rows), numbers, self.num_rows)

    def read(self, places: Tensor) -> RowState:
        """What stands there."""
        lines, size = rows_of(self.table, places), self.size
        factor = lines[:, size:-1]
        return RowState(
            lines[:, :size], factor if self.is_diagonal else ops.reshape(factor, (-1, size, size)), lines[:, -1]
        )

    def begun(self, places: Tensor) -> RowState:
        """What stands there, and Gaussians that are nearly standard for rows that were not fitted yet."""
        found = self.read(places)
        unit = ops.ones_like(found.mean)
        factor = unit if self.is_diagonal else unit[..., None] * ops.eye(self.size, dtype=unit.dtype)
        start = RowState(START_MEAN * unit, factor, ops.ones_like(found.rate))
        return start.where((places < self.num_rows) & ops.isnan(found.rate), found)

    def write(self, places: Tensor, state: RowState) -> None:
        """Puts it there."""
        width = self.size if self.is_diagonal else self.size**2
        parts = [state.mean, ops.reshape(state.factor, (-1, width)), state.rate[:, None]]
        assign_rows(self.table, places, ops.concatenate(parts, axis=-1))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Gaussian:
        """A Gaussian for each row, `(rows, size)`."""
        return self.read(self.places(data)).gaussian()

    def check_data(self, data: Any, argument: str, is_read: bool) -> None:
        """Refuses row numbers that the table does not have, and rows to be read that were not fitted yet.

        Raises:
            ValueError: naming such a row.
        """
        numbers = np.asarray(self._numbers(data, argument))
        wrong = np.flatnonzero((numbers < 0) | (numbers >= self.num_rows))
        if wrong.size:
            raise ValueError(
                f"`{argument}[{self.index!r}]` must hold row numbers from 0 to {self.num_rows - 1}, of PerRow("
                f"num_rows={self.num_rows}), not {numbers[wrong[0]]}, which row {wrong[0]} has. Give the table a line "
                "for each row, or take Amortized for rows that are not fitted."
            )
        if not self.built or not (is_read or not self.trainable):
            return
        rates = ops.convert_to_numpy(self.read(ops.convert_to_tensor(numbers.astype("int32"))).rate)
        new = np.flatnonzero(np.isnan(rates))
        if new.size:
            raise ValueError(
                f"`{argument}` must hold rows that PerRow was fitted to, not {new.size} others, such as number "
                f"{numbers[new[0]]}. Fit them: a pass over the data visits each row once."
            )

    def _numbers(self, data: Any, argument: str) -> Any:
        """The row numbers in the data."""
        if not isinstance(data, Mapping) or self.index not in data:
            keys = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(
                f"`{argument}` must be a dict with the key {self.index!r} for PerRow, which finds a row's line of the "
                f"table by it, not {keys}. Add {{{self.index!r}: np.arange(num_rows)}}."
            )
        numbers = data[self.index]
        dtype = keras.backend.standardize_dtype(numbers.dtype)
        if "int" not in dtype or len(numbers.shape) != 1:
            raise ValueError(
                f"`{argument}[{self.index!r}]` must be one integer for each row, not {dtype} of the shape "
                f"{tuple(numbers.shape)}."
            )
        return numbers

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {
            **super().get_config(),
            "num_rows": self.num_rows,
            "index": self.index,
            "family": self.family,
            "steps": self.steps,
        }


def _not_yet(shape: Any, dtype: Any) -> Tensor:
    """NaN, of rows that were not fitted yet."""
    return ops.full(shape, float("nan"), dtype=dtype)
