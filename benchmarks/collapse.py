"""A network that collapses for real: when it is named, and what the first remedy makes of it.

Digits, MLP 64-512-512-10 with N(0, 1/fan-in) priors at T = 1 throughout, 200 epochs of batches of 64, Adam.

    python benchmarks/collapse.py --output benchmarks/results/collapse.json
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

EPOCHS = 200
BATCH_SIZE = 64


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    whole: Annotated[bool, typer.Option(help="Train all 200 epochs, and do not stop at the verdict.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Prints the epoch of the verdict, and accuracies before and after the remedy, on test data."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    results = [run(seed, whole) for seed in range(seeds)]
    epochs, accuracies = ([result[key] for result in results] for key in ("named_at", "remedied_accuracy"))
    print(
        f"named at epochs {epochs} of {EPOCHS}; after the remedy {np.mean(accuracies):.3f}, least {min(accuracies):.3f}"
    )
    if output is not None:
        from bdl.report import write_atomically

        write_atomically(output, json.dumps(results, indent=1) + "\n")


def run(seed: int, whole: bool) -> dict[str, Any]:
    """One seed."""
    import keras
    from zoo_cases import load

    import bdl
    from bdl.diagnostics import TrainingHealth, diagnose

    x, y, x_test, y_test = load("digits", seed)
    keras.utils.set_random_seed(seed)
    layer = bdl.layers.DenseReparameterization
    hidden = [layer(512, activation="relu", kernel_prior="fan_in_normal") for _ in range(2)]
    network = keras.Sequential([keras.Input((64,)), *hidden, layer(10, kernel_prior="fan_in_normal")])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile("adam", metrics=["accuracy"])
    held = (x_test, y_test)
    health = TrainingHealth((x, y), held, on_verdict="record" if whole else "stop")
    history = model.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0, callbacks=[health])
    report = diagnose(model, x, y, validation_data=held, record=health, twin="auto" if whole else None)
    better = report.remedies[0].apply(model)
    better.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS // 2, verbose=0)
    accuracy = float(np.mean(better.predict(x_test, verbose=0).argmax(axis=-1) == y_test))
    result = {
        "seed": seed,
        "epochs": len(history.epoch),
        "named_at": next((epoch for epoch, verdict, _ in health.verdicts if verdict == "collapsed"), None),
        "verdict": report.verdict,
        "confidence": report.confidence,
        "accuracy": report.quantities.validation.accuracy,
        "nll": report.quantities.validation.nll_bma,
        "own_seconds": health.own_seconds,
        "remedy": report.remedies[0].name,
        "remedied_accuracy": accuracy,
    }
    print(result, flush=True)
    return result


if __name__ == "__main__":
    typer.run(main)
