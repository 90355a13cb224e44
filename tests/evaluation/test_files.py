"""Predictions and labels from files of every kind, whole or damaged."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bdl.evaluation.files import as_prediction, read_arrays, read_labels

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
Y = np.array([0, 1])


def test_npz_holds_arrays_by_name(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, probabilities=P, y=Y)
    content = read_arrays(path)
    assert_array_equal(read_labels("y", path, content), Y)
    assert_array_equal(as_prediction(content, path, "y", None)["probabilities"], P)


def test_npy_holds_one_array_that_stays_on_disk(tmp_path):
    np.save(tmp_path / "p.npy", P)
    np.save(tmp_path / "labels.npy", Y)
    content = read_arrays(tmp_path / "p.npy")
    assert isinstance(content["p"], np.memmap)
    assert_array_equal(as_prediction(content, tmp_path / "p.npy", "labels.npy", "logits")["logits"], P)
    assert_array_equal(read_labels(str(tmp_path / "labels.npy"), tmp_path / "p.npy", content), Y)


def test_csv_columns_are_classes_in_the_order_of_their_numbers(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("p2,y,p10,p1\n0.2,0,0.1,0.7\n0.8,1,0.1,0.1\n")
    content = read_arrays(path)
    assert_array_equal(as_prediction(content, path, "y", None)["probabilities"], P)
    assert_array_equal(read_labels("y", path, content), Y)


def test_csv_of_mean_and_scale(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('"mean","scale",y\n1,2,3\n4,5,6\n')
    prediction = as_prediction(read_arrays(path), path, "y", None)
    assert_array_equal(prediction["mean"], [1, 4])
    assert_array_equal(prediction["scale"], [2, 5])


def test_csv_of_samples_has_a_column_for_each(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("s0,s1,y\n1,2,3\n4,5,6\n")
    samples = as_prediction(read_arrays(path), path, "y", "samples")["samples"]
    assert_array_equal(samples, [[1, 4], [2, 5]])


def test_parquet_columns_may_hold_lists(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"probabilities": P.tolist(), "y": Y}), path)
    content = read_arrays(path)
    assert_array_equal(content["probabilities"], P)
    assert_array_equal(content["y"], Y)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"must be one of \.npz, \.npy, \.csv, \.parquet, not '\.txt'"),
        ("missing.npz", None, r"does not exist"),
        ("a.npz", b"PK damaged", r"a\.npz cannot be read as \.npz"),
        ("a.npy", b"\x93NUMPY damaged", r"a\.npy cannot be read as \.npy"),
        ("a.csv", b"", r"a\.csv cannot be read as \.csv"),
        ("a.csv", b"p,y\n", r"holds no examples"),
        ("a.csv", b"p,y\n0.5,cat\n", r"cannot be read as \.csv: could not convert string 'cat'"),
        ("a.csv", b"0.5,1\n0.2,0\n", r"its first line must name the columns"),
        ("a.csv", b"p,p\n0.5,1\n", r"must have different names"),
        ("a.csv", b"p,y\n0.5,1,2\n", r"it names 2 columns, but has 3"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_arrays(tmp_path / name)


def test_labels_are_an_array_or_a_file(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, p=P)
    with pytest.raises(ValueError, match=r"`--labels` must name an array in .* or a file, not 'y'.*\['p'\]"):
        read_labels("y", path, read_arrays(path))
    np.savez(tmp_path / "two.npz", a=Y, b=Y)
    with pytest.raises(ValueError, match=r"must hold the labels alone"):
        read_labels(str(tmp_path / "two.npz"), path, read_arrays(path))


def test_arrays_that_could_be_anything_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold arrays named probabilities"):
        as_prediction({"a": P, "b": P}, tmp_path / "a.npz", "y", None)
