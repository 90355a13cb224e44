"""Monte Carlo prediction: memory against the number of samples, and speed against a loop of `model.predict`.

10,000 inputs of the digits' size, an MLP 64-128-128-10 with flipout layers. The loop is what users write without bdl:
`num_samples` calls of the Keras model's own `predict` (same network, same batch size), averaged in NumPy. Both are
measured in turn, in one process, after a first run each that compiles. Memory is the growth of the process's peak
resident size while predicting, compilation apart, each number of samples in a fresh process (Linux).

    python benchmarks/prediction.py --backend tensorflow
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

app = typer.Typer(add_completion=False)

NUM_INPUTS = 10_000
WIDTH = 128


def build() -> tuple[Any, Any, np.ndarray]:
    """The network, its model, and the inputs."""
    import keras

    import bdl

    keras.utils.set_random_seed(0)
    layer = bdl.layers.DenseFlipout
    network = keras.Sequential(
        [keras.Input((64,)), layer(WIDTH, activation="relu"), layer(WIDTH, activation="relu"), layer(10)]
    )
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=NUM_INPUTS)
    return network, model, np.random.default_rng(0).uniform(size=(NUM_INPUTS, 64)).astype("float32")


def seconds(function: Any) -> float:
    """Time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities from logits."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


@app.command()
def memory(num_samples: int, batch_size: int = 32) -> None:
    """Prints how many MiB the peak memory grows while predicting; for one process of its own."""
    _, model, x = build()
    model.predict_distribution(x[:batch_size], num_samples=1, batch_size=batch_size)
    model.predict_distribution(x[:batch_size], num_samples=num_samples, batch_size=batch_size)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = peak_mebibytes()
    model.predict_distribution(x, num_samples=num_samples, batch_size=batch_size)
    print(json.dumps({"mebibytes": peak_mebibytes() - before}))


def peak_mebibytes() -> float:
    """Peak resident size of this process since it was last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@app.command()
def main(
    backend: Annotated[str, typer.Option(help="Keras backend.")] = "tensorflow",
    num_samples: Annotated[int, typer.Option(help="Monte Carlo samples.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Inputs at a time, for both.")] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds of both in turn.")] = 3,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Measures speed and memory, and prints both."""
    os.environ["KERAS_BACKEND"] = backend
    network, model, x = build()

    def ours() -> Any:
        return model.predict_distribution(x, num_samples=num_samples, batch_size=batch_size).probabilities

    def loop() -> Any:
        return np.mean(
            [softmax(network.predict(x, batch_size=batch_size, verbose=0)) for _ in range(num_samples)], axis=0
        )

    ours()
    network.predict(x[: 2 * batch_size], batch_size=batch_size, verbose=0)
    times = [(seconds(ours), seconds(loop)) for _ in range(rounds)]
    ratios = [slow / fast for fast, slow in times]
    growth = {}
    for count in (1, 10, num_samples, 10 * num_samples):
        command = [sys.executable, __file__, "memory", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
        growth[count] = json.loads(done.stdout.splitlines()[-1])["mebibytes"]
    result = {
        "backend": backend,
        "num_inputs": NUM_INPUTS,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "seconds_ours": [fast for fast, _ in times],
        "seconds_loop": [slow for _, slow in times],
        "speedup_median": float(np.median(ratios)),
        "speedup_range": [min(ratios), max(ratios)],
        "memory_growth_mebibytes": growth,
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = output.with_suffix(".tmp")
        draft.write_text(json.dumps(result, indent=1))
        draft.replace(output)


if __name__ == "__main__":
    app()
