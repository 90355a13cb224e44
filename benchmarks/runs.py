"""Many independent trainings on both cores, resumable: results are lines of JSON, one for each case.

A case is a frozen dataclass of plain values; it is its own key. A line that an interruption cut short is dropped.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def run_all(
    function: Callable[[Any], Row], cases: Iterable[Any], results: Path, workers: int = 2, backend: str = "jax"
) -> list[Row]:
    """Runs the cases that `results` does not hold yet, and returns the rows of all.

    Args:
        function: From a case to its figures; at the top level of a module, for it runs in other processes.
        cases: Frozen dataclasses.
        results: File of JSON lines; rows are appended as they come.
        workers: Number of processes, of one thread each.
        backend: Keras backend.
    """
    cases = list(cases)
    done = {row["key"]: row for row in read(results)}
    left = [case for case in cases if key_of(case) not in done]
    results.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), partial(start_worker, backend))
    with pool, results.open("a") as file:
        futures = {pool.submit(function, case): case for case in left}
        for number, future in enumerate(as_completed(futures), 1):
            case = futures[future]
            row = {"key": key_of(case), **asdict(case), **future.result(), "backend": backend}
            done[row["key"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number}/{len(left)} {time.perf_counter() - start:.0f} s {row['key']}", flush=True)
    return [done[key_of(case)] for case in cases]


def key_of(case: Any) -> str:
    """The case as a line of text, without what is at its default: a field that is new leaves older rows valid."""
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    changed = {field.name: values[field.name] for field in fields(case) if values[field.name] != field.default}
    return json.dumps(changed, sort_keys=True)


def change_of(row: Row, usual: Row) -> str:
    """What differs from the usual values of some columns, for a table."""
    return ", ".join(f"{name} {row[name]}" for name, value in usual.items() if row[name] != value) or "none"


def read(results: Path) -> list[Row]:
    """Rows of a file of JSON lines, without one that was cut short; none if there is no file."""
    if not results.is_file():
        return []
    text = results.read_text()
    whole, _, rest = text.rpartition("\n")
    if rest:
        draft = results.with_suffix(".tmp")
        draft.write_text(whole + "\n" if whole else "")
        draft.replace(results)
    return [json.loads(line) for line in whole.splitlines()]


def rows_of_run(run: Path) -> list[Row]:
    """Rows of a file that `run_all` made; stops where there are none, so that no table becomes an empty one."""
    rows = read(run)
    if not rows:
        raise SystemExit(f"{run} holds no rows. The command `run` makes it.")
    return rows


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values of some columns, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(_hashable(row[name]) for name in names)].append(row)
    return dict(groups)


def mean_and_error(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Mean of a column and its standard error; not a number for a single row."""
    values = np.array([row[name] for row in rows], "float64")
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def cell(rows: Sequence[Row], name: str, digits: int = 4, sign: str = "") -> str:
    """`mean ± standard error` of a column, for a table; empty where no row has it. `sign="+"` is for differences."""
    having = _having(rows, name)
    if not having:
        return ""
    mean, error = mean_and_error(having, name)
    return f"{mean:{sign}.{digits}f}" + (f" ± {error:.{digits}f}" if np.isfinite(error) else "")


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """A table as a file; numbers that are not whole have five significant digits, and what is not a number is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [header, *([_written(value) for value in line] for line in lines)]
        )
    draft.replace(path)


def write_summary(path: Path, rows: Iterable[Row], by: Sequence[str], figures: Sequence[str]) -> None:
    """A line of CSV for each group of rows and each figure that it has: mean, standard error and number of seeds."""
    lines = [
        (*key, figure, *mean_and_error(having, figure), len(having))
        for key, group in grouped(rows, by).items()
        for figure in figures
        if (having := _having(group, figure))
    ]
    write_csv(path, (*by, "figure", "mean", "error", "seeds"), lines)


def replace_section(page: Path, name: str, text: str) -> None:
    """Puts text between the comments `<!-- name -->` and `<!-- /name -->` of a page."""
    before, start, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise SystemExit(f"{page} has no section <!-- {name} --> ... <!-- /{name} -->.")
    draft = page.with_suffix(".tmp")
    draft.write_text(f"{before}{start}{text}\n{end}{after}")
    draft.replace(page)


def _having(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row.get(name) is not None]


def _written(value: Any) -> str:
    return ("" if np.isnan(value) else f"{value:.5g}") if isinstance(value, float) else str(value)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def start_worker(backend: str) -> None:
    """Settings of a worker, before it imports Keras: one thread, so that two workers do not get in each other's way."""
    os.environ["KERAS_BACKEND"] = backend
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
