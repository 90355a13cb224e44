"""Predictions of many rows: memory and rate of `predict_parts` and `write_predictions` against everything at once.

python benchmarks/streams.py run --rows 10_000_000        # a quarter of an hour
python benchmarks/streams.py report --write               # the table, into benchmarks/README.md
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import typer
from runs import markdown, read, replace_section

import bdl

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "streams.jsonl"
FEATURES = 8
SETTINGS = {"num_samples": 100, "batch_size": 4096, "seed": 0}

app = typer.Typer(add_completion=False)


def build_network() -> keras.Model:
    """Mean and raw scale of a target; so small that what is not the network counts as much as it can."""
    layers = [bdl.layers.DenseFlipout(16, activation="relu"), bdl.layers.DenseFlipout(2)]
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


def memory() -> float:
    """Memory of this process that no file backs, in MB: pages of a memory map come and go as the system likes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


def write_data(path: Path, rows: int) -> None:
    """Normal numbers, a million rows at a time."""
    data = np.lib.format.open_memmap(path, "w+", dtype="float32", shape=(rows, FEATURES))
    for start in range(0, rows, 1_000_000):
        part = data[start : start + 1_000_000]
        part[:] = np.random.default_rng(start).normal(size=part.shape)
    data.flush()


def rate_of(work: Any, rows: int) -> float:
    """Rows a second on the processors: of other programs' turns on them it is free."""
    began = time.process_time()
    work()
    return rows / (time.process_time() - began)


@app.command()
def run(
    rows: Annotated[int, typer.Option(help="Rows of the stream.")] = 10_000_000,
    part: Annotated[int, typer.Option(help="Rows of a piece of the comparison of rates.")] = 200_000,
    repeats: Annotated[int, typer.Option(help="Pieces, each predicted in both ways.")] = 5,
) -> None:
    """Rates by turns, then the memory over the whole stream."""
    network, likelihood = build_network(), bdl.likelihoods.Normal(heteroscedastic=True)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "x.npy", Path(folder) / "predictions.parquet"
        write_data(source, rows)
        data = np.load(source, mmap_mode="r")

        def at_once(x: np.ndarray) -> Any:
            prediction = bdl.predict_distribution(network, x, likelihood, **SETTINGS)
            return prediction.mean, prediction.aleatoric, prediction.epistemic

        def streamed(x: np.ndarray, levels: Any = True) -> Any:
            parts = bdl.predict_parts(network, x, likelihood, summary=levels, **SETTINGS)
            return bdl.write_predictions(target, parts)

        ways = {
            "in memory": lambda x: bdl.predict_distribution(network, x, likelihood, **SETTINGS),
            "in memory, with its moments": at_once,
            "streamed to parquet": streamed,
            "streamed, with 5 % and 95 % quantiles": lambda x: streamed(x[: part // 10], (0.05, 0.95)),
        }
        for way in ways.values():
            way(data[:10_000])
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(repeats):
            x = data[number * part % rows :][:part]
            for name, way in ways.items():
                size = len(x) // 10 if "quantiles" in name else len(x)
                rates[name].append(rate_of(lambda way=way, x=x: way(x), size))
                gc.collect()
            print({name: round(found[-1]) for name, found in rates.items()}, flush=True)
        seen = []
        began = time.time()

        def watched() -> Any:
            for number, each in enumerate(bdl.predict_parts(network, data, likelihood, summary=True, **SETTINGS)):
                yield each
                seen.append(memory())
                if number % 100 == 0:
                    print(f"{number * 16_384:,} rows, {seen[-1]:.0f} MB, {time.time() - began:.0f} s", flush=True)

        bdl.write_predictions(target, watched())
        row = {
            "rows": rows,
            "backend": keras.backend.backend(),
            "rates": rates,
            "seconds": time.time() - began,
            "memory": [seen[len(seen) * tenth // 10] for tenth in range(10)] + [seen[-1]],
            "largest": max(seen),
        }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


@app.command()
def report(write: Annotated[bool, typer.Option(help="Into benchmarks/README.md.")] = False) -> None:
    """Prints the tables."""
    text = "\n\n".join(_table(row) for row in read(RESULTS))
    print(text)
    if write:
        replace_section(HERE / "README.md", "streams", text)


def _table(row: dict[str, Any]) -> str:
    usual, lines = np.array(row["rates"]["in memory"]), []
    for name, rates in row["rates"].items():
        shares = np.array(rates) / usual
        spread = f"{shares.min():.2f} to {shares.max():.2f}"
        lines.append([name, f"{np.median(rates):,.0f}", f"{np.median(shares):.2f}", spread])
    first, last = row["memory"][1], row["memory"][-1]
    told = (
        f"{row['backend']}, {row['rows']:,} rows by {SETTINGS['num_samples']} samples, written to parquet in "
        f"{row['seconds']:.0f} s. Memory after a tenth of the rows {first:.0f} MB, at the end {last:.0f} MB "
        f"({100 * (last / first - 1):+.1f} %), at most {row['largest']:.0f} MB."
    )
    return f"{told}\n\n{markdown(['way', 'rows a second', 'of in memory', 'from, to'], lines)}"


if __name__ == "__main__":
    app()
