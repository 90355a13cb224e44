"""Where what a callback sees is written to: a record file, TensorBoard, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.record import RunRecord, append, read_record


class Journal:
    """Writes the events of one run.

    Args:
        run: Identity of the run.
        path: Record file, or None.
        folder: Folder of TensorBoard scalars, or None; needs TensorFlow.
    """

    def __init__(self, run: str, path: Path | None, folder: str | Path | None) -> None:
        self.run = run
        self._path, self._folder = path, folder
        self._board: Any = None

    def write(self, event: Mapping[str, Any]) -> None:
        """Adds an event to the record file."""
        if self._path is not None:
            append(self._path, {**event, "run": self.run})

    def plot(self, epoch: int, entry: Mapping[str, Any], quantities: Quantities | None) -> None:
        """Adds an epoch's numbers, and the KL of each layer, to TensorBoard."""
        if self._folder is None:
            return
        import tensorflow as tf

        if self._board is None:
            self._board = tf.summary.create_file_writer(str(self._folder))
        with self._board.as_default():
            for key, value in entry.items():
                if isinstance(value, (int, float)) and key != "epoch":
                    tf.summary.scalar(f"health/{key}", value, step=epoch)
            for layer in quantities.layers if quantities else ():
                if layer.kl is not None:
                    tf.summary.scalar(f"health/kl/{layer.name}", layer.kl, step=epoch)
        self._board.flush()


def interrupted_run(path: Path | None, step: int) -> RunRecord | None:
    """The last run of a record file, if it had come to this very step when it ended: the one that goes on now.

    Args:
        path: The file, which may not exist.
        step: Steps that the model's optimizer has done.
    """
    if path is None or step == 0 or not path.is_file():
        return None
    try:
        last = read_record(path)[-1]
    except ValueError:  # some other file, to which a record is added
        return None
    return last if last.epochs and last.epochs[-1].get("step") == step else None
