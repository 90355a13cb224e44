"""Tables of every dialect hold what was written into them, and a column is never mistaken for another."""

import csv
import itertools
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bdl.evaluation import evaluate
from bdl.evaluation.files import read_arrays, read_labels, take_prediction
from bdl.evaluation.tables import read_table

N = 12
RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.ones(3), size=N)

DIALECTS = {
    "plain": {},
    "semicolon": {"sep": ";"},
    "decimal commas": {"sep": ";", "decimal": ","},
    "tab": {"sep": "\t"},
    "CRLF": {"lineterminator": "\r\n"},
    "byte order mark": {"encoding": "utf-8-sig"},
    "all quoted": {"quoting": csv.QUOTE_ALL},
    "names quoted": {"quoting": csv.QUOTE_NONNUMERIC},
    "spreadsheet": {"sep": ";", "decimal": ",", "lineterminator": "\r\n", "encoding": "utf-8-sig"},
}
NAMES = {
    "p0": ["p0", "p1", "p2"],
    "numbers": ["0", "1", "2"],
    "words": ["a cow", "cat", "dog"],
    "class 0": ["class 0", "class 1", "class 2"],
}
INDEXES = {
    "none": None,
    "rows": pd.RangeIndex(N),
    "dates": pd.date_range("2026-01-01", periods=N),
    "words": pd.Index([f"row {i}" for i in range(N)], name="id"),
    "shuffled": pd.Index(RANDOM.permutation(N) + 100, name="id"),
    "two levels": pd.MultiIndex.from_product([["a", "b"], range(N // 2)], names=["group", "number"]),
}
LABELS = {
    "classes": RANDOM.integers(0, 3, N),
    "real": RANDOM.integers(0, 3, N).astype(float),
    "truth": RANDOM.integers(0, 2, N).astype(bool),
    "void": np.where(np.arange(N) % 4, RANDOM.integers(0, 3, N), 255),
    "words": RANDOM.choice(["cat", "dog", "NA", "None", 'ä;b,"c"'], N),
}
NUMBERS = {"float64": P, "float32": P.astype("float32"), "hard": np.eye(3)[RANDOM.integers(0, 3, N)]}
EXTRAS = {
    "none": {},
    "text": {"comment": ["a, b"] * N},
    "date": {"when": ["2026-01-01"] * N},
    "constant": {"fold": 1},
    "empty": {"nothing": np.nan},
}


def frame_of(names, labels, index, numbers, extra):
    columns = dict(zip(NAMES[names], NUMBERS[numbers].T, strict=True))
    return pd.DataFrame({**columns, "y": LABELS[labels], **EXTRAS[extra]}, index=INDEXES[index])


def check(path, names, labels, numbers):
    """The class columns and labels of a file are those that were written, and so is what they score."""
    content = read_arrays(path)
    found = take_prediction(content, path, "y")
    y = read_labels("y", path, content)
    assert list(found.columns) == NAMES[names]
    assert_array_equal(found.arrays["probabilities"].astype(NUMBERS[numbers].dtype), NUMBERS[numbers])
    assert_array_equal(y, LABELS[labels])
    if labels == "words":
        return
    void = 255 if labels == "void" else None
    nll = evaluate(y, found.arrays, ignore_class=void, num_resamples=0)["nll"]
    counted = LABELS[labels] != 255
    with np.errstate(divide="ignore"):
        expected = -np.log(NUMBERS[numbers][np.arange(N), np.where(counted, LABELS[labels], 0).astype(int)])[counted]
    if np.isfinite(expected).all():
        assert nll == pytest.approx(expected.mean(), rel=1e-6)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    dialect=st.sampled_from(sorted(DIALECTS)),
    suffix=st.sampled_from([".csv", ".CSV", ".tsv", ".csv.gz", ".Tsv.GZ"]),
    names=st.sampled_from(sorted(NAMES)),
    index=st.sampled_from(sorted(INDEXES)),
    labels=st.sampled_from(sorted(LABELS)),
    numbers=st.sampled_from(sorted(NUMBERS)),
    extra=st.sampled_from(sorted(EXTRAS)),
)
def test_text_tables_hold_what_was_written(tmp_path, dialect, suffix, names, index, labels, numbers, extra):
    path = tmp_path / f"table{suffix}"
    compression = "gzip" if suffix.lower().endswith(".gz") else None
    frame = frame_of(names, labels, index, numbers, extra)
    frame.to_csv(path, index=index != "none", compression=compression, **DIALECTS[dialect])
    before = path.read_bytes()
    check(path, names, labels, numbers)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("index", "labels"), list(itertools.product(sorted(INDEXES), sorted(LABELS))))
def test_parquet_holds_what_was_written(tmp_path, index, labels):
    path = tmp_path / "table.PARQUET"
    frame_of("words", labels, index, "float32", "text").to_parquet(path)
    check(path, "words", labels, "float32")


def test_an_index_that_other_libraries_wrote_is_no_class(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"p_cat": P[:, 0], "p_dog": 1 - P[:, 0], "y": LABELS["truth"], "__index_level_0__": RANDOM.permutation(N)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = take_prediction(read_arrays(tmp_path / "a.parquet"), tmp_path, "y", "logits")
    assert found.columns == ("p_cat", "p_dog")
    assert found.left_out == {"__index_level_0__": "numbers the rows"}


def test_labels_may_be_in_a_named_index(tmp_path):
    frame_of("p0", "words", "none", "float64", "none").set_index("y").to_parquet(tmp_path / "a.parquet")
    check(tmp_path / "a.parquet", "p0", "words", "float64")


def test_parquet_columns_may_hold_lists_of_one_length(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    samples = RANDOM.normal(size=(N, 4, 2))
    tokens = [list(range(i)) for i in range(N)]
    table = {"probabilities": P.tolist(), "nested": samples.tolist(), "tokens": tokens, "y": LABELS["classes"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    content = read_arrays(tmp_path / "a.parquet")
    assert_array_equal(content["probabilities"], P)
    assert_array_equal(content["nested"], samples)
    assert take_prediction(content, tmp_path, "y").left_out == {"nested": "other numbers", "tokens": "dtype object"}


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        (pd.array([1, None, 3], "Int64"), "f", [1, np.nan, 3]),
        (pd.array([True, None, False], "boolean"), "f", [1, np.nan, 0]),
        (pd.Categorical(["a", "b", "a"]), "O", ["a", "b", "a"]),
        (pd.Categorical([3, 1, 3]), "i", [3, 1, 3]),
        ([Decimal("0.5"), None, Decimal("1")], "f", [0.5, np.nan, 1]),
        ([None, "b", ""], "O", ["", "b", ""]),
        (pd.date_range("2026-01-01", periods=3), "M", None),
        ([date(2026, 1, 1)] * 3, "O", ["2026-01-01"] * 3),
    ],
)
def test_columns_come_back_as_what_they_are(tmp_path, column, dtype, values):
    pd.DataFrame({"a": column}).to_parquet(tmp_path / "a.parquet")
    found = read_table(tmp_path / "a.parquet")["a"]
    assert found.dtype.kind == dtype
    if values is not None:
        assert_array_equal(found, np.array(values, found.dtype))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a,b\n1,2\n3,4\n", {"a": [1, 3], "b": [2, 4]}),
        ("a,b,\n1,2,\n3,4,\n", {"a": [1, 3], "b": [2, 4]}),
        ("a,b\n1,2,\n3,4,\n", {"a": [1, 3], "b": [2, 4]}),
        ("a,b\n1,2,\n3,4\n", {"a": [1, 3], "b": [2, 4]}),
        (",a\n7,1\n8,3\n", {"": [7, 8], "a": [1, 3]}),
        (' a , "b c"\n1, 2\n3, 4\n', {"a": [1, 3], "b c": [2, 4]}),
        ("\n\na,b\n1,2\n\n3,4\n\n", {"a": [1, 3], "b": [2, 4]}),
        ("0,1\n1,2\n3,4", {"0": [1, 3], "1": [2, 4]}),
        ('"a;b";c\n"1";2\n"3";4\n', {"a;b": [1, 3], "c": [2, 4]}),
        ('"a\nb",c\n1,2\n3,4\n', {"a\nb": [1, 3], "c": [2, 4]}),
        ("a;b\n1,5;2\n3;4\n", {"a": [1.5, 3], "b": [2, 4]}),
        ("a,b\n0.1,1e-3\n0.30000000000000004,inf\n", {"a": [0.1, 0.30000000000000004], "b": [1e-3, np.inf]}),
        ("a,b\n1,\n3,nan\n", {"a": [1, 3], "b": [np.nan, np.nan]}),
    ],
)
def test_text_is_read_as_it_was_meant(tmp_path, text, columns):
    (tmp_path / "a.csv").write_bytes(text.encode())
    found = read_table(tmp_path / "a.csv")
    assert list(found) == list(columns)
    for name, values in columns.items():
        assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,1\n0.2,0\n", r"its first line must name the columns, such as y,p0,p1, not be \['0\.5', '1'\]"),
        ("2,0,1\n1,0,2\n", "its first line must name the columns"),
        ("p,p\n0.5,1\n", "its columns must have different names"),
        ("p,y\n0.5,1,2\n", r"it has a value without a column name in row 0: 2"),
        ("p,y\n0.5,1\n0.5,1,2\n", r"it has a value without a column name in row 1: 2"),
        ("p,y\n0.5,1\n0.5,1,2,3\n", r"Expected 3 fields in line 2, saw 4"),
        ("p,,y\n0.5,7,1\n", "it has a value without a column name in row 0: 7"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_arrays(tmp_path / "a.csv")
