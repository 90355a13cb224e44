"""Files of models that take the place of earlier ones only when they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bdl.report import replacing


class SavesWhole:
    """Mixin of a Keras model: where saving is interrupted, the file that was there before is still there.

    Keras writes into the file itself. `BackupAndRestore` and `ModelCheckpoint` save by these methods. Files of other
    machines, and weights in several files, are written as Keras does.
    """

    def save(self, filepath: Any, overwrite: bool = True, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`."""
        self._save_whole("save", filepath, overwrite, *args, **kwargs)

    def save_weights(self, filepath: Any, overwrite: bool = True, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save_weights`."""
        self._save_whole("save_weights", filepath, overwrite, *args, **kwargs)

    def _save_whole(self, name: str, filepath: Any, overwrite: bool, *args: Any, **kwargs: Any) -> None:
        save = getattr(super(), name)
        path = Path(filepath) if isinstance(filepath, (str, Path)) and "://" not in str(filepath) else None
        is_asked = path is not None and path.exists() and not overwrite  # Keras asks whether it may be replaced
        if path is None or is_asked or (name == "save_weights" and (args or kwargs)):
            save(filepath, overwrite, *args, **kwargs)
            return
        with replacing(path) as draft:
            save(draft, overwrite, *args, **kwargs)
