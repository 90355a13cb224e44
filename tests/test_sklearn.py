"""scikit-learn's contract, on closed-form stand-ins for the training; and what the estimators make of real networks."""

import copy
import pickle
import random
import re
import warnings
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import bdl
from bdl.prediction import ClassificationPrediction, RegressionPrediction
from bdl.sklearn import BayesianClassifier, BayesianRegressor, default_network
from bdl.sklearn.passes import Passes
from bdl.training.data import DataSize, measure

IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)
FLOWERS = np.array(["setosa", "versicolor", "virginica"])[IRIS[1]]


@keras.saving.register_keras_serializable(package="tests")
class ClosedForm(bdl.VariationalModel):
    """A linear network whose weights scikit-learn finds: what the estimators do around a training, in no time."""

    def fit(self, data, **kwargs):
        x, y, *weights = data.arrays
        is_classifier = self.likelihood.is_classifier
        model = LogisticRegression(C=10, tol=1e-6, max_iter=1000) if is_classifier else Ridge(1e-3)
        model.fit(x, y, *weights)
        kernel, bias = np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)
        if is_classifier and self.likelihood.has_class_axis and kernel.shape[1] == 1:
            kernel, bias = np.concatenate([0 * kernel, kernel], axis=1), np.append(0, bias)
        self.network.set_weights([kernel, bias])
        return keras.callbacks.History()

    def predict_distribution(self, x, num_samples=64, batch_size=32, consistent=False, seed=None, keep_outputs=False):
        kernel, bias = self.network.get_weights()
        # Row by row: a matrix product rounds differently for another number of rows.
        outputs = np.stack([(row[:, None].astype("float64") * kernel).sum(axis=0) + bias for row in x])
        if self.likelihood.is_classifier:
            log_p = keras.ops.convert_to_numpy(self.likelihood.log_probabilities(outputs))
            p = np.exp(log_p) if self.likelihood.has_class_axis else np.exp(log_p[..., 1])
            entropy = bdl.prediction.requests.entropy(self.likelihood, log_p)
            return ClassificationPrediction(self.likelihood, p, entropy, entropy, 1, log_probabilities=log_p)
        location = outputs[None, :, 0] if outputs.shape[1] == 1 else outputs[None]
        return RegressionPrediction(self.likelihood, {"loc": location, "scale": np.ones_like(location)})


class closed_form:  # noqa: N801
    """A recipe. A class, because scikit-learn names tests by their arguments, and a function's name has its address."""

    def __new__(cls, network, likelihood):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a network without noise
            return ClosedForm(network, likelihood)


def dropout_network(num_features, num_outputs):
    """A plain network without seeds of its own."""
    return keras.Sequential([layers.Dropout(0.5), layers.Dense(num_outputs)])


IN_NO_TIME = {"hidden": (), "recipe": closed_form, "random_state": 0}
ROUNDING = {
    "check_sample_weight_equivalence_on_dense_data": "inputs and outputs of a network are float32; the check asks for "
    "1e-7 where the stand-in has 1e-6",
}
TRAINING = {
    "check_sample_weight_equivalence_on_dense_data": "an example that is there twice meets other batches and other "
    "noise than one of weight 2: only the objective is the same",
}


@parametrize_with_checks(
    [BayesianClassifier(**IN_NO_TIME), BayesianRegressor(**IN_NO_TIME)], expected_failed_checks=lambda _: ROUNDING
)
def test_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [BayesianClassifier, BayesianRegressor])
def test_contract_with_training(estimator):
    check_estimator(
        estimator(hidden=(16,), epochs=40, batch_size=16, num_samples=8, random_state=0),
        expected_failed_checks=TRAINING,
    )


@pytest.fixture(scope="module")
def linear():
    """A linear network on targets far from unit scale: least squares says what it should find."""
    x, y = DIABETES
    y = 1000 * y + 5e4
    return BayesianRegressor(hidden=(), likelihood="normal", epochs=40, num_samples=8, random_state=0).fit(x, y), x, y


