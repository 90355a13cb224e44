"""`evaluate` gives the scores of `bdl.calibration`, whatever form the predictions have."""

import json
import math

import keras
import numpy as np
import pytest
import typer
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import bdl
from bdl import cli
from bdl.calibration import (
    accuracy,
    bootstrap_interval,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    normal_crps,
    normal_negative_log_likelihood,
)

RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.ones(3), size=200)
Y = np.array([RANDOM.choice(3, p=row) for row in P])
MEAN, SCALE = RANDOM.normal(size=150), RANDOM.uniform(0.5, 2.0, size=150)
TARGET = MEAN + SCALE * RANDOM.normal(size=150)
QUICK = {"num_resamples": 50}


def test_scores_of_probabilities_are_those_of_the_metrics():
    evaluation = bdl.evaluate(Y, P)
    assert evaluation.kind == "classification"
    assert evaluation["nll"] == negative_log_likelihood(Y, P)
    assert evaluation["brier"] == brier_score(Y, P)
    assert evaluation["ece"] == expected_calibration_error(Y, P)
    assert evaluation.models["model"].scores["accuracy"] == bootstrap_interval(accuracy, Y, P)


@pytest.mark.parametrize(
    "prediction",
    [P, {"probabilities": P}, {"logits": np.log(P) + 3.0}, {"samples": np.stack([P, P])}],
    ids=["array", "probabilities", "logits", "samples"],
)
def test_every_form_of_class_probabilities_has_the_same_scores(prediction):
    assert_allclose(bdl.evaluate(Y, prediction, **QUICK)["nll"], negative_log_likelihood(Y, P))


def test_samples_split_the_uncertainty():
    samples = RANDOM.dirichlet(np.ones(3), size=(8, 200))
    evaluation = bdl.evaluate(Y, {"samples": samples}, **QUICK)
    mean = samples.mean(axis=0)
    assert_allclose(evaluation["aleatoric"], stats.entropy(samples, axis=-1).mean())
    assert_allclose(evaluation["aleatoric"] + evaluation["epistemic"], stats.entropy(mean, axis=-1).mean())


def test_scores_of_a_normal_are_those_of_the_metrics():
    evaluation = bdl.evaluate(TARGET, {"mean": MEAN, "scale": SCALE}, **QUICK)
    assert evaluation.kind == "regression"
    assert_allclose(evaluation["nll"], normal_negative_log_likelihood(TARGET, MEAN, SCALE))
    assert_allclose(evaluation["crps"], normal_crps(TARGET, MEAN, SCALE))
    low, high = stats.norm(MEAN, SCALE).interval(0.9)
    assert_allclose(evaluation["coverage_90%"], np.mean((low <= TARGET) & (high >= TARGET)))


def test_samples_of_targets_come_near_their_distribution():
    samples = MEAN + SCALE * np.random.default_rng(1).normal(size=(4000, 150))
    evaluation = bdl.evaluate(TARGET, {"samples": samples}, **QUICK)
    assert "nll" not in evaluation.models["model"].scores
    # The fair score of 4,000 samples is unbiased; its error is at most the samples' mean's, of 150 targets.
    assert abs(evaluation["crps"] - normal_crps(TARGET, MEAN, SCALE)) < 5 * SCALE.max() / math.sqrt(4000 * 150)


@pytest.mark.parametrize("kind", ["normal", "poisson"])
def test_a_regression_prediction_is_evaluated_as_its_mixture(kind):
    random = np.random.default_rng(2)
    if kind == "normal":
        likelihood, y = bdl.likelihoods.Normal(scale=1.0), TARGET
        parameters = {"loc": random.normal(size=(6, 150)), "scale": np.ones((6, 150))}
    else:
        likelihood, y = bdl.likelihoods.Poisson(), random.poisson(2.0, size=150)
        parameters = {"mu": random.uniform(1, 3, size=(6, 150))}
    prediction = bdl.prediction.RegressionPrediction(likelihood, parameters)
    evaluation = bdl.evaluate(y, prediction, **QUICK)
    assert_allclose(evaluation["nll"], -prediction.log_prob(y).mean())
    model = evaluation.models["model"]
    assert_allclose(model.pit.sum(), 1.0)
    assert_allclose(model.parts[0] ** 2 + model.parts[1] ** 2, prediction.variance)
    assert ("qce" in model.scores) == (kind == "normal")


