"""Files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path


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