def test_mean_and_noise_are_those_of_least_squares(linear):
    regressor, x, y = linear
    residual = y - LinearRegression().fit(x, y).predict(x)
    noise = np.sqrt(regressor.predict_distribution(x).aleatoric.mean())
    assert_allclose(noise, residual.std(), rtol=5 / np.sqrt(2 * len(y)))
    assert_allclose(regressor.predict(x).mean(), y.mean(), atol=5 * residual.std() / np.sqrt(len(y)))
    assert regressor.n_iter_ == 40
    assert 40 * len(y) / 32 <= regressor.model_.step < 41 * len(y) / 32


def test_a_copy_predicts_the_same_and_a_row_whatever_comes_with_it(linear):
    regressor, x, _ = linear
    expected = regressor.predict(x, return_std=True)
    assert_array_equal(regressor.predict(x, return_std=True), expected)
    for same in (copy.deepcopy(regressor), pickle.loads(pickle.dumps(regressor))):
        assert_array_equal(same.predict(x, return_std=True), expected)
        assert same.history_ == regressor.history_
    shuffled = np.random.default_rng(0).permutation(len(x))[:5]
    # float32 rounds sums of other lengths differently.
    assert_allclose(regressor.predict(x[shuffled]), expected[0][shuffled], rtol=1e-5)


@pytest.mark.core
def test_the_same_random_state_is_the_same_training_and_no_global_state_moves():
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    estimator = BayesianClassifier(dropout_network, epochs=1, num_samples=2, random_state=0)
    first, second = (clone(estimator).fit(*IRIS).predict_proba(IRIS[0]) for _ in range(2))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert_array_equal(first, second)


def test_predictions_are_in_the_targets_unit():
    x, y = DIABETES
    regressor = BayesianRegressor(**IN_NO_TIME, likelihood="normal").fit(x, y)
    expected = Ridge(1e-3).fit(StandardScaler().fit_transform(x), y).predict(StandardScaler().fit_transform(x))
    mean, std = regressor.predict(x, return_std=True)
    assert_allclose(mean, expected, rtol=1e-4)  # of weights and inputs in float32
    assert_allclose(std, y.std(), rtol=1e-6)  # the stand-in's scale is 1 in standardised targets
    prediction, truth = regressor.predict_distribution(x), stats.norm(expected, y.std())
    assert_allclose(prediction.log_prob(y), truth.logpdf(y), rtol=1e-4)
    assert_allclose(prediction.quantile(0.9), truth.ppf(0.9), rtol=1e-4)
    assert regressor.score(x, y) == pytest.approx(1 - np.mean((y - expected) ** 2) / y.var(), abs=1e-4)


def test_several_targets_and_a_column():
    x, y = DIABETES
    targets = np.stack([y, -10 * y + 3], axis=1)
    several = BayesianRegressor(**IN_NO_TIME).fit(x, targets)
    mean, std = several.predict(x, return_std=True)
    assert mean.shape == std.shape == targets.shape
    assert_allclose(mean[:, 1], 3 - 10 * mean[:, 0], rtol=1e-4)
    assert several.predict_distribution(x).log_prob(targets).shape == targets.shape
    column = BayesianRegressor(**IN_NO_TIME).fit(x, y[:, None])
    assert column.predict(x).shape == (len(x), 1)
    assert column.predict_distribution(x).mean.shape == (len(x),)


def test_labels_of_any_kind():
    by_number, by_name = (BayesianClassifier(**IN_NO_TIME).fit(IRIS[0], y) for y in (IRIS[1], FLOWERS))
    assert by_name.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert_array_equal(by_name.predict(IRIS[0]), by_name.classes_[by_number.predict(IRIS[0])])
    assert_array_equal(by_name.predict_proba(IRIS[0]), by_number.predict_proba(IRIS[0]))
    prediction = by_name.predict_distribution(IRIS[0])
    labels = np.searchsorted(by_name.classes_, FLOWERS)
    log_p = by_name.predict_log_proba(IRIS[0])
    assert_allclose(prediction.log_prob(labels), log_p[np.arange(len(labels)), labels], atol=1e-6)  # of float32


def test_works_inside_scikit_learn():
    classifier = make_pipeline(StandardScaler(), BayesianClassifier(**IN_NO_TIME))
    peer = make_pipeline(StandardScaler(), LogisticRegression(C=10))
    assert_allclose(cross_val_score(classifier, *IRIS, cv=3), cross_val_score(peer, *IRIS, cv=3))
    grid = {"bayesianclassifier__recipe": ["no such recipe", closed_form]}
    search = GridSearchCV(classifier, grid, cv=2, error_score=0.0)
    with pytest.warns(match="no such recipe"):
        search.fit(IRIS[0], FLOWERS)
    assert search.best_params_["bayesianclassifier__recipe"] is closed_form
    assert search.score(IRIS[0], FLOWERS) > 0.9


