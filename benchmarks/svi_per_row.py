"""A table of local parameters (`bdl.svi.PerRow`): what a step costs by the number of rows, and what rows reach.

The methylation model of examples/methylation.py: half a million logits, whose best Gaussians and evidence at given
globals are known by quadrature.

`steps` times steps of 1,000 rows on one core: tables of up to ten million rows, and the steps of rows within a step
beside a recognition network. Rows are made. `passes` fits the loci of human chromosome 22 for a number of passes, each
by a fit of its own, and tells what rows lose to the best Gaussian of each at the globals that the fit ended with.

    KERAS_BACKEND=jax python benchmarks/svi_per_row.py steps              # and tensorflow; each adds a line
    KERAS_BACKEND=jax python benchmarks/svi_per_row.py passes --data DIR
    python benchmarks/svi_per_row.py report --write                       # into benchmarks/README.md
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import data as data_sets
import keras
import numpy as np
import typer
from runs import markdown, read, replace_section

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "examples"))

import methylation as example  # noqa: E402
from svi_methylation import log_evidence  # noqa: E402

from bdl.schedules import DecayOverFit  # noqa: E402
from bdl.svi import SVI, Amortized, FullRank, Global, Local, Observed, PerRow  # noqa: E402

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_per_row.jsonl"
PAGE = HERE / "README.md"
BATCH_SIZE = 1000
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
GUIDES = ("1 step", "2 steps", "4 steps", "Amortized")
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX"}

if keras.backend.backend() == "jax":
    import numpyro.distributions as library
else:
    from tensorflow_probability import distributions as library


def story(data: Any) -> Iterator[Any]:
    """As in the example, with the backend's own distributions."""
    mean = yield Global("mean", library.Normal(0.0, 2.0))
    spread = yield Global("spread", library.LogNormal(0.0, 1.0))
    logit = yield Local("logit", library.Normal(mean, spread))
    yield Observed("methylated", library.Binomial(data["coverage"], logits=logit), data["methylated"])


def model_of(guide: str, rows: int, seed: int, steps_in_call: int) -> SVI:
    """A model of so many rows, compiled."""
    keras.utils.set_random_seed(seed)
    if guide == "Amortized":
        network = keras.Sequential([keras.layers.Dense(32, "tanh"), keras.layers.Dense(32, "tanh")])
        local: Any = Amortized(network, inputs=example.features)
    else:
        local = PerRow(rows, steps=int(guide.split()[0]))
    model = SVI(story, {"logit": local, ("mean", "spread"): FullRank()}, seed=seed)
    model.compile(keras.optimizers.Adam(DecayOverFit(2e-2)), steps_per_execution=steps_in_call)
    return model


def numbered(loci: example.Loci) -> example.Loci:
    return {**loci, "row": np.arange(len(loci["coverage"]), dtype="int32")}


def append(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({**row, "backend": keras.backend.backend(), "load": os.getloadavg()[0]}) + "\n")


