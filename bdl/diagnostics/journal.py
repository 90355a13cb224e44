"""Where what a callback sees is written to: a record file, TensorBoard, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def interrupted_run(path: Path | None, step: int, start: Mapping[str, Any] | None = None) -> RunRecord | None:
    """The run of a record file that a training goes on with, as far as the training has come.

    A run that was killed may have recorded more than its last backup holds, or less: its last epoch, or a part of it.
    One that ended goes on if it is the last of the file, and the training stands where it ended. Two trainings of the
    same seeds are told apart by the number of examples and of steps in an epoch, and by the optimizer and its rate.

    Args:
        path: The file, which may not exist.
        step: Steps that the model's optimizer has done. A training that stands at 0 goes on with a killed run of the
            same seeds: it was killed before its first backup, and begins again.
        start: What the record says of the training at its start.

    Returns:
        The run, without epochs that come after the step; None if there is none.
    """
    if path is None or not path.is_file():
        return None
    try:
        runs = read_record(path)
    except ValueError:  # some other file, to which a record is added
        return None
    last = runs[-1]
    if last.is_complete and step > 0 and last.epochs and last.epochs[-1].get("step") == step:
        return last
    fixed = ["seeds", "optimizer", "num_examples", "steps"]
    told = fixed if step else [*fixed, "learning_rate"]  # which callbacks change
    killed = [run for run in reversed(runs) if not run.is_complete and _is_same(run.start, start or {}, told)]
    if step == 0:
        found = next((run for run in killed if run.start.get("seeds") is not None), None)
    else:
        found = next((run for run in killed if _comes_to(run, step)), None)
    if found is not None:
        found.cut_after(max((each["epoch"] for each in found.epochs if each.get("step", step + 1) <= step), default=0))
    return found


def _is_same(start: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether two starts agree in all of these that is known of both."""
    known = ((start.get(key), other.get(key)) for key in keys)
    return all(one == two for one, two in known if one is not None and two is not None)


def _comes_to(run: RunRecord, step: int) -> bool:
    """Whether a run was at a step at the end of an epoch, or less than one epoch after it."""
    known = [each["step"] for each in run.epochs if each.get("step") is not None]
    since = step - max((each for each in known if each <= step), default=0)
    return bool(since <= (run.start.get("steps") or 0))
