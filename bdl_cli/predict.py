"""`bdl predict`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bdl_cli.backend import BackendOption, VerboseOption, load_backend
from bdl_cli.paths import OverwriteOption, check_files
from bdl_cli.terminal import console, errors_as_messages, say


class Kind(StrEnum):
    """What the outputs of a plain Keras model mean."""

    CATEGORICAL = "categorical"
    BERNOULLI = "bernoulli"
    NORMAL = "normal"
    STUDENT_T = "student-t"
    POISSON = "poisson"


def predict(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Keras model, a .keras file.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Inputs (.parquet, .npy, .npz, .csv, .tsv; .csv.gz): a column for each number that the model takes, "
            "or a column or array for each of its inputs by name. A .parquet or .npy file may be larger than memory."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".parquet or .npy file to write: a row for each row of DATA.")
    ],
    member: Annotated[
        list[Path] | None, typer.Option(help="Further member of an ensemble, a .keras file. May be repeated.")
    ] = None,
    likelihood: Annotated[
        Kind | None,
        typer.Option(
            help="What the model's outputs mean; normal and student-t (of 4 degrees of freedom): of a mean and a raw "
            "scale for each target.",
            show_default="that of the file, if it holds a VariationalModel",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that the model takes, in the order of its training. May be repeated.",
            show_default="all columns of numbers",
        ),
    ] = None,
    quantiles: Annotated[
        list[float] | None,
        typer.Option(help="Level of a quantile of targets or counts to write. May be repeated.", show_default="none"),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="The class of each column of probabilities, in order. May be repeated.", show_default="numbers"
        ),
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", min=1, help="Monte Carlo samples.")] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows that are evaluated together.")] = 1024,
    consistent: Annotated[
        bool, typer.Option("--consistent", help="Draw whole functions: sample s has the same weights for all rows.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides all noise.")] = 0,
    backend: BackendOption = None,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Predict with uncertainty: means, variances, probabilities and quantiles of every row of a file."""
    check_files([model, data, *(member or [])], {"--output": output}, overwrite, hint="MODEL, DATA")
    load_backend(backend, verbose)
    from bdl import write_predictions
    from bdl_cli.inputs import ModelInputs, read_inputs

    with errors_as_messages(context, {"path": "--output", "x": "DATA", "model": "MODEL", "summary": "--quantiles"}):
        predict_parts, network = _predictor([model, *(member or [])], likelihood)
        source = read_inputs(data, ModelInputs.of(network, columns or []), batch_size)
        parts = predict_parts(
            source.x,
            num_samples=num_samples,
            batch_size=batch_size,
            consistent=consistent,
            seed=seed,
            summary=tuple(quantiles or ()) or True,
        )
        with _shown(parts, source.num_rows) as counted:
            rows = write_predictions(output, counted, classes=classes or None)
    say(f"{rows:,} rows written: {output.resolve()}")


def _predictor(paths: list[Path], kind: Kind | None) -> tuple[Any, Any]:
    """`predict_parts` of the models in files, and the first of them.

    Raises:
        ValueError: if a file holds no model, or what its outputs mean is not known, or known twice.
    """
    import functools

    import bdl
    from bdl.convert.files import load_file
    from bdl.protocols import TellsStory

    models = [load_file(path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if isinstance(model, TellsStory):
            raise ValueError(
                f"`model` must be a network, not {path}, which holds the posterior of a story. Load it in Python with "
                "keras.saving.load_model, and call its `posterior`."
            )
    own = [model.likelihood if isinstance(model, bdl.VariationalModel) else None for model in models]
    if own[0] is not None and kind is not None:
        raise ValueError(f"`likelihood` must be left out: {paths[0]} has its own, {type(own[0]).__name__}.")
    if own[0] is None and kind is None:
        raise ValueError(
            f"`likelihood` must be given, one of {', '.join(Kind)}: {paths[0]} is a plain Keras model, which does not "
            "say what its outputs mean."
        )
    if len(models) == 1 and own[0] is not None:
        return models[0].predict_parts, models[0]
    return functools.partial(_ensemble_parts, models, own[0] if kind is None else _likelihood(kind)), models[0]


def _ensemble_parts(networks: list[Any], likelihood: Any, x: Any, **settings: Any) -> Iterator[Any]:
    import bdl

    return bdl.predict_parts(networks, x, likelihood, **settings)


def _likelihood(kind: Kind) -> Any:
    from bdl import likelihoods

    match kind:
        case Kind.CATEGORICAL:
            return likelihoods.Categorical()
        case Kind.BERNOULLI:
            return likelihoods.Bernoulli()
        case Kind.POISSON:
            return likelihoods.Poisson()
        case Kind.NORMAL:
            return likelihoods.Normal(heteroscedastic=True)
        case Kind.STUDENT_T:
            return likelihoods.StudentT(heteroscedastic=True)


@contextlib.contextmanager
def _shown(parts: Iterator[Any], total: int) -> Iterator[Iterator[Any]]:
    """The parts, and on the terminal how many rows are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from bdl.prediction.requests import num_inputs

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console()) as progress:
        task = progress.add_task("rows", total=total)

        def counted() -> Iterator[Any]:
            for part in parts:
                yield part
                progress.advance(task, num_inputs(part))

        yield counted()
