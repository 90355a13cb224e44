"""Real data sets that a user brings: `--data DIR`, or the environment variable BDL_DATA.

Every loader checks shapes, and stops with a sentence that says where a missing file comes from.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

UCI = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "yacht": "yacht",
    "wine-red": "wine-quality-red",
}


def folder_of(data: Path | None) -> Path | None:
    """The folder of `--data`, else that of BDL_DATA, else None."""
    chosen = data if data is not None else os.environ.get("BDL_DATA")
    return None if chosen is None else Path(chosen)


def uci(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `(n, features)` and targets `(n,)` of a UCI regression."""
    path = folder / "uci" / f"{UCI[name]}.npz"
    archive = _read(path, "UCI's repository or OpenML, saved by numpy.savez(path, X=..., y=...)")
    x, y = archive["X"], archive["y"]
    if x.ndim != 2 or y.shape != (len(x),):
        raise SystemExit(f"{path.name}: X must be (n, features) and y (n,), not {x.shape} and {y.shape}.")
    return x.astype("float32"), y.astype("float32")


def fashion_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `(n, 28, 28)` of bytes and labels `(n,)`: training, then test."""
    path = folder / "fashion_mnist" / "fashion_mnist_20k_10k.npz"
    archive = _read(path, "keras.datasets.fashion_mnist, saved by numpy.savez(path, x_train=..., y_train=..., ...)")
    parts = tuple(archive[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    if parts[0].shape[1:] != (28, 28) or len(parts[0]) != len(parts[1]):
        raise SystemExit(f"{path.name}: x_train must be (n, 28, 28) with as many labels, not {parts[0].shape}.")
    return parts  # type: ignore[return-value]


def _read(path: Path, source: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It comes from {source}.")
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}
