"""How much of a step's gradient is signal, noise of the data and noise of the draw, by model and batch size.

Networks on scikit-learn's digits with four estimators, and a logistic regression as a story with one and with four
draws a step, after 20 epochs of Adam; `bdl.diagnostics.gradient_noise` with 64 draws. It runs on TensorFlow.

    python benchmarks/gradient_noise.py run                  # resumable
    python benchmarks/gradient_noise.py report --write       # the table, into benchmarks/README.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow_probability as tfp
import typer
from keras import ops
from runs import markdown, read, replace_section, run_all
from sklearn.datasets import load_digits

import bdl
from bdl.diagnostics import gradient_noise
from bdl.svi import SVI, Global, Observed

app = typer.Typer(add_completion=False)
HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "gradient_noise.jsonl", HERE / "README.md"
LAYERS = {
    "reparameterization, mirrored": bdl.layers.DenseReparameterization,
    "flipout": bdl.layers.DenseFlipout,
    "local reparameterization": bdl.layers.DenseLocalReparameterization,
    "rank-1": bdl.layers.DenseRank1,
}
DRAWS = {"story, one draw": 1, "story, four draws": 4}
SIZES, SEEDS, NUM_DRAWS, NUM_ROWS, NUM_COPIES = (16, 64, 256), (0, 1, 2), 64, 512, 20
TRAINED_WITH, EPOCHS = 64, 20


@dataclass(frozen=True)
class Case:
    """A model, measured at all batch sizes.

    Args:
        model: Name of it.
        seed: Of its training and of the measurement.
    """

    model: str
    seed: int = 0


def logistic(data: Any) -> Any:
    """Logistic regression: is the digit five or more?"""
    tfd = tfp.distributions
    weights = yield Global("weights", tfd.Normal(ops.zeros(64), 1.0))
    yield Observed("y", tfd.Bernoulli(logits=ops.sum(data["x"] * weights, axis=1)), data["y"])


def measured(case: Case) -> dict[str, Any]:
    """Signal and noises at each batch size."""
    keras.utils.set_random_seed(case.seed)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    model: Any
    if case.model in DRAWS:
        model = SVI(logistic, num_samples=DRAWS[case.model], seed=case.seed)
        given: tuple[Any, ...] = ({"x": x, "y": (y >= 5).astype("float32")},)
    else:
        layer: Callable[..., Any] = LAYERS[case.model]
        parts = [keras.Input((64,)), layer(128, activation="relu"), layer(10)]
        model = bdl.VariationalModel(keras.Sequential(parts), bdl.likelihoods.Categorical(), kl_weight=1.0)
        given = (x, y)
    model.compile(keras.optimizers.Adam(0.01 if case.model in DRAWS else 0.003))
    model.fit(*given, batch_size=TRAINED_WITH, epochs=EPOCHS, verbose=0)
    # Of many copies, for a batch that is a good part of all rows has less noise than one of rows that may come again.
    many = keras.tree.map_structure(lambda leaf: np.concatenate([leaf] * NUM_COPIES), given)
    found = {}
    for size in SIZES:
        number = NUM_ROWS // size  # so that all sizes see as many rows
        noise = gradient_noise(model, *many, batch_size=size, num_draws=NUM_DRAWS, num_batches=number, seed=case.seed)
        found[str(size)] = {
            "signal": noise.signal,
            "signal_error": noise.signal_error,
            "data": noise.data,
            "data_error": noise.data_error,
            "draw": noise.draw,
            "draw_error": noise.draw_error,
            "share": noise.draw_share,
        }
    return {"sizes": found}


@app.command()
def run(workers: int = 1) -> None:
    """Measures what is not measured yet."""
    cases = [Case(model, seed) for seed in SEEDS for model in (*LAYERS, *DRAWS)]
    run_all(measured, cases, RESULTS, workers, backend="tensorflow")


@app.command()
def report(write: bool = False) -> None:
    """Prints the table: means over the seeds, with the smallest and largest."""
    rows = read(RESULTS)
    first, last = (str(size) for size in (SIZES[0], SIZES[-1]))
    columns = ["model", *(f"draw's share at {size}" for size in SIZES)]
    columns += [f"data, times b: {first} / {last}", f"draw: {first} / {last}", "noise / signal at 64"]
    lines = []
    for model in (*LAYERS, *DRAWS):
        own = [row["sizes"] for row in rows if row["model"] == model]
        shares = [spread([100 * each[str(size)]["share"] for each in own], "{:.0f} %") for size in SIZES]
        data = spread([SIZES[0] * each[first]["data"] / (SIZES[-1] * each[last]["data"]) for each in own])
        draw = spread([each[first]["draw"] / each[last]["draw"] for each in own])
        ratio = spread([(each["64"]["data"] + max(each["64"]["draw"], 0.0)) / each["64"]["signal"] for each in own])
        has_draw = all(known(each[size], "draw") for each in own for size in (first, last))
        has_signal = all(known(each["64"], "signal") for each in own)
        lines.append([model, *shares, data, draw if has_draw else "not known", ratio if has_signal else "not known"])
    table = markdown(columns, lines)
    print(table)
    if write:
        replace_section(PAGE, "gradient_noise", table)


def known(found: dict[str, float], name: str) -> bool:
    """Whether a figure is more than four standard errors from zero."""
    return found[name] > 4 * found[f"{name}_error"]


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Mean, and the range."""
    low, mean, high = (form.format(value) for value in (min(values), float(np.mean(values)), max(values)))
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    app()
