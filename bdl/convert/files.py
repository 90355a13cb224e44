"""Conversion of a saved model: what `bdl convert` does."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras


def convert_file(source: Path, target: Path, convert: Callable[[keras.Model], keras.Model], overwrite: bool) -> None:
    """Loads a model, converts it, and saves the result; the source is never written to.

    Args:
        source: A `.keras` file.
        target: The `.keras` file to write; a complete file appears there or none.
        convert: What to do with the model.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        ValueError: if a path will not do, the source cannot be loaded, or the model cannot be converted. Nothing has
            been written then.
    """
    check_paths(source, target, overwrite)
    converted = convert(_load(source))
    # In the same folder, so that it can be renamed into place; the suffix tells Keras the format.
    with tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".bdl-convert-") as folder:
        draft = Path(folder) / "model.keras"
        converted.save(draft)
        draft.replace(target)


def check_paths(source: Path, target: Path, overwrite: bool) -> None:
    """Raises ValueError if a model cannot be read from `source` or written to `target`; see `convert_file`."""
    if not source.is_file():
        raise ValueError(f"{source} does not exist or is no file. Give a model saved with model.save('name.keras').")
    if source.suffix != ".keras" or not zipfile.is_zipfile(source):
        raise ValueError(
            f"{source} is no .keras file, or a damaged one: a .keras file is a zip archive. Save the model again with "
            "model.save('name.keras')."
        )
    if target.suffix != ".keras":
        raise ValueError(f"{target} must end in .keras.")
    if target.exists() and target.resolve() == source.resolve():
        raise ValueError(f"{target} is the model to be converted, which is never overwritten. Choose another name.")
    if target.is_dir() or not target.resolve().parent.is_dir():
        raise ValueError(f"{target} cannot be written: it is a folder, or its folder does not exist.")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists. Choose another name, or allow it to be replaced with --overwrite.")


def _load(source: Path) -> keras.Model:
    try:
        return keras.saving.load_model(source, compile=False)
    except Exception as error:  # Keras raises whatever the damaged part ran into
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} cannot be loaded as a Keras model: {first_line} If it has layers of your own, import the module "
            "that registers them and convert in Python with bdl.convert."
        ) from error
