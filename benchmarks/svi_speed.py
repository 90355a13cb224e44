"""What a training step costs, with one step in a compiled call and with 50, beside other libraries and a loop by hand.

    python benchmarks/svi_speed.py run                        # some minutes; run it again for more rounds
    python benchmarks/svi_speed.py run --pyro-python PYTHON   # with Pyro, from an environment of its own
    python benchmarks/svi_speed.py report --write             # the table, into benchmarks/README.md

The contestants of a backend share a process, on one thread of one core. In a round all have their turn, one after the
other. Processor time is what is compared: a neighbour on the machine lengthens a step's wall-clock time, but hardly its
processor time. Ratios are formed within a round.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from runs import markdown, read, replace_section
from svi_speed_trainers import CONTESTANTS, STEPS_IN_CALL
from timing import Spread, Worker, WorkerError

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "svi_speed.jsonl"
PAGE = HERE / "README.md"
PACKAGES = ("keras", "tensorflow", "jax", "numpyro", "tensorflow-probability", "torch", "pyro-ppl")
TIMEOUT = 900.0  # seconds, of building a contestant on a busy machine
app = typer.Typer(add_completion=False)

BDL_TF, BDL_JAX = "bdl, TensorFlow, 50 a call", "bdl, JAX, 50 a call"
HAND_TF, HAND_JAX = "keras.ops by hand, TensorFlow, 50 a call", "keras.ops by hand, JAX, 50 a call"
NUMPYRO, NUMPYRO_TWO = "NumPyro, one draw, scan of 50", "NumPyro, two draws, scan of 50"
SINGLE_TF, PYRO = "bdl, TensorFlow, one a call", "Pyro, one draw"
TFP, TFP_TWO = (f"TFP joint and surrogate, XLA, {draws}, one a call" for draws in ("one draw", "two draws"))
RATIOS = [
    (BDL_TF, HAND_TF, 1.2),
    (BDL_JAX, HAND_JAX, None),
    (BDL_TF, NUMPYRO, 2.1),
    (BDL_TF, NUMPYRO_TWO, None),
    (BDL_JAX, NUMPYRO, 1.2),
    (BDL_JAX, NUMPYRO_TWO, None),
    (SINGLE_TF, TFP, 1.0),
    (SINGLE_TF, TFP_TWO, None),
    (SINGLE_TF, PYRO, 1.0),
    *(
        (f"MLP, {where}, 50 a call", f"MLP, {where}, one a call", None)
        for where in ("TensorFlow XLA", "TensorFlow", "JAX")
    ),
]
"""Whose step over whose, and the most that was aimed at."""


@app.command()
def run(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of this run.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps of a turn; a multiple of 50.")] = 200,
    only: Annotated[str, typer.Option(help="Parts of the names of those who take part, apart by |.")] = "",
    pyro_python: Annotated[str, typer.Option(help="Interpreter of an environment with pyro-ppl.")] = sys.executable,
    output: Annotated[Path, typer.Option(help="File of JSON lines that rounds are added to.")] = RESULTS,
) -> None:
    """Times all contestants in turns."""
    workers: dict[str, Worker] = {}
    ready: dict[str, float] = {}
    for name in (name for name in CONTESTANTS if any(part in name for part in only.split("|"))):
        backend = CONTESTANTS[name][0]
        if backend not in workers:
            python = pyro_python if backend == "torch" else sys.executable
            workers[backend] = Worker([python, str(HERE / "svi_speed_trainers.py"), backend], {"PYTHONPATH": _path()})
        try:
            steps_of_name = _steps_of(name, steps)
            ready[name] = workers[backend].ask("prepare", TIMEOUT, name=name, steps=steps_of_name)["cpu_seconds"]
            print(f"{name}: ready after {ready[name]:.1f} s of processor time", flush=True)
        except WorkerError as error:
            print(f"{name}: left out, {error}", flush=True)
    for number in range(rounds):
        found = {}
        for name in list(ready)[:: -1 if number % 2 else 1]:
            worker = workers[CONTESTANTS[name][0]]
            found[name] = worker.ask("burst", TIMEOUT, name=name, steps=_steps_of(name, steps))
        print(number, {name: round(each["cpu_ms"], 2) for name, each in found.items()}, flush=True)
        row = {"times": found, "ready": ready, "load": os.getloadavg()[0], "versions": _versions()}
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")
    for worker in workers.values():
        worker.close()
    report(write=False, output=output)


@app.command()
def report(
    write: Annotated[bool, typer.Option(help="Put the tables into README.md.")] = False,
    output: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
) -> None:
    """Prints the tables."""
    rows = read(output)
    if not rows:
        raise SystemExit(f"{output} has no rounds yet.")
    loads = [row["load"] for row in rows]
    told = (
        f"Processor milliseconds of a step, one thread, median (10-90 %) of {len(rows)} rounds; the machine's load was "
        f"{min(loads):.1f} to {max(loads):.1f}. `ready` is the processor time to build and compile and of "
        "the first burst."
    )
    text = "\n\n".join([told, _times(rows), _ratios(rows)])
    print(text)
    if write:
        replace_section(PAGE, "svi_speed", text)


def _steps_of(name: str, steps: int) -> int:
    """Steps of a turn: half as many of the MLP, which take longer."""
    return max(steps // 2 // STEPS_IN_CALL, 1) * STEPS_IN_CALL if "MLP" in name else steps


def _times(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in CONTESTANTS:
        having = [row for row in rows if name in row["times"]]
        if having:
            spreads = (Spread.of([row["times"][name][key] for row in having]) for key in ("cpu_ms", "wall_ms"))
            ready = Spread.of([row["ready"][name] for row in having]).median
            lines.append([name, *map(str, spreads), f"{ready:.1f}"])
    return markdown(["contestant", "ms a step", "wall-clock ms", "ready, s"], lines)


def _ratios(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for one, other, most in RATIOS:
        having = [row["times"] for row in rows if one in row["times"] and other in row["times"]]
        if having:
            ratio = Spread.of([times[one]["cpu_ms"] / times[other]["cpu_ms"] for times in having])
            lines.append([one, other, str(ratio), "" if most is None else f"{most}"])
    return markdown(["step of", "over that of", "ratio", "at most"], lines)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _path() -> str:
    return os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))


if __name__ == "__main__":
    app()
