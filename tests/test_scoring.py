"""Batches of a table, cut anywhere and in any order, are scored as the whole table is."""

import pickle

import keras
import numpy as np
import pandas as pd
import pytest

import bdl
from bdl.prediction import columns_of

pytestmark = pytest.mark.core

SIZE = 203
NAMES = ["a", "b", "c"]
SETTINGS = {"num_samples": 6, "batch_size": 32, "seed": 3}
X = np.random.default_rng(0).normal(size=(SIZE, 3)).astype("float32")


def network(outputs):
    """With noise of single examples, of two kinds."""
    layers = [
        keras.layers.Dense(8, "relu"),
        bdl.layers.MCDropout(0.3, seed=1),
        bdl.layers.DenseFlipout(outputs, seed=2),
    ]
    return keras.Sequential([keras.Input((3,)), *layers])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("scoring") / "network.keras"
    network(3).save(path)
    return path


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    keras.utils.set_random_seed(2)
    path = tmp_path_factory.mktemp("scoring") / "model.keras"
    bdl.VariationalModel(network(1), bdl.likelihoods.Normal()).save(path)
    return path


def table(order=None):
    frame = pd.DataFrame(X, columns=NAMES).assign(row=np.arange(SIZE))
    return frame if order is None else frame.iloc[order]


def assert_same(frame, expected):
    frame = frame.sort_values("row")
    for name, column in expected.items():
        np.testing.assert_array_equal(frame[name].to_numpy(), column)


@pytest.fixture(scope="module")
def of_classes(classifier):
    """A scorer, and the columns of a prediction for the whole table."""
    likelihood = bdl.likelihoods.Categorical()
    whole = columns_of(bdl.predict_distribution(keras.saving.load_model(classifier), X, likelihood, **SETTINGS))
    return bdl.scoring.Scorer(classifier, NAMES, likelihood, **SETTINGS), whole


