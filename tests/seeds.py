"""Seeds of a test, without the price that TensorFlow asks for them."""

import random
from unittest import mock
from zlib import crc32

import keras


def seed_everything(test: str) -> None:
    """`keras.utils.set_random_seed(0)`, but TensorFlow keeps the kernels that it has made.

    `tf.random.set_seed` drops the kernels of every operation, because those of random operations count their calls.
    Thousands of tests would make them anew: a seventh of the time of tests that run layers. Kernels are kept by their
    seeds, so it is enough that operations run eagerly draw theirs from a stream that belongs to the test alone.
    """
    if keras.backend.backend() != "tensorflow":
        keras.utils.set_random_seed(0)
        return
    from tensorflow.python.eager import context  # there is no public way to seed and keep kernels

    def set_seed(seed: int) -> None:
        context.context()._seed = seed
        context.context()._rng = random.Random(crc32(test.encode()))

    with mock.patch("tensorflow.random.set_seed", set_seed):
        keras.utils.set_random_seed(0)
