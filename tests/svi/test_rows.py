"""Data of a story: arrays in one precision, and batches of one size in an order known from the seed."""

import tracemalloc

import keras
import numpy as np
import pytest

from bdl.svi.rows import EndlessRows, as_data, as_tensors, repeated

ROWS = {"x": np.arange(7), "y": 10 * np.arange(7)}


def read(batches, number):
    return [batches[index] for index in range(number)]


def test_every_row_comes_equally_often_and_rows_stay_together():
    picked = read(EndlessRows(ROWS, batch_size=3, seed=0), 14)
    rows = np.concatenate([batch["x"] for batch in picked])
    assert {len(batch["x"]) for batch in picked} == {3}
    np.testing.assert_array_equal(np.bincount(rows), 6)
    np.testing.assert_array_equal(np.concatenate([batch["y"] for batch in picked]), 10 * rows)
    assert sorted(rows[:7]) == sorted(rows[7:14])
    assert list(rows[:7]) != list(rows[7:14])


def test_a_fit_that_goes_on_has_the_batches_it_would_have_had():
    whole = read(EndlessRows(ROWS, batch_size=3, seed=5), 9)
    later = EndlessRows(ROWS, batch_size=3, seed=5)
    later.begin_after([5], 4, done=0)
    for expected, found in zip(whole[4:], read(later, 5), strict=True):
        np.testing.assert_array_equal(expected["x"], found["x"])


def test_a_batch_of_many_rows_takes_no_more_memory_than_one_of_few():
    """Nothing of the size of the data is made once the order of the rows is known."""
    batches = EndlessRows({"x": np.zeros(1_000_000, "int8")}, batch_size=10, seed=0)
    batches[0]
    tracemalloc.start()
    batches[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_the_whole_data_come_in_their_order_with_their_weights():
    weights = np.linspace(0, 1, 7)
    data, labels, found = EndlessRows(ROWS, batch_size=10, seed=0, sample_weight=weights)[3]
    np.testing.assert_array_equal(data["x"], ROWS["x"])
    np.testing.assert_array_equal(found, weights)
    assert labels.shape == (7,)


@pytest.mark.core
def test_numbers_have_one_precision_and_counts_stay_counts():
    data = as_data({"x": [1.0, 2.0], "n": np.array([1, 2])}, "float64")
    assert data["x"].dtype == np.float64
    assert data["n"].dtype.kind == "i"
    tensors = as_tensors(data, "float32")
    assert keras.backend.standardize_dtype(tensors["x"].dtype) == "float32"
    assert "int" in keras.backend.standardize_dtype(tensors["n"].dtype)


def test_rows_that_do_not_match_or_are_not_finite_are_named():
    with pytest.raises(ValueError, match="one row for each example, not 2 in x\\['a'\\] and 3 in x\\['b'\\]"):
        as_data({"a": np.zeros(2), "b": np.zeros(3)}, "float32")
    with pytest.raises(ValueError, match=r"x\['a'\]\[1, 0\] is inf.* declare it: Observed\(..., mask=...\)"):
        as_data({"a": np.array([[0.0], [np.inf]])}, "float32")


def test_batches_of_a_data_set_come_again_and_epochs_end_in_between():
    class Batches(keras.utils.PyDataset):
        num_batches, ended = 2, 0

        def __getitem__(self, index):
            return index

        def on_epoch_end(self):
            self.ended += 1

    batches = Batches()
    again = repeated(batches)
    assert again.num_batches is None
    assert read(again, 5) == [0, 1, 0, 1, 0]
    assert batches.ended == 2
    with pytest.raises(ValueError, match=r"`steps` must be None for object, which cannot be repeated\. Pass epochs"):
        repeated(object())
