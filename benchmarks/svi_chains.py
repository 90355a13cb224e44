"""Several chains of `bdl.svi`: what a step of them costs, and whether chains of reference posteriors agree.

`steps`: CPU time of a step, in one thread, of 2,000 steps after 50 that compile, with one step and with 50 in a call,
whole data, four draws a step, a full-rank guide. `separate` is so many times the step of one chain.

`posteriors`: four chains with the settings of `svi_reference.py`. Spread is the largest distance between two chains'
means, in posterior standard deviations; the error is that of the chain with the highest ELBO.

    python benchmarks/svi_chains.py steps --data DIR        # resumable
    python benchmarks/svi_chains.py posteriors --data DIR
    python benchmarks/svi_chains.py report --write          # into benchmarks/README.md
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from data import folder_of, posterior
from runs import Row, grouped, markdown, read, replace_section, run_all

app = typer.Typer(add_completion=False)
RESULTS = Path(__file__).parent / "results" / "svi_chains.jsonl"
PAGE = Path(__file__).parent / "README.md"
MODELS = ("kidiq", "eight_schools", "garch")
CHAINS = (1, 2, 4)
IN_CALL = (1, 50)
NUM_TIMED, NUM_FIRST = 2000, 50
NUM_STEPS, RATE, NUM_SAMPLES = 2000, 1e-2, 8

Data = Annotated[Path | None, typer.Option(help="Folder with posteriordb/*.npz; else BDL_DATA.")]
Results = Annotated[Path, typer.Option(help="File of JSON lines.")]


@dataclass(frozen=True)
class Case:
    """One fit."""

    what: str
    model: str
    chains: int
    in_call: int
    seed: int = 0


@app.command()
def steps(data: Data = None, backend: str = "jax", results: Results = RESULTS) -> None:
    """Times what is not there yet."""
    cases = [Case("steps", "kidiq", chains, in_call) for chains in CHAINS for in_call in IN_CALL]
    run_all(partial(timed, folder=_folder(data)), cases, results, 1, backend)


@app.command()
def posteriors(data: Data = None, backend: str = "jax", results: Results = RESULTS) -> None:
    """Fits what is not there yet."""
    cases = [Case("posteriors", model, 4, 50) for model in MODELS]
    run_all(partial(fitted, folder=_folder(data)), cases, results, 1, backend)


def _folder(data: Path | None) -> Path:
    folder = folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    return folder


def _made(case: Case, folder: Path, start: str, num_samples: int, num_steps: int) -> tuple[Any, Any, Any, Any]:
    """A model, compiled; its data, the reference draws, and how the story's draws become the reference's numbers."""
    import keras
    from svi_stories import MODELS as STORIES

    from bdl.svi import SVI

    told = STORIES[case.model]
    reference = posterior(folder, told.name)
    settings: dict[str, Any] = {"start": start, "num_samples": num_samples, "num_chains": case.chains}
    model = SVI(told.story, "full_rank", seed=case.seed, **settings)
    rate = keras.optimizers.schedules.CosineDecay(RATE, num_steps)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=case.in_call)
    return model, told.rows(reference.data), reference, told.numbers


def timed(case: Case, folder: Path) -> Row:
    """Milliseconds of CPU time of a step."""
    model, rows, _, _ = _made(case, folder, "prior", 4, NUM_TIMED)
    began = time.process_time()
    model.fit(rows, batch_size="all", steps=NUM_FIRST, verbose=0)
    first = time.process_time() - began
    began = time.process_time()
    model.fit(rows, batch_size="all", steps=NUM_TIMED, verbose=0)
    return {"ms": 1000 * (time.process_time() - began) / NUM_TIMED, "first": first}


def fitted(case: Case, folder: Path) -> Row:
    """How well chains agree, and the error of the one that is chosen."""
    model, rows, reference, numbers = _made(case, folder, "laplace", NUM_SAMPLES, NUM_STEPS)
    began = time.process_time()
    model.fit(rows, batch_size="all", steps=NUM_STEPS, verbose=0)
    seconds = time.process_time() - began
    found = model.agreement(num_samples=10_000)
    draws = numbers(model.posterior(num_samples=40_000, seed=1000), reference.names)
    return {
        "r_hat": found.largest_r_hat,
        "spread": float(np.max(np.ptp(found.means, axis=0) / found.sds.mean(axis=0))),
        "sd_spread": float(100 * np.max(np.ptp(found.sds, axis=0) / found.sds.mean(axis=0))),
        "gap": float(found.gap.max()),
        "mean": float(np.max(np.abs(draws.mean(0) - reference.mean) / reference.sd)),
        "sd": float(100.0 * np.max(np.abs(draws.std(0) / reference.sd - 1.0))),
        "seconds": seconds,
    }


@app.command()
def report(
    results: Results = RESULTS,
    write: Annotated[bool, typer.Option(help="Put the tables into benchmarks/README.md.")] = False,
) -> None:
    """Prints the tables of what is there."""
    text = tables(read(results))
    print(text)
    if write:
        replace_section(PAGE, "svi-chains", text)


def tables(rows: list[Row]) -> str:
    """A table of steps, and one of posteriors."""
    times = {key: each[0]["ms"] for key, each in grouped(_of(rows, "steps"), ["in_call", "chains"]).items()}
    lines = [
        [str(in_call), str(chains), f"{ms:.2f}", f"{chains * times[in_call, 1]:.2f}"]
        for (in_call, chains), ms in sorted(times.items())
    ]
    parts = [markdown(["steps in a call", "chains", "CPU ms a step", "separate fits"], lines)] if lines else []
    lines = [
        [
            row["model"],
            f"{row['r_hat']:.3f}",
            f"{row['spread']:.2f}",
            f"{row['sd_spread']:.0f} %",
            f"{row['gap']:.2f}",
            f"{row['mean']:.2f}",
            f"{row['sd']:.0f} %",
            f"{row['seconds']:.0f}",
        ]
        for row in _of(rows, "posteriors")
    ]
    titles = ["model", "largest R-hat", "spread of means", "of sds", "ELBO gap, nats", "mean", "sd", "CPU s"]
    return "\n\n".join([*parts, *([markdown(titles, lines)] if lines else [])])


def _of(rows: list[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what]


if __name__ == "__main__":
    app()
