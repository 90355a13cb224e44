"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a draft to write; where that succeeds, it takes the place of a file, which stays as it was until then.

    Threads and processes may write at once, to one file too: the last one to end stays. A process that is killed leaves
    the draft, in a folder whose name begins with `.bdl-`.

    Args:
        path: The file, or a folder. A symbolic link stays one: its target is replaced.

    Yields:
        A path of the same name that does not exist yet, for a file or a folder.

    Raises:
        OSError: if the folder that it is in does not exist or cannot be written.

    Example:
    >>> path = getfixture("tmp_path") / "kept.txt"
    >>> with replacing(path) as draft:
    ...     _ = draft.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist. Make it first.")
    # In the same folder, so that it can be renamed; a folder of its own, so that nobody else writes to the draft.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bdl-") as folder:
        draft = Path(folder) / path.name
        yield draft
        if draft.is_dir() and path.is_dir():  # a folder takes the place of an empty one only
            path.replace(Path(folder) / ".before")
        draft.replace(path)


@contextlib.contextmanager
def exporting(filepath: str | Path) -> Iterator[str | Path]:
    """As `replacing`, and what is printed meanwhile names the file and not its draft.

    Args:
        filepath: The file or folder; that of another machine, as in `"gs://bucket/model"`, is written in place.

    Yields:
        What to write.
    """
    if "://" in str(filepath):
        yield filepath
        return
    printed = io.StringIO()
    with replacing(Path(filepath)) as draft, contextlib.redirect_stdout(printed):
        yield draft
    print(printed.getvalue().replace(str(draft), str(filepath)), end="")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all; an existing file stays as it was until then.

    Args:
        path: The file, as of `replacing`.
        text: The content, written as UTF-8.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
