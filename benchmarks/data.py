"""Real data sets that a user brings: `--data DIR`, or the environment variable BDL_DATA.

Every loader checks shapes, and stops with a sentence that says where a missing file comes from.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UCI = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "yacht": "yacht",
    "wine-red": "wine-quality-red",
    "power": "power-plant",
}
MAX_WORDS = 32


def folder_of(data: Path | None) -> Path | None:
    """The folder of `--data`, else that of BDL_DATA, else None."""
    chosen = data if data is not None else os.environ.get("BDL_DATA")
    return None if chosen is None else Path(chosen)


def hold_out(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four fifths of the examples and a random fifth: inputs and targets of each."""
    order = np.random.default_rng(seed).permutation(len(x))
    held, kept = order[: len(x) // 5], order[len(x) // 5 :]
    return x[kept], y[kept], x[held], y[held]


def uci(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `(n, features)` and targets `(n,)` of a UCI regression."""
    path = folder / "uci" / f"{UCI[name]}.npz"
    archive = _read(path, "UCI's repository or OpenML, saved by numpy.savez(path, X=..., y=...)")
    x, y = archive["X"], archive["y"]
    if x.ndim != 2 or y.shape != (len(x),):
        raise SystemExit(f"{path.name}: X must be (n, features) and y (n,), not {x.shape} and {y.shape}.")
    return x.astype("float32"), y.astype("float32")


@dataclass(frozen=True)
class UCISplit:
    """One of the given splits of a UCI regression.

    Args:
        x, y: Training inputs and targets, standardised by the training part.
        x_test, y_test: The same of the test part.
        scale: Standard deviation of the training targets in their own unit.
        reference_nll: Test NLL of the MC-dropout authors on this split, per example, in nats.
        reference_rmse: Their root mean square error, in the targets' unit.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    scale: float
    reference_nll: float
    reference_rmse: float


def uci_split(folder: Path, name: str, split: int) -> UCISplit:
    """One of the twenty splits of Hernandez-Lobato and Adams, as the MC-dropout authors publish them."""
    path = folder / "uci" / f"{UCI[name]}.npz"
    archive = _read(path, "UCI or OpenML, with splits RandomState(1).choice(n, n, replace=False) in turn as `perm`")
    order, size = archive["perm"][split], int(archive["n_train"])
    x, y = (standardised(archive[part].astype("float64"), order[:size]) for part in ("X", "y"))
    return UCISplit(
        *(part[chosen].astype("float32") for chosen in (order[:size], order[size:]) for part in (x, y)),
        scale=float(archive["y"][order[:size]].std()),
        reference_nll=-float(archive["ref_test_ll"][split]),
        reference_rmse=float(archive["ref_test_MC_rmse"][split]),
    )


def standardised(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Values less the training part's mean, in units of its standard deviation."""
    scale = values[training].std(axis=0)
    return (values - values[training].mean(axis=0)) / np.where(scale == 0, 1.0, scale)


def fashion_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `(n, 28, 28)` of bytes and labels `(n,)`: training, then test."""
    return _images(folder / "fashion_mnist" / "fashion_mnist_20k_10k.npz", "keras.datasets.fashion_mnist")


def mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `(n, 28, 28)` of bytes and labels `(n,)`: training, then test."""
    return _images(folder / "mnist" / "mnist.npz", "keras.datasets.mnist")


def trec(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Questions as word numbers `(n, 32)` and labels `(n,)`: training, then test.

    0 pads, 1 stands for words that the training questions do not have.
    """
    path = folder / "text" / "trec.tsv.gz"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It comes from TREC's question classification, as split, label and text.")
    with gzip.open(path, "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    if any(len(row) != 3 or row[0] not in ("train", "test") for row in rows):
        raise SystemExit(f"{path.name}: each line must hold train or test, a label and a question, between tabs.")
    words = sorted({word for split, _, text in rows if split == "train" for word in text.lower().split()})
    numbers = {word: number for number, word in enumerate(words, 2)}
    parts: list[np.ndarray] = []
    for wanted in ("train", "test"):
        chosen = [(label, text.lower().split()[:MAX_WORDS]) for split, label, text in rows if split == wanted]
        x = np.zeros((len(chosen), MAX_WORDS), "int32")
        for row, (_, text) in zip(x, chosen, strict=True):
            row[: len(text)] = [numbers.get(word, 1) for word in text]
        parts += [x, np.array([int(label) for label, _ in chosen])]
    return tuple(parts)  # type: ignore[return-value]


def _images(path: Path, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    archive = _read(path, f"{source}, saved by numpy.savez(path, x_train=..., y_train=..., ...)")
    parts = tuple(archive[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    if parts[0].shape[1:] != (28, 28) or len(parts[0]) != len(parts[1]):
        raise SystemExit(f"{path.name}: x_train must be (n, 28, 28) with as many labels, not {parts[0].shape}.")
    return parts  # type: ignore[return-value]


@dataclass(frozen=True)
class Posterior:
    """A model of the posterior database, with figures of its reference draws.

    Args:
        data: Arrays by the names that the model gives them.
        names: Of the numbers that were drawn.
        mean, sd: Of the reference draws of each.
    """

    data: dict[str, np.ndarray]
    names: list[str]
    mean: np.ndarray
    sd: np.ndarray


def posterior(folder: Path, name: str) -> Posterior:
    """A model of the posterior database, such as `"kidiq-kidscore_interaction"`."""
    path = folder / "posteriordb" / f"{name}.npz"
    source = "github.com/stan-dev/posteriordb: its data as `data_<name>`, `names`, and `mean` and `sd` of its draws"
    archive = _read(path, source)
    names = [str(each) for each in archive["names"]]
    if not archive["mean"].shape == archive["sd"].shape == (len(names),):
        raise SystemExit(f"{path.name}: mean and sd must have one entry for each of the {len(names)} names.")
    data = {key.removeprefix("data_"): value for key, value in archive.items() if key.startswith("data_")}
    return Posterior(data, names, archive["mean"], archive["sd"])


def _read(path: Path, source: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise SystemExit(f"{path} is missing. It comes from {source}.")
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}
