"""Predictions and labels from files of every kind, whole or damaged."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import bdl
from bdl.evaluation.files import read_arrays, read_common_labels, read_labels, take_prediction

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
Y = np.array([0, 1])


def test_npz_holds_arrays_by_name(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, probabilities=P, y=Y)
    content = read_arrays(path)
    assert_array_equal(read_labels("y", path, content), Y)
    assert_array_equal(take_prediction(content, path, "y", None).arrays["probabilities"], P)


def test_npy_holds_one_array_that_stays_on_disk(tmp_path):
    np.save(tmp_path / "p.npy", P)
    np.save(tmp_path / "labels.npy", Y)
    content = read_arrays(tmp_path / "p.npy")
    assert isinstance(content["p"], np.memmap)
    assert_array_equal(take_prediction(content, tmp_path / "p.npy", "labels.npy", "logits").arrays["logits"], P)
    assert_array_equal(read_labels(str(tmp_path / "labels.npy"), tmp_path / "p.npy", content), Y)


def test_fields_of_npy_are_columns_that_stay_on_disk(tmp_path):
    path = tmp_path / "p.npy"
    rows = np.empty(2, [("y", int), ("mean", "float32"), ("std", float), ("aleatoric", float)])
    for name, values in {"y": [3, 4], "mean": [1, 2], "std": [0.5, 0.25], "aleatoric": [0.1, 0.2]}.items():
        rows[name] = values
    np.save(path, rows)
    content = read_arrays(path)
    assert all(isinstance(column, np.memmap) for column in content.values())
    assert_array_equal(read_labels("y", path, content), [3, 4])
    prediction = take_prediction(content, path, "y")
    assert set(prediction.arrays) == {"mean", "std"}
    assert all(isinstance(column, np.memmap) for column in prediction.arrays.values())
    assert_array_equal(prediction.arrays["mean"], [1, 2])


def test_predictions_of_classes_that_were_written_are_evaluated_from_the_file(tmp_path):
    random = np.random.default_rng(0)
    p, y = random.dirichlet(np.ones(4), size=40), random.integers(0, 4, 40)
    none = np.zeros(20)
    parts = [
        bdl.prediction.ClassificationPrediction(bdl.likelihoods.Categorical(), half, none, none, num_samples=2)
        for half in (p[:20], p[20:])
    ]
    path = tmp_path / "predictions.npy"
    assert bdl.write_predictions(path, parts) == 40
    found = take_prediction(read_arrays(path), path, "labels.npy", y=y).arrays
    assert bdl.evaluate(y, found, num_resamples=0)["nll"] == bdl.evaluate(y, p, num_resamples=0)["nll"]


def test_predictions_of_targets_that_were_written_are_evaluated_from_the_file(tmp_path):
    random = np.random.default_rng(1)
    parameters = {"loc": random.normal(size=(3, 20)), "scale": np.ones((3, 20))}
    prediction = bdl.prediction.RegressionPrediction(bdl.likelihoods.Normal(), parameters)
    path = tmp_path / "predictions.npy"
    bdl.write_predictions(path, [prediction])
    found = take_prediction(read_arrays(path), path, "labels.npy").arrays
    y = random.normal(size=20)
    expected = bdl.evaluate(y, {"mean": prediction.mean, "std": prediction.std}, num_resamples=0)
    assert bdl.evaluate(y, found, num_resamples=0)["nll"] == expected["nll"]


def test_csv_columns_are_classes_in_the_order_of_their_numbers(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("p2,y,p10,p1\n0.2,0,0.1,0.7\n0.8,1,0.1,0.1\n")
    content = read_arrays(path)
    assert_array_equal(take_prediction(content, path, "y", None).arrays["probabilities"], P)
    assert_array_equal(read_labels("y", path, content), Y)


def test_csv_of_mean_and_scale(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('"mean","scale",y\n1,2,3\n4,5,6\n')
    prediction = take_prediction(read_arrays(path), path, "y", None).arrays
    assert_array_equal(prediction["mean"], [1, 4])
    assert_array_equal(prediction["scale"], [2, 5])


def test_csv_of_samples_has_a_column_for_each(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("s0,s1,y\n1,2,3\n4,5,6\n")
    samples = take_prediction(read_arrays(path), path, "y", "samples").arrays["samples"]
    assert_array_equal(samples, [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"must be one of \.npz, \.npy, \.csv, \.tsv, \.parquet, not '\.txt'"),
        ("a.npz.gz", b"", r"must be one of .*, not '\.gz'"),
        ("missing.npz", None, r"does not exist"),
        ("a.npz", b"PK damaged", r"a\.npz cannot be read as \.npz"),
        ("a.npy", b"\x93NUMPY damaged", r"a\.npy cannot be read as \.npy"),
        ("a.parquet", b"PAR1 damaged", r"a\.parquet cannot be read as \.parquet"),
        ("a.csv.gz", b"damaged", r"a\.csv\.gz cannot be read as \.csv"),
        ("a.csv", b"", r"a\.csv cannot be read as \.csv"),
        ("a.csv", b"p,y\n", r"holds no examples"),
    ],
)
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
        take_prediction({"a": P, "b": P}, tmp_path / "a.npz", "y", None)


COLUMNS = {"cat": np.array([0.7, 0.1, 0.2]), "dog": np.array([0.3, 0.9, 0.8])}
AGE, SEX, ROW = np.array([40.5, 12.0, 7.0]), np.array([1, 0, 1]), np.array([4, 5, 6])
NAMES, DATES = np.array(["x", "y", "1"], object), np.array(["2026-01-01"] * 3, "datetime64[ns]")
ZERO, ONE = np.zeros(3), np.ones(3)


@pytest.mark.parametrize(
    ("others", "form", "columns"),
    [
        ({}, None, "cat dog"),
        ({"age": AGE}, None, "cat dog age"),  # one set of columns, whose sums `evaluate` refuses
        ({"sex": SEX}, None, "cat dog"),
        ({"": ROW, "name": NAMES, "when": DATES}, None, "cat dog"),
        ({"row": ROW}, "logits", None),
        ({"__index_level_0__": AGE}, "samples", None),
        ({"age": AGE}, "logits", None),
        ({"age": AGE}, "samples", None),
        ({"one": ONE}, None, "cat dog"),
        ({"p1": COLUMNS["dog"], "p0": COLUMNS["cat"]}, "logits", "p0 p1"),
        ({"p1": COLUMNS["dog"], "p0": COLUMNS["cat"], "p2": ZERO}, None, "p0 p1 p2"),
        ({"x1": AGE, "x2": AGE}, None, None),
        ({"zero": ZERO}, None, None),
        ({"one": ONE}, "logits", None),
        ({"sex": SEX}, "logits", None),
        ({"p0": AGE, "p1": AGE, "q0": AGE, "q1": AGE}, "samples", None),
    ],
)
def test_columns_are_classes_if_that_is_sure(tmp_path, others, form, columns):
    content = {**others, **COLUMNS, "y": SEX}
    if columns is None:
        with pytest.raises(ValueError, match=r"does not say which columns .* Name them with `--columns`"):
            take_prediction(content, tmp_path / "a.csv", "y", form)
        return
    found = take_prediction(content, tmp_path / "a.csv", "y", form)
    assert sorted(found.columns) == sorted(columns.split())
    assert_array_equal(found.arrays[form or "probabilities"], np.stack([content[name] for name in found.columns], 1))
    assert set(found.left_out) == set(content) - {"y", *found.columns}


def test_a_prefix_or_the_labels_tell_classes_from_other_numbers(tmp_path):
    path, y = tmp_path / "a.csv", np.array(["dog", "cat", "dog"])
    prefixed = {"p_cat": COLUMNS["cat"], "p_dog": COLUMNS["dog"], "user_age": AGE, "y": y}
    assert take_prediction(prefixed, path, "y").columns == ("p_cat", "p_dog")
    named = {**COLUMNS, "age": AGE, "y": y}
    assert take_prediction(named, path, "y", y=y).columns == ("cat", "dog")
    assert take_prediction({**COLUMNS, "y": y}, path, "y", y=np.array(["cat"] * 3)).columns == ("cat", "dog")
    for content in (prefixed, named):  # logits have no sum that could tell
        with pytest.raises(ValueError, match="does not say which columns of numbers are the logits"):
            take_prediction(content, path, "y", "logits", y=y)


def test_logits_without_telling_names_are_taken_if_each_column_has_its_label(tmp_path):
    path, content = tmp_path / "a.csv", {**COLUMNS, "emu": AGE, "y": np.arange(3)}

    def taken(y, form="logits"):
        return take_prediction(content, path, "y", form, y=np.array(y)).columns

    assert taken([2, 0, 1]) == ("cat", "dog", "emu")
    assert taken(["dog", "cat", "emu"]) == ("cat", "dog", "emu")
    for y in ([0, 1, 1], [0, 1, 3], [0.5, 1, 2], ["a", "b", "c"]):  # a column may be another number, such as an age
        with pytest.raises(
            ValueError, match=r"which columns of numbers are the logits: cat, dog, emu\. Name them with"
        ):
            taken(y)
    with pytest.raises(ValueError, match="which columns of numbers are the samples: cat, dog, emu"):
        taken([2, 0, 1], "samples")
    del content["emu"]
    with pytest.raises(ValueError, match="which columns of numbers are the logits: cat, dog"):
        taken([0, 1, 1])  # a logit and another number
    del content["cat"]
    content["name"] = NAMES
    assert take_prediction(content, path, "y", "logits").left_out == {"name": "text"}


def test_columns_are_of_one_length(tmp_path):
    path, content = tmp_path / "a.npz", {"p0": AGE, "p1": AGE[:2], "y": SEX}
    with pytest.raises(ValueError, match=r"a\.npz must hold arrays named probabilities"):
        take_prediction(content, path, "y")
    with pytest.raises(
        ValueError, match=r"a\.npz must hold columns of one length, not shapes \(3,\) in 'p0', \(2,\) in"
    ):
        take_prediction(content, path, "y", chosen=["p*"])
    with pytest.raises(ValueError, match="must hold columns of one length"):
        take_prediction({"a": P, "b": P, "y": Y}, path, "y", chosen=["*"])


def test_columns_may_be_chosen_by_name_and_pattern(tmp_path):
    content = {"age": AGE, "p10": ROW, "p2": AGE, "cat": COLUMNS["cat"], "y": SEX}
    found = take_prediction(content, tmp_path / "a.csv", "y", "logits", ["cat", "p*"])
    assert found.columns == ("cat", "p2", "p10")
    assert found.left_out == {"age": "other numbers"}
    assert str(found) == "logits from cat, p2, p10; left out: age (other numbers)"
    with pytest.raises(ValueError, match=r"`--columns` must name columns of .*a\.csv, .*, not 'q\*'"):
        take_prediction(content, tmp_path / "a.csv", "y", None, ["q*"])


def test_a_column_with_a_few_words_among_numbers_is_damaged_and_not_text(tmp_path):
    damaged = np.array(["0.3", "0.9", "NA"], object)
    with pytest.raises(ValueError, match=r"a number in most rows of column 'dog', but 'NA' in row 2"):
        take_prediction({**COLUMNS, "dog": damaged, "y": SEX}, tmp_path / "a.csv", "y")
    with pytest.raises(ValueError, match=r"must hold numbers in 'mean', not text, such as '0\.3'"):
        take_prediction({"mean": damaged, "scale": ONE}, tmp_path / "a.csv", "y")


def test_labels_must_not_be_missing(tmp_path):
    path = tmp_path / "a.csv"
    for missing in (np.array([1.0, np.nan]), np.array(["x", ""], object)):
        with pytest.raises(ValueError, match=r"must have a value for each row, not none in row 1"):
            read_labels("y", path, {"y": missing})


def test_labels_of_several_files_are_their_own_and_agree(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    same = {one: {"y": Y}, two: {"y": Y.astype(float)}}
    assert_array_equal(read_common_labels("y", same), Y)
    with pytest.raises(ValueError, match=r"must be the same in .*one.csv and .*two.csv.*row 1 is the first"):
        read_common_labels("y", {one: {"y": Y}, two: {"y": np.array([0, 2])}})
    with pytest.raises(ValueError, match=r"lengths 2 and 3"):
        read_common_labels("y", {one: {"y": Y}, two: {"y": np.array([0, 2, 1])}})
    with pytest.raises(ValueError, match=r"row 0 is the first"):
        read_common_labels("y", {one: {"y": Y}, two: {"y": np.array(["cat", "dog"], object)}})
    with pytest.raises(ValueError, match=r"two.csv has no 'y', but \['p'\]"):
        read_common_labels("y", {one: {"y": Y}, two: {"p": Y}})
    np.save(tmp_path / "y.npy", Y)
    assert_array_equal(read_common_labels(str(tmp_path / "y.npy"), {one: {"p": Y}, two: {"p": Y}}), Y)


def test_labels_in_a_table_of_their_own_may_stand_beside_an_index(tmp_path):
    path = tmp_path / "y.csv"
    path.write_text(",kind\n0,2\n1,1\n2,0\n")
    assert_array_equal(read_labels(str(path), path, {"p": Y}), [2, 1, 0])