def test_frames_and_series():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IRIS[0], columns=list("abcd"))
    classifier = BayesianClassifier(**IN_NO_TIME).fit(frame, pandas.Series(FLOWERS), pandas.Series(np.ones(150)))
    assert classifier.feature_names_in_.tolist() == list("abcd")
    expected = BayesianClassifier(**IN_NO_TIME).fit(IRIS[0], FLOWERS).predict_proba(IRIS[0])
    assert_array_equal(classifier.predict_proba(frame), expected)
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(frame.rename(columns={"a": "e"}))


def test_class_weights_are_weights_of_examples():
    weights = {"setosa": 1.0, "versicolor": 5.0, "virginica": 2.0}
    estimator = BayesianClassifier(**IN_NO_TIME, standardize_inputs=False)
    by_class = clone(estimator).set_params(class_weight=weights).fit(IRIS[0], FLOWERS, np.full(150, 2.0))
    by_example = estimator.fit(IRIS[0], FLOWERS, [2 * weights[name] for name in FLOWERS])
    assert_allclose(by_class.predict_proba(IRIS[0]), by_example.predict_proba(IRIS[0]), rtol=1e-5)


def test_epochs_by_default_are_enough_for_small_and_large_tables():
    for size, epochs in ((20, 2000), (320, 200), (3200, 40)):
        x, y = np.resize(DIABETES[0], (size, 10)), np.arange(size)
        assert BayesianRegressor(**IN_NO_TIME).fit(x, y).n_iter_ == epochs


def test_passes_show_every_example_once_each_in_an_order_of_its_own():
    x = np.arange(7)
    passes = Passes([x, -x], batch_size=3, seed=5)
    batches = [passes[number] for number in range(14)]  # six passes
    assert all((inputs == -targets).all() for inputs, targets in batches)
    seen = np.concatenate([inputs for inputs, _ in batches]).reshape(6, 7)
    assert_array_equal(np.sort(seen, axis=1), np.tile(x, (6, 1)))
    assert len({tuple(order) for order in seen}) == 6
    again = Passes([x, -x], batch_size=3, seed=5)
    for number in (13, 2, 9):
        assert_array_equal(again[number][0], batches[number][0])
    assert measure(passes) == DataSize(7, None)


def test_the_package_has_no_other_name_that_is_loaded_late():
    with pytest.raises(AttributeError, match="module 'bdl' has no attribute 'nothing'"):
        _ = bdl.nothing


def test_default_network_is_decided_by_its_seed():
    first, same, other = (default_network(4, 3, hidden=(5,), seed=seed).get_weights() for seed in (1, 1, 2))
    for one, two, three in zip(first[::2], same[::2], other[::2], strict=True):
        assert_array_equal(one, two)
        assert np.abs(one - three).max() > 0.01


def test_a_function_that_takes_a_seed_gets_one():
    seeds = []

    def network(num_features, num_outputs, seed):
        seeds.append(seed)
        return default_network(num_features, num_outputs, (), seed)

    for random_state in (0, 0, 1):
        BayesianRegressor(network, recipe=closed_form, random_state=random_state).fit(*DIABETES)
    assert seeds[0] == seeds[1] != seeds[2]


def bayesian(num_features, num_outputs):
    return keras.Sequential([keras.Input((num_features,)), bdl.layers.DenseReparameterization(num_outputs)])


@keras.saving.register_keras_serializable(package="tests")
class Laplace(bdl.likelihoods.Normal.__base__):
    """A likelihood of a user's own, with a location and a scale."""

    def log_prob(self, y, outputs):
        values = self.parameters(outputs)
        return -keras.ops.abs(y - values["loc"]) / values["scale"] - keras.ops.log(2.0 * values["scale"])

    def variance(self, outputs):
        return 2.0 * self.parameters(outputs)["scale"] ** 2

    def distribution(self, parameters):
        return stats.laplace(**parameters)


