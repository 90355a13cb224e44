"""Weights, masks, logits and names of classes: bdl beside other libraries. calibration_parity.py runs it.

Each comparison takes labels and probabilities of a real model and adds what is at stake (random weights; padding of
-100 and NaN; logits as they are and times 100; names in an order that is not the columns'). It gives bdl's figure and
the other's. Brute force is a loop over events in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax

import bdl

Comparison = tuple[str, str, Callable[[np.ndarray, Any], tuple[float, float]]]

NUM_BINS = 15


def weights_of(y: np.ndarray) -> np.ndarray:
    """Weights from 0 to 3."""
    return np.random.default_rng(1).integers(0, 4, len(y)).astype("float32")


def padded(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and probabilities with a third of them padding, and the mask."""
    kept = np.random.default_rng(2).random(len(y)) < 2 / 3
    return np.where(kept, y, -100), np.where(kept[:, None], p, np.nan), kept


def off_edges(p: np.ndarray) -> np.ndarray:
    """Probabilities mixed with a little of the uniform distribution, so that none lies on an edge of a bin or is 1."""
    return (1 - 1e-3) * p + 1e-3 / p.shape[1]


def logits_of(p: np.ndarray, scale: float) -> np.ndarray:
    """Logits whose softmax the probabilities are, times a factor."""
    return scale * np.log(np.maximum(p, 1e-12))


def names_of(p: np.ndarray) -> np.ndarray:
    """A name for each column, not in sorted order."""
    return np.array([f"class {(7 * column + 3) % 101}" for column in range(p.shape[1])])


def of_keras(metric: Any, *batch: Any) -> float:
    """The figure of a Keras metric."""
    metric.update_state(*batch)
    return float(metric.result())


def ece_by_force(y: np.ndarray, p: np.ndarray, weight: np.ndarray) -> float:
    """Expected calibration error with weights, event by event."""
    bins: dict[int, list[float]] = {}
    for label, row, w in zip(y, p, weight, strict=True):
        if w > 0:
            confidence = float(max(row))
            sums = bins.setdefault(int(np.ceil(confidence * NUM_BINS)), [0.0, 0.0])
            sums[0] += float(w) * (float(row.argmax() == label) - confidence)
            sums[1] += float(w)
    return sum(abs(gap) for gap, _ in bins.values()) / sum(total for _, total in bins.values())


def evaluated(y: Any, prediction: Any, score: str = "nll", **options: Any) -> float:
    """One score of `bdl.evaluate`."""
    return bdl.evaluate(y, prediction, num_resamples=0, **options)[score]


