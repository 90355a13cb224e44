"""Posteriors of `bdl.svi` against reference draws of ten models, beside those of NumPyro and TensorFlow Probability.

The settings are the same for every model: the whole data in each of 2,000 steps of Adam from 1e-2 with a cosine decay,
and eight draws a step. bdl begins with `start="laplace"` and ends with the mean of the last thousand iterates. `start`
alone is what it begins with, without a step. The others run as `svi_rivals.py` says, at their default start and from
the mode.

Errors are the largest over a model's numbers: of a marginal mean in posterior standard deviations, and of a standard
deviation in percent, from 40,000 draws; the 10,000 reference draws have a noise of .01 standard deviations and .7 % in
each number, which is about .02 and 1.5 % in the largest of ten errors. k-hat and the effective part of the weighted
draws are from 4,000 draws. Seconds are of a whole fit with its compilation, in one thread. bdl and NumPyro run on JAX.

    python benchmarks/svi_reference.py run --data DIR                          # resumable
    python benchmarks/svi_reference.py run --data DIR --contestants numpyro    # needs NumPyro
    python benchmarks/svi_reference.py report --write                          # into benchmarks/README.md
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
RESULTS = Path(__file__).parent / "results" / "svi_reference.jsonl"
PAGE = Path(__file__).parent / "README.md"
MODELS = (
    "kidiq",
    "earnings",
    "nes",
    "arK",
    "sblrc",
    "kilpisjarvi",
    "mixture",
    "garch",
    "eight_schools",
    "lotka_volterra",
)
GUIDES = {
    "bdl": ("full_rank", "low_rank", "flow", "structured", "mean_field", "start"),
    "numpyro": ("full_rank", "mean_field", "laplace"),
    "tfp": ("full_rank", "mean_field"),
}
STARTS = {"bdl": ("laplace",), "numpyro": ("default", "mode"), "tfp": ("default", "mode")}
CHAINS = {
    **dict.fromkeys(("kidiq", "earnings", "nes", "arK", "sblrc"), "beta"),
    "mixture": "mu",
    "eight_schools": "theta_trans",
    "lotka_volterra": "theta",
}
"""The site with several numbers, along which `structured` has its chain; models without one do not have that guide."""

NUM_STEPS, RATE, NUM_SAMPLES = 2000, 1e-2, 8
NUM_DRAWS, NUM_WEIGHTS = 40_000, 4000


@dataclass(frozen=True)
class Case:
    """One fit."""

    model: str
    contestant: str
    guide: str
    start: str
    seed: int


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="Folder with posteriordb/*.npz; else BDL_DATA.")] = None,
    models: Annotated[str, typer.Option(help="Models, separated by commas.")] = ",".join(MODELS),
    contestants: Annotated[str, typer.Option(help="Contestants, separated by commas.")] = "bdl",
    guides: Annotated[str, typer.Option(help="Guides, separated by commas; all where it is empty.")] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 3,
    backend: Annotated[str, typer.Option(help="Keras backend of bdl: jax or tensorflow.")] = "jax",
    workers: Annotated[int, typer.Option(help="Number of processes.")] = 1,
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
) -> None:
    """Fits what is not there yet."""
    folder = folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    for contestant in contestants.split(","):
        cases = [
            Case(model, contestant, guide, start, seed)
            for seed in range(seeds)
            for guide in GUIDES[contestant]
            if guide in (guides.split(",") if guides else GUIDES[contestant])
            for start in STARTS[contestant]
            for model in models.split(",")
            if guide != "structured" or model in CHAINS
        ]
        library = {"numpyro": "jax", "tfp": "tensorflow"}.get(contestant, backend)
        run_all(partial(fit, folder=folder), cases, results, workers, library)


def fit(case: Case, folder: Path) -> Row:
    """Fits one model, and compares its posterior with the reference draws."""
    import keras
    import svi_rivals
    from svi_stories import MODELS as STORIES

    from bdl.svi import Structured

    keras.backend.clear_session()
    model = STORIES[case.model]
    reference = posterior(folder, model.name)
    rows = model.rows(reference.data)
    fits = {"bdl": of_bdl, "numpyro": svi_rivals.of_numpyro, "tfp": svi_rivals.of_tfp}
    guide = Structured(CHAINS[case.model]) if case.guide == "structured" else case.guide
    draws, log_weights, seconds = fits[case.contestant](model.story, rows, guide, case.start, case.seed)
    numbers = model.numbers(draws, reference.names)
    row = {
        "mean": float(np.max(np.abs(numbers.mean(0) - reference.mean) / reference.sd)),
        "sd": float(100.0 * np.max(np.abs(numbers.std(0) / reference.sd - 1.0))),
        "seconds": round(seconds, 1),
    }
    return {**row, **weights_row(log_weights)}


def weights_row(log_weights: np.ndarray | None) -> Row:
    """k-hat and the effective part of weighted draws; None where there are no weights, or some are no numbers."""
    from bdl.svi.checks import k_hat

    if log_weights is None or np.isnan(log_weights).any():
        return {"k_hat": None, "effective": None}
    smoothed = k_hat(log_weights)
    return {"k_hat": float(smoothed.k), "effective": smoothed.effective_sample_size / len(log_weights)}


def of_bdl(story: Any, rows: Any, guide: Any, start: str, seed: int) -> tuple[Any, np.ndarray, float]:
    """Draws by site, log importance weights, and seconds of a fit with bdl."""
    import keras

    from bdl.svi import SVI

    is_start = guide == "start"
    rate = 0.0 if is_start else keras.optimizers.schedules.CosineDecay(RATE, NUM_STEPS)
    began = time.perf_counter()
    model = SVI(story, "full_rank" if is_start else guide, start=start, num_samples=NUM_SAMPLES, seed=seed)
    model.compile(keras.optimizers.Adam(rate))
    model.fit(rows, batch_size="all", steps=1 if is_start else NUM_STEPS, verbose=0)
    seconds = time.perf_counter() - began
    draws = model.posterior(num_samples=NUM_DRAWS, seed=1000 + seed)
    return draws, model.log_weights(rows, num_samples=NUM_WEIGHTS, seed=2000 + seed), seconds


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="File of JSON lines.")] = RESULTS,
    write: Annotated[bool, typer.Option(help="Put the tables into benchmarks/README.md.")] = False,
) -> None:
    """Prints the tables of what is there."""
    text = tables(read(results))
    print(text)
    if write:
        replace_section(PAGE, "svi-reference", text)


def tables(rows: list[Row]) -> str:
    """A table for each guide: models by contestants, `mean error / sd error / k-hat`, and bdl's further figures."""
    parts = []
    for guide, title in (
        ("full_rank", "Full rank"),
        ("low_rank", "Low rank: five factors, in the start's coordinates"),
        ("flow", "Flow: eight layers"),
        ("structured", "Structured: a chain over the numbers of one site, given the others"),
        ("mean_field", "Mean field"),
        ("start", "bdl's start alone, and NumPyro's Laplace approximation"),
    ):
        kinds = (guide, "laplace") if guide == "start" else (guide,)
        groups = grouped([row for row in rows if row["guide"] in kinds], ["contestant", "start", "model"])
        contestants = list(dict.fromkeys((contestant, start) for contestant, start, _ in groups))
        header = ["model"] + [_title(*each, len(_seeds(groups, each))) for each in contestants]
        lines = [
            [name] + [_cell(groups.get((*each, name), [])) for each in contestants]
            for name in MODELS
            if any((*each, name) in groups for each in contestants)
        ]
        if lines:
            parts += [f"**{title}**", "", markdown(header, lines), ""]
    return "\n".join(parts).rstrip()


def _title(contestant: str, start: str, seeds: int) -> str:
    name = contestant if contestant == "bdl" else f"{contestant}, {start} start"
    return f"{name} ({seeds} seed{'s' if seeds > 1 else ''})"


def _seeds(groups: Any, contestant: tuple[str, str]) -> set[int]:
    return {row["seed"] for key, rows in groups.items() if key[:2] == contestant for row in rows}


def _cell(rows: list[Row]) -> str:
    """Means over seeds, with the largest of an error in brackets."""
    if not rows:
        return ""

    def figure(name: str, digits: int, is_error: bool = False) -> str:
        values = [row[name] for row in rows if row[name] is not None]
        if not values:
            return "-"
        shown = [f"{value:.{0 if value >= 10 else digits}f}" for value in (np.mean(values), max(values))]
        return f"{shown[0]} ({shown[1]})" if is_error and len(values) > 1 else shown[0]

    errors = f"{figure('mean', 2, True)} / {figure('sd', 0, True)} %"
    return f"{errors} / {figure('k_hat', 2)} / {figure('effective', 2)} / {figure('seconds', 0)} s"


if __name__ == "__main__":
    app()
