"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A place to write a file, which takes the file's own at the end; where that fails, the file stays as it was.

    Threads and processes may write at once, to one file too: the last one to end stays.

    Args:
        path: The file. A symbolic link stays one: its target is replaced.

    Yields:
        A path with the file's name, in a folder of its own beside it.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    path = path.resolve()
    # In the same folder, so that it can be renamed; a folder of its own, so that nobody else writes to the draft.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bdl-") as folder:
        draft = Path(folder) / path.name
        yield draft
        draft.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all; an existing file stays as it was until then.

    Args:
        path: The file, as of `drafted`.
        text: The content, written as UTF-8.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    with drafted(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
