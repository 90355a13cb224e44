"""Functions that make members of an ensemble, where processes that are started anew can import them."""

import os
import random
from pathlib import Path

import keras
import numpy as np

import bdl

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = (np.arange(48) % 3).astype("int32")


def network():
    """With initial weights and dropout that no seed is given to, so that they depend on global generators."""
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), bdl.layers.DenseFlipout(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


def variational(seed):
    model = bdl.VariationalModel(network(), bdl.likelihoods.Categorical())
    model.compile(keras.optimizers.Adam(0.01))
    return model


def plain(seed):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def with_its_own_data(seed):
    return plain(seed), {"x": X, "y": Y, "epochs": 2, "batch_size": 24}


def that_fails_for_seed_1(seed):
    if seed == 1:
        raise ArithmeticError("one is too many")
    return plain(seed)


def whose_worker_dies_once(seed):
    """Ends its process in the middle of the training of seed 1, unless the file in BDL_TEST_MARKER is there already."""
    marker = Path(os.environ["BDL_TEST_MARKER"])
    dies = seed == 1 and not marker.exists()

    def end(epoch, logs):
        marker.touch()
        os._exit(1)

    return variational(seed), {"callbacks": [keras.callbacks.LambdaCallback(on_epoch_end=end)] if dies else []}


def that_ignores_its_seed(seed):
    random.seed(0)
    keras.utils.set_random_seed(7)
    return plain(seed)
