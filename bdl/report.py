"""Reports as one self-contained HTML page: titles, paragraphs, tables and figures in, a file that opens anywhere out.

A page loads nothing: its style is inline, its figures are PNG images inside it, and a content security policy forbids
the browser to fetch anything else. What a page says belongs to those who make one; here is only how it looks.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Figure", "Page", "Paragraph", "Row", "Section", "Table", "render", "write_atomically"]

_CSS_PIXELS_PER_INCH = 96
_PNG_DPI = 192  # two pixels of the image for each of the page, for sharp text on dense screens


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: What the row is about.
        cells: Its values, one a column.
        meaning: A sentence that says how to read them; empty for none.
    """

    name: str
    cells: Sequence[str]
    meaning: str = ""


@dataclass(frozen=True)
class Table:
    """A table with named rows and columns.

    Args:
        columns: Names of the columns, without the one that holds the rows' names.
        rows: Its rows.
        caption: A sentence below it; empty for none.

    Raises:
        ValueError: if a row has more or fewer cells than there are columns.
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


@dataclass(frozen=True, eq=False)
class Figure:
    """A drawing by `bdl.plots`, or any other on matplotlib axes.

    Args:
        axes: Axes of the figure to show.
        caption: What it shows and how to read it.
        description: What a reader who cannot see it should be told.
    """

    axes: Axes
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
        summary: The most important sentences, in larger type below the heading.
        sections: The rest, in order.
        footer: Where it comes from: versions, seed, date.
    """

    title: str
    summary: str
    sections: Sequence[Section]
    footer: str = ""


def render(page: Page) -> str:
    """Returns a page as HTML that needs no other file and no network.

    Args:
        page: What it shows.

    Example:
    >>> html = render(Page("Uncertainty", "All is well & good.", [Section("Data", [Paragraph("1,797 digits")])]))
    >>> "<h1>Uncertainty</h1>" in html, "well &amp; good" in html
    (True, True)
    """
    sections = "\n".join(_section(section) for section in page.sections)
    footer = f"<footer>{escape(page.footer)}</footer>\n" if page.footer else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(page.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(page.title)}</h1>
<p class="summary">{escape(page.summary)}</p>
{sections}
{footer}</main>
</body>
</html>
"""


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all; an existing file stays as it was until then.

    Threads and processes may write at once, to one file too: the last one to end stays.

    Args:
        path: The file. A symbolic link stays one: its target is replaced.
        text: The content, written as UTF-8.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    path = path.resolve()
    # In the same folder, so that it can be renamed; a folder of its own, so that nobody else writes to the draft.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bdl-") as folder:
        draft = Path(folder) / "draft"
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>"


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return f"<p>{escape(block.text)}</p>"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    body = "\n".join(_row(row) for row in table.rows)
    caption = f"<figcaption>{escape(table.caption)}</figcaption>" if table.caption else ""
    return (
        f'<figure class="table">\n<table>\n<thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n{caption}</figure>"
    )


def _row(row: Row) -> str:
    meaning = f"<small>{escape(row.meaning)}</small>" if row.meaning else ""
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
    return f'<tr><th scope="row">{escape(row.name)}{meaning}</th>{cells}</tr>'


def _figure(figure: Figure) -> str:
    canvas = figure.axes.get_figure(root=True)
    if canvas is None:
        raise ValueError("`axes` must belong to a figure, not have been removed from theirs.")
    width = round(canvas.get_figwidth() * _CSS_PIXELS_PER_INCH)
    height = round(canvas.get_figheight() * _CSS_PIXELS_PER_INCH)
    image = io.BytesIO()
    canvas.savefig(image, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    source = "data:image/png;base64," + base64.b64encode(image.getvalue()).decode("ascii")
    return (
        f'<figure>\n<img src="{source}" alt="{escape(figure.description)}" width="{width}" height="{height}">\n'
        f"<figcaption>{escape(figure.caption)}</figcaption>\n</figure>"
    )


_STYLE = """
:root { color-scheme: light; --ink: #222; --muted: #666; --line: #ddd; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; -webkit-text-size-adjust: 100%;
  font: 1.0625rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.5rem; }
p { margin: 0.6rem 0; }
.summary { font-size: 1.2rem; line-height: 1.5; }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: 0.9rem; line-height: 1.45; margin-top: 0.6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
thead th { font-size: 0.9rem; line-height: 1.3; vertical-align: bottom; }
thead th, tbody td { text-align: right; padding-left: 1rem; }
tbody th { text-align: left; font-weight: 600; min-width: 10rem; }
tbody th, tbody td { padding-top: 0.5rem; padding-bottom: 0.5rem; border-top: 1px solid var(--line);
  vertical-align: top; }
thead th, thead td { padding-bottom: 0.5rem; }
small { display: block; font-size: 0.85rem; font-weight: 400; line-height: 1.4; color: var(--muted); }
footer { margin-top: 3rem; padding-top: 0.75rem; border-top: 1px solid var(--line); color: var(--muted);
  font-size: 0.85rem; }
@media (max-width: 30rem) {
  main { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; }
  .summary { font-size: 1.05rem; }
  tr { display: flex; flex-wrap: wrap; }
  thead td { display: none; }
  thead th, tbody td { flex: 1 1 0; min-width: 0; padding-left: 0; padding-right: 0.5rem; text-align: left;
    overflow-wrap: anywhere; }
  tbody th { flex: 0 0 100%; padding-bottom: 0; }
  tbody td { padding-top: 0.25rem; border-top: 0; }
}
@media print { h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
