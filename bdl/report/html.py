"""Blocks as HTML: a page that stands alone, and the little that a notebook shows.

A page loads nothing: its style is inline, its figures are PNG images inside it, and a content security policy forbids
the browser to fetch anything else. It follows the reader's choice of light or dark.
"""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Sequence
from html import escape
from typing import Any

from bdl.report.blocks import Block, Figure, Page, Paragraph, Row, Section, Table, printable

_CSS_PIXELS_PER_INCH = 96
_PNG_DPI = 192  # two pixels of the image for each of the page, for sharp text on dense screens
_PHONE_CHARACTERS = 38  # of a line of the page at a width of 390 pixels
_MEANING_CHARACTERS = 28  # of a line of the smaller text below a row's name, to be read with ease
_TEXT_POINTS = 11  # of text in figures, which a phone shows at three quarters of their size

_THEMES = {
    "light": {"ground": "#ffffff", "ink": "#222222", "muted": "#5f6368", "line": "#dddddd"},
    "dark": {"ground": "#16181c", "ink": "#e6e6e6", "muted": "#a3a8ae", "line": "#3a3e44"},
}
_DRAWING = threading.Lock()  # a style of matplotlib is global while it is in force


def render(page: Page) -> str:
    """Returns a page as HTML that needs no other file and no network.

    Args:
        page: What it shows.

    Example:
    >>> html = render(Page("Uncertainty", "All is well & good.", [Section("Data", [Paragraph("1,797 digits")])]))
    >>> "<h1>Uncertainty</h1>" in html, "well &amp; good" in html
    (True, True)
    """
    summary = "\n".join(f'<p class="summary">{_text(line)}</p>' for line in page.summary.split("\n"))
    sections = "\n".join(_section(section) for section in page.sections)
    footer = f"<footer>{_text(page.footer)}</footer>\n" if page.footer else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_text(page.title)}</title>
<style>{_COLORS}{_STYLE}</style>
</head>
<body>
<main>
<h1>{_text(page.title)}</h1>
{summary}
{sections}
{footer}</main>
</body>
</html>
"""


def fragment(blocks: Sequence[Block]) -> str:
    """Returns blocks as HTML to stand in another page, such as a notebook, whose colours they take.

    Args:
        blocks: What to show.

    Example:
    >>> "<p>a &lt; b</p>" in fragment([Paragraph("a < b")])
    True
    """
    shown = "\n".join(_block(block) for block in blocks)
    return f'<div class="bdl"><style>{_FRAGMENT_STYLE}</style>\n{shown}\n</div>'


def _text(text: str) -> str:
    """The text as HTML, in which no name is markup."""
    return escape(printable(text))


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f"<section>\n<h2>{_text(section.title)}</h2>\n{blocks}\n</section>"


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return f"<p>{_text(block.text)}</p>"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.columns)
    body = "\n".join(_row(row, table.columns) for row in table.rows)
    sentences = [table.caption] if table.caption else []
    sentences += ["Bold is best."] if any(row.best for row in table.rows) else []
    caption = f"<figcaption>{_text(' '.join(sentences))}</figcaption>" if sentences else ""
    kind = "table" if _fits_a_phone(table) else "table stacked"
    return (
        f'<figure class="{kind}">\n<table>\n<thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n{caption}</figure>"
    )


def _fits_a_phone(table: Table) -> bool:
    """Whether all columns stand beside each other there with no number broken and no cell of more than two lines."""
    lines = [["", *table.columns], *([row.name, *row.cells] for row in table.rows)]
    widths = [max(map(_least_width, column)) for column in zip(*lines, strict=True)]
    if any(row.meaning for row in table.rows):
        widths[0] = max(widths[0], _MEANING_CHARACTERS)
    return sum(widths) + 2 * len(table.columns) <= _PHONE_CHARACTERS


def _least_width(cell: str) -> int:
    """Characters of the longest word, or of half the cell, which stands in two lines."""
    return max(*map(len, cell.split(" ")), (len(cell) + 1) // 2)


def _row(row: Row, columns: Sequence[str]) -> str:
    meaning = f"<small>{_text(row.meaning)}</small>" if row.meaning else ""
    cells = "".join(
        _cell(cell, column if len(columns) > 1 else "", is_best=place in row.best)
        for place, (cell, column) in enumerate(zip(row.cells, columns, strict=True))
    )
    return f'<tr><th scope="row">{_text(row.name)}{meaning}</th>{cells}</tr>'


def _cell(cell: str, column: str, is_best: bool) -> str:
    """A cell that knows its column's name, which stands beside it where the page is too narrow for columns."""
    label = f' data-label="{_text(column)}"' if column else ""
    # A browser would break 8.57e-05 at its hyphen.
    text = re.sub(r"[^ ]*\w-\d[^ ]*", r'<span class="number">\g<0></span>', _text(cell))
    return f"<td{label}>{f'<strong>{text}</strong>' if is_best else text}</td>"


