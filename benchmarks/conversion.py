"""Does conversion help a network that is already trained? Digits, a convolutional network with batch norm and dropout.

Per seed: train the network (stratified 30 % test split by the seed, Adam, 200 epochs, batch 64); predict with it as it
is; converted to MC dropout (64 samples); and converted with `prior="moped"` and fine-tuned for two epochs at T = 1 (64
samples). Accuracy, NLL in nats per example, ECE (15 bins); AUROC of total uncertainty (of the network as it is: its
entropy) for the wrong answers of the same prediction, and of epistemic uncertainty (as it is: entropy) for uniform
noise images against test digits. Then the speed of 100 samples against a loop of `model(x, training=True)`.

    python benchmarks/conversion.py --seeds 5
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

EPOCHS = 200
BATCH_SIZE = 64
NUM_SAMPLES = 64
FINE_TUNING_EPOCHS = 2


@dataclass(frozen=True)
class Result:
    """Figures of one way to predict."""

    contestant: str
    seed: int
    accuracy: float
    nll: float
    ece: float
    auroc_errors: float
    auroc_noise: float


def load(seed: int) -> dict[str, np.ndarray]:
    """Training and test images of a seed, and uniform noise."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[..., None] / 16.0).astype("float32")
    x, x_test, y, y_test = train_test_split(
        images, digits.target, test_size=0.3, random_state=seed, stratify=digits.target
    )
    noise = np.random.default_rng(seed).uniform(size=x_test.shape).astype("float32")
    return {"x": x, "y": y, "x_test": x_test, "y_test": y_test, "noise": noise}


def build() -> Any:
    """A network that users have: convolutions, batch normalization, dropout."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.05),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.1),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(10),
        ]
    )


def train(data: dict[str, np.ndarray], seed: int) -> Any:
    """The trained deterministic network."""
    import keras

    keras.utils.set_random_seed(seed)
    network = build()
    network.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(data["x"], data["y"], batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    return network


def score(contestant: str, seed: int, network: Any, data: dict[str, np.ndarray]) -> Result:
    """Figures of a network, sampled or not."""
    import bdl

    samples = 1 if contestant == "as it is" else NUM_SAMPLES
    likelihood = bdl.likelihoods.Categorical()
    test, noise = (
        bdl.predict_distribution(network, data[name], likelihood, samples, batch_size=540, seed=seed)
        for name in ("x_test", "noise")
    )
    y, p = data["y_test"], test.probabilities
    wrong = p.argmax(axis=1) != y
    auroc = bdl.calibration.out_of_distribution_auroc
    novelty = [each.total_uncertainty if samples == 1 else each.epistemic for each in (test, noise)]
    return Result(
        contestant=contestant,
        seed=seed,
        accuracy=bdl.calibration.accuracy(y, p),
        nll=bdl.calibration.negative_log_likelihood(y, p),
        ece=bdl.calibration.expected_calibration_error(y, p),
        auroc_errors=auroc(test.total_uncertainty[~wrong], test.total_uncertainty[wrong]),
        auroc_noise=auroc(*novelty),
    )


def run(seed: int) -> list[Result]:
    """All contestants of one seed."""
    import keras

    import bdl

    keras.backend.clear_session()
    data = load(seed)
    network = train(data, seed)
    results = [score("as it is", seed, network, data)]
    results.append(score("mc dropout", seed, bdl.convert.to_mc_dropout(network, seed=seed), data))
    sampled = bdl.convert.to_variational(network, prior="moped", seed=seed)
    model = bdl.VariationalModel(sampled, bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(data["x"], data["y"], batch_size=BATCH_SIZE, epochs=FINE_TUNING_EPOCHS, verbose=0)
    results.append(score("moped", seed, sampled, data))
    return results


def speed(rounds: int = 3, num_samples: int = 100) -> dict[str, Any]:
    """Seconds of `num_samples` over the test digits: one call of bdl, and a loop of the network in training mode."""
    import keras

    import bdl

    data = load(0)
    network = build()
    converted = bdl.convert.to_mc_dropout(network, seed=0)
    x = data["x_test"]

    def ours() -> Any:
        sampler_input = (converted, x, bdl.likelihoods.Categorical())
        return bdl.predict_distribution(*sampler_input, num_samples=num_samples, batch_size=540).probabilities

    def loop() -> Any:
        return np.mean(
            [keras.ops.convert_to_numpy(keras.ops.softmax(network(x, training=True))) for _ in range(num_samples)], 0
        )

    times = []
    for number in range(rounds + 1):
        pair = []
        for function in (ours, loop):
            start = time.perf_counter()
            function()
            pair.append(time.perf_counter() - start)
        if number:  # the first round warms up
            times.append(pair)
    ratios = [slow / fast for fast, slow in times]
    return {"seconds": times, "ratio_median": float(np.median(ratios)), "ratio_range": [min(ratios), max(ratios)]}


def report(results: list[Result], speeds: dict[str, Any], backend: str) -> None:
    """Prints means over seeds with standard errors, and the differences to the network as it is."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    table = Table(title=f"Digits, conversion of a trained network, {backend}; mean ± standard error, (mean difference)")
    columns = ("accuracy", "nll", "ece", "auroc_errors", "auroc_noise")
    for column in ("contestant", "seeds", *columns):
        table.add_column(column)
    base = [result for result in results if result.contestant == "as it is"]
    for contestant in dict.fromkeys(result.contestant for result in results):
        members = [result for result in results if result.contestant == contestant]
        cells = []
        for column in columns:
            values = np.array([getattr(member, column) for member in members])
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
            difference = values - np.array([getattr(member, column) for member in base])
            cells.append(f"{values.mean():.4f} ± {error:.4f} ({difference.mean():+.4f})")
        table.add_row(contestant, str(len(members)), *cells)
    console.print(table)
    low, high = speeds["ratio_range"]
    console.print(f"100 samples: {speeds['ratio_median']:.1f} times ({low:.1f} to {high:.1f}) as fast as the loop")


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 5,
    backend: Annotated[str, typer.Option(help="Keras backend.")] = "tensorflow",
    output: Annotated[Path | None, typer.Option(help="JSON file for the results of every run.")] = None,
) -> None:
    """Trains, converts and scores, and prints the table."""
    os.environ["KERAS_BACKEND"] = backend
    results = [result for seed in range(seeds) for result in run(seed)]
    speeds = speed()
    report(results, speeds, backend)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = output.with_suffix(".tmp")
        draft.write_text(
            json.dumps({"backend": backend, "results": [asdict(each) for each in results], "speed": speeds}, indent=1)
        )
        draft.replace(output)


if __name__ == "__main__":
    typer.run(main)
