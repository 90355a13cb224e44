"""Every test starts from the same seeds, whatever ran before it in its process."""

import keras
import numpy as np
import pytest
from seeds import seed_everything

pytestmark = pytest.mark.core


def shuffled(number=6):
    """The order in which a fit reads its examples."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=keras.backend.backend() != "jax", jit_compile=False)
    read = []

    class Reader(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            read.append(logs["loss"])

    model.fit(np.ones((number, 1)), 10.0 * np.arange(number), batch_size=1, verbose=0, callbacks=[Reader()])
    return read


def test_weights_and_orders_are_the_same_after_any_test():
    def drawn(test):
        seed_everything(test)
        return [*keras.ops.convert_to_numpy(keras.random.normal((3,))), *shuffled()]

    expected = drawn("first")
    assert drawn("second") == expected == drawn("first")
    keras.utils.set_random_seed(0)
    assert expected == [*keras.ops.convert_to_numpy(keras.random.normal((3,))), *shuffled()]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="operations with a state of TensorFlow's own")
def test_operations_that_count_their_calls_belong_to_one_test():
    import tensorflow as tf

    def drawn(test):
        seed_everything(test)
        return [float(tf.random.normal(())) for _ in range(2)]

    tf.random.set_seed(0)  # drops the kernels of other tests
    alone = drawn("a test")
    tf.random.set_seed(0)
    drawn("another")
    assert drawn("a test") == alone
