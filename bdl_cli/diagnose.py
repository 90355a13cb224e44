"""`bdl diagnose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bdl_cli.backend import VerboseOption, load_backend
from bdl_cli.paths import OverwriteOption, check_files
from bdl_cli.terminal import errors_as_messages, model_names, say


def diagnose(
    context: typer.Context,
    records: Annotated[
        list[Path],
        typer.Argument(
            help="Records of TrainingHealth; several runs are compared side by side.",
            metavar="RECORD...",
            show_default=False,
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    json_output: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    overwrite: OverwriteOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell from its record whether a training learned, or only slid to its prior."""
    outputs = {"--output": output, "--json": json_output}
    check_files(records, outputs, overwrite, hint="RECORD...")
    load_backend(verbose=verbose)
    from bdl.diagnostics import comparison, diagnose_record
    from bdl.report import render, write_atomically

    with errors_as_messages(context, {"record": "RECORD..."}):
        reports = {
            run: report
            for name, path in model_names(records, set()).items()
            for run, report in diagnose_record(path, name).items()
        }
        for name, report in reports.items():
            say(f"{name}: {report}")
        if output is not None:
            page = next(iter(reports.values())).page() if len(reports) == 1 else comparison(reports)
            write_atomically(output, render(page))
        if json_output is not None:
            parts = {name: json.loads(report.to_json()) for name, report in reports.items()}
            write_atomically(json_output, json.dumps(parts, indent=1))
    for path in outputs.values():
        if path is not None:
            say(f"Written: {path.resolve()}")
