"""When `bdl.training.Converged` ends a fit, against the best stop, on ten models with reference draws.

A full-rank guide with `start="laplace"` is moved away from the mode, by a normal draw of three standard deviations in
each of its whitened coordinates, and comes back by Adam at a constant rate of 1e-2, with eight draws a step on all
data. The callback notes where it would stop, and the fit goes on to 6,000 steps. The best stop is the step after which
the mean of the posterior that is averaged over the second half of all steps so far stays within .25 posterior standard
deviations of the reference, in each number, at whatever step the fit is ended; it is looked for every 50 steps. A stop
is false if the posterior that it leaves is not within .25.

Errors are from 4,000 draws, with a noise of .016 standard deviations in each number.

    python benchmarks/svi_converged.py run --data DIR            # resumable
    python benchmarks/svi_converged.py report --write            # into benchmarks/README.md
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from data import folder_of, posterior
from runs import Row, grouped, markdown, read, replace_section, run_all
from svi_reference import MODELS, PAGE

app = typer.Typer(add_completion=False)
RESULTS = Path(__file__).parent / "results" / "svi_converged.jsonl"
NUM_STEPS, RATE, NUM_SAMPLES, AWAY, NUM_DRAWS, GRID = 6000, 1e-2, 8, 3.0, 4000, 50
WITHIN = 0.25
"""Posterior standard deviations within which a mean counts as found."""


@dataclass(frozen=True)
class Case:
    """One fit."""

    model: str
    seed: int


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="Folder with posteriordb/*.npz; else BDL_DATA.")] = None,
    models: Annotated[str, typer.Option(help="Models, separated by commas.")] = ",".join(MODELS),
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 3,
    backend: Annotated[str, typer.Option(help="Keras backend: jax or tensorflow.")] = "jax",
    workers: Annotated[int, typer.Option(help="Number of processes.")] = 1,
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
) -> None:
    """Fits what is not there yet."""
    folder = folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    cases = [Case(model, seed) for seed in range(seeds) for model in models.split(",")]
    run_all(partial(fit, folder=folder), cases, results, workers, backend)


def fit(case: Case, folder: Path) -> Row:
    """Fits one model, and looks at its averages at all steps."""
    import keras
    from svi_stories import MODELS as STORIES

    from bdl.svi import SVI
    from bdl.training import Converged

    class Noting(Converged):
        """Notes where it would stop, and goes on."""

        def on_train_begin(self, logs: Any = None) -> None:
            """Begins anew."""
            self.reads: list[list[np.ndarray]] = []
            self.stop: tuple[int, int] | None = None
            super().on_train_begin(logs)

        def _read(self) -> None:
            super()._read()
            self.reads.append([keras.ops.convert_to_numpy(each) for each in self.model.guides[0].trainable_variables])

        def has_converged(self) -> None:
            """Goes on."""
            self.stop = self.stop or (self._first, self._step)

    keras.backend.clear_session()
    model = STORIES[case.model]
    reference = posterior(folder, model.name)
    rows = model.rows(reference.data)
    svi = SVI(model.story, "full_rank", start="laplace", num_samples=NUM_SAMPLES, averaging=False, seed=case.seed)
    svi.compile(keras.optimizers.Adam(RATE))
    svi.begin(rows, None)
    (guide,) = svi.guides
    guide.shift.assign(AWAY * np.random.default_rng(case.seed).normal(size=guide.size))
    noting = Noting(averaging=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        svi.fit(rows, batch_size="all", steps=NUM_STEPS, verbose=0, callbacks=[noting])
    every = noting.every
    iterates = [np.array(each) for each in zip(*noting.reads, strict=True)]

    def error(first: int, last: int) -> float:
        """Of the posterior at the average of the iterates between two steps."""
        for variable, values in zip(guide.trainable_variables, iterates, strict=True):
            variable.assign(values[first // every : last // every].mean(axis=0))
        numbers = model.numbers(svi.posterior(num_samples=NUM_DRAWS, seed=1), reference.names)
        return float(np.max(np.abs(numbers.mean(0) - reference.mean) / reference.sd))

    steps = np.arange(GRID, NUM_STEPS + 1, GRID)
    errors = np.array([error(step // 2, step) for step in steps])
    outside = np.flatnonzero(errors > WITHIN)
    best = (
        None if outside.size and outside[-1] == len(steps) - 1 else int(steps[outside[-1] + 1 if outside.size else 0])
    )
    stop = noting.stop
    return {
        "best": best,
        "final": float(errors[-1]),
        "stop": None if stop is None else stop[1],
        "error": None if stop is None else error(*stop),
    }


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
    write: Annotated[bool, typer.Option(help="Put the table into benchmarks/README.md.")] = False,
) -> None:
    """Prints the table of what is there."""
    text = table(read(results))
    print(text)
    if write:
        replace_section(PAGE, "svi-converged", text)


def table(rows: list[Row]) -> str:
    """A line for each model, and the counts."""
    groups = grouped(rows, ["model"])
    header = ["model", "best stop", "Converged", "ratio", "error at its stop, sds", "false stops", "final error, sds"]
    lines = []
    for name in MODELS:
        found = groups.get((name,), [])
        if not found:
            continue
        stops = [row for row in found if row["stop"] is not None]
        ratios = [row["stop"] / row["best"] for row in stops if row["best"] is not None]
        lines.append(
            [
                f"{name} ({len(found)} seeds)",
                _range([row["best"] for row in found], ".0f"),
                _range([row["stop"] for row in found], ".0f"),
                _range(ratios, ".2f"),
                _range([row["error"] for row in stops], ".2f"),
                f"{sum(row['error'] > WITHIN for row in stops)} of {len(stops)}",
                _range([row["final"] for row in found], ".2f"),
            ]
        )
    reachable = [row for row in rows if row["best"] is not None]
    stopped = [row for row in reachable if row["stop"] is not None]
    false = [row for row in rows if row["stop"] is not None and row["error"] > WITHIN]
    timely = [row for row in stopped if row["stop"] <= 2 * row["best"]]
    counts = (
        f"Of {len(reachable)} fits that come within {WITHIN} standard deviations and stay there, `Converged` ends "
        f"{len(stopped)}, {len(timely)} of them within twice the steps of the best stop. False stops: {len(false)} of "
        f"{sum(row['stop'] is not None for row in rows)}."
    )
    return f"{markdown(header, lines)}\n\n{counts}"


def _range(values: list[float | None], form: str) -> str:
    """Smallest to largest, and a dash for each that there is not."""
    known = sorted({format(value, form) for value in values if value is not None}, key=float)
    shown = " to ".join(known if len(known) < 2 else (known[0], known[-1]))
    missing = sum(value is None for value in values)
    return f"{shown or '-'}{f' ({missing} never)' if missing and known else ''}"


if __name__ == "__main__":
    app()
