"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all; an existing file stays as it was until then.

    Args:
        path: The file. A symbolic link stays one: its target is replaced.
        text: The content, written as UTF-8.

    Raises:
        OSError: if the folder does not exist or cannot be written.
    """
    path = path.resolve()
    draft = path.with_name(f".bdl-{os.getpid()}.tmp")  # short: a name may have 255 bytes
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
