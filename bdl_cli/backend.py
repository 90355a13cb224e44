"""Keras, loaded on the backend that is asked for, and quietly."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from os import _exit  # ends a process without what Python does at its end
from typing import Annotated

import typer


class Backend(StrEnum):
    """Keras backends that bdl runs on."""

    TENSORFLOW = "tensorflow"
    JAX = "jax"
    TORCH = "torch"


BackendOption = Annotated[
    Backend | None, typer.Option(help="Keras backend.", show_default="the one Keras is configured for")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Show what TensorFlow logs about devices and compiler.")]


def load_backend(backend: Backend | None = None, verbose: bool = False) -> None:
    """Imports Keras.

    Keras reads its choice of a backend once, when it is imported. Where that has happened with another one (by
    `python -m bdl`), the same command runs again in its place.

    Args:
        backend: Which one; None takes the one that Keras is configured for.
        verbose: Whether TensorFlow's native code logs more than what ends the process.

    Raises:
        typer.BadParameter: if bdl does not run on the backend, or it is not installed.
    """
    level = "TF_CPP_MIN_LOG_LEVEL"
    # 0 shows all; 3 what ends the process alone: other errors are exceptions, or that there is no GPU driver.
    os.environ[level] = "0" if verbose else os.environ.get(level, "3")
    if backend is not None and importlib.util.find_spec(backend) is None:
        raise typer.BadParameter(
            f"{backend} is not installed. Install it with: pip install 'keras-bdl[{backend}]'", param_hint="--backend"
        )
    if backend is not None and "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = backend
    chosen_by = "--backend" if backend is not None else "KERAS_BACKEND"
    is_quiet = not verbose and "keras" not in sys.modules and hasattr(os, "fork") and sys.stderr is not None
    try:
        with _without_remarks() if is_quiet else nullcontext():
            import keras
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(f"Keras cannot be loaded: {error}", param_hint=chosen_by) from error
    loaded = keras.config.backend()
    if (backend or loaded) not in list(Backend):
        raise typer.BadParameter(
            f"Keras is configured for {loaded!r}, on which bdl does not run. Choose one of {', '.join(Backend)}.",
            param_hint=chosen_by,
        )
    if backend is not None and backend != loaded:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "KERAS_BACKEND": backend})


_REMARK = re.compile(
    rb"WARNING: All log messages before absl|[IW]\d{4} \d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.\d]*: [IW] "
)
"""Beginnings of lines that TensorFlow's native code logs below the level of an error."""


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keeps remarks on devices out of standard error while TensorFlow is imported, which makes some at any level.

    Another process passes on all other lines, so that what this one says last is not lost with it.
    """
    reader, writer = os.pipe()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(writer)
        _pass_on(reader)
    os.close(reader)
    kept = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)  # closes the pipe, which ends the other process
        os.close(kept)
        os.waitpid(child, 0)


def _pass_on(reader: int) -> None:
    """Copies lines to standard error but remarks, to their end and that of the process."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to both, and the other has something to say about it
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if not _REMARK.match(line):
                    os.write(2, line)
    finally:
        _exit(0)
