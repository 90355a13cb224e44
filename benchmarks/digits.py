"""Do the defaults learn? Digits with an MLP 64-h-h-10: accuracy, NLL, and what each network makes of unseen inputs.

The protocol is that of docs/design: stratified 30 % test split by the seed, pixels / 16, `compile("adam")`, 100 epochs
at batch 64, T = 1 at the end, 64 prediction samples. AUROC is of the predictive entropy, test digits against uniform
noise and against the same digits rotated by 90 degrees. Data: scikit-learn's own digits.

    python benchmarks/digits.py --seeds 5 --widths 32,512
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

app = typer.Typer(add_completion=False)

CONTESTANTS = ("twin", "reparameterization", "flipout", "local_reparameterization", "rank1", "rank1_broad")
# This ending of a name asks for Adam at 3e-3 ("adam" is 1e-3), with scales that move a third as fast for it.
FAST = "_fast"
EPOCHS = 100
BATCH_SIZE = 64
NUM_SAMPLES = 64


@dataclass(frozen=True)
class Result:
    """One trained network; NLL in nats per example, `stuck` the share of scales within 5 % of their start."""

    contestant: str
    width: int
    seed: int
    accuracy: float
    nll: float
    auroc_noise: float
    auroc_rotated: float
    stuck: float
    seconds: float


def load(seed: int) -> dict[str, np.ndarray]:
    """Training and test digits of a seed, the test digits rotated, and uniform noise."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.data / 16.0).astype("float32")
    x, x_test, y, y_test = train_test_split(
        pixels, digits.target, test_size=0.3, random_state=seed, stratify=digits.target
    )
    rotated = np.rot90(x_test.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
    noise = np.random.default_rng(seed).uniform(size=x_test.shape).astype("float32")
    return {
        "x": x,
        "y": y,
        "x_test": x_test,
        "y_test": y_test,
        "rotated": np.ascontiguousarray(rotated),
        "noise": noise,
    }


def build(contestant: str, width: int) -> Any:
    """The network of a contestant."""
    import keras

    import bdl

    kinds = {
        "twin": keras.layers.Dense,
        "reparameterization": bdl.layers.DenseReparameterization,
        "flipout": bdl.layers.DenseFlipout,
        "local_reparameterization": bdl.layers.DenseLocalReparameterization,
        "rank1": bdl.layers.DenseRank1,
        "rank1_broad": bdl.layers.DenseRank1,
    }
    layer = kinds[contestant.removesuffix(FAST)]
    broad = {"input_factor_prior": bdl.priors.Normal(1.0, 10.0)} if contestant == "rank1_broad" else {}
    slow = {"kernel_posterior": bdl.posteriors.MeanFieldNormal(speed=10.0)} if contestant.endswith(FAST) else {}
    return keras.Sequential(
        [
            keras.Input((64,)),
            layer(width, activation="relu", **broad, **slow),
            layer(width, activation="relu", **slow),
            layer(10, **slow),
        ]
    )


def scales(network: Any) -> np.ndarray:
    """All posterior scales of a network, flat."""
    import keras

    import bdl
    from bdl.keras_internals import flatten_layers

    found = [np.zeros(0)]
    for layer in flatten_layers(network):
        if isinstance(layer, bdl.layers.Variational):
            for weight in layer.sampled_weights.values():
                for name, variable in weight.variables.items():
                    if name.endswith("rho"):
                        rho = keras.ops.convert_to_numpy(variable).ravel()
                        found.append(np.exp(weight.posterior.speed * rho))
    return np.concatenate(found)


def run(contestant: str, width: int, seed: int) -> Result:
    """Trains and scores one network."""
    import keras

    import bdl

    data = load(seed)
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    network = build(contestant, width)
    before = scales(network)
    settings = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "verbose": 0}
    likelihood = bdl.likelihoods.Categorical()
    if contestant == "twin":
        network.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        network.fit(data["x"], data["y"], **settings)
        model: Any = network
    else:
        model = bdl.VariationalModel(network, likelihood)
        model.compile(keras.optimizers.Adam(3e-3) if contestant.endswith(FAST) else "adam")
        model.fit(data["x"], data["y"], **settings)
    entropies, p_test = {}, None
    for name in ("x_test", "noise", "rotated"):
        samples = 1 if contestant == "twin" else NUM_SAMPLES
        prediction = bdl.predict_distribution(network, data[name], likelihood, samples, batch_size=540)
        entropies[name] = prediction.total_uncertainty
        p_test = prediction.probabilities if name == "x_test" else p_test
    auroc = bdl.calibration.out_of_distribution_auroc
    after = scales(network)
    return Result(
        contestant=contestant,
        width=width,
        seed=seed,
        accuracy=bdl.calibration.accuracy(data["y_test"], p_test),
        nll=bdl.calibration.negative_log_likelihood(data["y_test"], p_test),
        auroc_noise=auroc(entropies["x_test"], entropies["noise"]),
        auroc_rotated=auroc(entropies["x_test"], entropies["rotated"]),
        stuck=float(np.mean(np.abs(after / before - 1.0) < 0.05)) if len(before) else float("nan"),
        seconds=time.perf_counter() - start,
    )


def report(results: list[Result], backend: str) -> None:
    """Prints means over seeds with standard errors."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Digits, MLP 64-h-h-10, {EPOCHS} epochs, T = 1 at the end, {backend}; mean ± standard error")
    columns = ("accuracy", "nll", "auroc_noise", "auroc_rotated", "stuck", "seconds")
    for column in ("contestant", "h", "seeds", *columns):
        table.add_column(column)
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.contestant, result.width), []).append(result)
    for (contestant, width), members in groups.items():
        cells = []
        for column in columns:
            values = np.array([getattr(member, column) for member in members])
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
            cells.append(f"{values.mean():.4f} ± {error:.4f}")
        table.add_row(contestant, str(width), str(len(members)), *cells)
    Console(width=160).print(table)


@app.command()
def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 5,
    widths: Annotated[str, typer.Option(help="Hidden widths, separated by commas.")] = "32,512",
    contestants: Annotated[str, typer.Option(help="Contestants, separated by commas.")] = ",".join(CONTESTANTS),
    backend: Annotated[str, typer.Option(help="Keras backend.")] = "tensorflow",
    output: Annotated[Path | None, typer.Option(help="JSON file for the results of every run.")] = None,
) -> None:
    """Trains every contestant at every width and seed, and prints the table."""
    os.environ["KERAS_BACKEND"] = backend
    results = []
    for width in (int(part) for part in widths.split(",")):
        for contestant in contestants.split(","):
            for seed in range(seeds):
                results.append(run(contestant, width, seed))
                print(json.dumps(asdict(results[-1])), flush=True)
    report(results, backend)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = output.with_suffix(".tmp")
        draft.write_text(json.dumps([asdict(result) for result in results], indent=1))
        draft.replace(output)


if __name__ == "__main__":
    app()
