"""`bdl.recipes.recommend`: what it reads off labels, which recipe it names, and that it touches nothing."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import bdl
from bdl import recipes
from bdl.recommendation import FEW_TARGETS, LARGE, MANY_TARGETS, by_likelihood, read_labels

pytestmark = pytest.mark.core


def network(outputs: int = 3, inputs: int = 4) -> keras.Model:
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(5, "relu"), layers.Dense(outputs)])


def inputs(n: int) -> np.ndarray:
    return np.zeros((n, 4), "float32")


@pytest.mark.parametrize(
    ("y", "width", "task", "likelihood"),
    [
        (["cat", "dog"], 2, "classification", "Categorical"),
        (np.array(["a", "b"], object), 3, "classification", "Categorical"),
        ([True, False], 1, "classification", "Bernoulli"),
        ([0, 2, 1], 3, "classification", "Categorical"),
        ([0.0, 2.0, 1.0], 3, "classification", "Categorical"),  # Keras takes class numbers of any type
        ([0, 1, 1], 1, "classification", "Bernoulli"),
        ([0.0, 1.0], 1, "classification", "Bernoulli"),
        ([0, 1], 2, "classification", "Categorical"),
        (np.eye(4), 4, "classification", "Categorical"),
        (np.array([[0, 1], [2, 0]]), 3, "classification", "Categorical"),  # labels of sequences
        ([0, 7, 3], 1, "counts", "NegativeBinomial"),
        ([0.0, 7.0, 3.0], 1, "regression", "StudentT"),
        ([-1, 7, 3], 1, "regression", "StudentT"),
        ([0.5, 1.0], 1, "regression", "StudentT"),
        ([0.5, np.nan], 1, "regression", "StudentT"),
        (np.full((3, 2), 0.5), 2, "regression", "StudentT"),
        ([0.5, 1.0], None, "regression", "StudentT"),
        (["a", "b"], None, "classification", "Categorical"),
    ],
)
def test_what_labels_are(y, width, task, likelihood):
    found = read_labels(y, width)
    assert (found.task, found.likelihood[0]) == (task, likelihood)
    assert found.reading.endswith(".")


@pytest.mark.parametrize(
    ("y", "width", "is_predicted"),
    [
        ([0.5, 1.2], 1, False),
        ([0.5, 1.2], 2, True),
        ([3, 70], 2, True),
        (np.full((3, 2), 0.5), 2, False),
        (np.full((3, 2), 0.5), 4, True),
    ],
)
def test_a_scale_is_predicted_where_the_network_has_an_output_for_it(y, width, is_predicted):
    found = read_labels(y, width)
    assert (found.task, found.likelihood[1].get("heteroscedastic", False)) == ("regression", is_predicted)


def test_ambiguous_whole_numbers_are_said_to_be_so():
    assert "task='regression'" in read_labels([0, 30], 1).reading
    assert "counts" in read_labels([0, 2], 3).reading


@pytest.mark.parametrize(
    ("task", "n", "name"),
    [
        ("classification", 20, "instead_of_ensemble"),
        ("classification", 100_000, "instead_of_ensemble"),
        ("regression", FEW_TARGETS - 1, "fully_gaussian"),
        ("regression", FEW_TARGETS, "small_data"),
        ("regression", MANY_TARGETS - 1, "small_data"),
        ("regression", MANY_TARGETS, "regression"),
        ("counts", 50, "small_data"),
    ],
)
def test_the_recipe_follows_task_and_size(task, n, name):
    found = recipes.recommend(network(1), inputs(n), np.zeros(n), task=task)
    assert found.name == name
    assert f"{n:,} training examples" in found.reason
    assert "as you say" in found.labels


def test_a_predicted_scale_keeps_small_data_however_many_targets_there_are():
    n = MANY_TARGETS
    assert recipes.recommend(network(2), inputs(n), np.linspace(0, 1, n)).name == "small_data"


@pytest.mark.parametrize(
    ("likelihood", "n", "name"),
    [
        (bdl.likelihoods.Categorical(), 50, "instead_of_ensemble"),
        (bdl.likelihoods.Bernoulli(), 5_000, "instead_of_ensemble"),
        (bdl.likelihoods.Normal(), FEW_TARGETS - 1, "fully_gaussian"),
        (bdl.likelihoods.StudentT(), MANY_TARGETS, "regression"),
        (bdl.likelihoods.StudentT(heteroscedastic=True), MANY_TARGETS, "small_data"),
        (bdl.likelihoods.Poisson(), FEW_TARGETS - 1, "small_data"),
    ],
)
def test_an_estimator_asks_by_its_likelihood(likelihood, n, name):
    assert by_likelihood(likelihood, n) == name


def test_the_recipe_and_the_likelihood_can_be_called():
    y = np.arange(90) % 3
    plain = network()
    found = recipes.recommend(plain, inputs(90), y)
    model = found.recipe(plain, found.likelihood)
    assert isinstance(model, bdl.VariationalModel)
    assert found.code == "bdl.recipes.instead_of_ensemble(network, bdl.likelihoods.Categorical())"
    history = model.fit(inputs(90), y, epochs=1, verbose=0).history
    assert np.isfinite(history["elbo"][0])


def test_advice_is_text_of_a_frozen_record():
    found = recipes.recommend(network(2), inputs(240), np.linspace(0, 1, 240))
    text = str(found)
    assert text.startswith("bdl.recipes.small_data(network, bdl.likelihoods.StudentT(heteroscedastic=True))\n")
    parts = (found.labels, found.reason, found.cost, found.otherwise)
    assert all(part and part in text and part.endswith(".") for part in parts)
    assert "125 epochs in batches of 32" in found.cost  # 1,000 steps of eight batches an epoch
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"


def test_nothing_is_trained_or_drawn():
    plain = network()
    before = [keras.ops.convert_to_numpy(variable) for variable in plain.variables]
    keras.utils.set_random_seed(0)
    following = np.random.random()  # noqa: NPY002  # the generator that Keras' seeds come from
    keras.utils.set_random_seed(0)
    recipes.recommend(plain, inputs(30), np.arange(30) % 3)
    assert np.random.random() == following  # noqa: NPY002
    assert len(plain.variables) == len(before)
    for variable, value in zip(plain.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_a_trained_network_is_fine_tuned():
    plain = network()
    plain.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.arange(32) % 3
    assert recipes.recommend(plain, inputs(32), y).name == "instead_of_ensemble"
    plain.fit(inputs(32), y, verbose=0)
    assert recipes.recommend(plain, inputs(32), y).name == "fine_tuning"
    assert recipes.recommend(plain, inputs(32), y, is_trained=False).name == "instead_of_ensemble"
    assert recipes.recommend(network(), inputs(32), y, is_trained=True).name == "fine_tuning"


def test_of_a_very_large_network_the_last_layer_is_chosen(monkeypatch):
    plain = network()
    monkeypatch.setattr(type(plain), "count_params", lambda self: LARGE + 1)
    y = np.arange(2_000) % 3
    assert recipes.recommend(plain, inputs(2_000), y).name == "last_layer"
    trained = recipes.recommend(plain, inputs(2_000), y, is_trained=True)
    assert trained.code == "bdl.recipes.fine_tuning(network, bdl.likelihoods.Categorical(), layers='last')"
    report = trained.recipe(plain, trained.likelihood).network.report
    assert sum("reparameterization" in str(line) for line in report) == 1


def two_heads() -> keras.Model:
    entry = keras.Input((4,))
    return keras.Model(entry, {"kind": layers.Dense(3)(entry), "size": layers.Dense(1)(entry)})


def test_several_outputs_have_a_likelihood_each():
    x, kind, size = inputs(60), np.arange(60) % 3, np.linspace(0, 1, 60)
    found = recipes.recommend(two_heads(), x, {"kind": kind, "size": size})
    assert (found.name, found.likelihood) == ("small_data", None)
    assert "2 outputs" in found.labels
    many = recipes.recommend(two_heads(), inputs(2_000), {"kind": kind, "size": kind % 2})
    assert many.name == "instead_of_ensemble"


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return inputs(32), np.arange(32) % 3


def test_data_sets_tell_their_size_and_labels():
    found = recipes.recommend(network(), Batches())
    assert found.name == "instead_of_ensemble"
    assert "1,280 training examples" in found.reason


def test_tables_of_pandas():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(inputs(30), columns=list("abcd"))
    kinds = pandas.Series(["a", "b", "c"] * 10)
    for labels in (kinds, kinds.astype("category"), kinds.to_frame()):
        assert recipes.recommend(network(), table, labels).likelihood.is_classifier
    counts = pandas.Series(range(30), dtype="object")
    assert recipes.recommend(network(1), table, counts).labels.startswith("integers from 0 to 29")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((network(3), inputs(9), np.arange(9)), "`y` must hold class numbers from 0 to 2"),
        ((network(3), inputs(9), np.zeros(0)), "`y` must hold labels"),
        ((network(3), inputs(9), np.zeros(9, complex)), "`y` must hold numbers"),
        ((network(3), inputs(9)), "`y` must hold the labels, or `task`"),
        ((network(3), iter([inputs(9)])), "`num_examples` must be"),
        ((network(3), inputs(9), np.zeros(9), "sorting"), "`task` must be one of"),
        ((network(3), inputs(9), np.zeros(9), None, 0), "`num_examples` must be"),
        (("network", inputs(9), np.zeros(9)), "`network` must be a keras.Model"),
    ],
)
def test_what_cannot_be_told_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipes.recommend(*arguments)


def test_whole_numbers_need_known_outputs():
    with pytest.raises(ValueError, match="`task` must be one of"):
        read_labels([0, 1], None)
