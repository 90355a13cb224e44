"""The `bdl` command.

Each subcommand is a function here; what it does lives in a room of its own, which is imported when it runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table as TerminalTable
from rich.text import Text

if TYPE_CHECKING:
    from bdl.report import Table

app = typer.Typer(
    name="bdl",
    help="Bayesian deep learning for Keras 3.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
_console = Console()

_DEMO_EPOCHS = 100  # with these the demo takes half a minute on two cores


class Backend(StrEnum):
    """Keras backends that bdl runs on."""

    TENSORFLOW = "tensorflow"
    JAX = "jax"
    TORCH = "torch"


def main() -> None:
    """Entry point of the `bdl` command."""
    app(prog_name="bdl")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from bdl import __version__

        typer.echo(f"bdl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Bayesian deep learning for Keras 3."""


@app.command()
def demo(
    backend: Annotated[
        Backend | None, typer.Option(help="Keras backend.", show_default="the one Keras is configured for")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides the test digits and all noise.")] = 0,
    output: Annotated[Path, typer.Option(help="HTML page to write; its folder must exist.")] = Path("bdl-demo.html"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = _DEMO_EPOCHS,
) -> None:
    """Train a Bayesian network and its deterministic twin on real digits, and show which one knows its limits."""
    _check_output(output)
    _use_backend(backend)
    # Keras is loaded by now, on the right backend; these modules need it.
    from bdl.demo import BAYESIAN, TWIN, run_demo
    from bdl.demo_page import build_page, comparison_table
    from bdl.report import render, write_atomically

    _let_backend_log()
    with _TrainingProgress((TWIN, BAYESIAN), epochs) as progress:
        result = run_demo(seed, epochs, on_epoch=progress.update)
    _print_table(comparison_table(result), title="Bayesian network and deterministic twin on test digits")
    try:
        write_atomically(output, render(build_page(result)))
    except OSError as error:
        typer.echo(f"Error: cannot write {output}: {error.strerror or error}.", err=True)
        raise typer.Exit(1) from error
    _console.print(f"Page: {output.resolve()}", soft_wrap=True, highlight=False)


class Conversion(StrEnum):
    """What `bdl convert` makes of a model."""

    MC_DROPOUT = "mc-dropout"
    VARIATIONAL = "variational"
    DETERMINISTIC = "deterministic"


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="Keras model to convert, a .keras file; it is never written to.")],
    to: Annotated[Conversion, typer.Option(help="What to make of it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".keras file to write; its folder must exist.")],
    rate: Annotated[
        float | None, typer.Option(help="mc-dropout: rate of all dropout.", show_default="each layer's own")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers by name or pattern, 'all' or 'last': which get a posterior, or have dropout inserted before "
            "them. May be repeated.",
            show_default="all; no dropout is inserted",
        ),
    ] = None,
    estimator: Annotated[str, typer.Option(help="variational: estimator of the layers.")] = "reparameterization",
    prior: Annotated[str, typer.Option(help="variational: prior of the weights.")] = "moped",
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the noise reproducible.")] = None,
    backend: Annotated[
        Backend | None, typer.Option(help="Keras backend.", show_default="the one Keras is configured for")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
) -> None:
    """Make a saved Keras model Bayesian, or a Bayesian one plain."""
    _use_backend(backend)
    from bdl.convert import ConvertedLayer, DecorativeDropoutWarning, to_deterministic, to_mc_dropout, to_variational
    from bdl.convert.files import convert_file

    report: list[ConvertedLayer] = []

    def conversion(loaded: Any) -> Any:
        if to is Conversion.MC_DROPOUT:
            return to_mc_dropout(loaded, rate, before=layers, seed=seed)
        if to is Conversion.DETERMINISTIC:
            return to_deterministic(loaded)
        network = to_variational(loaded, layers or "all", estimator, prior, seed=seed)
        report.extend(network.report)
        return network

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            convert_file(model, output, conversion, overwrite)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    for line in report:
        _console.print(Text(f"  {line}"), soft_wrap=True)
    for warning in caught:
        if issubclass(warning.category, DecorativeDropoutWarning):
            typer.echo(f"Warning: {warning.message}", err=True)
    _console.print(f"Model: {output.resolve()}", soft_wrap=True, highlight=False)


class Form(StrEnum):
    """What arrays hold that do not say it by their names."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"
    SAMPLES = "samples"


@app.command()
def evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Predictions, one file a model (.npz, .npy, .csv, .parquet): arrays or columns named probabilities, "
            "logits, samples, or mean and scale; or a column for each class. Of several outputs with the output before "
            "a slash, as in kind/probabilities.",
            metavar="FILE...",
        ),
    ],
    labels: Annotated[str, typer.Option(help="Labels or targets: an array's or column's name in FILE, or a file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    json_output: Annotated[
        Path | None, typer.Option("--json", help="JSON file to write with the same figures.")
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--as", help="What unnamed arrays hold.", show_default="what their names say")
    ] = None,
    ignore_class: Annotated[
        int | None,
        typer.Option("--ignore-class", help="Label of events that do not count.", show_default="none is ignored"),
    ] = None,
    num_bins: Annotated[int, typer.Option("--num-bins", min=1, help="Bins of the calibration errors.")] = 15,
    level: Annotated[float, typer.Option(help="Nominal coverage of the intervals.")] = 0.95,
    num_resamples: Annotated[int, typer.Option("--num-resamples", min=0, help="Bootstrap samples; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides the bootstrap.")] = 0,
) -> None:
    """Tell how good predictions and their uncertainty are: a table, and if asked a page and a JSON file.

    A page has its figures as a JSON file beside it, unless --json gives another place.
    """
    import bdl
    from bdl.evaluation.files import as_prediction, by_output, read_arrays, read_labels

    if output is not None and json_output is None:
        json_output = output.with_suffix(".json")
    for path, option in ((output, "--output"), (json_output, "--json")):
        if path is not None:
            _check_output(path, option, inputs=files)
    try:
        contents = {path: read_arrays(path) for path in files}
        parts = {path: by_output(content) for path, content in contents.items()}
        y = {output: read_labels(labels, files[0], arrays) for output, arrays in parts[files[0]].items()}
        predictions = {
            name: {output: as_prediction(arrays, path, labels, form) for output, arrays in parts[path].items()}
            for name, path in _model_names(files).items()
        }
        is_one = set(y) == {None}
        evaluation = bdl.evaluate(
            y[None] if is_one else y,
            {name: each[None] if set(each) == {None} else each for name, each in predictions.items()},
            ignore_class=ignore_class,
            num_bins=num_bins,
            level=level,
            num_resamples=num_resamples,
            seed=seed,
        )
        for name, found in ({None: evaluation} if is_one else evaluation).items():
            table = found.table()
            _print_table(table, title=table.caption if is_one else f"{name}: {table.caption}")
        for path, save in ((output, evaluation.save_html), (json_output, evaluation.save_json)):
            if path is not None:
                save(path)
                _console.print(f"Written: {path.resolve()}", soft_wrap=True, highlight=False)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def diagnose(
    records: Annotated[
        list[Path],
        typer.Argument(help="Records of TrainingHealth; several runs are compared side by side.", show_default=False),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    json_output: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
) -> None:
    """Tell from its record whether a training learned, or only slid to its prior."""
    from bdl.diagnostics import comparison, diagnose_record
    from bdl.report import render, write_atomically

    for path, option in ((output, "--output"), (json_output, "--json")):
        if path is not None:
            _check_output(path, option, inputs=records)
    try:
        several = _model_names(records)
        reports = {
            run if len(several) == 1 or path.stem == name else run.replace(path.stem, name, 1): report
            for name, path in several.items()
            for run, report in diagnose_record(path).items()
        }
        for name, report in reports.items():
            _console.print(Text(f"{name}: {report}"))
        page = next(iter(reports.values())).page() if len(reports) == 1 else comparison(reports)
        if output is not None:
            write_atomically(output, render(page))
        if json_output is not None:
            parts = {name: json.loads(report.to_json()) for name, report in reports.items()}
            write_atomically(json_output, json.dumps(parts, indent=1))
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    for path in (output, json_output):
        if path is not None:
            _console.print(f"Written: {path.resolve()}", soft_wrap=True, highlight=False)


def _model_names(files: list[Path]) -> dict[str, Path]:
    """Names of the models: their files' names, with folders and suffixes where these alone tell them apart."""
    if len(set(files)) < len(files):
        raise ValueError("`FILE...` must be different files, not one twice.")
    for name in (lambda path: path.stem, lambda path: path.name, str):
        names = {name(path): path for path in files}
        if len(names) == len(files):
            break
    return names


def _check_output(output: Path, option: str = "--output", inputs: Sequence[Path] = ()) -> None:
    """Refuses before any work is done what could not be written after it, or would destroy what is read."""
    problem = ""
    try:
        if any(output.resolve() == path.resolve() for path in inputs):
            problem = f"{output} is an input. Give another file."
        elif output.is_dir():
            problem = f"{output} is a folder. Give a file, such as {output / 'bdl-demo.html'}."
        elif output.exists() and not output.is_file():
            problem = f"{output} is not a regular file."
        elif not output.parent.is_dir():
            problem = f"the folder {output.parent} does not exist. Make it first."
        else:
            with tempfile.TemporaryFile(dir=output.resolve().parent):
                pass
    except OSError as error:
        problem = f"cannot write {output}: {error.strerror or error}."
    if problem:
        raise typer.BadParameter(problem, param_hint=option)


def _use_backend(backend: Backend | None) -> None:
    """Runs the same command again if Keras was loaded with another backend: it reads its choice once, when imported.

    `bdl` itself imports Keras, and so before any option is read; only a new process can choose anew.
    """
    import keras

    loaded = keras.config.backend()
    wanted = backend or loaded
    if wanted not in list(Backend):
        raise typer.BadParameter(
            f"Keras is configured for {loaded!r}, on which bdl does not run. Choose one of {', '.join(Backend)}.",
            param_hint="--backend",
        )
    if wanted == loaded:
        return
    if importlib.util.find_spec(wanted) is None:
        raise typer.BadParameter(
            f"{wanted} is not installed. Install it with: pip install 'bdl[{wanted}]'", param_hint="--backend"
        )
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "KERAS_BACKEND": wanted})


def _let_backend_log() -> None:
    """A prediction of a tiny network, which has the backend say now what it says once.

    TensorFlow writes about devices and its compiler from C++, and would tear the progress display apart.
    """
    import keras
    import numpy as np

    import bdl

    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    bdl.predict_distribution(network, np.zeros((1, 1)), bdl.likelihoods.Categorical(), num_samples=1)


class _TrainingProgress:
    """A line for each training: epochs done, and the figures of the last one."""

    def __init__(self, names: tuple[str, ...], epochs: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=_console,
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


def _print_table(table: Table, title: str) -> None:
    """Prints a report's table in the terminal, without the explanations that the page gives."""
    terminal = TerminalTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    terminal.add_column("")
    for column in table.columns:
        terminal.add_column(column, justify="right")
    for row in table.rows:
        terminal.add_row(*(Text(cell) for cell in (row.name, *row.cells)))  # as Text: [nats] is no markup
    _console.print(terminal)
