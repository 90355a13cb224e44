"""Where the searches keep what they find, and the options that their commands share.

Runs are lines of JSON in `research/runs`, which git ignores. A report reads one, and with `--write` puts its table into
`research/defaults.md` and into `research/results/*.csv`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.runs import Row, replace_section, write_summary

FOLDER = Path(__file__).parent
PAGE = FOLDER / "defaults.md"
IMAGES = FOLDER / "images"
RESULTS = FOLDER / "results"
RUNS = FOLDER / "runs"
NO_DATA = "{} needs --data DIR (or BDL_DATA); research/README.md says what DIR holds."

DataFolder = Annotated[Path | None, typer.Option(help="Folder of real data; else BDL_DATA.")]
Output = Annotated[Path, typer.Option(help="File of JSON lines; a run that was interrupted goes on there.")]
Run = Annotated[Path, typer.Argument(help="File of JSON lines that `run` made.")]
Write = Annotated[bool, typer.Option(help="Write research/defaults.md and research/results/*.csv, too.")]
Workers = Annotated[int, typer.Option(help="Number of processes, of one thread each.")]


def publish(
    section: str, text: str, rows: Iterable[Row], by: Sequence[str], figures: Sequence[str], write: bool
) -> None:
    """Prints a table; with `write` puts it into its section of the page, and its means into a CSV of that name.

    Args:
        section: Name of the section.
        text: The table in Markdown.
        rows: What it was made of, one for each seed.
        by: Columns that a line of the table stands for.
        figures: Columns of which the CSV has mean, standard error and number of seeds.
        write: Whether to write.
    """
    print(text, end="\n\n")
    if write:
        replace_section(PAGE, section, text)
        write_summary(csv_of(section), rows, by, figures)


def subtract(rows: list[Row], contestant: str, by: Sequence[str], figures: Sequence[str]) -> None:
    """Adds to each row what its figures are less those of a contestant, as `nll - twin`, paired.

    Args:
        rows: Of all contestants; changed in place.
        contestant: Whose figures are subtracted. Its own rows have no difference, as those that have no partner.
        by: Columns that two rows of a pair have in common.
        figures: Columns to subtract.
    """
    others = {tuple(row[name] for name in by): row for row in rows if row["contestant"] == contestant}
    for row in rows:
        other = others.get(tuple(row[name] for name in by))
        if other is not None and other is not row:
            row |= {f"{figure} - {contestant}": row[figure] - other[figure] for figure in figures}


def csv_of(section: str) -> Path:
    """The CSV of a section."""
    return RESULTS / f"{section.replace('-', '_')}.csv"
