"""Which samples should a person look at?
======================================

A network reads measurements of cell nuclei and says whether a tumour is malignant. Whom does it pass on to a person?

    python examples/referrals.py --figure referrals.png
"""

# sphinx_gallery_thumbnail_path = "images/referrals.png"

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import bdl
from bdl.calibration import out_of_distribution_auroc, risk_coverage_curve

SHARES = (0.0, 0.05, 0.1, 0.2)
"""Of the samples that are passed on."""


@dataclass(frozen=True)
class Split:
    """Standardised measurements, labels 1 of malignant tumours, and strangers among the test samples.

    Args:
        x, y: To train on.
        x_test, y_test: To test on.
        strangers: Samples that no tumour gave, by what is wrong with them.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    strangers: dict[str, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What a model says of samples.

    Args:
        p: Probability of a malignant tumour.
        doubts: Scores to rank by, higher is less certain, by name.
    """

    p: np.ndarray
    doubts: dict[str, np.ndarray]


def splits(number: int) -> Iterator[Split]:
    """Half of the samples to train on, half to test on, in many ways."""
    measured, benign = load_breast_cancer(return_X_y=True)
    for seed in range(number):
        parts = train_test_split(measured, 1 - benign, test_size=0.5, random_state=seed, stratify=benign)
        raw, raw_test, y, y_test = parts
        scale = StandardScaler().fit(raw)
        rng = np.random.default_rng(seed)
        slipped = raw_test.copy()
        rows = np.arange(len(slipped))
        slipped[rows, rng.integers(0, slipped.shape[1], len(rows))] *= 10.0
        mixed = raw_test.copy()
        half = rng.permutation(raw.shape[1])[: raw.shape[1] // 2]
        mixed[:, half] = mixed[rng.permutation(len(mixed))][:, half]
        strangers = {"a decimal point slipped": slipped, "two patients mixed": mixed}
        ready = {name: scale.transform(each).astype("float32") for name, each in strangers.items()}
        x, x_test = (scale.transform(each).astype("float32") for each in (raw, raw_test))
        yield Split(x, y, x_test, y_test, ready)


def network(seed: int) -> keras.Model:
    """Two classes from 30 measurements."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((30,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(2)])


def entropy(p: np.ndarray) -> np.ndarray:
    """Of a yes or no with probability p, in nats."""
    p = np.clip(p.astype("float64"), 1e-300, 1 - 1e-16)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def models(split: Split, epochs: int, seed: int) -> Iterator[tuple[str, Any]]:
    """Functions from samples to an `Answer`, by name."""
    linear = LogisticRegressionCV(Cs=10, cv=5, scoring="neg_log_loss", max_iter=2000, use_legacy_attributes=False, l1_ratios=(0,)).fit(split.x, split.y)

    def by_line(x: np.ndarray) -> Answer:
        p = linear.predict_proba(x)[:, 1]
        return Answer(p, {"entropy": -np.abs(linear.decision_function(x))})

    yield "logistic regression", by_line
    twin = network(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    twin.compile(keras.optimizers.Adam(3e-3), loss)
    twin.fit(split.x, split.y, batch_size=32, epochs=epochs, verbose=0)

    def by_twin(x: np.ndarray) -> Answer:
        logits = twin.predict(x, verbose=0, batch_size=512).astype("float64")
        gap = logits[:, 1] - logits[:, 0]
        return Answer(1 / (1 + np.exp(-gap)), {"entropy": -np.abs(gap)})

    yield "deterministic twin", by_twin
    for name, recipe in (("instead_of_ensemble", bdl.recipes.instead_of_ensemble), ("fully_gaussian", bdl.recipes.fully_gaussian)):
        model = recipe(network(seed), bdl.likelihoods.Categorical(), seed=seed)
        model.fit(split.x, split.y, batch_size=32, epochs=epochs, verbose=0)

        def by_posterior(x: np.ndarray, model=model) -> Answer:
            found = model.predict_distribution(x, num_samples=256, seed=0)
            return Answer(found.probabilities[:, 1], {"entropy": found.total_uncertainty, "epistemic": found.epistemic})

        yield name, by_posterior
