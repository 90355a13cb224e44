"""What the commands print: names letter by letter, tables, and errors in the words of the command line."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as TerminalTable

    from bdl.report import Table

_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, direction of writing, halves of characters, ends of lines


_NAME_WIDTH = 20  # of a line of a name: fewer make it hard to read, more leave no room for numbers


def printable(name: str) -> str:
    r"""A name without characters that would steer the terminal; they become escapes.

    Example:
    >>> printable("a\x1b[31m\n.npz")
    'a\\x1b[31m\\n.npz'
    """
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _UNPRINTABLE else letter
        for letter in name
    )


def say(text: str) -> None:
    """Prints lines as they are, none of it markup."""
    from rich.text import Text

    console().print(Text(_lines(text)), soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning to standard error."""
    typer.echo(_lines(f"Warning: {text}"), err=True)


def print_table(table: Table, title: str) -> None:
    """Prints a report's table, without the explanations that the page gives.

    No cell is broken: columns that do not fit beside each other stand in tables below each other.
    """
    from rich.text import Text

    terminal = console()
    any_width = terminal.options.update(width=sys.maxsize)

    def fits(part: TerminalTable) -> bool:
        return terminal.measure(part, options=any_width).minimum <= terminal.width

    terminal.print(Text(title))
    first, end = 0, len(table.columns)
    while first < end:
        last = first + 1
        while last < end and fits(_part(table, first, last + 1)):
            last += 1
        terminal.print(_part(table, first, last), crop=False)
        first = last


def _part(table: Table, first: int, last: int) -> TerminalTable:
    """Some columns of a table. Names may be broken at spaces, and those of the columns anywhere."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as TerminalTable
    from rich.text import Text

    part = TerminalTable(box=box.SIMPLE_HEAD)
    part.add_column(min_width=_NAME_WIDTH if last - first > 1 else None)
    for place in range(first, last):
        name = printable(table.columns[place])
        width = max([min(cell_len(name), _NAME_WIDTH), *(cell_len(row.cells[place]) for row in table.rows)])
        part.add_column(Text(name, overflow="fold"), justify="right", width=width)
    for row in table.rows:
        # As Text: [nats] is no markup.
        part.add_row(Text(row.name), *(Text(cell) for cell in row.cells[first:last]))
    return part


@contextmanager
def errors_as_messages(context: typer.Context, words: Mapping[str, str] | None = None) -> Iterator[None]:
    """Ends the command with a message instead of a traceback at what users can mend.

    Args:
        context: Of the command, whose parameters the library's messages name as Python arguments.
        words: What else they name, as it is called on the command line.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(_lines(f"Error: {_in_words_of_options(str(error), context, words or {})}"), err=True)
        raise typer.Exit(1) from error


def model_names(files: list[Path], taken: set[str]) -> dict[str, Path]:
    """Names of the models: their files' names, with suffixes and folders where these alone tell them apart.

    Args:
        files: Different files.
        taken: Names that mean something else.
    """
    ways = (lambda path: path.name.removesuffix(".gz").rpartition(".")[0] or path.name, lambda path: path.name, str)
    for name in ways:
        names = {printable(name(path)): path for path in files}
        if len(names) == len(files) and not taken & set(names):
            return names
    return {f"{printable(str(path))} #{number}": path for number, path in enumerate(files, 1)}


def _in_words_of_options(message: str, context: typer.Context, words: Mapping[str, str]) -> str:
    """The message with `--num-bins` for `num_bins` or `num_bins=10`, and the like."""
    known = {
        parameter.name: max(parameter.opts, key=len) if parameter.opts[0].startswith("-") else parameter.metavar
        for parameter in context.command.params
    }
    known = {**known, **words}
    return re.sub(
        r"`(\w+)(=[^`]*)?`", lambda match: f"`{known[match[1]]}`" if known.get(match[1]) else match[0], message
    )


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def console() -> Console:
    """The terminal, in which nothing is coloured for looking like a number or a path."""
    from rich.console import Console

    return Console(highlight=False)
