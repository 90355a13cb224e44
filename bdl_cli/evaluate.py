"""`bdl evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bdl_cli.backend import VerboseOption, load_backend
from bdl_cli.paths import OverwriteOption, check_files
from bdl_cli.terminal import errors_as_messages, model_names, print_table, printable, say


class Form(StrEnum):
    """What arrays hold that do not say it by their names."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"
    SAMPLES = "samples"


def evaluate(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Predictions, one file a model (.npz, .npy, .csv, .tsv, .parquet; .csv.gz): arrays or columns named "
            "probabilities, logits, samples, or mean and scale; or a column for each class. Of several outputs with "
            "the output before a slash, as in kind/probabilities.",
            metavar="FILE...",
        ),
    ],
    labels: Annotated[
        str, typer.Option(help="Labels or targets: an array's or column's name in each FILE, or a file of their own.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    json_output: Annotated[
        Path | None,
        typer.Option("--json", help="JSON file to write with the same figures.", show_default="beside a page"),
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--as", help="What unnamed arrays hold.", show_default="what their names say")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns of classes or samples by name or pattern, in this order. May be repeated.",
            show_default="those whose names or sums tell it",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="The class of each column of the predictions, in order. May be repeated.",
            show_default="the columns' names; else labels are column numbers, or in sorted order",
        ),
    ] = None,
    ignore_class: Annotated[
        str | None,
        typer.Option("--ignore-class", help="Label of events that do not count.", show_default="none is ignored"),
    ] = None,
    num_bins: Annotated[int, typer.Option("--num-bins", min=1, help="Bins of the calibration errors.")] = 15,
    level: Annotated[
        float,
        typer.Option(
            help="Confidence level of the interval of each score. Prediction intervals are judged at 50 % and 90 %."
        ),
    ] = 0.95,
    num_resamples: Annotated[int, typer.Option("--num-resamples", min=0, help="Bootstrap samples; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides the bootstrap.")] = 0,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell how good predictions and their uncertainty are: a table, and if asked a page and a JSON file.

    A page has its figures as a JSON file beside it, unless --json gives another place.
    """
    beside = output.with_suffix(".json") if output is not None and output.name else None
    outputs = {"--output": output, "--json": json_output or beside}
    check_files(files, outputs, overwrite, hint="FILE...", others=[Path(labels)])
    load_backend(verbose=verbose)
    import bdl

    with errors_as_messages(context, {"y": "--labels", "prediction": "FILE..."}):
        y, predictions = _read(files, labels, form, columns or [])
        evaluation = bdl.evaluate(
            y,
            predictions,
            ignore_class=ignore_class if ignore_class is None or not _is_whole(ignore_class) else int(ignore_class),
            classes=classes or None,
            num_bins=num_bins,
            level=level,
            num_resamples=num_resamples,
            seed=seed,
        )
        for name, found in evaluation.items() if isinstance(y, dict) else [(None, evaluation)]:
            table = found.table()
            print_table(table, title=table.caption if name is None else f"{name}: {table.caption}")
        for path, save in zip(outputs.values(), (evaluation.save_html, evaluation.save_json), strict=True):
            if path is not None:
                save(path)
                say(f"Written: {path.resolve()}")


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _read(files: list[Path], labels: str, form: Form | None, columns: list[str]) -> tuple[Any, dict[str, Any]]:
    """Labels, and predictions by model, as `bdl.evaluate` takes them; says what was taken from which file."""
    from bdl.evaluation.files import by_output, read_arrays, read_common_labels, take_prediction
    from bdl.evaluation.forecasts import FIELDS

    parts = {path: by_output(read_arrays(path), path) for path in files}
    y = {
        output: read_common_labels(labels, {path: arrays.get(output, {}) for path, arrays in parts.items()})
        for output in parts[files[0]]
    }
    predictions: dict[str, Any] = {}
    for model, path in model_names(files, {*FIELDS, *filter(None, y)}).items():
        taken = {}
        for output, arrays in parts[path].items():
            taken[output] = take_prediction(arrays, path, labels, form, columns, y.get(output))
            of_output = "" if output is None else f", {printable(output)}"
            say(f"{model}{of_output}: labels from {printable(labels)}; {taken[output]}")
        by_name = {output: each.arrays for output, each in taken.items()}
        predictions[model] = by_name[None] if set(by_name) == {None} else by_name
    return y[None] if set(y) == {None} else y, predictions