def _figure(figure: Figure) -> str:
    light, width, height = _drawn(figure, "light")
    dark, *_ = _drawn(figure, "dark")
    return (
        f'<figure>\n<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img src="{light}" alt="{_text(figure.description)}" width="{width}" height="{height}">\n</picture>\n'
        f"<figcaption>{_text(figure.caption)}</figcaption>\n</figure>"
    )


def _drawn(figure: Figure, theme: str) -> tuple[str, int, int]:
    """The figure in the colours of the page: a PNG image as a URL, its width and its height on the page."""
    import matplotlib.style

    with _DRAWING, matplotlib.style.context(_style_of_figures(theme), after_reset=True):
        canvas = figure.draw().get_figure(root=True)
        if canvas is None:
            raise ValueError("`draw` must return axes that belong to a figure, not ones removed from theirs.")
        width, height = (round(inches * _CSS_PIXELS_PER_INCH) for inches in canvas.get_size_inches())
        image = io.BytesIO()
        canvas.savefig(image, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode("ascii"), width, height


def _style_of_figures(theme: str) -> dict[str, Any]:
    """Matplotlib's own style in the colours of a theme; of the user's only the fonts, which names may need."""
    import matplotlib

    fonts = {key: matplotlib.rcParams[key] for key in ("font.family", "font.sans-serif", "font.serif")}
    colors = _THEMES[theme]
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    grounds = ("figure.facecolor", "axes.facecolor")
    return {
        **fonts,
        **dict.fromkeys(inks, colors["ink"]),
        **dict.fromkeys(grounds, colors["ground"]),
        "font.size": _TEXT_POINTS,
        "axes.labelsize": "medium",
        "axes.titlesize": "medium",
    }


def _variables(theme: str) -> str:
    return " ".join(f"--{name}: {color};" for name, color in _THEMES[theme].items())


_COLORS = f"""
:root {{ color-scheme: light dark; {_variables("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables("dark")} }} }}"""
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--ground); -webkit-text-size-adjust: 100%;
  font: 1.0625rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.5rem; }
p { margin: 0.6rem 0; }
.summary { font-size: 1.2rem; line-height: 1.5; }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: 0.9rem; line-height: 1.45; margin-top: 0.6rem; max-width: 43rem; }
.table { width: max-content; min-width: 100%; max-width: calc(100vw - 2.5rem); overflow-x: auto;
  position: relative; left: 50%; transform: translateX(-50%); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
thead th { font-size: 0.9rem; line-height: 1.3; vertical-align: bottom; }
thead th, tbody td { text-align: right; padding-left: 1.25rem; max-width: 16rem; }
tbody th { text-align: left; font-weight: 600; min-width: 10rem; }
tbody th, tbody td { padding-top: 0.5rem; padding-bottom: 0.5rem; border-top: 1px solid var(--line);
  vertical-align: top; }
thead th, thead td { padding-bottom: 0.5rem; }
small { display: block; font-size: 0.85rem; font-weight: 400; line-height: 1.4; color: var(--muted);
  max-width: 24rem; overflow-wrap: anywhere; }
@media (min-width: 40.01rem) { tr:has(td:nth-child(4)) small { max-width: 15rem; } }
.number { white-space: nowrap; }
footer { margin-top: 3rem; padding-top: 0.75rem; border-top: 1px solid var(--line); color: var(--muted);
  font-size: 0.85rem; }
@media (max-width: 40rem) {
  main { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; }
  .summary { font-size: 1.05rem; }
  .table { width: auto; }
  tbody th { min-width: 0; }
  .stacked :is(table, tbody, tr, tbody th) { display: block; }
  .stacked thead { display: none; }
  .stacked tbody th { padding-bottom: 0.1rem; }
  .stacked tbody td { display: flex; flex-wrap: wrap; justify-content: flex-end; gap: 0 1rem; padding: 0.1rem 0;
    border-top: 0; max-width: none; }
  .stacked tbody td:last-child { padding-bottom: 0.6rem; }
  .stacked td[data-label]::before { content: attr(data-label); color: var(--muted); text-align: left;
    margin-right: auto; overflow-wrap: anywhere; }
}
@media print { h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
_FRAGMENT_STYLE = """
.bdl { overflow-x: auto; }
.bdl figure { margin: 0; }
.bdl table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.bdl th, .bdl td { text-align: right; white-space: nowrap; padding: 0.25em 0.75em; }
.bdl tbody th { text-align: left; }
.bdl small { display: block; font-weight: 400; opacity: 0.75; }"""
