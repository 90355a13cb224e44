"""Fixed batches, growing batches (`AdaptiveBatch`), averages of the iterates, and both: epochs to the optimum.

Half a million loci, the model of examples/methylation.py, batches of 1,000, Adam at constant rates. The optimum is that
of the ELBO in the two globals with the best Gaussian of each locus, computed without any sampling; the gap of a point
is what it loses to that over all loci, in nats. A fit is read every ten batches: its iterate, and the mean of the last
half of its iterates so far. It is "within 5 nats" from the batch on after which it stays so to the end.

    python benchmarks/svi_batches.py run --data DIR --seeds 5   # resumable
    python benchmarks/svi_batches.py report --write                               # into benchmarks/README.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import svi_methylation as loci_of_data
import typer
from runs import markdown, replace_section
from scipy import optimize

from bdl.training import AdaptiveBatch

example = loci_of_data.example
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "svi_batches.jsonl"
PAGE = HERE / "README.md"
RATES = (3e-2, 1e-2, 3e-3)
TARGETS = (5.0, 1.0)
EVERY = 10
app = typer.Typer(add_completion=False)


def best_elbo(pairs: Any, counts: np.ndarray, point: np.ndarray, start: tuple[Any, Any] | None = None) -> Any:
    """ELBO of all loci with the best Gaussian of each at given globals, in nats, and these Gaussians."""
    mean, sd = start or (np.full(len(counts), point[0]), np.full(len(counts), np.exp(point[1])))
    nodes, weights = example.NODES[:, None], example.NODE_WEIGHTS
    spread2 = np.exp(2 * point[1])
    for _ in range(200):
        p = 1 / (1 + np.exp(-(mean + sd * nodes)))
        slope = weights @ (pairs["methylated"] - pairs["coverage"] * p) - (mean - point[0]) / spread2
        precision = weights @ (pairs["coverage"] * p * (1 - p)) + 1 / spread2
        move, new = slope / precision, 1 / np.sqrt(precision)
        mean, moved = mean + 0.7 * move, max(np.abs(move).max(), np.abs(new - sd).max())
        sd = sd + 0.7 * (new - sd)
        if moved < 1e-10:
            break
    elbo = counts.astype("float64") @ example.local_elbo(mean, sd, pairs, point)[0]
    return elbo - 0.5 * np.sum((point / example.PRIOR_SCALES) ** 2), (mean, sd)


class Gap:
    """What a point of the globals loses to the best one, in nats."""

    def __init__(self, loci: Any) -> None:
        self.pairs, self.counts = example.distinct(loci)
        self.pairs = {name: each.astype("float64") for name, each in self.pairs.items()}
        point = np.array([1.65, 0.4])
        cost = lambda x: -best_elbo(self.pairs, self.counts, x)[0]  # noqa: E731
        simplex = point + 0.02 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        found = optimize.minimize(
            cost, point, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 1e-6, "fatol": 1e-3}
        )
        self.best, self.optimum = -found.fun, found.x
        steps = 1e-3 * np.eye(2)
        at = lambda x: -cost(self.optimum + x)  # noqa: E731
        self.hessian = np.array(
            [[(at(a + b) - at(a - b) - at(b - a) + at(-a - b)) / 4e-6 for b in steps] for a in steps]
        )

    def __call__(self, point: np.ndarray) -> float:
        """By the quadratic near the optimum, exactly further away."""
        away = point - self.optimum
        gap = float(-0.5 * away @ self.hessian @ away)
        return gap if gap < 30.0 else float(self.best - best_elbo(self.pairs, self.counts, point)[0])


class Reads(keras.callbacks.Callback):
    """Notes the guide's mean of the globals, and the micro-batches of an update."""

    def __init__(self, adaptive: AdaptiveBatch | None) -> None:
        super().__init__()
        self.points: list[list[float]] = []
        self.numbers: list[int] = []
        self._adaptive = adaptive

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reads every few batches."""
        if (batch + 1) % EVERY:
            return
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        mean = keras.ops.convert_to_numpy(self.model.guide_of("mean").distribution().mean)
        self.points.append(mean.astype("float64").tolist())
        self.numbers.append(1 if self._adaptive is None else self._adaptive.micro_batches)


@app.command()
def run(
    data: loci_of_data.Data = None,
    seeds: Annotated[int, typer.Option(help="Number of fits of each kind.")] = 5,
    epochs: Annotated[int, typer.Option(help="Passes over the loci.")] = 5,
) -> None:
    """Fits with each rate, with fixed and with growing batches."""
    loci = loci_of_data.loci_of(data)
    gap = Gap(loci)
    print("optimum", gap.optimum, flush=True)
    done = {tuple(row["case"]) for row in rows()}
    for seed in range(seeds):
        for rate in RATES:
            for kind in ("fixed", "adaptive"):
                if (kind, rate, seed) in done:
                    continue
                adaptive = AdaptiveBatch() if kind == "adaptive" else None
                reads = Reads(adaptive)
                model = example.model_of(seed)
                model.compile(keras.optimizers.Adam(rate), steps_per_execution=EVERY)
                callbacks = [reads] if adaptive is None else [adaptive, reads]
                model.fit(loci, batch_size=1000, epochs=epochs, verbose=0, callbacks=callbacks)
                points = np.array(reads.points)
                halves = np.array([points[number // 2 : number + 1].mean(0) for number in range(len(points))])
                share = EVERY / np.ceil(len(loci["coverage"]) / 1000)
                row: dict[str, Any] = {"case": [kind, rate, seed], "micro_batches": reads.numbers[-1]}
                for name, path in (("iterate", points), ("average", halves)):
                    gaps = np.array([gap(point) for point in path])
                    row[name] = [_epochs(gaps, target, share) for target in TARGETS]
                    row[f"{name}_end"] = float(gaps[-1])
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def _epochs(gaps: np.ndarray, target: float, share: float) -> float | None:
    """Epochs after which all gaps are below a target; None if the last is not."""
    above = np.flatnonzero(gaps > target)
    first = 0 if not above.size else int(above[-1]) + 1
    return None if first == len(gaps) else float((first + 1) * share)


def rows() -> list[dict[str, Any]]:
    """What is stored."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints a table: median, lowest and highest over seeds, and how many arrived."""
    lines = []
    for name, kind, path in (
        ("fixed batches", "fixed", "iterate"),
        ("growing batches", "adaptive", "iterate"),
        ("fixed batches, averaged", "fixed", "average"),
        ("growing batches, averaged", "adaptive", "average"),
    ):
        for rate in RATES:
            mine = [row for row in rows() if row["case"][:2] == [kind, rate]]
            if not mine:
                continue
            cells = [_cell([row[path][place] for row in mine]) for place in range(len(TARGETS))]
            ends = np.median([row[f"{path}_end"] for row in mine])
            number = np.median([row["micro_batches"] for row in mine])
            lines.append([name, f"{rate:g}", *cells, f"{ends:.2f}", f"{number:.0f}"])
    header = ["", "rate", *(f"epochs to {target:g} nats" for target in TARGETS), "nats at the end", "micro-batches"]
    text = markdown(header, lines)
    print(text)
    if write:
        replace_section(PAGE, "svi_batches", text)


def _cell(found: list[float | None]) -> str:
    arrived = [each for each in found if each is not None]
    if not arrived:
        return f"none of {len(found)}"
    text = f"{np.median(arrived):.2f} ({min(arrived):.2f} to {max(arrived):.2f})"
    return text if len(arrived) == len(found) else f"{text}, {len(arrived)} of {len(found)}"


if __name__ == "__main__":
    sys.exit(app())
