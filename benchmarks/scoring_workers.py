"""Rows a second: a table scored by Ray on several workers, against one process.

A network of eight columns, 8-64-64-1 with flipout layers, and the summary of a regression. Both score the same rows
with the same seed, and the script says whether the results are equal to the last bit. In Ray's first run the workers
import bdl and compile; in its second one they are warm. Ray gives its workers a low priority, which
RAY_worker_niceness=0 takes off on a machine that does other work.

    python benchmarks/scoring_workers.py --rows 1000000 --workers 2
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import typer

import bdl
from bdl.prediction import columns_of

BATCH = 256
FACTORS = (7919, 104729, 1299709, 15485863, 32452843, 49979687, 67867967, 86028121)


def features(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns that follow from the number of a row, the same in every process."""
    row = batch["id"]
    return {"row": row, "x": np.stack([row * factor % 1009 / 1009 for factor in FACTORS], axis=-1).astype("float32")}


def timed(what: str, rows: int, function: Callable[[], Any]) -> Any:
    """The result of a call, whose rate is printed."""
    start = time.perf_counter()
    found = function()
    seconds = time.perf_counter() - start
    print(f"{what:28} {seconds:8.1f} s {rows / seconds:12,.0f} rows/s", flush=True)
    return found


def main(rows: int = 1_000_000, workers: int = 2, num_samples: int = 20) -> None:
    """Prints the rates."""
    import ray

    keras.utils.set_random_seed(0)
    layer, likelihood = bdl.layers.DenseFlipout, bdl.likelihoods.Normal(scale=0.1)
    network = keras.Sequential(
        [keras.Input((8,)), layer(64, activation="relu"), layer(64, activation="relu"), layer(1)]
    )
    path = Path(tempfile.mkdtemp()) / "network.keras"
    network.save(path)
    settings: dict[str, Any] = {"num_samples": num_samples, "batch_size": BATCH, "seed": 0}
    scorer = bdl.scoring.Scorer(path, "x", likelihood, **settings)

    def alone(size: int = rows) -> dict[str, np.ndarray]:
        x = features({"id": np.arange(size)})["x"]
        return columns_of(bdl.predict_distribution(network, x, likelihood, summary=True, **settings))

    alone(BATCH)  # compiles
    whole = timed("one process", rows, alone)

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = ray.data.range(rows, override_num_blocks=8 * workers).map_batches(features)

    def spread() -> Any:
        return table.map_batches(scorer, batch_size=16 * BATCH).drop_columns(["x"]).to_pandas().sort_values("row")

    timed(f"Ray, {workers} workers, first run", rows, spread)
    found = timed(f"Ray, {workers} workers, warm", rows, spread)
    same = all(np.array_equal(found[name].to_numpy(), column) for name, column in whole.items())
    print("equal to the last bit" if same else "NOT equal")
    ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
