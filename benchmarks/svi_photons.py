"""A star's flicker by `bdl.svi` against quadrature: the stories of examples/star_brightness.py, over seeds.

python benchmarks/svi_photons.py run --data DIR --seeds 3      # some minutes
python benchmarks/svi_photons.py report --write                # the table, into benchmarks/README.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import data as data_sets
import numpy as np
import typer
from runs import markdown, replace_section

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "examples"))

import star_brightness as example  # noqa: E402

app = typer.Typer(add_completion=False)
RESULTS = HERE / "results" / "svi_photons.json"


@app.command()
def run(
    data: Annotated[Path | None, typer.Option(help="Folder with photon_erosita; default: that of BDL_DATA.")] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each story.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of a fit.")] = 2000,
    draws: Annotated[int, typer.Option(help="Draws of each posterior.")] = 20_000,
) -> None:
    """Fits both stories with each seed."""
    folder = data_sets.folder_of(data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    bins = example.load(folder)
    exact, *_ = example.exact_posterior(bins)
    rows = []
    for seed in range(seeds):
        for fitted in example.fit_all(bins, steps, draws, seed):
            for name, one in fitted.marginals.items():
                shift, width = (one.mean - exact.mean) / exact.sd, one.sd / exact.sd
                rows.append({"seed": seed, "name": name, "shift": shift.tolist(), "width": width.tolist()})
                rows[-1] |= {"k_hat": fitted.k_hat, "seconds": fitted.seconds}
                print(json.dumps(rows[-1]), flush=True)
    reference = {"mean": exact.mean.tolist(), "sd": exact.sd.tolist()}
    RESULTS.write_text(json.dumps({"steps": steps, "draws": draws, "exact": reference, "rows": rows}, indent=1) + "\n")


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints the table."""
    found = json.loads(RESULTS.read_text())
    exact = found["exact"]
    told = "Exact: mu {:.4f} ± {:.4f}, s {:.4f} ± {:.4f}. Shifts in exact standard deviations, lowest and highest seed."
    told = told.format(*(exact[key][axis] for axis in range(2) for key in ("mean", "sd")))
    lines = []
    for name in dict.fromkeys(row["name"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["name"] == name]
        cells = [name, str(len(rows))]
        for axis in range(2):
            cells.append(_span([row["shift"][axis] for row in rows], "+.3f"))
            cells.append(_span([100 * (row["width"][axis] - 1) for row in rows], "+.0f") + " %")
        lines.append([*cells, _span([row["k_hat"] for row in rows], ".2f"), f"{_median(rows):.0f}"])
    header = ["approximation", "seeds", "mu: shift", "sd", "s: shift", "sd", "k-hat", "seconds"]
    text = f"{told}\n\n" + markdown(header, lines)
    print(text)
    if write:
        replace_section(HERE / "README.md", "svi_photons", text)


def _span(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _median(rows: list[dict[str, Any]]) -> float:
    return float(np.median([row["seconds"] for row in rows]))


if __name__ == "__main__":
    app()
