"""Tables of a posterior: mean, standard deviation and interval of each number, alone or beside reference draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bdl.report import Paragraph, Row, Shown, Table, entry_names


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
        r_hat: Of each, between the chains of a model that has several; None of one chain.
        remark: A sentence below the table; empty for none.

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
    r_hat: np.ndarray | None = None
    remark: str = ""

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
        names, flat = columns(draws)
        low, high = np.quantile(flat, [0.5 - interval / 2, 0.5 + interval / 2], axis=0)
        return cls(names, flat.mean(0), flat.std(0, ddof=1), low, high, interval)

    def glance(self) -> Sequence[Paragraph | Table]:
        """The table, and what is to be said of it."""
        ends = [f"{100 * (0.5 + side * self.interval / 2):.3g}%" for side in (-1, 1)]
        figures = zip(self.mean, self.sd, self.low, self.high, strict=True)
        cells = [[f"{figure:.3g}" for figure in each] for each in figures]
        titles = ["mean", "sd", *ends]
        if self.r_hat is not None:
            cells = [[*each, shown(r_hat)] for each, r_hat in zip(cells, self.r_hat, strict=True)]
            titles.append("r_hat")
        table = Table(titles, [Row(name, each) for name, each in zip(self.names, cells, strict=True)])
        return [table, Paragraph(self.remark)] if self.remark else [table]


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Marginal posteriors beside those of reference draws; `print` and notebooks show them as a table.

    Args:
        names: Of the numbers, such as `"scale"` or `"effect[2]"`.
        mean_error: Error of each mean, in standard deviations of the reference.
        sd_error: Relative error of each standard deviation: .1 is ten percent too wide.

    Example:
    >>> reference = {"a": np.array([-1.0, 1.0] * 50)}
    >>> print(Comparison.of({"a": 2.0 * reference["a"] + 0.5}, reference))
         mean, sds     sd
    a         +0.5  +100%
    """

    names: tuple[str, ...]
    mean_error: np.ndarray
    sd_error: np.ndarray

    @classmethod
    def of(cls, draws: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> Comparison:
        """The comparison of draws with others, of the sites that both have.

        Args:
            draws: By site `(draws, *shape)`.
            reference: The same, of as many draws as there are.

        Raises:
            ValueError: if no site is in both, or its shapes differ.
        """
        both = [name for name in draws if name in reference]
        wrong = [name for name in both if np.shape(draws[name])[1:] != np.shape(reference[name])[1:]]
        if not both or wrong:
            raise ValueError(
                f"`draws` must have the shapes of the sites {list(draws)}, not "
                f"{ {name: np.shape(reference[name])[1:] for name in wrong} if wrong else list(reference) }."
            )
        names, own = columns({name: draws[name] for name in both})
        _, other = columns({name: np.asarray(reference[name]) for name in both})
        sd = other.std(0, ddof=1)
        return cls(names, (own.mean(0) - other.mean(0)) / sd, own.std(0, ddof=1) / sd - 1.0)

    def glance(self) -> Sequence[Paragraph | Table]:
        """The table."""
        errors = zip(self.names, self.mean_error, self.sd_error, strict=True)
        rows = [Row(name, [f"{mean:+.2g}", f"{100 * sd:+.3g}%"]) for name, mean, sd in errors]
        return [Table(["mean, sds", "sd"], rows)]


def shown(r_hat: float) -> str:
    """An R-hat in a table; a dash where there is none.

    Example:
    >>> shown(1.0042), shown(np.nan)
    ('1.004', '-')
    """
    return "-" if np.isnan(r_hat) else f"{r_hat:.3f}" if r_hat < 10 else f"{r_hat:.3g}"


def columns(draws: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the numbers of all sites, and their draws side by side, `(draws, numbers)`."""
    names = [name for site, values in draws.items() for name in entry_names(site, values.shape[1:])]
    columns = [np.reshape(values, (len(values), -1)) for values in draws.values()]
    return tuple(names), np.concatenate(columns, axis=1).astype("float64")
