"""Does memory grow in a process that serves for long? Cycles of fit, predict, convert, save and load of a small model.

A cycle fits one model further, predicts with it, converts its network to a plain one, that one to MC dropout and to a
variational one, predicts with each, saves the model, loads it and predicts with the copy.

    KERAS_BACKEND=jax python benchmarks/soak.py --cycles 500 --output benchmarks/results/soak.jsonl

TensorFlow keeps a little of each variable that there ever was, until `keras.utils.clear_session()`, which Keras
recommends where many models are made; `--clear-every` calls it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

MEBIBYTE = 2**20


class Soak:
    """A model that goes through cycles.

    Args:
        folder: Where it is saved.
    """

    def __init__(self, folder: Path) -> None:
        import keras

        import bdl

        keras.utils.set_random_seed(0)
        random = np.random.default_rng(0)
        self.x = random.normal(size=(256, 8)).astype("float32")
        self.y = random.integers(0, 3, size=256)
        hidden = [bdl.layers.DenseFlipout(16, activation="relu"), keras.layers.Dropout(0.2)]
        network = keras.Sequential([keras.Input((8,)), *hidden, bdl.layers.DenseReparameterization(3)])
        self.model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
        self.model.compile("adam")
        self.file = folder / "model.keras"

    def cycle(self) -> None:
        """One round of all."""
        import keras

        from bdl.convert import to_deterministic, to_mc_dropout, to_variational

        self.model.fit(self.x, self.y, batch_size=64, verbose=0)
        self._predict(self.model)
        plain = to_deterministic(self.model.network)
        for network in (to_mc_dropout(plain), to_variational(plain)):
            self._predict(network)
        self.model.save(self.file)
        self._predict(keras.saving.load_model(self.file))

    def _predict(self, model: Any) -> None:
        import bdl

        if isinstance(model, bdl.VariationalModel):
            model.predict_distribution(self.x, num_samples=4)
        else:
            bdl.predict_distribution(model, self.x, bdl.likelihoods.Categorical(), num_samples=4)


def resident_mebibytes() -> float:
    """Memory of this process, on Linux, after what nobody refers to is freed and the C library gave it back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # it keeps freed pieces otherwise, and memory seems to grow
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def main(
    cycles: Annotated[int, typer.Option(help="Cycles that are measured.")] = 500,
    warm_up: Annotated[int, typer.Option(help="Cycles before them.")] = 10,
    clear_every: Annotated[int, typer.Option(help="Cycles between two `clear_session()`; 0 for none.")] = 0,
    every: Annotated[int, typer.Option(help="Cycles between two lines.")] = 25,
    output: Annotated[Path | None, typer.Option(help="File to which a line of JSON is added.")] = None,
) -> None:
    """Prints the memory at cycles, and its growth since the warm-up in per cent."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder))
        for _ in range(warm_up):
            soak.cycle()
        levels = {0: resident_mebibytes()}
        for number in range(1, cycles + 1):
            soak.cycle()
            if clear_every and number % clear_every == 0:
                keras.utils.clear_session()
            if number % every == 0 or number == cycles:
                levels[number] = resident_mebibytes()
                print(f"{number} cycles: {levels[number]:.0f} MiB, {growth(levels):+.1f} %", flush=True)
    row = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "cycles": cycles,
        "warm_up": warm_up,
        "clear_every": clear_every,
        "mebibytes": {str(number): round(level, 1) for number, level in levels.items()},
        "growth_percent": round(growth(levels), 2),
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(row))
    if output is not None:
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")


def growth(levels: dict[int, float]) -> float:
    """Of the last level over the first, in per cent."""
    first, *_, last = levels.values()
    return 100 * (last / first - 1)


if __name__ == "__main__":
    typer.run(main)