CUTS = {
    "even": [50, 100, 150],
    "in batches": [32, 64, 96, 128],
    "uneven": [1, 2, 40, 41, 200],
    "not": [],
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_the_cuts_do_not_matter(of_classes, cuts):
    scorer, whole = of_classes
    parts = np.split(np.arange(SIZE), cuts)[::-1]
    scorer = pickle.loads(pickle.dumps(scorer))
    assert_same(pd.concat([scorer(table(part)) for part in parts]), whole)


def test_the_order_of_rows_does_not_matter(of_classes):
    scorer, whole = of_classes
    parts = np.array_split(np.random.default_rng(0).permutation(SIZE), 2)
    assert_same(pd.concat(list(scorer(table(part) for part in parts))), whole)


def test_a_variational_model_has_its_own_likelihood_and_quantiles_are_added(regression):
    model = keras.saving.load_model(regression)
    whole = columns_of(model.predict_distribution(X, summary=(0.1, 0.9), **SETTINGS))
    scorer = bdl.scoring.Scorer(regression, NAMES, quantiles=(0.1, 0.9), **SETTINGS)
    parts = [scorer(table(part)) for part in np.split(np.arange(SIZE), [70])]
    assert list(whole) == ["mean", "std", "aleatoric", "epistemic", "quantile_0.1", "quantile_0.9"]
    assert_same(pd.concat(parts), whole)


def test_members_of_an_ensemble_score_together(classifier, tmp_path):
    network(3).save(tmp_path / "other.keras")
    paths = [classifier, tmp_path / "other.keras"]
    likelihood = bdl.likelihoods.Categorical()
    models = [keras.saving.load_model(path) for path in paths]
    whole = columns_of(bdl.predict_distribution(models, X, likelihood, **SETTINGS))
    scorer = bdl.scoring.Scorer(paths, NAMES, likelihood, **SETTINGS)
    assert_same(pd.concat([scorer(table(part)) for part in np.split(np.arange(SIZE), [70])]), whole)


def test_a_dict_of_arrays_with_whole_inputs_in_a_column_gives_one(classifier, of_classes):
    _, whole = of_classes
    scorer = bdl.scoring.Scorer(
        classifier, "x", bdl.likelihoods.Categorical(), classes=["red", "green", "blue"], **SETTINGS
    )
    batch = {"row": np.arange(SIZE), "x": X, "name": np.full(SIZE, "n")}
    found = scorer(batch)
    assert list(found)[:7] == ["row", "x", "name", "class", "p_red", "p_green", "p_blue"]
    np.testing.assert_array_equal(found["p_blue"], whole["p_2"])
    assert set(batch) == {"row", "x", "name"}  # which is as it was
    lists = pd.DataFrame({"row": np.arange(SIZE), "x": X.tolist()})  # as Spark has arrays
    np.testing.assert_array_equal(scorer(lists)["p_blue"], whole["p_2"])


def test_several_inputs_are_columns_by_their_names(tmp_path):
    size, shape = keras.Input((1,), name="size"), keras.Input((2,), name="shape")
    outputs = bdl.layers.DenseFlipout(2, seed=1)(keras.layers.Concatenate()([size, shape]))
    model = keras.Model({"size": size, "shape": shape}, outputs)
    model.save(tmp_path / "two.keras")
    inputs, likelihood = {"size": ["a"], "shape": ["b", "c"]}, bdl.likelihoods.Categorical()
    whole = columns_of(bdl.predict_distribution(model, {"size": X[:, :1], "shape": X[:, 1:]}, likelihood, **SETTINGS))
    assert_same(bdl.scoring.Scorer(tmp_path / "two.keras", inputs, likelihood, **SETTINGS)(table()), whole)


def test_whole_functions_need_no_numbers_of_rows(classifier):
    settings = {"consistent": True, **SETTINGS}
    likelihood = bdl.likelihoods.Categorical()
    whole = columns_of(bdl.predict_distribution(keras.saving.load_model(classifier), X, likelihood, **settings))
    found = bdl.scoring.Scorer(classifier, NAMES, likelihood, row=None, **settings)(table().drop(columns="row"))
    for name, column in whole.items():
        np.testing.assert_array_equal(found[name], column)


def test_a_batch_without_rows_stays_as_it_is(of_classes):
    scorer, _ = of_classes
    assert list(scorer(table()[:0]).columns) == [*NAMES, "row"]
    assert scorer({}) == {}


def test_a_file_that_has_changed_is_noticed(classifier, tmp_path):
    path = tmp_path / "network.keras"
    path.write_bytes(classifier.read_bytes())
    scorer = bdl.scoring.Scorer(path, NAMES, bdl.likelihoods.Categorical(), **SETTINGS)
    network(3).save(path)
    with pytest.raises(ValueError, match=r"network\.keras has changed\. Make a new Scorer"):
        scorer(table())


def test_a_plain_network_needs_a_likelihood(classifier):
    with pytest.raises(ValueError, match=r"`likelihood` is needed: .*holds no VariationalModel"):
        bdl.scoring.Scorer(classifier, NAMES)(table())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (np.zeros(2, int), "`row` must be a column of integers .* not numbers from 0 to 0"),
        (np.array([-1, 0]), "not numbers from -1 to 0"),
        (np.array([0, 2**33]), "each once, the places of rows in the data, not numbers from 0 to 8589934592. .*Spark"),
        (np.array([0.0, 1.0]), "not float64"),
        (None, "`batch` must have a column 'row'; it has"),
    ],
)
def test_numbers_of_rows_are_checked(of_classes, row, says):
    scorer, _ = of_classes
    batch = {name: X[:2, place] for place, name in enumerate(NAMES)}
    with pytest.raises(ValueError, match=says):
        scorer(batch if row is None else {**batch, "row": row})


def test_columns_are_checked(of_classes):
    scorer, _ = of_classes
    with pytest.raises(ValueError, match="`batch` must have a column 'b'"):
        scorer(table().drop(columns="b"))
    with pytest.raises(ValueError, match=r"`batch` must not have columns \['p_1'\] already"):
        scorer(table().assign(p_1=0.0))
    with pytest.raises(ValueError, match=r"`batch` must be a dict of arrays .* not ndarray"):
        scorer(X)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path": "missing.keras"}, r"missing\.keras is no file"),
        ({"path": []}, "`path` must be a .keras file or a list of at least one"),
        ({"num_samples": 0}, "`num_samples` must be a positive integer"),
        ({"batch_size": 2.5}, "`batch_size` must be a positive integer"),
        ({"seed": None}, "`seed` must be an integer"),
        ({"quantiles": (0.1, 1.0)}, "`quantiles` must be levels between 0 and 1"),
        ({"row": None}, "`row` must name the column with the number of each row"),
    ],
)
def test_arguments_out_of_range_are_refused(classifier, change, says):
    with pytest.raises(ValueError, match=says):
        bdl.scoring.Scorer(**{"path": classifier, "inputs": NAMES, **change})
