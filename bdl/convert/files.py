"""Saved models: loaded with errors that tell, and converted as `bdl convert` does."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import keras

from bdl.report import replacing


def convert_file(source: Path, target: Path, convert: Callable[[keras.Model], keras.Model]) -> None:
    """Loads a model, converts it, and saves the result.

    Args:
        source: A `.keras` file.
        target: The `.keras` file to write; a complete file appears there or none, in place of one that is there.
        convert: What to do with the model.

    Raises:
        ValueError: if a file is not of this kind, the source cannot be loaded, or the model cannot be converted.
            Nothing has been written then.
    """
    model = load_file(source)
    if target.suffix != ".keras":
        raise ValueError(f"{target} must end in .keras.")
    converted = convert(model)
    with replacing(target) as draft:
        converted.save(draft)


def load_file(source: Path) -> keras.Model:
    """The model in a `.keras` file, not compiled.

    Args:
        source: The file.

    Raises:
        ValueError: if the file is not of this kind, or its model cannot be loaded.
    """
    if source.suffix != ".keras" or not zipfile.is_zipfile(source):
        raise ValueError(
            f"{source} is no .keras file, or a damaged one: a .keras file is a zip archive. Save the model again with "
            "model.save('name.keras')."
        )
    try:
        return keras.saving.load_model(source, compile=False)
    except Exception as error:  # Keras raises whatever the damaged part ran into
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} cannot be loaded as a Keras model: {first_line} If it has layers of your own, import the module "
            "that registers them and work in Python."
        ) from error