class Clock(keras.callbacks.Callback):
    """Notes when each call of steps ended, by the wall and by the processor."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Forgets an earlier fit."""
        self.ends: list[tuple[float, float]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the time."""
        self.ends.append((time.process_time(), time.perf_counter()))

    def milliseconds(self, steps_in_call: int) -> list[float]:
        """Processor and wall-clock time of a step; the first quarter is left out."""
        ends = np.array(self.ends[len(self.ends) // 4 :])
        return (1e3 * (ends[-1] - ends[0]) / (len(ends) - 1) / steps_in_call).tolist()


@app.command()
def steps(
    num_steps: Annotated[int, typer.Option(help="Steps of a turn; a multiple of 50.")] = 800,
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
) -> None:
    """Time of a step by the number of rows and by what refines them, with one and with 50 in a call."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cases = [("2 steps", size) for size in SIZES] + [(guide, 100_000) for guide in GUIDES if guide != "2 steps"]
    for steps_in_call in (1, 50):
        for guide, size in cases:
            model, loci = model_of(guide, size, 0, steps_in_call), numbered(example.generate(size))
            model.fit(loci, batch_size=BATCH_SIZE, steps=100, verbose=0)  # compiles
            times = []
            for _ in range(rounds):
                clock = Clock()
                model.fit(loci, batch_size=BATCH_SIZE, steps=num_steps, callbacks=[clock], verbose=0)
                times.append(clock.milliseconds(steps_in_call))
            append({"kind": "steps", "guide": guide, "rows": size, "in_call": steps_in_call, "ms": times})


@app.command()
def passes(
    data: Annotated[Path | None, typer.Option(help="Folder with methylation/imr90_chr22.npz, or BDL_DATA.")] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each.")] = 1,
) -> None:
    """What rows lose to their best Gaussians after 1, 2 and 5 passes over the loci."""
    folder = data_sets.folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    loci = numbered(example.load(folder))
    pairs, counts = example.distinct(loci)
    places = {pair: number for number, pair in enumerate(zip(pairs["methylated"], pairs["coverage"], strict=True))}
    place = [places[pair] for pair in zip(loci["methylated"], loci["coverage"], strict=True)]
    for seed in range(seeds):
        for guide in GUIDES:
            for number in (1, 2, 5):
                model = model_of(guide, len(loci["row"]), seed, 50)
                began = time.process_time()
                model.fit(loci, batch_size=BATCH_SIZE, epochs=number, verbose=0)
                seconds = time.process_time() - began
                point = example.globals_of(model).mean
                found = example.local_elbo(*gaussians(model, loci), loci, point)[0]
                best = example.local_elbo(*example.optimise(pairs, point), pairs, point)[0]
                exact = counts @ log_evidence(pairs, point) / counts.sum()
                row = {"guide": guide, "passes": number, "seed": seed, "gap": float((best[place] - found).mean())}
                gaussian = float(exact - counts @ best / counts.sum())
                worst = float(np.quantile(best[place] - found, 0.999))
                append({"kind": "passes", **row, "worst": worst, "gaussian": gaussian, "cpu": seconds})


def gaussians(model: SVI, loci: example.Loci) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each locus' logit."""
    batch = {name: keras.ops.convert_to_tensor(values) for name, values in loci.items()}
    found = model.guide_of("logit").distribution(batch)
    return tuple(keras.ops.convert_to_numpy(each)[:, 0] for each in (found.mean, found.factor))


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints the tables."""
    rows = read(RESULTS)
    loads = [row["load"] for row in rows]
    told = (
        f"One core, {BATCH_SIZE:,} rows a step; processor milliseconds of a step, and by the clock in brackets, median "
        f"of the turns. The machine's load was {min(loads):.1f} to {max(loads):.1f} on two cores."
    )
    text = "\n\n".join([told, _times(rows, True), _times(rows, False), _passes(rows)])
    print(text)
    if write:
        replace_section(PAGE, "svi_per_row", text)


def _times(rows: list[dict[str, Any]], is_by_size: bool) -> str:
    cases = [("2 steps", size) for size in SIZES] if is_by_size else [(guide, 100_000) for guide in GUIDES]
    columns = [(backend, in_call) for backend in BACKENDS for in_call in (1, 50)]
    lines = []
    for guide, size in cases:
        cells = []
        for backend, in_call in columns:
            found = [
                row["ms"]
                for row in rows
                if row["kind"] == "steps"
                and (row["guide"], row["rows"], row["in_call"], row["backend"]) == (guide, size, in_call, backend)
            ]
            cpu, wall = np.median(np.concatenate(found), axis=0) if found else (np.nan, np.nan)
            cells.append(f"{cpu:.2f} ({wall:.2f})")
        lines.append([f"{size:,}" if is_by_size else guide, *cells])
    header = [f"{BACKENDS[backend]}, {in_call} in a call" for backend, in_call in columns]
    return markdown(["rows of the table" if is_by_size else "100,000 rows", *header], lines)


def _passes(rows: list[dict[str, Any]]) -> str:
    lines = []
    for backend in BACKENDS:
        for guide in GUIDES:
            cells = []
            for number in (1, 2, 5):
                found = [
                    row
                    for row in rows
                    if row["kind"] == "passes"
                    and (row["guide"], row["passes"], row["backend"]) == (guide, number, backend)
                ]
                if found:
                    cells.append(f"{np.mean([row['gap'] for row in found]):.5f}")
            if cells:
                lines.append([f"{guide}, {BACKENDS[backend]}", *cells])
    gaussian = [row["gaussian"] for row in rows if row["kind"] == "passes"]
    told = (
        "Nats a locus that the rows' Gaussians are below the best ones, at the globals that a fit of so many passes "
        f"ended with. The best ones are {min(gaussian):.4f} to {max(gaussian):.4f} nats below the evidence."
    )
    return f"{told}\n\n" + markdown(["guide", "1 pass", "2 passes", "5 passes"], lines)


if __name__ == "__main__":
    app()
