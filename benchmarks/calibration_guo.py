"""Does recalibration mend overconfident networks? The figures of Guo et al. 2017, on our own.

Per seed: a wide network trained far too long on 600 of scikit-learn's digits under noise, so that it is overconfident;
half of the other digits, five times with noise of their own, calibrate, the other half test. Shown: NLL, ECE, debiased
calibration error and accuracy of every recalibrator, mean over seeds and standard error, and by how much temperature
scaling lowers the ECE.
Then many classes: random logits of 100 classes, 1,000 examples, where matrix scaling overfits. Last, the temperature
beside that of scikit-learn, and of netcal where installed.

    python benchmarks/calibration_guo.py --output benchmarks/results/calibration_guo.json
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bdl import calibration
from bdl.calibration import recalibration

PIXEL_NOISE = 0.6  # of pixels from 0 to 1: neighbouring digits overlap
COPIES = 5  # of each held-out digit, with noise of their own
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def overconfident_network(seed: int) -> Split:
    """Logits and labels to calibrate and to test with."""
    import keras
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    random = np.random.default_rng(seed)
    x_train, x_rest, y_train, y_rest = train_test_split(x / 16, y, train_size=600, random_state=seed)
    x_rest, y_rest = np.repeat(x_rest, COPIES, axis=0), np.repeat(y_rest, COPIES)
    order = random.permutation(len(y_rest))
    x_train = x_train + PIXEL_NOISE * random.normal(size=x_train.shape)
    x_rest, y_rest = (x_rest + PIXEL_NOISE * random.normal(size=x_rest.shape))[order], y_rest[order]
    keras.utils.set_random_seed(seed)
    network = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(3e-3), loss)
    network.fit(x_train, y_train, epochs=200, batch_size=64, verbose=0)
    logits = network.predict(x_rest, verbose=0).astype(np.float64)
    half = len(y_rest) // 2
    return logits[:half], y_rest[:half], logits[half:], y_rest[half:]


def many_classes(seed: int, classes: int = 100) -> Split:
    """Overconfident logits of many classes: twice those from which the labels are drawn."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(6000, classes))
    y = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    return 2 * logits[:1000], y[:1000], 2 * logits[1000:], y[1000:]


def calibrators() -> dict[str, Any]:
    """Every recalibrator of class probabilities, and matrix scaling without regularization."""
    return {
        "temperature": recalibration.TemperatureScaling(from_logits=True),
        "vector": recalibration.VectorScaling(from_logits=True),
        "matrix": recalibration.MatrixScaling(from_logits=True),
        "matrix, no regularization": recalibration.MatrixScaling(from_logits=True, regularization=0.0),
        "Dirichlet": recalibration.DirichletCalibration(from_logits=True),
        "Platt": recalibration.PlattScaling(from_logits=True),
        "beta": recalibration.BetaCalibration(from_logits=True),
        "isotonic": recalibration.IsotonicCalibration(from_logits=True),
        "histogram": recalibration.HistogramBinning(from_logits=True),
    }


def scores(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    return {
        "nll": calibration.negative_log_likelihood(y, p),
        "ece": calibration.expected_calibration_error(y, p),
        "debiased": calibration.debiased_calibration_error(y, p),
        "accuracy": calibration.accuracy(y, p),
    }


def compare(splits: list[Split], names: list[str]) -> dict[str, list[dict[str, float]]]:
    """Scores of each recalibrator on every split."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for logits, y, test_logits, test_y in splits:
        found["as it is"].append(scores(test_y, _softmax(test_logits)))
        for name in names:
            fitted = calibrators()[name].fit(logits, y)
            found[name].append(scores(test_y, fitted.predict_proba(test_logits)))
    return found


def temperatures(splits: list[Split]) -> dict[str, float]:
    """Largest relative difference of the inverse temperature to other libraries'."""
    from sklearn.calibration import _TemperatureScaling

    largest: dict[str, float] = defaultdict(float)
    for logits, y, _, _ in splits:
        ours = 1 / recalibration.TemperatureScaling(from_logits=True).fit(logits, y).temperature_
        theirs = {"scikit-learn": _TemperatureScaling().fit(logits, y).beta_}
        if importlib.util.find_spec("netcal") is not None:
            from netcal.scaling import TemperatureScaling

            scaling = TemperatureScaling()
            scaling.fit(_softmax(logits), y)
            theirs["netcal"] = float(np.ravel(scaling.temperature)[0])
        for library, value in theirs.items():
            largest[library] = max(largest[library], abs(ours / float(value) - 1))
    return dict(largest)


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(logits, axis=1)


def table_of(found: dict[str, list[dict[str, float]]], title: str) -> Table:
    table = Table("", "NLL", "ECE", "debiased", "accuracy", title=title)
    for name, results in found.items():
        cells = []
        for key in results[0]:
            values = np.array([each[key] for each in results])
            cells.append(f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}")
        table.add_row(name, *cells)
    return table


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Train, recalibrate and print the tables."""
    console = Console(width=110)
    networks = [overconfident_network(seed) for seed in range(seeds)]
    digits = compare(networks, list(calibrators()))
    console.print(table_of(digits, "Overconfident networks on digits"))
    pairs = zip(digits["as it is"], digits["temperature"], strict=True)
    ratios = np.array([before["ece"] / after["ece"] for before, after in pairs])
    console.print(
        f"Temperature scaling lowers the ECE {ratios.mean():.1f} times ({ratios.min():.1f} to {ratios.max():.1f})"
    )
    names = ["temperature", "vector", "matrix", "matrix, no regularization"]
    classes = compare([many_classes(seed) for seed in range(seeds)], names)
    console.print(table_of(classes, "100 classes, 1,000 examples"))
    differences = temperatures(networks)
    for library, difference in differences.items():
        console.print(f"Inverse temperature, largest relative difference to {library}: {difference:.1e}")
    if output is not None:
        figures = {
            "digits": digits,
            "many_classes": classes,
            "ece_ratios": ratios.tolist(),
            "temperatures": differences,
        }
        output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
