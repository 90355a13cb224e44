"""What shows itself as text and in notebooks, and what can be saved as JSON and as a page."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from bdl.report.blocks import Page, Paragraph, Table
from bdl.report.files import write_atomically
from bdl.report.html import fragment, render


class Shown:
    """What shows itself in a few lines: as text in `repr`, and in notebooks; subclasses write `glance`."""

    def glance(self) -> Sequence[Paragraph | Table]:
        """The little that is shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n".join(str(block) for block in self.glance())

    def _repr_html_(self) -> str:
        return fragment(self.glance())


class Report(Shown):
    """What can be saved as JSON and as a page, too; subclasses write `to_dict` and `page`."""

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain Python numbers, lists and dicts."""
        raise NotImplementedError

    def page(self, title: str | None = None) -> Page:
        """The page with all figures.

        Args:
            title: Its heading; None for the report's own.
        """
        raise NotImplementedError

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """`to_dict()` as JSON.

        JSON has no infinity and no NaN: an infinite figure is the string `"Infinity"` or `"-Infinity"`, which Python's
        `float` and JavaScript's `Number` read, and what does not exist is `null`.

        Args:
            path: Deprecated: use `save_json`.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        self._save_as_before("to_json", path, text)
        return text

    def save_json(self, path: str | PathLike[str]) -> None:
        """Writes `to_json()`; the file appears whole or not at all.

        Args:
            path: File to write; replaced if it exists.
        """
        write_atomically(Path(path), self.to_json())

    def to_html(self, path: str | PathLike[str] | None = None, *, title: str | None = None) -> str:
        """One self-contained HTML page with all figures.

        Args:
            path: Deprecated: use `save_html`.
            title: Heading of the page; None for the report's own.
        """
        html = render(self.page(title))
        self._save_as_before("to_html", path, html)
        return html

    def save_html(self, path: str | PathLike[str], title: str | None = None) -> None:
        """Writes `to_html()`; the file appears whole or not at all.

        Args:
            path: File to write; replaced if it exists.
            title: Heading of the page; None for the report's own.
        """
        write_atomically(Path(path), self.to_html(title=title))

    @staticmethod
    def _save_as_before(method: str, path: str | PathLike[str] | None, text: str) -> None:
        if path is not None:
            new = method.replace("to_", "save_")
            warnings.warn(f"`{method}(path)` is deprecated, use `{new}(path)`.", DeprecationWarning, stacklevel=3)
            write_atomically(Path(path), text)
