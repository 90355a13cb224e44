"""The `bdl` command: a program beside the library, which loads it, and Keras with it, in the command that needs it.

Each subcommand is a file; `main` is the entry point.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from bdl_cli.convert import convert
from bdl_cli.demo import demo
from bdl_cli.diagnose import diagnose
from bdl_cli.evaluate import evaluate
from bdl_cli.predict import predict

__all__ = ["app", "main"]

app = typer.Typer(
    name="bdl",
    help="Bayesian deep learning for Keras 3.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def main() -> None:
    """Entry point of the `bdl` command."""
    app(prog_name="bdl")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"bdl {importlib.metadata.version('keras-bdl')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Bayesian deep learning for Keras 3."""


for command in (demo, convert, predict, evaluate, diagnose):
    app.command()(command)
