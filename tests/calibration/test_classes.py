"""Labels of any kind find their column by one rule, and what could be meant in two ways is asked."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.preprocessing import LabelEncoder

from bdl.calibration import (
    BetaCalibration,
    SplitConformalClassifier,
    TemperatureScaling,
    accuracy,
    class_conditional_coverage,
    class_indices,
    coverage_of_sets,
    negative_log_likelihood,
)
from bdl.calibration._classes import column_names, label_array, label_columns

RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.ones(3), size=80)
COLUMNS = np.array([RANDOM.choice(3, p=row) for row in P])

NAMINGS = {
    "text": (["cat", "dog", "emu"], ["cat", "dog", "emu"]),
    "text in another order": (["emu", "cat", "dog"], ["emu", "cat", "dog"]),
    "from 1": ([1, 2, 3], [1, 2, 3]),
    "signs": ([-1, 0, 1], [-1, 0, 1]),
    "numbers with a prefix": ([1, 2, 10], ["p1", "p2", "p10"]),
    "numbers after a dash": ([1, 2, 3], ["class-1", "class-2", "class-3"]),
    "negative numbers": ([-1, 0, 1], ["p-1", "p0", "p1"]),
    "text with a prefix": (["cat", "car", "dog"], ["p_cat", "p_car", "p_dog"]),
    "prefix of words": (["cat", "car", "cap"], ["P(y) of cat", "P(y) of car", "P(y) of cap"]),
    "floats": ([0.5, 1.5, 2.5], [0.5, 1.5, 2.5]),
    "floats as text": ([1.0, 2.0, 3.0], ["1", "2", "3.0"]),
    "text of numbers": (["3", "1", "2"], [3, 1, 2]),
}
every_naming = pytest.mark.parametrize(("labels", "names"), NAMINGS.values(), ids=NAMINGS)


@every_naming
def test_a_label_belongs_to_the_column_of_its_name(labels, names):
    y = np.array(labels)[COLUMNS]
    assert_array_equal(class_indices(y, names), COLUMNS)
    part = COLUMNS != 1  # a class may be absent
    assert_array_equal(class_indices(y[part], names), COLUMNS[part])
    assert_array_equal(class_indices(y.astype(object).reshape(8, 10), np.array(names)), COLUMNS.reshape(8, 10))


@every_naming
def test_tables_bring_the_names_with_them(labels, names):
    y, table = np.array(labels)[COLUMNS], pd.DataFrame(P, columns=names)
    assert negative_log_likelihood(y, table) == negative_log_likelihood(COLUMNS, P)
    turned = table[names[::-1]]
    assert negative_log_likelihood(y, turned) == pytest.approx(negative_log_likelihood(COLUMNS, P), rel=1e-14)
    conformal = SplitConformalClassifier().fit(turned, y)
    assert_array_equal(
        conformal.predict_set(turned), SplitConformalClassifier().fit(P, COLUMNS).predict_set(P)[:, ::-1]
    )
    with pytest.raises(ValueError, match="`probabilities` must have the columns of `fit`"):
        conformal.predict_set(table)


def test_numbers_of_columns_are_no_names():
    assert column_names(pd.DataFrame(P)) is None
    assert column_names({"columns": 1}) is None
    assert column_names(pd.DataFrame(P, columns=[1, 2, 3])) == [1, 2, 3]


@pytest.mark.parametrize(
    ("y", "num_classes"),
    [
        ([0, 2, 2], 3),
        ([False, True, True], 2),
        ([0.0, 1.0], 2),
        (["b", "a", "b"], 2),
        (["no", "yes"], 2),
        ([-1, 1, 1], 2),
        ([3, 1, 2, 2], 3),
        ([20, 10, 30], 3),
        (["2", "0", "2"], 3),
        (["10", "20"], 2),
        (np.array([7, 5], dtype=object), 2),
    ],
)
def test_without_names_it_is_the_number_or_the_sorted_order(y, num_classes):
    """The truth is scikit-learn's encoder where all classes are there, else the number itself."""
    array = np.asarray(y)
    are_numbers = array.dtype.kind in "buif" and array.min() >= 0 and array.max() < num_classes
    expected = (
        array.astype(int) if are_numbers or (num_classes == 3 and "0" in y) else LabelEncoder().fit_transform(array)
    )
    assert_array_equal(label_columns(label_array(y), num_classes)[1], expected)


@given(st.lists(st.integers(-3, 300), min_size=2, max_size=6), st.integers(2, 5))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_numbers_without_names_are_read_in_one_way_or_not_at_all(y, num_classes):
    found = sorted(set(y))
    are_columns = found[0] >= 0 and found[-1] < num_classes
    is_none_a_column = all(not 0 <= label < num_classes for label in found) and len(found) == num_classes
    is_usual = found in (list(range(1, num_classes + 1)), [-1, 1][: 2 if num_classes == 2 else 0])
    if are_columns:
        assert_array_equal(label_columns(np.array(y), num_classes)[1], y)
    elif is_none_a_column or is_usual:
        assert_array_equal(label_columns(np.array(y), num_classes)[1], [found.index(label) for label in y])
    else:
        with pytest.raises(ValueError, match=r"`y` must hold class indices"):
            label_columns(np.array(y), num_classes)


