"""`bdl convert`."""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bdl_cli.backend import BackendOption, VerboseOption, load_backend
from bdl_cli.paths import OverwriteOption, check_files
from bdl_cli.terminal import errors_as_messages, say, warn


class Conversion(StrEnum):
    """What `bdl convert` makes of a model."""

    MC_DROPOUT = "mc-dropout"
    VARIATIONAL = "variational"
    DETERMINISTIC = "deterministic"


_APPLIES_TO = {
    "--rate": [Conversion.MC_DROPOUT],
    "--layers": [Conversion.MC_DROPOUT, Conversion.VARIATIONAL],
    "--estimator": [Conversion.VARIATIONAL],
    "--prior": [Conversion.VARIATIONAL],
    "--seed": [Conversion.MC_DROPOUT, Conversion.VARIATIONAL],
}
"""Conversions that have use for an option."""


def convert(
    context: typer.Context,
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
    estimator: Annotated[
        str | None, typer.Option(help="variational: estimator of the layers.", show_default="reparameterization")
    ] = None,
    prior: Annotated[str | None, typer.Option(help="variational: prior of the weights.", show_default="moped")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the noise reproducible.")] = None,
    backend: BackendOption = None,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a saved Keras model Bayesian, or a Bayesian one plain."""
    given = {"--rate": rate, "--layers": layers, "--estimator": estimator, "--prior": prior, "--seed": seed}
    for option, value in given.items():
        if value not in (None, []) and to not in _APPLIES_TO[option]:
            raise typer.BadParameter(f"it is for {' and '.join(_APPLIES_TO[option])}, not for {to}.", param_hint=option)
    check_files([model], {"--output": output}, overwrite, hint="MODEL")
    load_backend(backend, verbose)
    from bdl.convert import ConvertedLayer, DecorativeDropoutWarning, to_deterministic, to_mc_dropout, to_variational
    from bdl.convert.files import convert_file

    report: list[ConvertedLayer] = []

    def conversion(loaded: Any) -> Any:
        if to is Conversion.MC_DROPOUT:
            return to_mc_dropout(loaded, rate, before=layers or None, seed=seed)
        if to is Conversion.DETERMINISTIC:
            return to_deterministic(loaded)
        chosen = layers or "all"
        network = to_variational(loaded, chosen, estimator or "reparameterization", prior or "moped", seed=seed)
        report.extend(network.report)
        return network

    words = {"before": "--layers", "model": "MODEL"}
    with errors_as_messages(context, words), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        convert_file(model, output, conversion)
    for line in report:
        say(f"  {line}")
    for warning in caught:
        if issubclass(warning.category, DecorativeDropoutWarning):
            warn(str(warning.message))
    say(f"Model: {output.resolve()}")
