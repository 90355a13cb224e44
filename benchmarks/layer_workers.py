"""The worker process of the layer benchmark: `python layer_workers.py FRAMEWORK`, started by `layers.py`.

It builds contestants of one framework on request, keeps them warm, and runs bursts of training steps with them.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import numpy as np
from layer_contestants import BATCH_SIZE, KERAS_FRAMEWORKS
from timing import serve

MAX_STEPS = 200  # of a burst: so much data is kept in memory
WARM_UP_STEPS = 5  # more than the two or three calls that trace, compile and, with torch.compile, recompile
TRIAL_STEPS = 10  # to choose how many steps a burst needs
REPORTED_PACKAGES = (
    "bdl", "keras", "tensorflow", "jax", "torch", "tensorflow-probability", "tf-keras",
    "keras-proba", "bayesian-torch", "blitz-bayesian-pytorch", "torch-uncertainty", "numpy",
)  # fmt: skip


class Trainer(Protocol):
    """A contestant that is ready to train."""

    def burst(self, steps: int) -> float:
        """Seconds per step of `steps` training steps."""


def random_data() -> tuple[np.ndarray, np.ndarray]:
    """Images as rows of 784 pixels, and labels: enough for one step more than the longest burst."""
    rows = (MAX_STEPS + 1) * BATCH_SIZE
    generator = np.random.default_rng(0)
    images = generator.standard_normal((rows, 784), dtype=np.float32)
    labels = generator.integers(0, 10, rows)
    return images, labels


class Garage:
    """The contestants of this process, by name: the handlers of `timing.serve`.

    Args:
        framework: One of `KERAS_FRAMEWORKS`, `tf-keras` or `torch`.
    """

    def __init__(self, framework: str):
        self._framework = framework
        self._data = random_data()
        self._trainers: dict[str, Trainer] = {}

    def prepare(self, name: str, library: str, estimator: str, runtime: str, network: str) -> dict:
        """Build a contestant, compile it and warm it up."""
        start = time.perf_counter()
        trainer = self._build(library, estimator, runtime, network)
        trainer.burst(WARM_UP_STEPS)
        start_up = time.perf_counter() - start
        self._trainers[name] = trainer
        return {"start_up_seconds": start_up, "step_seconds": trainer.burst(TRIAL_STEPS)}

    def burst(self, name: str, steps: int) -> dict:
        """Train a prepared contestant for `steps` steps."""
        start = time.process_time()
        step_seconds = self._trainers[name].burst(steps)
        return {"step_seconds": step_seconds, "cpu_seconds": time.process_time() - start}

    def release(self) -> dict:
        """Forget all contestants, to give their memory back."""
        self._trainers.clear()
        return {}

    def versions(self) -> dict:
        """The versions of the installed packages that may take part."""
        found = {}
        for package in REPORTED_PACKAGES:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return {"versions": {"python": sys.version.split()[0], **found}}

    def _build(self, library: str, estimator: str, runtime: str, network: str) -> Trainer:
        if self._framework == "torch":
            from layer_trainers_torch import build
        else:
            from layer_trainers_keras import build
        return build(library, estimator, runtime, network, *self._data)


def choose_framework(framework: str) -> None:
    """Set what must be in the environment before a framework is imported; all of them run on the CPU."""
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="2")
    if framework in KERAS_FRAMEWORKS:
        os.environ["KERAS_BACKEND"] = framework.removeprefix("keras-")
    elif framework == "tf-keras":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"


if __name__ == "__main__":
    choose_framework(sys.argv[1])
    garage = Garage(sys.argv[1])
    serve({handler.__name__: handler for handler in (garage.prepare, garage.burst, garage.release, garage.versions)})