@pytest.mark.parametrize(
    ("y", "num_classes", "classes", "message"),
    [
        ([0, 1, 255], 3, None, r"not 255 at index 2"),
        ([0, 2], 2, None, r"not 2 at index 1"),
        (["a", "b"], 3, None, r"a different name for each of the 3 classes, not 2 different names"),
        ([0, 1], 2, ["dog", "cat"], r"must hold the classes \['dog', 'cat'\], not 0\..*the classes are 0 to 1"),
        ([0, 1], 2, ["p1", "p2"], r"must hold the classes \['p1', 'p2'\], not 0"),
        ([0, 2], 2, ["cat", "dog"], r"must hold the classes \['cat', 'dog'\], not 0"),
        (["cat", "emu"], 2, ["cat", "dog"], r"not 'emu'"),
        (["t", "r"], 2, ["cat", "car"], r"must hold the classes"),
        ([0, 1], 2, ["a"], r"`classes` must name each of the 2 classes.*not 1"),
        (["a", "b"], 2, ["a", "a"], r"`classes` must be different, not 'a' twice"),
        ([1, 2], 2, ["1", "1.0"], r"`classes` must be different, not 1 twice"),
        (np.array(["a", None], object), 2, None, r"a label for every event that counts, not None at index 1"),
        (np.array(["a", np.nan], object), 2, ["a", "b"], r"not nan at index 1"),
        (pd.array(["a", pd.NA]), 2, ["a", "b"], r"not <NA> at index 1"),
        (np.array(["a", 1], object), 2, None, r"labels of one kind"),
        (np.array(["2020-01-01"], "M8[D]"), 2, None, r"not dtype datetime64"),
        ([0, 0.5], 2, None, r"whole numbers, the class indices, not 0\.5"),
        ([0, np.nan], 2, None, r"must be finite, not nan at index 1"),
    ],
)
def test_what_is_no_class_or_could_be_another_is_asked(y, num_classes, classes, message):
    with pytest.raises(ValueError, match=message):
        label_columns(label_array(y), num_classes, classes)


def test_numbers_may_stand_for_names_in_sorted_order():
    """For then column number and scikit-learn's code are the same."""
    names = ["a cow", "cat", "dog"]
    encoder = LabelEncoder().fit(names)
    codes = encoder.transform(np.array(names)[COLUMNS])
    assert_array_equal(class_indices(codes, names), COLUMNS)
    assert_array_equal(class_indices(codes, [f"p_{name}" for name in names]), COLUMNS)


def test_labels_that_do_not_count_are_not_read():
    y, kept = np.array(["cat", None, "dog"], object), np.array([True, False, True])
    assert_array_equal(label_columns(y, 2, ["dog", "cat"], kept)[1], [1, 0, 0])
    assert_array_equal(label_columns(np.array([0, -100, 1]), 2, None, kept)[1], [0, 0, 1])
    assert_array_equal(label_columns(np.array([0, np.nan, 1]), 2, None, kept)[1], [0, 0, 1])


def test_metrics_take_names_of_all_classes():
    names = np.array(["cat", "dog", "emu"])
    assert accuracy(names[COLUMNS], P) == accuracy(COLUMNS, P)
    assert accuracy(class_indices(names[:2][COLUMNS % 2], names), P) == accuracy(COLUMNS % 2, P)


def test_conformal_predictors_take_names():
    names = np.array(["emu", "cat", "dog"])
    conformal = SplitConformalClassifier().fit(P, names[COLUMNS], classes=names)
    expected = SplitConformalClassifier().fit(P, COLUMNS)
    assert_array_equal(conformal.labels_, COLUMNS)
    assert_array_equal(conformal.classes_, names)
    sets = conformal.predict_set(P)
    assert_array_equal(sets, expected.predict_set(P))
    assert coverage_of_sets(names[COLUMNS], sets, names) == coverage_of_sets(COLUMNS, sets)
    assert_array_equal(
        class_conditional_coverage(names[COLUMNS], sets, names), class_conditional_coverage(COLUMNS, sets)
    )
    hidden = np.arange(80) % 4 == 0
    masked = np.ma.array(np.where(hidden, -100, COLUMNS), mask=hidden)
    assert_array_equal(SplitConformalClassifier().fit(P, masked).labels_, COLUMNS[~hidden])
    assert coverage_of_sets(masked, sets) == coverage_of_sets(COLUMNS[~hidden], sets[~hidden])


@pytest.mark.parametrize("calibrator", [TemperatureScaling(), BetaCalibration()])
def test_recalibrators_take_names(calibrator):
    names = np.array(["emu", "cat", "dog"])
    expected = calibrator.fit(P, COLUMNS).predict_proba(P)
    named = calibrator.fit(P, names[COLUMNS], classes=names)
    assert_array_equal(named.predict_proba(P), expected)
    assert_array_equal(named.classes_, names)
    assert_array_equal(named.predict(P), names[expected.argmax(axis=1)])
    table = pd.DataFrame(P, columns=[f"p_{name}" for name in names])
    of_table = calibrator.fit(table, names[COLUMNS])
    assert_array_equal(of_table.predict_proba(table), expected)
    assert_array_equal(of_table.predict(table), names[expected.argmax(axis=1)])
    hidden = np.arange(80) % 4 == 0
    masked = calibrator.fit(P, np.ma.array(np.where(hidden, -100, COLUMNS), mask=hidden)).predict_proba(P)
    assert_array_equal(masked, calibrator.fit(P[~hidden], COLUMNS[~hidden]).predict_proba(P))
    part = COLUMNS != 2  # a class that the split lacks
    assert_array_equal(calibrator.fit(P[part], names[COLUMNS[part]], classes=names).classes_, names)
