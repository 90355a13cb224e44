"""Reports as one self-contained HTML page: titles, paragraphs, tables and figures in, a file that opens anywhere out.

The same blocks print as text and show in notebooks. What they say belongs to those who make them; here is only how it
looks.
"""

from bdl.report.blocks import Block, Figure, Page, Paragraph, Row, Section, Table, entry_names, printable
from bdl.report.files import exporting, replacing, write_atomically
from bdl.report.html import fragment, render
from bdl.report.reports import Report, Shown

__all__ = [
    "Block",
    "Figure",
    "Page",
    "Paragraph",
    "Report",
    "Row",
    "Section",
    "Shown",
    "Table",
    "entry_names",
    "exporting",
    "fragment",
    "printable",
    "render",
    "replacing",
    "write_atomically",
]
