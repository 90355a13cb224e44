"""Batches of inputs: every kind that Keras takes, cut to one size, and labels put aside."""

import keras
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from bdl.training.batches import LabelledData, batches, known_inputs, symbolic

X = np.arange(30.0).reshape(10, 3).astype("float32")
Y = np.arange(10)


class Batches(keras.utils.PyDataset):
    """Ten examples in batches of four, in a random order that differs from reading to reading; counts its epochs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.epochs, self.order = 0, np.arange(10)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = self.order[4 * index : 4 * index + 4]
        return X[rows], Y[rows]

    def on_epoch_begin(self):
        self.epochs += 1
        self.order = np.random.default_rng(self.epochs).permutation(10)


def joined(found):
    return np.concatenate([batch.inputs[: batch.size] for batch in found])


def loader():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, batch_size=4)


KINDS = {
    "array": lambda: X,
    "float64": lambda: X.astype("float64"),
    "tensor": lambda: keras.ops.convert_to_tensor(X),
    "list": lambda: X.tolist(),
    "csr matrix": lambda: scipy.sparse.csr_matrix(X),
    "coo array": lambda: scipy.sparse.coo_array(X),
    "generator of tuples": lambda: ((X[start : start + 4], Y[start : start + 4]) for start in (0, 4, 8)),
    "iterator of arrays": lambda: iter([X[:4], X[4:7], X[7:]]),
    "growing batches": lambda: iter([X[:3], X[3:]]),
    "with weights": lambda: iter([(X, Y, np.ones(10))]),
    "torch loader": loader,
}


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_its_examples_in_batches_of_one_size(kind):
    found = list(batches(KINDS[kind](), batch_size=4))
    assert len({batch.inputs.shape for batch in found}) == 1
    assert all(batch.inputs.dtype == "float32" for batch in found)
    np.testing.assert_array_equal(joined(found), X)


@pytest.mark.core
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 9), st.booleans())
def test_examples_keep_their_order_whatever_the_sizes_are(sizes, batch_size, is_stream):
    rows = np.arange(sum(sizes))
    cuts = np.split(rows, np.cumsum(sizes)[:-1])
    data = iter(cuts) if is_stream else rows
    if not len(rows):
        with pytest.raises(ValueError, match="`x` must hold at least one example"):
            list(batches(data, batch_size))
        return
    found = list(batches(data, batch_size))
    np.testing.assert_array_equal(joined(found), rows)
    first = next(size for size in sizes if size)
    assert {len(batch.inputs) for batch in found} == {first if is_stream else min(batch_size, len(rows))}
    for batch in found:
        np.testing.assert_array_equal(batch.inputs[batch.size :], batch.inputs[batch.size - 1])


@pytest.mark.core
def test_steps_are_batches_of_the_data():
    assert [batch.size for batch in batches(X, steps=3)] == [4, 4, 2]  # all of it, as Keras does
    assert [batch.size for batch in batches(X, batch_size=3, steps=2)] == [3, 3]
    np.testing.assert_array_equal(joined(batches(iter([X[:2], X[2:]]), steps=1)), X[:2])


@pytest.mark.core
@pytest.mark.parametrize("workers", [1, 2])
def test_a_py_dataset_is_read_as_an_epoch_of_keras(workers):
    data = Batches(workers=workers)
    found = joined(batches(data))
    assert data.epochs == 1
    np.testing.assert_array_equal(found, X[data.order])


@pytest.mark.core
def test_data_that_never_end_are_refused_unless_steps_say_how_many():
    class Endless(Batches):
        @property
        def num_batches(self):
            return None

    with pytest.raises(ValueError, match="`x` must end"):
        next(batches(Endless()))
    assert sum(batch.size for batch in batches(Endless(), steps=2)) == 8


@pytest.mark.core
def test_structures_keep_what_is_left_out_and_unequal_inputs_are_named():
    (batch,) = batches({"a": X, "b": None, "c": [[1], [2]] * 5})
    assert batch.inputs["b"] is None
    np.testing.assert_array_equal(batch.inputs["c"], [[1], [2]] * 5)
    with pytest.raises(ValueError, match=r"not 10 in x\['a'\] and 3 in x\['b'\]"):
        next(batches({"a": X, "b": X[:3]}))
    with pytest.raises(ValueError, match=r"not 3 in x\[0\] and 10 in x\[1\]"):
        next(batches([X[:3], X]))
    with pytest.raises(ValueError, match="`x` must hold arrays with one row for each example"):
        next(batches(None))


@pytest.mark.core
def test_values_of_every_batch_and_of_sparse_matrices_are_checked():
    bad = X.copy()
    bad[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"x\[1, 1\] is nan"):
        list(batches(iter([X[:4], bad[4:]])))
    with pytest.raises(ValueError, match="an entry of x is nan"):
        list(batches(scipy.sparse.csr_matrix(bad)))


@pytest.mark.core
def test_entries_without_an_input_are_left_out_by_name():
    first, second = keras.Input((3,), name="b"), keras.Input((3,), name="c")
    x = {"a": Y, "b": X, "c": X, "d": Y}
    for inputs in ({"b": first, "c": second}, [first, second]):
        network = keras.Model(inputs, keras.layers.Add()([first, second]))
        assert set(known_inputs(network, x)) == {"b", "c"}
        assert known_inputs(network, X) is X
        missing = {"a": Y, "b": X}
        assert known_inputs(network, missing) is missing  # for Keras to complain about


@pytest.mark.tensorflow
def test_tensorflow_data_sets_sparse_tensors_optionals_and_text():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    np.testing.assert_array_equal(joined(batches(data)), X)
    with pytest.raises(ValueError, match="`x` must end"):
        next(batches(data.repeat()))
    sparse = tf.sparse.from_dense(X)
    for each in (sparse, tf.data.Dataset.from_tensor_slices(sparse).batch(4)):
        np.testing.assert_array_equal(joined(batches(each, 4)), X)
    optional = tf.data.Dataset.from_tensors({"a": X, "b": tf.experimental.Optional.empty(tf.TensorSpec(()))})
    assert next(batches(optional)).inputs["b"] is None
    words = np.array(["to", "be", "or"])
    for text in (words, words.astype(object), words.astype("S"), list(words), words[:, None]):
        (batch,) = batches(text)
        assert symbolic(batch.inputs).dtype == "string"
        assert batch.inputs.numpy().ravel().tolist() == [b"to", b"be", b"or"]


@pytest.mark.core
def test_text_is_refused_by_name_where_no_tensor_holds_it():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has tensors of strings")
    with pytest.raises(ValueError, match=r"`x\['a'\]` must hold numbers on"):
        next(batches({"a": np.array(["to", "be"])}))


@pytest.mark.core
def test_labels_go_with_the_inputs_also_of_data_in_a_random_order():
    data = LabelledData(Batches(), num_readings=2)
    once, again = (np.concatenate([inputs for (inputs,) in data.inputs()]) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(X[data.labels()], once)
    unlabelled = LabelledData(iter([X]))
    assert [inputs.shape for (inputs,) in unlabelled.inputs()] == [(10, 3)]
    assert unlabelled.labels() is None