def test_models_are_asked_for_their_predictions():
    x, y = load_iris(return_X_y=True)
    classifier = LogisticRegression(max_iter=500).fit(x, y)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)])
    likelihood = bdl.likelihoods.Categorical()
    dropout = bdl.convert.to_mc_dropout(network)
    variational = bdl.VariationalModel(
        keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)]), likelihood, num_examples=150
    )
    models = {"classifier": classifier, "dropout": dropout, "variational": variational, "ensemble": [network, network]}
    evaluation = bdl.evaluate(y, models, x, likelihood=likelihood, num_samples=4, **QUICK)
    assert list(evaluation.models) == list(models)
    assert evaluation.models["classifier"].scores["accuracy"].value == classifier.score(x, y)
    again = bdl.predict_distribution(dropout, x, likelihood, num_samples=4, seed=0)
    expected = negative_log_likelihood(y, again.probabilities)
    assert_allclose(evaluation.models["dropout"].scores["nll"].value, expected, rtol=1e-5)
    assert evaluation.models["variational"].scores["epistemic"].value > 0


def test_binary_and_multilabel_predictions():
    x = np.zeros((20, 2))
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    y = np.arange(20) % 2
    evaluation = bdl.evaluate(y, network, x, likelihood=bdl.likelihoods.Bernoulli(), num_samples=2, **QUICK)
    assert_allclose(evaluation["nll"], np.log(2), rtol=1e-6)
    labels = (RANDOM.uniform(size=(50, 3)) < 0.5).astype(int)
    assert_allclose(bdl.evaluate(labels, np.full((50, 3), 0.5), **QUICK)["brier"], 0.25)


def test_masked_tokens_do_not_count():
    mask = np.arange(200).reshape(40, 5) % 5 < 3
    evaluation = bdl.evaluate(Y.reshape(40, 5), P.reshape(40, 5, 3), mask=mask, **QUICK)
    assert evaluation.num_events == 120
    assert_allclose(evaluation["nll"], negative_log_likelihood(Y[mask.ravel()], P[mask.ravel()]))
    assert all(mask.ravel()[surprise.index] for surprise in evaluation.models["model"].surprises)


def test_the_most_confident_errors_come_first():
    model = bdl.evaluate(Y, P, **QUICK).models["model"]
    wrong = np.flatnonzero(P.argmax(axis=1) != Y)
    assert model.surprises[0].index == wrong[P[wrong].max(axis=1).argmax()]
    confidences = [surprise.confidence for surprise in model.surprises]
    assert confidences == sorted(confidences, reverse=True)
    assert len(confidences) == 10


def test_without_resamples_there_are_no_intervals():
    scores = bdl.evaluate(Y, P, num_resamples=0).models["model"].scores
    assert math.isnan(scores["nll"].low)
    assert not math.isnan(scores["debiased_ce"].low)


# What is written


def test_json_holds_the_figures_of_the_table(tmp_path):
    evaluation = bdl.evaluate(TARGET, {"a": {"mean": MEAN, "scale": SCALE}, "b": {"mean": MEAN, "std": 2.0}}, **QUICK)
    evaluation.save_json(tmp_path / "scores.json")
    read = json.loads((tmp_path / "scores.json").read_text())
    assert read["models"]["a"]["scores"]["crps"]["value"] == evaluation.models["a"].scores["crps"].value
    assert_allclose(sum(read["models"]["b"]["pit_histogram"]), 1.0)
    assert len(evaluation.table().columns) == 2


def test_the_page_shows_every_figure_and_table(tmp_path):
    samples = RANDOM.dirichlet(np.ones(3), size=(4, 200))
    bdl.evaluate(Y, {"one <b>": {"samples": samples}, "other": P}, **QUICK).save_html(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    for description in ("Reliability diagram. one", "Risk against coverage", "Aleatoric and epistemic"):
        assert f'alt="{description}' in html
    assert "one &lt;b&gt;" in html
    assert "The most confident errors" in html
    bdl.evaluate(TARGET, {"mean": MEAN, "scale": SCALE}, **QUICK).save_html(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    for description in ("Histogram of probability integral", "Observed against promised coverage"):
        assert f'alt="{description}' in html


def test_printing_it_shows_the_table():
    text = str(bdl.evaluate(Y, P, **QUICK))
    assert "Accuracy" in text
    assert "200 labels" in text


def test_the_words_say_what_a_level_and_the_debiased_error_are(tmp_path):
    evaluation = bdl.evaluate(Y, P, level=0.8, **QUICK)
    evaluation.save_html(tmp_path / "page.html")
    for text in (str(evaluation), (tmp_path / "page.html").read_text()):
        assert "80% confidence interval of the score" in text
        assert "Debiased RMS calibration error" in text
    command = next(each for each in typer.main.get_command(cli.app).commands.values() if each.name == "evaluate")
    (level,) = (parameter for parameter in command.params if parameter.name == "level")
    assert "Confidence level of the interval of each score" in level.help


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Y, {}), r"`prediction` must hold at least one prediction"),
        ((Y, {"mean": P}), r"`prediction` must hold probabilities, logits.*not the names \['mean'\]"),
        ((Y, {"a": P, "b": {"mean": MEAN, "scale": SCALE}}), r"must be of class probabilities for all models"),
        ((Y[:3], P), r"not 3 labels and 200 rows"),
        ((Y, P * 0.9), r"`probabilities` must sum to 1"),
        ((TARGET[:3], {"mean": MEAN, "scale": SCALE}), r"not shapes \(3,\) and \(150,\)"),
        ((TARGET, {"mean": MEAN, "scale": -SCALE}), r"`scale` must be positive"),
        ((TARGET, {"samples": MEAN}), r"`samples` must have shape \(samples, n\)"),
        ((TARGET, MEAN), r"`prediction` must say how sure it is of real targets"),
        ((Y, LogisticRegression()), r"`x` must hold the inputs of the model"),
        ((Y, keras.Sequential([keras.Input((1,))]), np.ones((200, 1))), r"`likelihood` must say"),
    ],
)
def test_bad_arguments_are_refused_with_the_cure(arguments, message):
    with pytest.raises(ValueError, match=message):
        bdl.evaluate(*arguments)


