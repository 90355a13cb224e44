"""What a step of `instead_of_ensemble` costs: the time of an epoch as a ratio to that of the deterministic twin.

Twin, twin with the recipe's optimizer, MC dropout and recipe take turns in one process of one thread, on random data of
the shapes of digits (two hidden layers of 512 units, JAX), MNIST (LeNet-5, TensorFlow without XLA) and TREC (Kim's
convolutional network, TensorFlow without XLA). Compilation is not in it. Printed is the median over the rounds (10 %
and 90 % quantiles).

    python -m research.recipe_cost --write       # the table goes into research/defaults.md
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Annotated

import numpy as np
import typer

from benchmarks.runs import markdown, replace_section, start_worker, write_csv
from benchmarks.timing import Round, ratio_of, time_of
from research.contest import BUDGETS, Case, Data, as_input, compiled
from research.record import PAGE, Write, csv_of

CONTESTANTS = ("twin", "twin_averaged", "mc_dropout", "instead_of_ensemble")
# Data set, network, backend, shape of an example, number of words (0 for images), steps of an epoch.
NETWORKS = (
    ("digits", "mlp512", "jax", (8, 8), 0, 100),
    ("mnist", "lenet5", "tensorflow", (28, 28), 0, 50),
    ("trec", "text_cnn", "tensorflow", (32,), 8_000, 50),
)


def main(
    rounds: Annotated[int, typer.Option(help="Epochs of each contestant.")] = 15,
    write: Write = False,
) -> None:
    """Prints the ratios."""
    lines, values = [], []
    for name, network, backend, shape, words, steps in NETWORKS:
        # A process each: a backend is chosen once.
        with ProcessPoolExecutor(1, get_context("spawn"), partial(start_worker, backend)) as pool:
            measured = pool.submit(measure, name, network, shape, words, steps, rounds).result()
        milliseconds = time_of("twin", measured)
        ratios = {contestant: ratio_of(contestant, "twin", measured) for contestant in CONTESTANTS[1:]}
        lines.append([f"{name}, {network} ({backend})", f"{milliseconds} ms", *map(str, ratios.values())])
        spreads = {("twin", "milliseconds per step"): milliseconds}
        spreads |= {(contestant, "ratio to the twin"): ratio for contestant, ratio in ratios.items()}
        values += [
            (name, network, backend, *key, spread.median, spread.low, spread.high)
            for key, spread in spreads.items()
            if spread is not None
        ]
    text = markdown(["network", "a step of the twin", *CONTESTANTS[1:]], lines)
    print(text)
    if write:
        replace_section(PAGE, "recipe-cost", text)
        header = ("data", "network", "backend", "contestant", "figure", "median", "10 %", "90 %")
        write_csv(csv_of("recipe-cost"), header, values)


def measure(name: str, network: str, shape: tuple[int, ...], words: int, steps: int, rounds: int) -> list[Round]:
    """Seconds a step of all contestants, in turns."""
    from bdl.keras_internals import own_buffers

    batch_size = BUDGETS[name][1]
    generator = np.random.default_rng(0)
    size = (steps * batch_size, *shape)
    x = generator.integers(0, words, size, "int32") if words else generator.uniform(size=size).astype("float32")
    y = generator.integers(0, 10, len(x))
    data = Data(x, y, x[:1], y[:1], {}, 10)
    models = {contestant: compiled(Case(name, network, contestant, 0), data) for contestant in CONTESTANTS}
    epoch = {"x": as_input(x), "y": y, "batch_size": batch_size, "verbose": 0}
    for model in models.values():
        model.fit(**epoch)
        own_buffers(model.trainable_variables)  # plain Keras models that average could not be fitted again on JAX
    found = []
    for _ in range(rounds):
        measured: Round = {}
        for contestant, model in models.items():
            start = time.perf_counter()
            model.fit(**epoch)
            measured[contestant] = (time.perf_counter() - start) / steps
            own_buffers(model.trainable_variables)
        found.append(measured)
    return found


if __name__ == "__main__":
    typer.run(main)
