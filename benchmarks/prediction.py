"""Monte Carlo prediction: memory against the number of samples, and speed against a loop of `model.predict`.

10,000 inputs of the digits' size, an MLP 64-128-128-10 with flipout layers. The loop is what users write without bdl:
`num_samples` calls of the Keras model's own `predict` (same network, same batch size), averaged in NumPy. Both are
measured in turn, in one process, after a first run each that compiles. Memory is the growth of the process's peak
resident size while predicting, compilation apart, each number of samples in a fresh process (Linux).

    python benchmarks/prediction.py main --backend tensorflow

`first` has the first prediction of a new network on TensorFlow, where one with an equal graph came before and where
none did, in turn.

    python benchmarks/prediction.py first
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


def convolutional() -> Any:
    """A small flipout network of 28 x 28 images."""
    import keras

    import bdl

    layer, pooled = bdl.layers.Conv2DFlipout, keras.layers.MaxPooling2D
    blocks = [layer(32, 3, activation="relu"), pooled(), layer(64, 3, activation="relu"), pooled()]
    return keras.Sequential([keras.Input((28, 28, 1)), *blocks, keras.layers.Flatten(), bdl.layers.DenseFlipout(10)])


@app.command()
def first(members: Annotated[int, typer.Option(help="New networks of each kind, for each of the two.")] = 10) -> None:
    """Prints seconds of first predictions: 64 rows, 10 samples; median and range."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import bdl
    from bdl.sampling import programs

    for name, make in [("MLP", lambda: build()[0]), ("conv", convolutional)]:
        times: dict[bool, list[float]] = {True: [], False: []}
        x = np.random.default_rng(0).normal(size=(64, *make().input_shape[1:])).astype("float32")
        for number in range(2 * members + 1):
            network, is_shared = make(), number % 2 == 0
            if not is_shared:
                programs.forget()
            taken = seconds(lambda: bdl.predict_distribution(network, x, bdl.likelihoods.Categorical(), num_samples=10))  # noqa: B023
            if number:  # the first compiles noise, too
                times[is_shared].append(taken)
        shared, alone = (f"{np.median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in times.values())
        print(f"{name}: {shared} s with a program that is there, {alone} s without")


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