@pytest.mark.parametrize(
    ("y", "sound", "faulty"),
    [
        (Y, P, P * 0.9),
        (Y, P, P[:100]),
        (Y, P, {"logits": P[:, :2]}),
        (Y, P, {"probabilities": P, "classes": ["a", "b"]}),
        (Y, P, LogisticRegression()),
        (TARGET, {"mean": MEAN, "scale": SCALE}, {"mean": MEAN, "scale": -SCALE}),
        (TARGET, {"mean": MEAN, "scale": SCALE}, {"mean": MEAN[:9], "scale": SCALE[:9]}),
        (TARGET, {"mean": MEAN, "scale": SCALE}, {"samples": MEAN}),
    ],
)
def test_an_error_about_one_of_several_models_names_it(y, sound, faulty):
    with pytest.raises(ValueError, match=r"^(?!Model)") as alone:
        bdl.evaluate(y, {"faulty": faulty})
    with pytest.raises(ValueError, match=r"^Model 'faulty': ") as beside:
        bdl.evaluate(y, {"sound": sound, "faulty": faulty})
    assert str(beside.value) == f"Model 'faulty': {alone.value}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 95}, r"`level` must be between 0 and 1"),
        ({"num_bins": 0}, r"`num_bins` must be a positive integer"),
        ({"num_resamples": -1}, r"`num_resamples` must be an integer of at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bdl.evaluate(Y, P, **options)


def test_a_summary_without_a_distribution_is_refused_and_judged_as_a_normal_if_asked():
    quantiles = np.stack([MEAN - SCALE, MEAN + SCALE])
    summary = bdl.prediction.RegressionSummary(
        bdl.likelihoods.Normal(), MEAN, SCALE**2, np.zeros(150), 8, (0.1, 0.9), quantiles
    )
    with pytest.raises(ValueError, match=r"Predict without `summary`, or pass \{'mean': prediction.mean, 'std'"):
        bdl.evaluate(TARGET, summary)
    found = bdl.evaluate(TARGET, {"mean": summary.mean, "std": summary.std}, num_resamples=0)
    assert_allclose(found["nll"], normal_negative_log_likelihood(TARGET, MEAN, SCALE))


def test_a_mask_of_targets_is_refused():
    with pytest.raises(ValueError, match=r"`mask` must be of labels, not of targets"):
        bdl.evaluate(TARGET, {"mean": MEAN, "scale": SCALE}, mask=np.ones(150, bool))


class Shuffled(keras.utils.PyDataset):
    """Inputs and labels in an order that differs from reading to reading."""

    readings = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = np.random.default_rng(self.readings).permutation(20)[10 * index : 10 * index + 10]
        return INPUTS[rows], LABELS[rows]

    def on_epoch_begin(self):
        self.readings += 1


INPUTS = RANDOM.normal(size=(20, 4)).astype("float32")
LABELS = RANDOM.integers(0, 3, 20)


@pytest.mark.core
def test_labels_of_a_data_set_are_taken_with_its_inputs():
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = {"likelihood": bdl.likelihoods.Categorical(), "num_samples": 1, "num_resamples": 0}
    expected = bdl.evaluate(LABELS, network, INPUTS, **model)["nll"]
    data = Shuffled()
    found = bdl.evaluate(None, {"one": network, "two": network}, data, **model)
    assert data.readings == 1
    for each in found.models.values():
        assert each.scores["nll"].value == pytest.approx(expected, rel=1e-6)
    generator = ((INPUTS[start : start + 8], LABELS[start : start + 8]) for start in (0, 8, 16))
    assert bdl.evaluate(None, network, generator, **model)["nll"] == pytest.approx(expected, rel=1e-6)
    assert bdl.evaluate(LABELS, network, iter([INPUTS]), **model)["nll"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="`y` must be None where the data set `x` has labels"):
        bdl.evaluate(LABELS, network, Shuffled(), **model)
    for x in (INPUTS, iter([INPUTS])):
        with pytest.raises(ValueError, match="`y` must hold the labels"):
            bdl.evaluate(None, network, x, **model)
