"""The labelled zoo: many short trainings with a known cause, half to set thresholds, half to score the verdicts.

Each run trains a network on a real data set with a `TrainingHealth` callback, then `diagnose`s it with the
deterministic twin. A run's label is what was done to it (`zoo_cases.py`). Seeds of even number and those below 9 set
the rules and the order of the remedies, odd ones from 9 score; `--data DIR` adds UCI regressions and Fashion-MNIST.

    python benchmarks/zoo.py run --first-seed 0 --last-seed 0       # sets the thresholds
    python benchmarks/zoo.py run --first-seed 9 --last-seed 13      # scores them
    python benchmarks/zoo.py remedies                               # tries the first remedy of each verdict
    python benchmarks/zoo.py score                                  # judges all that was recorded anew

A run that was interrupted goes on where it was, on two processes.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from data import folder_of
from zoo_cases import OF_THEIR_DATA, Case, build, cases, data_of
from zoo_remedies import WHICH, Trial, attempt, trials

app = typer.Typer(add_completion=False)
DEFAULT_OUTPUT = Path("zoo.jsonl")
DEFAULT_TRIALS = Path("zoo_remedies.jsonl")
# These trainings take some five seconds each; what a callback measures there costs 4 % of one of half a minute.
MAX_COST = 0.2
_TASKS_OF_A_PROCESS = 60
_TWINS: dict[tuple[Any, ...], Any] = {}


def twin_of(case: Case, data: tuple[np.ndarray, ...], likelihood: Any) -> Any:
    """The fit of the deterministic twin on test data, trained once for all cases that share it."""
    import keras

    from bdl.diagnostics.measure import take_probe
    from bdl.diagnostics.twin import fit_of_twin, train_twin

    share = case.kind if case.kind in OF_THEIR_DATA else ""
    depth = 1 if case.kind == "pruned" else 2
    key = (share, depth, case.data, case.width, case.activation, case.seed)
    if key not in _TWINS:
        x, y, x_test, y_test = data
        # The code's twin and that of layers of other libraries are the dense network of the same width.
        is_of_its_own = share in ("features", "saturated") or share.startswith(("count", "student"))
        kind = share if is_of_its_own else "pruned" if depth == 1 else "default"
        plain = Case(kind, (), case.data, case.width, case.activation, case.seed)
        keras.utils.set_random_seed(case.seed)
        model, own = build(plain, x.shape[1], len(x))
        twin = train_twin(model, x, y, own, plain.epochs // 2, case.batch_size, case.seed)
        _TWINS[key] = fit_of_twin(twin, take_probe((x_test, y_test), 1000, own, "twin", twin), own)
    return _TWINS[key]


def watched(case: Case, data: tuple[np.ndarray, ...], max_cost: float = MAX_COST) -> tuple[Any, Any, Any, Any, float]:
    """Trains a case: the model, its likelihood, the callback, its record, and the seconds that it took."""
    import keras

    from bdl.diagnostics import TrainingHealth, read_record

    x, y, x_test, y_test = data
    keras.utils.set_random_seed(case.seed)
    model, likelihood = build(case, x.shape[1], len(x))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run.jsonl"
        watching = {"likelihood": likelihood, "on_verdict": "record", "max_cost": max_cost}
        health = TrainingHealth((x, y), (x_test, y_test), record=path, **watching)
        callbacks: list[Any] = [poison(case.epochs // 2), health] if case.kind == "nan" else [health]
        start = time.perf_counter()
        model.fit(
            x,
            y,
            batch_size=case.batch_size,
            epochs=case.epochs,
            verbose=0,
            callbacks=callbacks,
            validation_data=(x_test, y_test),
            validation_freq=max(1, case.epochs // 20),
        )
        seconds = time.perf_counter() - start
        (record,) = read_record(path)
    return model, likelihood, health, record, seconds


def examined(
    case: Case, data: tuple[np.ndarray, ...], max_cost: float = MAX_COST
) -> tuple[Any, Any, Any, Any, Any, float]:
    """The same, with the report of `diagnose` and the twin's fit in place of the callback."""
    import keras

    from bdl.diagnostics import diagnose

    x, y, x_test, y_test = data
    keras.backend.clear_session()
    likelihood = build(case, x.shape[1], len(x))[1]
    twin = None if case.kind == "nan" else twin_of(case, data, likelihood)
    model, likelihood, health, record, seconds = watched(case, data, max_cost)
    held = {"validation_data": (x_test, y_test), "likelihood": likelihood}
    report = diagnose(model, x, y, record=health, twin=twin, num_samples=16, **held)
    return model, likelihood, report, record, twin, seconds


def run(case: Case, folder: Path | None) -> dict[str, Any]:
    """Trains and diagnoses one case."""
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    data = data_of(case, folder)
    _, _, report, record, _, seconds = examined(case, data)
    result = {
        **asdict(case),
        "key": case.key,
        "verdict": report.verdict,
        "quantities": report.quantities.to_dict(),
        "live": [{"at": at[0], **q.to_dict()} for at, q in zip(record.verdicts, record.probes, strict=True)],
        "accuracy": [entry.get("val_accuracy") for entry in record.epochs],
        "epochs": case.epochs,
        "own_share": record.end["own_seconds"] / seconds,
        "fit_seconds": seconds,
    }
    return {**result, "seconds": time.perf_counter() - began}


