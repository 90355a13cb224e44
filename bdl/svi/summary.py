"""A table of a posterior: mean, standard deviation and interval of each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bdl.report import Paragraph, Row, Shown, Table


@dataclass(frozen=True, repr=False)
class SummaryTable(Shown):
    """Figures of the marginal posteriors; `print` and notebooks show them as a table.

    Args:
        names: Of the numbers, such as `"scale"` or `"effect[2]"`.
        mean: Of each.
        sd: Standard deviation of each.
        low: Lower end of the central interval of each.
        high: Upper end.
        interval: Probability of the interval.

    Example:
    >>> print(SummaryTable.of({"a": np.arange(101.0)}, interval=0.9))
               mean    sd    5%  95%
    a            50  29.3     5   95
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    interval: float

    @classmethod
    def of(cls, draws: Mapping[str, np.ndarray], interval: float = 0.9) -> SummaryTable:
        """The table of draws.

        Args:
            draws: By site `(draws, *shape)`.
            interval: Probability of the central interval, in (0, 1).

        Raises:
            ValueError: if `interval` is not in (0, 1).
        """
        if not 0.0 < interval < 1.0:
            raise ValueError(f"`interval` must be a probability in (0, 1), not {interval!r}.")
        names, columns = [], []
        for site, values in draws.items():
            for index in np.ndindex(values.shape[1:]):
                names.append(f"{site}[{', '.join(map(str, index))}]" if index else site)
                columns.append(values[(slice(None), *index)])
        flat = np.stack(columns, axis=1).astype("float64")
        low, high = np.quantile(flat, [0.5 - interval / 2, 0.5 + interval / 2], axis=0)
        return cls(tuple(names), flat.mean(0), flat.std(0, ddof=1), low, high, interval)

    def glance(self) -> Sequence[Paragraph | Table]:
        """The table."""
        ends = [f"{100 * (0.5 + side * self.interval / 2):.3g}%" for side in (-1, 1)]
        figures = zip(self.mean, self.sd, self.low, self.high, strict=True)
        rows = [Row(name, [f"{figure:.3g}" for figure in each]) for name, each in zip(self.names, figures, strict=True)]
        return [Table(["mean", "sd", *ends], rows)]
