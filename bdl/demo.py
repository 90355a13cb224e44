"""The demonstration: a Bayesian convolutional network beside its deterministic twin, on real handwritten digits.

Both learn from the 1,797 digit images that scikit-learn ships, with the same layer sizes, epochs, batches and
optimizer. Both are then asked about test digits, about the same digits turned by 90 degrees, and about pure noise.
This file computes; `demo_page.py` says what came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from bdl import calibration, layers, likelihoods
from bdl.evaluation import Evaluation, evaluate
from bdl.model import VariationalModel
from bdl.prediction import ClassificationPrediction, predict_distribution
from bdl.priors import Normal

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
NUM_SAMPLES = 64
BAYESIAN, TWIN = "Bayesian", "deterministic twin"

# The prior of the factors on the inputs of the first dense layer. The data narrow the factors of the features that they
# use; the others stay broad, and answer at random to an input that wakes them up.
BROAD_PRIOR = Normal(1.0, 3.0)

OnEpoch = Callable[[str, int, Mapping[str, float]], None]
"""Told after every epoch of a network: its name, the number of epochs done, its logs (`loss`, `nll`, `temperature`)."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Images `(n, 8, 8, 1)` from 0 to 1 with their labels, and two kinds of images that training never showed."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    rotated: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Detection:
    """AUROC with which a score tells test digits from rotated digits and from noise."""

    rotated: float
    noise: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one trained network says.

    Args:
        predictions: Its predictions of the images, under `test`, `rotated` and `noise`.
        num_parameters: Number of trainable parameters.
        seconds: Duration of its training.
        history: One value per epoch of everything that its training logged.
    """

    predictions: Mapping[str, ClassificationPrediction]
    num_parameters: int
    seconds: float
    history: Mapping[str, list[float]]

    @property
    def entropy(self) -> dict[str, np.ndarray]:
        """Predictive entropy of each image in nats, under the same names."""
        return {name: prediction.total_uncertainty for name, prediction in self.predictions.items()}

    @property
    def epistemic(self) -> dict[str, np.ndarray]:
        """Epistemic uncertainty of each image in nats, under the same names; zero for the twin."""
        return {
            name: np.zeros_like(prediction.epistemic) if prediction.num_samples == 1 else prediction.epistemic
            for name, prediction in self.predictions.items()
        }

    @property
    def detection_by_entropy(self) -> Detection:
        """How well its predictive entropy tells the unfamiliar from test digits."""
        return _detection(self.entropy)

    @property
    def detection_by_epistemic(self) -> Detection:
        """How well its epistemic uncertainty does; chance for the twin, which has none."""
        return _detection(self.epistemic)


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Both networks' outcomes, what they are worth on the test digits, and under which conditions they came about."""

    bayesian: Outcome
    twin: Outcome
    evaluation: Evaluation
    digits: Digits
    seed: int
    epochs: int
    backend: str
    seconds: float


def run_demo(seed: int, epochs: int, on_epoch: OnEpoch | None = None) -> DemoResult:
    """Trains both networks and evaluates them. Sets Keras' global random seed.

    Args:
        seed: Decides which digits are for testing, where the weights start, and all noise.
        epochs: Positive number of epochs of each training.
        on_epoch: Called after each.
    """
    start = time.perf_counter()
    digits = load_digits(seed)
    outcomes = {name: _train_and_predict(name, digits, seed, epochs, on_epoch) for name in (TWIN, BAYESIAN)}
    test = {name: outcome.predictions["test"] for name, outcome in outcomes.items()}
    # One sample has no epistemic part to be scored: of the twin the probabilities alone are evaluated.
    predictions = {BAYESIAN: test[BAYESIAN], TWIN: {"logits": test[TWIN].log_probabilities}}
    return DemoResult(
        bayesian=outcomes[BAYESIAN],
        twin=outcomes[TWIN],
        evaluation=evaluate(digits.y_test, predictions, seed=seed),
        digits=digits,
        seed=seed,
        epochs=epochs,
        backend=keras.config.backend(),
        seconds=time.perf_counter() - start,
    )


def load_digits(seed: int) -> Digits:
    """The digits of scikit-learn: 30 % of each class held out for testing, chosen by the seed."""
    from sklearn import datasets, model_selection

    bunch = datasets.load_digits()
    images = (bunch.images[..., None] / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        images, bunch.target, test_size=0.3, random_state=seed, stratify=bunch.target
    )
    return Digits(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        rotated=np.rot90(x_test, axes=(1, 2)).copy(),
        noise=np.random.default_rng(seed).uniform(size=x_test.shape).astype("float32"),
    )


def build_network(name: str) -> keras.Sequential:
    """The untrained network `BAYESIAN` or `TWIN`; they differ in the kind of their layers only."""
    is_bayesian = name == BAYESIAN
    convolution: Any = layers.Conv2DRank1 if is_bayesian else keras.layers.Conv2D
    dense: Any = layers.DenseRank1 if is_bayesian else keras.layers.Dense
    broad = {"input_factor_prior": BROAD_PRIOR} if is_bayesian else {}
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            convolution(16, 3, padding="same", activation="relu"),
            convolution(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            dense(64, activation="relu", **broad),
            dense(10),
        ]
    )


def _train_and_predict(name: str, digits: Digits, seed: int, epochs: int, on_epoch: OnEpoch | None) -> Outcome:
    keras.utils.set_random_seed(seed)
    network = build_network(name)
    start = time.perf_counter()
    history = _train(name, network, digits, epochs, on_epoch)
    seconds = time.perf_counter() - start
    return Outcome(
        predictions=_predict(name, network, digits, seed),
        num_parameters=sum(int(np.prod(weight.shape)) for weight in network.trainable_variables),
        seconds=seconds,
        history=history,
    )


def _train(
    name: str, network: keras.Sequential, digits: Digits, epochs: int, on_epoch: OnEpoch | None
) -> dict[str, list[float]]:
    if name == BAYESIAN:
        model: keras.Model = VariationalModel(network, likelihoods.Categorical())
        model.compile(keras.optimizers.Adam(LEARNING_RATE))
    else:
        model = network
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(LEARNING_RATE), loss=loss)
    callbacks = [] if on_epoch is None else [_EpochReporter(name, on_epoch)]
    settings = {"batch_size": BATCH_SIZE, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
    return model.fit(digits.x_train, digits.y_train, **settings).history


def _predict(name: str, network: keras.Sequential, digits: Digits, seed: int) -> dict[str, ClassificationPrediction]:
    """A prediction of each set of images."""
    num_samples = NUM_SAMPLES if name == BAYESIAN else 1  # all samples of the twin are equal
    image_sets = {"test": digits.x_test, "rotated": digits.rotated, "noise": digits.noise}
    likelihood, batch_size = likelihoods.Categorical(), len(digits.x_test)
    return {
        images: predict_distribution(network, x, likelihood, num_samples, batch_size, seed=seed)
        for images, x in image_sets.items()
    }


def _detection(scores: Mapping[str, np.ndarray]) -> Detection:
    auroc = calibration.out_of_distribution_auroc
    return Detection(rotated=auroc(scores["test"], scores["rotated"]), noise=auroc(scores["test"], scores["noise"]))


class _EpochReporter(keras.callbacks.Callback):
    """Hands the logs of every epoch on."""

    def __init__(self, name: str, on_epoch: OnEpoch) -> None:
        super().__init__()
        self._name = name
        self._on_epoch = on_epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._on_epoch(self._name, epoch + 1, logs or {})
