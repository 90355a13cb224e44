"""How long do calibration metrics take on millions of predictions, and how much memory?

Probabilities `(n, 10)`, float32, lie in a memory-mapped file. For each metric: seconds at n and n / 10 (a linear one
has a ratio of 10), and by how much the peak of the process's memory grew. torchmetrics, where installed, computes on
the same arrays in the same process, interleaved; it needs them in memory.

    python benchmarks/calibration_scale.py --num-examples 10000000 --output benchmarks/results/calibration_scale.json
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bdl import calibration

CLASSES = 10
Metric = Callable[[np.ndarray, np.ndarray], Any]

OURS: dict[str, Metric] = {
    "accuracy": calibration.accuracy,
    "NLL": calibration.negative_log_likelihood,
    "Brier score": calibration.brier_score,
    "Brier decomposition": calibration.brier_decomposition,
    "ECE": calibration.expected_calibration_error,
    "ECE, equal mass": lambda y, p: calibration.expected_calibration_error(y, p, binning="mass"),
    "MCE": calibration.maximum_calibration_error,
    "RMS-CE": calibration.root_mean_square_calibration_error,
    "debiased CE": calibration.debiased_calibration_error,
    "classwise ECE": calibration.classwise_calibration_error,
    "top-label CE": calibration.top_label_calibration_error,
    "ACE": calibration.adaptive_calibration_error,
    "entropy": lambda _, p: calibration.predictive_entropy(p),
    "AUROC": lambda y, p: calibration.out_of_distribution_auroc(*_detection(y, p)),
    "AUPR": lambda y, p: calibration.out_of_distribution_aupr(*_detection(y, p)),
    "AURC": lambda y, p: calibration.area_under_risk_coverage(p[:, 0] > 0.1, p[:, 1]),
}


def _detection(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One column as a score, split by the label's parity: what it ranks does not matter for the time."""
    return p[y % 2 == 0, 0], p[y % 2 == 1, 0]


def theirs() -> dict[str, Metric]:
    """What torchmetrics computes of the same, by our names; none where it is not installed."""
    if importlib.util.find_spec("torchmetrics") is None:
        return {}
    import torch
    from torchmetrics import functional

    def on_tensors(metric: Callable[..., Any], **options: Any) -> Metric:
        return lambda y, p: float(metric(torch.from_numpy(p), torch.from_numpy(y), **options))

    def auroc(y: np.ndarray, p: np.ndarray) -> float:
        scores = torch.from_numpy(np.ascontiguousarray(p[:, 0]))
        return float(functional.auroc(scores, torch.from_numpy(y % 2), task="binary"))

    task = {"task": "multiclass", "num_classes": CLASSES}
    return {
        "accuracy": on_tensors(functional.accuracy, average="micro", **task),
        "ECE": on_tensors(functional.calibration_error, n_bins=15, norm="l1", **task),
        "MCE": on_tensors(functional.calibration_error, n_bins=15, norm="max", **task),
        "RMS-CE": on_tensors(functional.calibration_error, n_bins=15, norm="l2", **task),
        "AUROC": auroc,
    }


def write_problem(folder: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax probabilities, written block by block."""
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int64, (n,))
    p = np.lib.format.open_memmap(folder / "p.npy", "w+", np.float32, (n, CLASSES))
    random = np.random.default_rng(0)
    for start in range(0, n, 500_000):
        rows = slice(start, min(start + 500_000, n))
        logits = 2 * random.standard_normal((rows.stop - rows.start, CLASSES), dtype=np.float32)
        block = np.exp(logits - logits.max(axis=1, keepdims=True))
        p[rows] = block / block.sum(axis=1, keepdims=True)
        y[rows] = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    y.flush()
    p.flush()
    return np.load(folder / "y.npy", mmap_mode="r"), np.load(folder / "p.npy", mmap_mode="r")


class PeakMemory:
    """By how many MiB the process's own memory (files in the page cache do not count) grew at most."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._start = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """In MiB, since the start."""
        return (self.peak - self._start) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        resident, shared = (int(pages) for pages in Path("/proc/self/statm").read_text().split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def seconds(metric: Metric, y: np.ndarray, p: np.ndarray) -> float:
    start = time.perf_counter()
    metric(y, p)
    return time.perf_counter() - start


def main(
    num_examples: Annotated[int, typer.Option(help="Rows of probabilities.")] = 10_000_000,
    rounds: Annotated[int, typer.Option(help="Measurements of each; their median is shown.")] = 3,
    output: Annotated[Path | None, typer.Option(help="JSON file for the raw figures.")] = None,
) -> None:
    """Measure and print the table."""
    others = theirs()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        y, p = write_problem(Path(folder), num_examples)
        in_memory = (np.array(y), np.array(p)) if others else None
        tenth = num_examples // 10
        for name, metric in OURS.items():
            metric(y[:1000], p[:1000])
            with PeakMemory() as memory:
                metric(y, p)
            ours, small, torch_seconds = [], [], []
            for _ in range(rounds):
                ours.append(seconds(metric, y, p))
                small.append(seconds(metric, y[:tenth], p[:tenth]))
                if in_memory is not None and name in others:
                    torch_seconds.append(seconds(others[name], *in_memory))
            results.append(
                {"metric": name, "seconds": ours, "tenth": small, "torchmetrics": torch_seconds, "mib": memory.growth}
            )
    table = Table("metric", "s", "ratio to a tenth", "peak MiB", "torchmetrics s", "ours / theirs")
    for row in results:
        median = statistics.median(row["seconds"])
        other = statistics.median(row["torchmetrics"]) if row["torchmetrics"] else None
        table.add_row(
            row["metric"], f"{median:.2f}", f"{median / statistics.median(row['tenth']):.1f}", f"{row['mib']:.0f}",
            "" if other is None else f"{other:.2f}", "" if other is None else f"{median / other:.2f}",
        )  # fmt: skip
    Console(width=100).print(table)
    if output is not None:
        output.write_text(json.dumps({"num_examples": num_examples, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