def poison(epoch: int) -> Any:
    """A callback that puts a NaN into the first weight in the middle of the training."""
    import keras

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, number: int, logs: Any = None) -> None:
            if number == epoch:
                weight = self.model.trainable_weights[0]
                weight.assign(keras.ops.convert_to_numpy(weight) * np.nan)

    return Poison()


def _begin_worker() -> None:
    """One core a process; what a backend prepares once, at its first measurement, is paid before the first run."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    from bdl.diagnostics import TrainingHealth

    case = Case("rank1", (), "wine", 8)
    x, y, *held = data_of(case)
    for kind in ("rank1", "times_10"):
        model, likelihood = build(Case(kind, (), "wine", 8), x.shape[1], len(x))
        health = TrainingHealth((x, y), held, likelihood=likelihood, on_verdict="record", max_cost=1)
        model.fit(x, y, epochs=3, verbose=0, callbacks=[health])


def _work(case: Case, folder: Path | None) -> dict[str, Any]:
    try:
        return run(case, folder)
    except Exception as error:  # one bad run must not end the others; it is reported
        return {**asdict(case), "key": case.key, "error": f"{type(error).__name__}: {error}"}


def _work_on_trial(trial: Trial, folder: Path | None) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    try:
        return attempt(trial, folder)
    except Exception as error:
        return {"key": trial.key, "error": f"{type(error).__name__}: {error}"}


@app.command("run")
def run_all(
    output: Annotated[Path, typer.Option(help="JSON lines of the results; goes on with what is missing.")] = (
        DEFAULT_OUTPUT
    ),
    first_seed: Annotated[int, typer.Option(help="The first seed; every second follows.")] = 9,
    last_seed: Annotated[int, typer.Option(help="The last seed.")] = 13,
    only: Annotated[str, typer.Option(help="Only these kinds, by commas.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder of real data sets, see benchmarks/data.py.")] = None,
    processes: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Trains and diagnoses whatever the output does not hold yet."""
    folder = folder_of(data)
    chosen = [case for case in cases(range(first_seed, last_seed + 1, 2), folder)]
    chosen = [case for case in chosen if not only or case.kind in only.split(",")]
    _go_on(output, chosen, partial(_work, folder=folder), processes)


@app.command("remedies")
def try_remedies(
    path: Annotated[Path, typer.Argument(help="What `run` wrote.")] = DEFAULT_OUTPUT,
    output: Annotated[Path, typer.Option(help="JSON lines of the results; goes on with what is missing.")] = (
        DEFAULT_TRIALS
    ),
    half: Annotated[str, typer.Option(help="calibration, scoring or all.")] = "scoring",
    which: Annotated[str, typer.Option(help="Remedies of a right verdict: first or all.")] = "first",
    splits: Annotated[int, typer.Option(help="Splits into training and test data.")] = 5,
    data: Annotated[Path | None, typer.Option(help="Folder of real data sets, see benchmarks/data.py.")] = None,
    processes: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Tries the remedies of the runs with a right verdict, on several splits of their data."""
    from zoo_score import judged_results

    if which not in WHICH:
        raise typer.BadParameter(f"--which must be one of {WHICH}, not {which!r}.")
    wanted = trials(judged_results(path, half)[0], which, splits)
    _go_on(output, wanted, partial(_work_on_trial, folder=folder_of(data)), processes)


def _go_on(output: Path, tasks: Sequence[Any], work: Callable[[Any], dict[str, Any]], processes: int) -> None:
    """Does what the output does not hold yet, and adds a line for each."""
    done = {json.loads(line)["key"] for line in output.read_text().splitlines()} if output.exists() else set()
    todo = [task for task in tasks if task.key not in done]
    print(f"{len(done)} done, {len(todo)} to do", flush=True)
    # A process has its memory for some tasks. `ProcessPoolExecutor` stands still where all reach that number at once.
    workers = get_context("spawn").Pool(processes, _begin_worker, maxtasksperchild=_TASKS_OF_A_PROCESS)
    with workers as pool, output.open("a") as file:
        for number, result in enumerate(pool.imap_unordered(work, todo), 1):
            file.write(json.dumps(result) + "\n")
            file.flush()
            said = result.get("error", result.get("verdict"))
            print(f"{number}/{len(todo)} {result['key']}: {said} ({result.get('seconds', 0):.0f} s)", flush=True)


@app.command()
def score(
    path: Annotated[Path, typer.Argument(help="What `run` wrote.")] = DEFAULT_OUTPUT,
    trials: Annotated[Path, typer.Option(help="What `remedies` wrote.")] = DEFAULT_TRIALS,
    half: Annotated[str, typer.Option(help="calibration, scoring or all.")] = "scoring",
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Prints the confusion matrix, the false-alarm rate, the onset and the remedies of a half of the zoo."""
    from zoo_score import report

    report(path, trials, half, output)


if __name__ == "__main__":
    app()
