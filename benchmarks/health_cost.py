"""What TrainingHealth costs at its defaults: its share of trainings of a few seconds to a minute, each in a process.

python benchmarks/health_cost.py --output benchmarks/results/health_cost.json
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from zoo_cases import Case, build, data_of

KINDS = (("rank1", "digits", 64), ("default", "breast_cancer", 64), ("one_missing", "breast_cancer", 32))
EPOCHS = (10, 40, 160)
GOAL = 0.05


def main(
    repeats: Annotated[int, typer.Option(help="Trainings of each kind and length.")] = 2,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Prints the callback's share of each training."""
    results = []
    for kind, data, width in KINDS:
        for epochs in EPOCHS:
            for seed in range(repeats):
                # A process each: what a backend prepares once is part of a user's first training.
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    result = pool.submit(_train, Case(kind, (), data, width, seed=seed), epochs).result()
                results.append(result)
                print(
                    f"{kind} on {data}, {epochs} epochs: {result['seconds']:.1f} s, callback {result['share']:.1%}, "
                    f"{result['probes']} measurements",
                    flush=True,
                )
    worst = max(result["share"] for result in results)
    print(f"largest share {worst:.1%}, goal {GOAL:.0%}")
    if output is not None:
        from bdl.report import write_atomically

        write_atomically(output, json.dumps(results, indent=1) + "\n")


def _train(case: Case, epochs: int) -> dict[str, Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from bdl.diagnostics import TrainingHealth

    x, y, *held = data_of(case)
    keras.utils.set_random_seed(case.seed)
    model, likelihood = build(case, x.shape[1], len(x))
    health = TrainingHealth((x, y), held, likelihood=likelihood, on_verdict="record")
    start = time.perf_counter()
    model.fit(x, y, batch_size=case.batch_size, epochs=epochs, verbose=0, callbacks=[health])
    seconds = time.perf_counter() - start
    return {
        "kind": case.kind,
        "data": case.data,
        "epochs": epochs,
        "seconds": seconds,
        "share": health.own_seconds / seconds,
        "probes": len({epoch for epoch, _, _ in health.verdicts}),
    }


if __name__ == "__main__":
    typer.run(main)
