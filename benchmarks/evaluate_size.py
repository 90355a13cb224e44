"""How long does `bdl.evaluate` take on large predictions, and how much memory?

Predictions lie in memory-mapped files. For each size: seconds, seconds of the processor (which tell more where the
machine is busy: the load stands beside them), and by how much the peak of the process's memory grew.
Above 200,000 examples `evaluate` makes no intervals by resampling; up to there it makes a thousand resamples.

    python benchmarks/evaluate_size.py --output benchmarks/results/evaluate_size.json
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import bdl
from benchmarks.calibration_scale import PeakMemory

BLOCK = 2**22
"""Numbers written at once."""


def write_classes(folder: Path, n: int, num_classes: int) -> tuple[np.ndarray, Any]:
    """Labels drawn from softmax probabilities, float32."""
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int64, (n,))
    p = np.lib.format.open_memmap(folder / "p.npy", "w+", np.float32, (n, num_classes))
    random = np.random.default_rng(0)
    step = BLOCK // num_classes
    for rows in (slice(start, min(start + step, n)) for start in range(0, n, step)):
        logits = 2 * random.standard_normal((rows.stop - rows.start, num_classes), dtype=np.float32)
        block = np.exp(logits - logits.max(axis=1, keepdims=True))
        p[rows] = block / block.sum(axis=1, keepdims=True)
        y[rows] = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    return _read_only(y), _read_only(p)


def write_targets(folder: Path, n: int, _: int) -> tuple[np.ndarray, Any]:
    """Targets drawn from their Normals, float32."""
    random = np.random.default_rng(0)
    arrays = [np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (n,)) for name in ("y", "m", "s")]
    for rows in (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)):
        mean, noise = random.standard_normal((2, rows.stop - rows.start), dtype=np.float32)
        std = random.uniform(0.5, 2.0, len(mean)).astype(np.float32)
        for array, values in zip(arrays, (mean + std * noise, mean, std), strict=True):
            array[rows] = values
    y, mean, std = (_read_only(array) for array in arrays)
    return y, {"mean": mean, "std": std}


def _read_only(array: np.memmap) -> np.ndarray:
    array.flush()
    return np.load(array.filename, mmap_mode="r")


SIZES: list[tuple[str, Callable[[Path, int, int], tuple[np.ndarray, Any]], int, int]] = [
    ("classes", write_classes, 200_000, 10),
    ("classes", write_classes, 20_000, 1_000),
    ("classes", write_classes, 10_000_000, 10),
    ("targets", write_targets, 200_000, 1),
    ("targets", write_targets, 10_000_000, 1),
]


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    num_resamples: Annotated[int, typer.Option(help="Resamples, where there are any.")] = 1000,
) -> None:
    """Measure and print the table."""
    table = Table("predictions", "rows", "columns", "s", "s of CPU", "peak MiB", "load before")
    results = []
    for kind, write, n, columns in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            y, prediction = write(Path(folder), n, columns)
            bdl.evaluate([0, 1], [[0.9, 0.1], [0.2, 0.8]], num_resamples=2)  # what is loaded late is loaded
            load = os.getloadavg()[0]
            with PeakMemory() as memory:
                start, cpu_start = time.perf_counter(), time.process_time()
                bdl.evaluate(y, prediction, num_resamples=num_resamples)
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        figures = (f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{memory.growth:.0f}", f"{load:.1f}")
        table.add_row(kind, f"{n:,}", f"{columns:,}", *figures)
        found = {"rows": n, "columns": columns, "seconds": seconds, "cpu_seconds": cpu_seconds}
        found |= {"mib": memory.growth, "load": load}
        results.append({"predictions": kind, **found})
    Console(width=100).print(table)
    if output is not None:
        output.write_text(json.dumps({"num_resamples": num_resamples, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
