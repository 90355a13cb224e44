"""Sizes of data sets, and the check for values that are not finite."""

import keras
import numpy as np
import pytest

from bdl.training.data import DataSize, check_finite, first_batch, measure

X = np.arange(30.0).reshape(10, 3).astype("float32")
Y = np.arange(10)


class Batches(keras.utils.PyDataset):
    """Ten examples in batches of four: the last one is smaller."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return X[rows], Y[rows]


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"x": X}, DataSize(10, 1)),
        ({"x": X, "batch_size": 3}, DataSize(10, 4)),
        ({"x": X, "batch_size": 3, "validation_split": 0.25}, DataSize(7, 3)),
        ({"x": [X, X]}, DataSize(10, 1)),
        ({"x": {"a": X}, "batch_size": 5}, DataSize(10, 2)),
        ({"x": Batches()}, DataSize(10, 3)),
        ({"x": iter([X])}, DataSize(None, None)),
        ({"x": None}, DataSize(None, None)),
    ],
)
def test_sizes(arguments, expected):
    assert measure(**arguments) == expected


@pytest.mark.core
def test_the_validation_split_is_the_one_that_keras_makes():
    seen = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    for split in (0.1, 0.3, 0.33, 0.55):
        seen.clear()
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        model.fit(X, Y, batch_size=1, validation_split=split, verbose=0, callbacks=[Count()])
        assert measure(X, 1, split).num_examples == len(seen)


@pytest.mark.core
def test_a_torch_data_loader_knows_its_size():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    assert measure(torch.utils.data.DataLoader(data, batch_size=4)) == DataSize(10, 3)


@pytest.mark.tensorflow
def test_a_tensorflow_data_set_knows_its_size_if_its_batches_are_static():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    assert measure(data.batch(5, drop_remainder=True)) == DataSize(10, 2)
    assert measure(data.batch(4)) == DataSize(None, 3)
    assert measure(data.batch(5, drop_remainder=True).repeat()) == DataSize(None, None)
    x, y, _ = first_batch(data.batch(4))
    assert x.shape == (4, 3)
    assert y.shape == (4,)


@pytest.mark.core
def test_first_batch_does_not_consume_an_iterator():
    assert first_batch(iter([(X, Y)])) is None
    x, y, _ = first_batch(Batches())
    np.testing.assert_array_equal(x, X[:4])
    np.testing.assert_array_equal(y, Y[:4])


@pytest.mark.core
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_with_their_place(value):
    bad = X.copy()
    bad[7, 2] = value
    with pytest.raises(ValueError, match=r"`x` must be finite; x\[7, 2\] is"):
        check_finite(bad, "x")
    with pytest.raises(ValueError, match=r"`x\['b'\]` must be finite; x\['b'\]\[7, 2\] is"):
        check_finite({"a": X, "b": bad}, "x")
    with pytest.raises(ValueError, match=r"`x\[1\]` must be finite; x\[1\]\[7, 2\] is"):
        check_finite([X, bad], "x")


@pytest.mark.core
def test_large_but_finite_values_pass():
    check_finite(np.full((4, 4), 3e38, "float32"), "x")
    check_finite(np.full((4, 4), 1.7e308), "x")
    check_finite(np.array(["text"]), "x")
    check_finite(None, "y")
