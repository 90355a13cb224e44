"""Contestants that train with `fit`: Keras 3 with plain, bdl's and keras-proba's layers, tf-keras with TFP's layers."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from layer_contestants import BATCH_SIZE, LEARNING_RATE, NUM_EXAMPLES, TF_KERAS_RUNTIMES, XLA_RUNTIMES

LAYER_MODULES = {
    "bdl": ("bdl", "Conv2D"),
    "keras-proba": ("keras_proba", "Conv2D"),
    "tfp": ("tensorflow_probability", "Convolution2D"),
}
CLASS_SUFFIXES = {
    "reparameterization": "Reparameterization",
    "local_reparameterization": "LocalReparameterization",
    "flipout": "Flipout",
    "rank1": "Rank1",
}

LayerMaker = Callable[..., Any]
"""A layer class, or a function with the same arguments."""


class FitTrainer:
    """Times the steps of `model.fit` on arrays in memory.

    A `fit` has costs of its own (on TensorFlow 20 ms to start an epoch's iterator, and at its end an idle wait of up to
    seconds until `tf.data` has ended its threads). So a burst times an epoch of `steps + 1` batches and one of a
    single batch, from the epoch's begin to its end, and takes the difference.
    """

    def __init__(self, keras: ModuleType, model: Any, images: np.ndarray, labels: np.ndarray):
        self._model, self._images, self._labels = model, images, labels
        self._clock = epoch_clock(keras)

    def burst(self, steps: int) -> float:
        """Seconds per step of `steps` training steps."""
        return (self._epoch_seconds(steps + 1) - self._epoch_seconds(1)) / steps

    def _epoch_seconds(self, steps: int) -> float:
        rows = steps * BATCH_SIZE
        self._model.fit(
            self._images[:rows],
            self._labels[:rows],
            batch_size=BATCH_SIZE,
            shuffle=False,
            verbose=0,
            callbacks=[self._clock],
        )
        return self._clock.seconds


def epoch_clock(keras: ModuleType) -> Any:
    """A callback of this Keras that keeps the `seconds` of the last epoch.

    It has no hook for batches: with one, Keras would wait for the result of each step.
    """

    class EpochClock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self._start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self._start

    return EpochClock()


def layer_makers(keras: ModuleType, library: str, estimator: str) -> tuple[LayerMaker, LayerMaker | None]:
    """The dense and the two-dimensional convolutional layer of a library, each with its KL divided by N.

    The convolutional one is `None` where the library has none for the estimator.
    """
    if library in ("keras", "tf-keras"):
        return keras.layers.Dense, keras.layers.Conv2D
    module, conv_prefix = LAYER_MODULES[library]
    layers = importlib.import_module(module).layers
    dense = getattr(layers, f"Dense{CLASS_SUFFIXES[estimator]}")
    conv = getattr(layers, f"{conv_prefix}{CLASS_SUFFIXES[estimator]}", None)
    scaled_kl: dict[str, Any] = {}
    if library == "keras-proba":
        scaled_kl = {"kl_weight": 1 / NUM_EXAMPLES}
    elif library == "tfp":
        scaled_kl = {"kernel_divergence_fn": tfp_divergence}
    return partial(dense, **scaled_kl), conv and partial(conv, **scaled_kl)


def tfp_divergence(posterior: Any, prior: Any, _: Any) -> Any:
    """The KL divergence that TFP's layers add to the mean loss over a batch."""
    from tensorflow_probability import distributions

    return distributions.kl_divergence(posterior, prior) / NUM_EXAMPLES


def sequential(keras: ModuleType, network: str, dense: LayerMaker, conv: LayerMaker | None) -> Any:
    """The network of the benchmark from the given layers."""
    if network == "mlp":
        return keras.Sequential(
            [keras.Input((784,)), dense(512, activation="relu"), dense(512, activation="relu"), dense(10)]
        )
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            conv(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            conv(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            dense(128, activation="relu"),
            dense(10),
        ]
    )


def build(
    library: str, estimator: str, runtime: str, network: str, images: np.ndarray, labels: np.ndarray
) -> FitTrainer:
    """A compiled model on its data; the Keras backend is already chosen by the environment."""
    keras = importlib.import_module("tf_keras" if runtime in TF_KERAS_RUNTIMES else "keras")
    keras.utils.set_random_seed(0)
    model = sequential(keras, network, *layer_makers(keras, library, estimator))
    settings = {"optimizer": keras.optimizers.Adam(LEARNING_RATE), "jit_compile": runtime in XLA_RUNTIMES}
    if library == "bdl":
        import bdl

        model = bdl.VariationalModel(model, bdl.likelihoods.Categorical(), num_examples=NUM_EXAMPLES, kl_weight=1.0)
    else:
        settings["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**settings)
    if network == "conv":
        images = images.reshape(-1, 28, 28, 1)
    return FitTrainer(keras, model, images, labels)
