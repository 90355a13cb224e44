"""`bdl evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bdl_cli.backend import VerboseOption, load_backend
from bdl_cli.paths import OverwriteOption, check_files
from bdl_cli.terminal import errors_as_messages, model_names, print_table, say


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
    ignore_class: Annotated[
        int | None,
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
    from bdl.evaluation.files import by_output, read_arrays, read_common_labels, take_prediction
    from bdl.evaluation.forecasts import FIELDS

    with errors_as_messages(context, {"y": "--labels", "prediction": "FILE..."}):
        parts = {path: by_output(read_arrays(path)) for path in files}
        y = {
            name: read_common_labels(labels, {path: arrays.get(name, {}) for path, arrays in parts.items()})
            for name in parts[files[0]]
        }
        names = model_names(files, {*FIELDS, *filter(None, y)})
        predictions = {}
        for model, path in names.items():
            taken = {
                name: take_prediction(arrays, path, labels, form, columns or ()) for name, arrays in parts[path].items()
            }
            for name, each in taken.items():
                say(f"{model}: {each}" if name is None else f"{model}, {name}: {each}")
            predictions[model] = {name: each.arrays for name, each in taken.items()}
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
            print_table(table, title=table.caption if is_one else f"{name}: {table.caption}")
        for file, save in zip(outputs.values(), (evaluation.save_html, evaluation.save_json), strict=True):
            if file is not None:
                save(file)
                say(f"Written: {file.resolve()}")
