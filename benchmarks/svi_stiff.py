"""Rates of reactions by `bdl.svi` against NUTS and adaptive Metropolis: the methods of examples/stiff_kinetics.py.

python benchmarks/svi_stiff.py price --data DIR               # a solution, and its gradient: a minute
python benchmarks/svi_stiff.py run --data DIR                 # both experiments, three seeds: an hour
python benchmarks/svi_stiff.py report --write                 # the tables, into benchmarks/README.md
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import data as data_sets
import keras
import numpy as np
import typer
from keras import ops
from runs import markdown, read, replace_section

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))

import reaction_schemes as schemes  # noqa: E402
import stiff_kinetics as example  # noqa: E402

from bdl.svi import counting_solutions  # noqa: E402
from bdl.svi.derivatives import value_and_gradient  # noqa: E402

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_stiff.jsonl"
PRICES = HERE / "results" / "svi_stiff_prices.json"
Data = Annotated[Path | None, typer.Option(help="Folder with kinetics; default: that of BDL_DATA.")]


def _experiments(data: Path | None) -> list[Any]:
    folder = data_sets.folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    return [schemes.alpha_pinene(), schemes.stat5(folder)]


def _milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """Median of the time on the processor."""
    function()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return 1e3 * float(np.median(times))


@app.command()
def price(data: Data = None, repeats: Annotated[int, typer.Option(help="Solutions of each kind.")] = 30) -> None:
    """Times the likelihood and its gradient at the published constants, and compares the gradient with differences."""
    rows = []
    for experiment in _experiments(data):
        x = example.with_best_noise(experiment, experiment.published)
        number = len(experiment.published)
        values = ops.convert_to_tensor(example.data_of(experiment)["values"][0])
        seen = example.seen_of(experiment)

        def nll(x: Any, seen: Any = seen, values: Any = values, number: int = number) -> Any:
            away = (values - seen(x[:number])) / 10.0 ** x[number:]
            noises = ops.zeros_like(away) + x[number:]
            return ops.sum(0.5 * away**2 + np.log(10.0).astype("float32") * noises + 0.5 * float(np.log(2 * np.pi)))

        both = value_and_gradient(nll, "float32")
        tensor = ops.convert_to_tensor(x.astype("float32"))
        with counting_solutions() as solutions:
            value, gradient = both(x)
        steps = 1e-4 * np.eye(len(x))
        differences = [
            (example.log_likelihood(experiment, x - h) - example.log_likelihood(experiment, x + h)) / 2e-4
            for h in steps
        ]
        # Where the likelihood is flat, in units of what a decade of a constant changes at most.
        curvature = np.abs(both(x + 0.01)[1]).max()
        rows.append(
            {
                "backend": keras.backend.backend(),
                "experiment": experiment.name,
                "nll": value,
                "scipy": _milliseconds(lambda: example.log_likelihood(experiment, x), repeats),  # noqa: B023
                "value": _milliseconds(lambda: ops.convert_to_numpy(nll(tensor)), repeats),  # noqa: B023
                "gradient": _milliseconds(lambda: both(x), repeats),  # noqa: B023
                "with_sensitivities": solutions.with_sensitivities,
                "error": float(np.abs(gradient - differences).max() / curvature),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    kept = json.loads(PRICES.read_text()) if PRICES.is_file() else []
    kept = [row for row in kept if row["backend"] != keras.backend.backend()] + rows
    PRICES.write_text(json.dumps(kept, indent=1) + "\n")


@app.command()
def run(
    data: Data = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of a fit.")] = 400,
    walk: Annotated[int, typer.Option(help="Steps of each of 4 chains of Metropolis.")] = 20_000,
    nuts_draws: Annotated[int, typer.Option(help="Draws of each of 2 chains of NUTS.")] = 300,
    only: Annotated[str, typer.Option(help="Name of the one experiment to run.")] = "",
) -> None:
    """Runs all methods with each seed."""
    for experiment in _experiments(data):
        if only not in ("", experiment.name):
            continue
        mode, search = example.mode_of(experiment)
        _, nll = example.most_likely(experiment)
        told = {"search": search, "nll": nll, "nll_at_mode": -example.log_likelihood(experiment, mode)}
        dearer = example.price(experiment, mode[: len(experiment.published)])
        for seed in range(seeds):
            for result in example.run_all(experiment, mode, steps, walk, nuts_draws, seed):
                row = {"experiment": experiment.name, "seed": seed, "name": result.name, "steps": steps, **told}
                row |= {"mean": result.draws.mean(0).tolist(), "sd": result.draws.std(0).tolist()}
                row |= {"correlation": result.correlation.tolist(), "plain": result.plain, "dearer": dearer}
                row |= {"with_sensitivities": result.with_sensitivities, "seconds": result.seconds, "told": result.told}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(experiment.name, seed, result.name, result.told, f"{result.seconds:.0f} s", flush=True)


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints the tables."""
    rows = read(RESULTS)
    parts = [_prices()]
    for name in dict.fromkeys(row["experiment"] for row in rows):
        parts.append(_table(name, [row for row in rows if row["experiment"] == name]))
    text = "\n\n".join(parts)
    print(text)
    if write:
        replace_section(HERE / "README.md", "svi_stiff", text)


def _prices() -> str:
    header = [
        "experiment",
        "backend",
        "NLL",
        "likelihood, SciPy",
        "likelihood",
        "with gradient",
        "error of the gradient",
    ]
    lines = [
        [row["experiment"], row["backend"], f"{row['nll']:.3f}"]
        + [f"{row[key]:.1f} ms" for key in ("scipy", "value", "gradient")]
        + [f"{row['error']:.1e}"]
        for row in json.loads(PRICES.read_text())
    ]
    return markdown(header, lines)


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    """Errors of the identified numbers against NUTS, or Metropolis without, of the same seed, and each one's cost."""
    decades = 3.0 if name == "STAT5" else 1.0
    standard = "NUTS" if any(row["name"] == "NUTS" for row in rows) else "Metropolis"
    lines = []
    for method in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == method]
        shifts, widths, costs = [], [], []
        for row in own:
            costs.append(row["plain"] + row["dearer"] * row["with_sensitivities"])
            for reference in (each for each in rows if each["name"] == standard and each["seed"] == row["seed"]):
                sd = np.array(reference["sd"])
                sure = sd < decades / 3.0
                shifts.extend(np.abs((np.array(row["mean"]) - reference["mean"]) / sd)[sure])
                widths.extend((100.0 * (np.array(row["sd"]) / sd - 1.0))[sure])
        errors = [f"{max(shifts):.2f}", f"{min(widths):+.0f} to {max(widths):+.0f} %"] if shifts else ["", ""]
        counts = [f"{np.median([row[key] for row in own]):,.0f}" for key in ("plain", "with_sensitivities")]
        lines.append(
            [method, str(len(own)), *errors, *counts, f"{np.median(costs):,.0f}", "; ".join(r["told"] for r in own)]
        )
    first = rows[0]
    told = (
        f"{name}: lowest NLL {first['nll']:.3f}; {first['nll_at_mode']:.3f} at the posterior's mode, which a search by "
        f"{first['search']:,} solutions found. A solution with sensitivities cost {first['dearer']:.1f} without. "
        f"Largest shift of an identified number's mean, in standard deviations of {standard}, and the errors of these:"
    )
    header = ["method", "runs", "shift", "sd", "solutions", "with sensitivities", "as Metropolis steps", "quality"]
    return f"{told}\n\n{markdown(header, lines)}"


if __name__ == "__main__":
    app()
