"""One check of all files that a command reads and writes, before it reads or writes any."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bdl_cli.terminal import printable

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


def check_files(
    inputs: Sequence[Path],
    outputs: Mapping[str, Path | None],
    overwrite: bool,
    hint: str = "",
    others: Sequence[Path] = (),
) -> None:
    """Refuses files that cannot be read or written, that would be read twice, or that something would destroy.

    Args:
        inputs: Files to read.
        outputs: Files to write, by the option that names them; None for none.
        overwrite: Whether files that exist may be replaced. Inputs never are.
        hint: What the command line calls the inputs.
        others: What may be files to read, such as labels by name or path.

    Raises:
        typer.BadParameter: with the reason and the cure.
    """
    used: dict[Hashable, str] = {}
    for path in inputs:
        if not os.path.isfile(path):  # False for a name that no file can have, too
            _refuse(f"{path} does not exist, or is no file.", hint)
        if _identity(path) in used:
            _refuse(f"{hint} must be different files, not {path} twice.", hint)
        used[_identity(path)] = "is an input"
    used.update({_identity(path): "is an input" for path in others if os.path.isfile(path)})
    for option, output in outputs.items():
        if output is None:
            continue
        try:
            problem = _problem(output, used, overwrite)
            used[_identity(output)] = f"is written already, by {option}"
        except OSError as error:
            problem = f"cannot write {output}: {error.strerror or error}."
        if problem:
            _refuse(problem, option)


def _problem(path: Path, used: Mapping[Hashable, str], overwrite: bool) -> str:
    """Why a file is not to be written, or nothing."""
    exists = _exists(path)
    target = path.resolve()
    if path.is_dir():
        return f"{path} is a folder. Give a file, such as {path / 'report.html'}."
    if _identity(path) in used:
        return f"{path} {used[_identity(path)]}. Give another file."
    if exists and not path.is_file():
        return f"{path} is not a regular file."
    if not target.parent.is_dir():
        return f"the folder {target.parent if path.is_symlink() else path.parent} does not exist. Make it first."
    if exists and not overwrite:
        return f"{path} exists. Choose another name, or allow it to be replaced with --overwrite."
    with tempfile.TemporaryFile(dir=target.parent):
        return ""


def _exists(path: Path) -> bool:
    """Whether there is such a file; links in a circle are an OSError."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _identity(path: Path) -> Hashable:
    """What two names of one file have in common, be they links."""
    if not _exists(path):
        return path.resolve()
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _refuse(problem: str, hint: str) -> None:
    raise typer.BadParameter(printable(problem), param_hint=hint)