def by_force() -> list[Comparison]:
    """Loops in Python."""

    def weighted_ece(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        ours = of_keras(bdl.metrics.ExpectedCalibrationError(), y, p.astype("float32"), weights_of(y))
        return ours, ece_by_force(y, p.astype("float32"), weights_of(y))

    def masked_ece(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        void, nan, kept = padded(y, p)
        return bdl.calibration.expected_calibration_error(void, nan, mask=kept), ece_by_force(y, p, kept)

    def hidden_ece(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        void, nan, kept = padded(y, p)
        return evaluated(np.ma.array(void, mask=~kept), nan, "ece"), ece_by_force(y, p, kept)

    return [
        ("ECE, weights", "brute force", weighted_ece),
        ("ECE, mask", "brute force", masked_ece),
        ("ECE, numpy.ma", "brute force", hidden_ece),
    ]


def by_sklearn() -> list[Comparison]:
    """scikit-learn's own weights, and its classes in sorted order."""
    from sklearn import metrics

    def weighted_nll(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        weight, p = weights_of(y), np.maximum(p, 1e-7)
        p = p / p.sum(axis=1, keepdims=True)
        ours = of_keras(bdl.metrics.NegativeLogLikelihood(), y, p, weight)
        return ours, metrics.log_loss(y, p, sample_weight=weight, labels=range(p.shape[1]))

    def weighted_brier(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        weight, options = weights_of(y), {"labels": list(range(p.shape[1])), "scale_by_half": False}
        ours = of_keras(bdl.metrics.BrierScore(), y, p, weight)
        return ours, metrics.brier_score_loss(y, p, sample_weight=weight, **options)

    def masked_nll(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        void, nan, kept = padded(y, p)
        ours = bdl.calibration.negative_log_likelihood(void, nan, mask=kept)
        return ours, metrics.log_loss(y[kept], p[kept], labels=range(p.shape[1]))

    def named_nll(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        names, part = names_of(p), y != 0  # the first class is absent
        order = np.argsort(names)
        theirs = metrics.log_loss(names[y][part], p[part][:, order], labels=names[order])
        return evaluated(names[y][part], {"probabilities": p[part], "classes": names}), theirs

    def numbered_accuracy(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        part, classes = y != 0, np.arange(1, p.shape[1] + 1)
        theirs = metrics.accuracy_score(classes[y][part], classes[p.argmax(axis=1)][part])
        return evaluated(classes[y][part], p[part], "accuracy", classes=classes), theirs

    return [
        ("NLL, weights", "scikit-learn", weighted_nll),
        ("Brier score, weights", "scikit-learn", weighted_brier),
        ("NLL, mask", "scikit-learn", masked_nll),
        ("NLL, names of classes", "scikit-learn", named_nll),
        ("accuracy, classes from 1", "scikit-learn", numbered_accuracy),
    ]


def by_scipy() -> list[Comparison]:
    """SciPy's log-softmax and sigmoid in float64."""

    def classes(scale: float, dtype: str) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
        def compared(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
            z = logits_of(p, scale).astype(dtype)
            theirs = -log_softmax(z.astype(np.float64), axis=1)[np.arange(len(y)), y].mean()
            return evaluated(y, {"logits": z}), float(theirs)

        return compared

    def independent(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        labels = (np.arange(p.shape[1]) <= y[:, None]).astype(int)
        theirs = ((expit(logits_of(p, 1)) - labels) ** 2).mean()
        return evaluated(labels, {"logits": logits_of(p, 1)}, "brier"), float(theirs)

    return [
        ("NLL of logits", "SciPy", classes(1, "float64")),
        ("NLL of logits, times 100", "SciPy", classes(100, "float64")),
        ("NLL of logits, float16", "SciPy", classes(1, "float16")),
        ("Brier score of multilabel logits", "SciPy", independent),
    ]


def by_torch() -> list[Comparison]:
    """Torch's losses of logits in float64, with `ignore_index`."""
    import torch
    from torch.nn import functional

    def masked(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        void, _, _ = padded(y, p)
        z = logits_of(p, 100)
        theirs = functional.cross_entropy(torch.as_tensor(z), torch.as_tensor(void), ignore_index=-100)
        return evaluated(void, {"logits": z}, ignore_class=-100), float(theirs)

    def binary(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        z, labels = logits_of(p, 100)[:, :1], (y == 0).astype(float)[:, None]
        theirs = functional.binary_cross_entropy_with_logits(torch.as_tensor(z), torch.as_tensor(labels))
        return evaluated(labels[:, 0], {"logits": z}), float(theirs)

    return [("NLL of logits, ignore_index", "Torch", masked), ("NLL of a logit", "Torch", binary)]


def by_torchmetrics_with(**options: Any) -> Callable[[np.ndarray, np.ndarray], float]:
    """Torchmetrics' calibration error, in which a label of -100 does not count."""
    import torch
    from torchmetrics.functional import calibration_error

    def computed(y: np.ndarray, p: np.ndarray) -> float:
        task = {"task": "multiclass", "num_classes": p.shape[-1], "n_bins": NUM_BINS, "ignore_index": -100, **options}
        return float(calibration_error(torch.as_tensor(p.copy()), torch.as_tensor(y), **task))

    return computed


def by_torchmetrics() -> list[Comparison]:
    """Torchmetrics with `ignore_index`, and with repeated events for weights, off the edges of its bins."""
    import torch
    from torchmetrics import functional

    from bdl import calibration

    def masked(ours: Callable[..., float], norm: str) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
        theirs = by_torchmetrics_with(norm=norm)

        def compared(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
            void, nan, kept = padded(y, off_edges(p))
            return ours(void, nan, mask=kept), theirs(void, off_edges(p))

        return compared

    def masked_sequences(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        even, num_classes = len(y) // 2 * 2, p.shape[1]
        void, nan, kept = (part[:even] for part in padded(y, off_edges(p)))
        shape = even // 2, 2
        said = off_edges(p)[:even].reshape(*shape, num_classes).transpose(0, 2, 1)  # classes before time
        theirs = by_torchmetrics_with(num_classes=num_classes)(void.reshape(shape), said)
        nan, kept = nan.reshape(*shape, num_classes), kept.reshape(shape)
        return calibration.expected_calibration_error(void.reshape(shape), nan, mask=kept), theirs

    def masked_class(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        void, nan, kept = padded((y == 1).astype(int), off_edges(p))
        ours = calibration.classwise_calibration_error(void, nan[:, 1], mask=kept)
        return ours, by_torchmetrics_with(task="binary")(void, off_edges(p)[:, 1])

    def masked_accuracy(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
        void, nan, kept = padded(y, p)
        options = {"task": "multiclass", "num_classes": p.shape[1], "average": "micro", "ignore_index": -100}
        theirs = functional.accuracy(torch.as_tensor(p.argmax(axis=1)), torch.as_tensor(void), **options)
        return calibration.accuracy(void, nan, mask=kept), float(theirs)

    def repeated(ours: Any, norm: str) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
        theirs = by_torchmetrics_with(norm=norm)

        def compared(y: np.ndarray, p: np.ndarray) -> tuple[float, float]:
            weight, p = weights_of(y), off_edges(p).astype("float32")
            copies = np.repeat(np.arange(len(y)), weight.astype(int))
            return of_keras(ours(), y, p, weight), theirs(y[copies], p[copies])

        return compared

    return [
        ("ECE, mask", "torchmetrics", masked(calibration.expected_calibration_error, "l1")),
        ("MCE, mask", "torchmetrics", masked(calibration.maximum_calibration_error, "max")),
        ("RMS-CE, mask", "torchmetrics", masked(calibration.root_mean_square_calibration_error, "l2")),
        ("ECE, mask of sequences", "torchmetrics", masked_sequences),
        ("binary ECE, mask", "torchmetrics", masked_class),
        ("accuracy, mask", "torchmetrics", masked_accuracy),
        ("ECE, weights", "torchmetrics", repeated(bdl.metrics.ExpectedCalibrationError, "l1")),
        ("MCE, weights", "torchmetrics", repeated(bdl.metrics.MaximumCalibrationError, "max")),
        ("RMS-CE, weights", "torchmetrics", repeated(bdl.metrics.RootMeanSquareCalibrationError, "l2")),
    ]


FAMILIES: list[tuple[str, bool, Callable[[], list[Comparison]]]] = [
    ("numpy", True, by_force),
    ("sklearn", True, by_sklearn),
    ("scipy", True, by_scipy),
    ("torch", True, by_torch),
    ("torchmetrics", True, by_torchmetrics),
]