def test_targets_of_any_likelihood_of_a_location_and_a_scale_are_standardised():
    x, y = DIABETES
    regressor = BayesianRegressor(bayesian, likelihood=Laplace(), epochs=1, num_samples=2, random_state=0).fit(x, y)
    assert_allclose(regressor.target_scaler_.mean_, y.mean())
    assert abs(regressor.predict(x).mean() - y.mean()) < y.std()


@pytest.mark.core
def test_a_network_with_posteriors_of_its_own_and_counts():
    likelihood = bdl.likelihoods.Poisson()
    x, y = DIABETES[0], np.round(DIABETES[1])
    regressor = BayesianRegressor(bayesian, likelihood=likelihood, epochs=1, num_samples=2, random_state=0).fit(x, y)
    assert not hasattr(regressor, "target_scaler_")
    assert isinstance(regressor.model_.likelihood, bdl.likelihoods.Poisson)
    assert regressor.model_.likelihood is not likelihood
    assert regressor.model_.num_examples == len(y)
    prediction = regressor.predict_distribution(x)
    assert prediction.is_count
    assert_allclose(regressor.predict(x), prediction.mean)


def test_several_outputs_for_one_target():
    likelihood = bdl.likelihoods.Normal(heteroscedastic=True)
    found = []

    def network(num_features, num_outputs):
        found.append(num_outputs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BayesianRegressor(network, likelihood=likelihood).fit(*DIABETES)
    assert found == [2]


NO_MODEL = {"hidden": (), "recipe": lambda network, likelihood: network}
WRONG = [
    ({"epochs": 0}, "`epochs` must be None or an integer of at least 1, not 0"),
    ({"batch_size": 2.5}, "`batch_size` must be an integer of at least 1, not 2.5"),
    ({"network": keras.Sequential()}, "`network` must be None or a function"),
    ({"network": lambda n, k: k}, "`network` must be a function that returns a keras.Model, not 1"),
    ({"network": lambda n, k: default_network(n, 7), "recipe": closed_form}, "outputs StudentT can read for 1 targets"),
    ({"recipe": "best"}, "`recipe` must be 'auto', one of"),
    (NO_MODEL, "`recipe` must return a compiled bdl.VariationalModel, not <Sequential"),
    ({"recipe": lambda n, _: closed_form(n, bdl.likelihoods.Categorical())}, "BayesianClassifier is for classes"),
    ({"likelihood": "gamma"}, "`likelihood` must be one of"),
    ({"likelihood": bdl.likelihoods.Categorical()}, "`likelihood` must be one of"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BayesianRegressor(**arguments).fit(*DIABETES)


def test_a_classifier_refuses_what_is_no_model_of_its_classes():
    network = partial(default_network, hidden=())
    wrong = {
        "one logit for each of the 3 classes, not in outputs of shape (None, 2)": lambda n, k: network(n, 2),
        "BayesianRegressor is for real targets": lambda n, k: closed_form(network(n, k), bdl.likelihoods.Normal()),
    }
    for message, function in wrong.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            BayesianClassifier(function, recipe=closed_form).fit(*IRIS)


def test_bernoulli_serves_two_classes():
    is_setosa = FLOWERS == "setosa"

    def network(num_features, num_outputs):
        return closed_form(default_network(num_features, num_outputs - 1, ()), bdl.likelihoods.Bernoulli())

    classifier = BayesianClassifier(network)
    with pytest.raises(ValueError, match="one logit for each of the 3 classes"):
        classifier.fit(IRIS[0], FLOWERS)
    classifier.fit(IRIS[0], is_setosa)
    assert classifier.predict_proba(IRIS[0]).shape == (150, 2)
    assert_array_equal(classifier.predict(IRIS[0]), is_setosa)


def test_columns_far_from_unit_scale_are_pointed_out():
    estimator = BayesianRegressor(**IN_NO_TIME, standardize_inputs=False)
    x, y = 20 * DIABETES[0], DIABETES[1]  # columns of .95
    estimator.fit(x, y)
    estimator.fit(np.round(100 * x).astype(int), y)  # whole numbers may be names of things
    with pytest.warns(UserWarning, match="Column 3 of `X` has a root mean square of 19"):
        estimator.fit(x * np.where(np.arange(10) == 3, 20.0, 1.0), y)
    with pytest.warns(UserWarning, match="has a root mean square of 0.00951"):
        estimator.fit(x / 100, y)
