"""Tables of predictions: what is written is what was predicted, and a file that was there is never damaged."""

import keras
import numpy as np
import pytest

import bdl
from bdl.likelihoods import Bernoulli, Categorical, Normal
from bdl.prediction import ClassificationPrediction, RegressionPrediction, columns_of

RNG = np.random.default_rng(0)
PARAMETERS = {"loc": RNG.normal(size=(6, 10, 2)), "scale": RNG.uniform(1, 2, size=(6, 10, 2))}
TARGETS = RegressionPrediction(Normal(), PARAMETERS)
ONE = RegressionPrediction(Normal(), {name: value[..., 0] for name, value in PARAMETERS.items()})
P = RNG.dirichlet(np.ones(3), size=10).astype("float32")
CLASSES = ClassificationPrediction(Categorical(), P, RNG.random(10), RNG.random(10), 6)


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("prediction", [ONE, TARGETS, CLASSES, {"size": ONE, "kind": CLASSES}], ids=range(4))
def test_what_is_written_is_what_was_predicted(tmp_path, suffix, prediction):
    path = tmp_path / f"predictions{suffix}"
    assert bdl.write_predictions(path, [prediction] * 3, quantiles=(0.05, 0.5)) == 30
    if suffix == ".npy":
        rows = np.load(path, mmap_mode="r")
        found = {name: np.asarray(rows[name]) for name in rows.dtype.names}
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        found = {name: table[name].to_numpy() for name in table.column_names}
    expected = columns_of(prediction, quantiles=(0.05, 0.5))
    assert list(found) == list(expected)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], np.tile(column, 3))
        assert found[name].dtype == column.dtype


def test_columns_are_named_by_events_and_classes():
    assert list(columns_of(ONE)) == ["mean", "std", "aleatoric", "epistemic"]
    assert list(columns_of(TARGETS))[:2] == ["mean_0", "mean_1"]
    np.testing.assert_array_equal(columns_of(TARGETS)["std_1"], TARGETS.std[:, 1])
    found = columns_of(CLASSES, classes=["cat", "dog", "eel"])
    assert list(found) == ["class", "p_cat", "p_dog", "p_eel", "total_uncertainty", "aleatoric", "epistemic"]
    assert found["class"].tolist() == np.array(["cat", "dog", "eel"])[P.argmax(axis=1)].tolist()
    label = ClassificationPrediction(Bernoulli(), P[:, 0], RNG.random(10), RNG.random(10), 6)
    assert next(iter(columns_of(label))) == "probabilities"
    with pytest.raises(ValueError, match="`classes` must name 3 different classes, one for each column"):
        columns_of(CLASSES, classes=["cat", "cat", "eel"])
    wide = RegressionPrediction(Normal(), {name: np.ones((2, 3, 1001)) for name in ("loc", "scale")})
    with pytest.raises(ValueError, match="at most 1000 events for each input to be a table, not 1,001"):
        columns_of(wide)


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_a_part_that_fails_leaves_the_file_that_was_there(tmp_path, suffix):
    path = tmp_path / f"predictions{suffix}"
    bdl.write_predictions(path, [ONE])
    before = path.read_bytes()

    def parts():
        yield ONE
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bdl.write_predictions(path, parts())
    with pytest.raises(ValueError, match="`parts` must have the same columns"):
        bdl.write_predictions(path, [ONE, TARGETS])
    with pytest.raises(ValueError, match="`parts` must hold at least one prediction"):
        bdl.write_predictions(path, [])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_kind_of_file_is_refused_before_anything_is_predicted(tmp_path):
    def parts():
        raise AssertionError("a part was asked for")
        yield ONE

    with pytest.raises(ValueError, match=r"`path` must end in .parquet or .npy, not be 'predictions.csv'"):
        bdl.write_predictions(tmp_path / "predictions.csv", parts())


def test_bdl_evaluate_reads_what_was_written(tmp_path):
    """Columns of classes are told from those of uncertainties by their names."""
    pytest.importorskip("pyarrow")
    from bdl.evaluation.files import read_arrays, take_prediction

    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    x, y = RNG.normal(size=(60, 4)), RNG.integers(0, 3, 60)
    prediction = bdl.predict_distribution(network, x, Categorical(), 8, seed=1)
    path = tmp_path / "predictions.parquet"
    bdl.write_predictions(path, [prediction])
    taken = take_prediction(read_arrays(path), path, "y", None, [], y)
    assert bdl.evaluate(y, taken.arrays)["nll"] == pytest.approx(bdl.evaluate(y, prediction)["nll"], rel=1e-6)
