"""What a report is made of: paragraphs, tables and figures, in sections, on a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def printable(text: str) -> str:
    """The text without what a terminal obeys or a file cannot hold: a sign in place of each control character.

    Args:
        text: Any string, such as a file's name.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t" else sign
        for sign in text
    )


def entry_names(name: str, shape: Sequence[int]) -> list[str]:
    """Names of the numbers of an array, as tables and figures show them.

    Args:
        name: Of the array.
        shape: Of the array; one number alone has the array's name.

    Example:
    >>> entry_names("effect", (2,)), entry_names("mean", ())
    (['effect[0]', 'effect[1]'], ['mean'])
    """
    return [f"{name}[{', '.join(map(str, index))}]" if index else name for index in np.ndindex(*shape)]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str

    def __str__(self) -> str:
        return printable(self.text)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: What the row is about.
        cells: Its values, one a column.
        meaning: A sentence that says how to read them; empty for none.
        best: Places of the cells to be marked as the best.
    """

    name: str
    cells: Sequence[str]
    meaning: str = ""
    best: Collection[int] = ()


@dataclass(frozen=True)
class Table:
    """A table with named rows and columns; `str` lays it out as plain text, without the rows' meanings.

    Args:
        columns: Names of the columns, without the one that holds the rows' names.
        rows: Its rows.
        caption: A sentence below it; empty for none.

    Raises:
        ValueError: if a row has more or fewer cells than there are columns.

    Example:
    >>> print(Table(["NLL", "ECE"], [Row("net", ["0.31", "0.02"]), Row("forest", ["0.4", "0.1"])], "In short."))
            NLL   ECE
    net     0.31  0.02
    forest  0.4   0.1
    In short.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"`rows` must have one cell for each of the {len(self.columns)} columns, "
                    f"not {len(row.cells)} in row {row.name!r}. Write 'none' where there is no value."
                )

    def __str__(self) -> str:
        rows = [["", *self.columns], *([row.name, *row.cells] for row in self.rows)]
        rows = [[printable(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, printable(self.caption)] if self.caption else lines)


@dataclass(frozen=True, eq=False)
class Figure:
    """A drawing by `bdl.plots`, or any other on matplotlib axes.

    Args:
        draw: Makes the axes of the figure to show, in the style of matplotlib that is in force. A page calls it twice,
            for readers who prefer light pages and for those who prefer dark ones.
        caption: What it shows and how to read it.
        description: What a reader who cannot see it should be told: what came out.
    """

    draw: Callable[[], Axes]
    caption: str
    description: str


Block = Paragraph | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: Its heading, and the name of the browser's tab.
        summary: The most important sentences, in larger type below the heading, a paragraph a line.
        sections: The rest, in order.
        footer: Where it comes from: versions, seed, date.
    """

    title: str
    summary: str
    sections: Sequence[Section]
    footer: str = ""
