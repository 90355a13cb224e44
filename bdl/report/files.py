"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A context for writing a file that appears at its end, whole, or not at all; one that is there stays until then.

    Threads and processes may write at once, to one file too: the last one to end stays.

    Args:
        path: The file. A symbolic link stays one: its target is replaced.

    Yields:
        The path to write to, with the same name.

    Raises:
        OSError: if the folder does not exist or cannot be written.

    Example:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with whole_file(path) as draft:
    ...     _ = draft.write_text("done")
    >>> path.read_text()
    'done'
    """
    target = path.resolve()
    # In the same folder, so that it can be renamed; a folder of its own, so that nobody else writes to the draft.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bdl-") as folder:
        draft = Path(folder) / path.name
        yield draft
        draft.replace(target)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file by `whole_file`.

    Args:
        path: The file.
        text: The content, written as UTF-8.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
