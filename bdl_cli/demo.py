"""`bdl demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdl_cli.backend import BackendOption, VerboseOption, load_backend
from bdl_cli.paths import OverwriteOption, check_files
from bdl_cli.terminal import console, errors_as_messages, print_table, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EPOCHS = 100  # with these the demo takes half a minute on two cores


def demo(
    context: typer.Context,
    backend: BackendOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides the test digits and all noise.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML page to write; its folder must exist.")] = Path(
        "bdl-demo.html"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = _EPOCHS,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a Bayesian network and its deterministic twin on real digits, and show which one knows its limits."""
    check_files([], {"--output": output}, overwrite)
    load_backend(backend, verbose)
    # Keras is loaded by now, on the right backend; these modules need it.
    from bdl.demo import BAYESIAN, TWIN, run_demo
    from bdl.demo_page import build_page, comparison_table
    from bdl.report import render, write_atomically

    with _TrainingProgress((TWIN, BAYESIAN), epochs) as progress:
        result = run_demo(seed, epochs, on_epoch=progress.update)
    print_table(comparison_table(result), title="Bayesian network and deterministic twin on test digits")
    with errors_as_messages(context):
        write_atomically(output, render(build_page(result)))
    say(f"Page: {output.resolve()}")


class _TrainingProgress:
    """A line for each training: epochs done, and the figures of the last one."""

    def __init__(self, names: tuple[str, ...], epochs: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console(),
        )
        self._tasks: dict[str, TaskID] = {
            name: self._progress.add_task(name, total=epochs, figures="") for name in names
        }

    def __enter__(self) -> _TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, name: str, epoch: int, logs: Mapping[str, float]) -> None:
        """Shows an epoch; a network without a KL has no T, and its loss is its NLL."""
        figures = f"loss {logs['loss']:.3f}  nll {logs.get('nll', logs['loss']):.3f}"
        if "temperature" in logs:
            figures += f"  T {logs['temperature']:.2f}"
        self._progress.update(self._tasks[name], completed=epoch, figures=figures)
